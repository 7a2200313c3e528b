"""`gnet plan`: compile the training step for absent TPUs and GPUs."""

"""`gnet plan`: compile the training step for TPUs and GPUs that are not in this machine."""

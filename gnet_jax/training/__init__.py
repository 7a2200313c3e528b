"""Training: the step, the loop, checkpoints, several hosts, and what a run logs."""

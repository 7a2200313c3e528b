"""Start and stop a run on several hosts."""

"""Start and stop a run on several hosts, and check that all of them agree."""

"""Print and record what happens in a run."""

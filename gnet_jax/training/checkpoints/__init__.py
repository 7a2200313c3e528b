"""Checkpoints: save, verify, restore, keep."""

"""Sweeps: train, compare and report configs."""

"""Sweeps: train several configs, compare them and write a report."""

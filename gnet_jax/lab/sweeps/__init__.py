"""Ablations: run them, compare them, report them."""

"""Measure what the network costs, and what its parts contribute to accuracy."""

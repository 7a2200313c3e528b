"""Bytes to batches: sources, decoding, order, and the augmentation inside the compiled step."""

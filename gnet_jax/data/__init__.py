"""The input pipeline: data sources, decoding, batches, and augmentation in the compiled step."""

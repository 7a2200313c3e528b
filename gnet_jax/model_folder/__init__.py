"""What a model on disk says of itself, in model folders and in checkpoints."""

"""Inference with trained models: prediction, evaluation and class activation maps."""

"""A model on disk: weights, configuration, class names, preprocessing and a card for people."""

from gnet_jax.model_folder.folder import TrainedModel, WeightsError, read_folder, write_folder

__all__ = ["TrainedModel", "WeightsError", "read_folder", "write_folder"]

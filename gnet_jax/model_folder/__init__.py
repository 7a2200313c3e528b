"""Model folders: a model on disk with weights, class names, preprocessing and a model card."""

from gnet_jax.model_folder.folder import TrainedModel, WeightsError, read_folder, write_folder

__all__ = ["TrainedModel", "WeightsError", "read_folder", "write_folder"]

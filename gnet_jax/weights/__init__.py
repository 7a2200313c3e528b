"""Foreign weights in, portable files out."""

from gnet_jax.weights.folder import ModelFolder, load, read_folder, write_folder
from gnet_jax.weights.variables import WeightsError

__all__ = ["ModelFolder", "WeightsError", "load", "read_folder", "write_folder"]

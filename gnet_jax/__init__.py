"""GoogLeNet (Inception v1) in JAX and Flax Linen, from one laptop to a TPU pod."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnet_jax.config import Preprocessing
    from gnet_jax.model.googlenet import GoogLeNet

__version__ = "0.1.0"


def load(path: str | Path) -> "tuple[GoogLeNet, dict[str, Any], Preprocessing]":
    """The network of a model folder, its variables on the device, and its preprocessing.

    Raises:
        gnet_jax.model_folder.WeightsError: if the folder is missing or corrupt, or its weights do
            not fit its architecture.
    """
    from gnet_jax.model_folder.folder import load  # here: `import gnet_jax` alone imports no jax

    return load(path)

"""GoogLeNet (Inception v1) in JAX and Flax Linen, from one laptop to a TPU pod.

Load a trained model from a model folder, a training workdir or a file of published weights:

    model = gnet_jax.load("runs/digits")
    model.predict("photo.png", top=3)  # [[("7", 0.98), ("1", 0.01), ("9", 0.003)]]
    model.cam("photo.png")  # the class activation map, a PIL image

Build a network and apply it like any Flax module:

    network = gnet_jax.googlenet("paper", num_classes=10)
    variables = gnet_jax.init(network, jax.random.key(0), image_size=224)
    pixels = gnet_jax.preprocess(images, preprocessing=gnet_jax.Preprocessing())
    logits = network.apply(variables, pixels).logits

googlenet      Returns the Flax module of a published variant; options change its architecture.
GoogLeNet      The Flax module. Calling it returns `Outputs`: `logits` and `aux_logits`.
VARIANTS       The variants by name, each with its `Architecture`: paper (LRN, 5x5, biases),
               batch_norm, torchvision (3x3 instead of 5x5), google_release (the network
               of DeepDream), naive (the paper's Fig. 2a) and naive_batch_norm.
init           Returns newly initialised variables of a network.
preprocess     Converts images with pixels from 0 to 255 to the network's normalised input.
Preprocessing  Settings for resizing, cropping and normalising images.
load           Returns a trained model that is ready to predict.

`import gnet_jax` alone does not import jax; the first use of most of these names does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnet_jax.config import Preprocessing
    from gnet_jax.data.augment import preprocess
    from gnet_jax.inference.predict import load
    from gnet_jax.model.architecture import VARIANTS
    from gnet_jax.model.googlenet import GoogLeNet, Outputs, googlenet, init

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "GoogLeNet",
    "Outputs",
    "Preprocessing",
    "googlenet",
    "init",
    "load",
    "preprocess",
]

_MODULES = {
    "Preprocessing": "gnet_jax.config",
    "VARIANTS": "gnet_jax.model.architecture",
    "load": "gnet_jax.inference.predict",
    "preprocess": "gnet_jax.data.augment",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "gnet_jax.model.googlenet")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

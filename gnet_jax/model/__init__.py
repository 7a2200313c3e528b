"""Images to logits: the network, its variants and its named parts."""

from gnet_jax.model.architecture import VARIANTS, Architecture, architecture, smallest_size
from gnet_jax.model.googlenet import (
    GoogLeNet,
    Outputs,
    abstract_variables,
    aux_logits,
    endpoints,
    every_head,
    googlenet,
    init,
    layer_outputs,
    strip_aux,
)

__all__ = [
    "VARIANTS",
    "Architecture",
    "GoogLeNet",
    "Outputs",
    "abstract_variables",
    "architecture",
    "aux_logits",
    "endpoints",
    "every_head",
    "googlenet",
    "init",
    "layer_outputs",
    "smallest_size",
    "strip_aux",
]

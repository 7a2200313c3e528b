"""Images to logits: the network, its variants and its named parts."""

from gnet_jax.model.architecture import VARIANTS, Architecture, architecture, smallest_size
from gnet_jax.model.googlenet import (
    GoogLeNet,
    Outputs,
    aux_logits,
    endpoints,
    every_head,
    googlenet,
    init_variables,
    layer_outputs,
    strip_aux,
    variable_shapes,
)

__all__ = [
    "VARIANTS",
    "Architecture",
    "GoogLeNet",
    "Outputs",
    "architecture",
    "aux_logits",
    "endpoints",
    "every_head",
    "googlenet",
    "init_variables",
    "layer_outputs",
    "smallest_size",
    "strip_aux",
    "variable_shapes",
]

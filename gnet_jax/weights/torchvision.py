"""torchvision's GoogLeNet: its names and layouts for this project's variables, and back.

Layouts: kernels are HWIO here and OIHW there, linear layers (inputs, outputs) here and the
transpose there, and feature maps are flattened H,W,C here and C,H,W there.
"""

from collections.abc import Mapping

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model import VARIANTS, Architecture
from gnet_jax.weights.variables import (
    WeightsError,
    rows_to_channels_first,
    rows_to_channels_last,
    with_shapes_of,
)

_BRANCHES = {
    "b1": "branch1",
    "reduce3": "branch2.0",
    "b3": "branch2.1",
    "reduce5": "branch3.0",
    "b5": "branch3.1",  # a 3x3, whatever its comment says (pytorch/vision#906)
    "pool_proj": "branch4.1",
}
_HEADS = {"aux_4a": "aux1", "aux_4d": "aux2"}
# Of a convolution's variables: where they are here, and there.
_CONV = {
    ("params", "conv/kernel"): "conv.weight",
    ("params", "norm/scale"): "bn.weight",
    ("params", "norm/bias"): "bn.bias",
    ("batch_stats", "norm/mean"): "bn.running_mean",
    ("batch_stats", "norm/var"): "bn.running_var",
}
_LINEAR = {("params", "kernel"): "weight", ("params", "bias"): "bias"}

PUBLISHED_SHA256 = "1378be20"
"""How the sha256 of the published file begins; torchvision puts it into the file's name."""


def preprocessing(transform_input: bool) -> Preprocessing:
    """What torchvision does: shorter side 256, central 224, RGB.

    Args:
        transform_input: whether the network was made with torchvision's option of that name, as
            it is for the published weights (their origin is TensorFlow, whose inputs lie in -1 to
            1). The option maps an image that was normalised by ImageNet's mean and std to
            (x / 255 - 0.5) / 0.5; here that map is part of mean and std.
    """
    mean = (0.5, 0.5, 0.5) if transform_input else (0.485, 0.456, 0.406)
    std = (0.5, 0.5, 0.5) if transform_input else (0.229, 0.224, 0.225)
    red, green, blue = (255 * value for value in mean)
    scale = tuple(255 * value for value in std)
    return Preprocessing(
        image_size=224,
        resize="shorter_side",
        resize_to=256,
        channels="RGB",
        mean=(red, green, blue),
        std=(scale[0], scale[1], scale[2]),
    )


def _names(aux: bool) -> dict[str, str]:
    """The name of every variable in torchvision, by ours."""
    modules = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
    for block in VARIANTS["torchvision"].widths:
        modules |= {f"inception_{block}/{b}": f"inception{block}.{t}" for b, t in _BRANCHES.items()}
    linear = {}
    for head, name in _HEADS.items() if aux else ():
        modules[f"{head}/conv"] = f"{name}.conv"
        linear |= {f"{head}/fc": f"{name}.fc1", f"{head}/classifier": f"{name}.fc2"}
    linear["classifier"] = "fc"
    names = {}
    for kind, parts in ((modules, _CONV), (linear, _LINEAR)):
        for ours, theirs in kind.items():
            for (group, leaf), part in parts.items():
                names[f"{group}/{ours}/{leaf}"] = f"{theirs}.{part}"
    return names


def _channels_of(name: str, flat: Mapping[str, np.ndarray]) -> int | None:
    """Channels of the feature map that the linear layer's kernel flattens, if it is one."""
    if not name.endswith("/fc/kernel"):
        return None
    return flat[name.removesuffix("fc/kernel") + "conv/conv/kernel"].shape[-1]


def is_state_dict(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of torchvision's GoogLeNet."""
    return "conv1.conv.weight" in tensors and "inception3a.branch1.conv.weight" in tensors


def from_torchvision(
    tensors: Mapping[str, np.ndarray], where: str
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """The architecture and the flat variables of a state dict, with or without auxiliary heads.

    Raises:
        WeightsError: naming the first tensor that is missing, unknown or of an unfit rank.
    """
    aux = any(name.startswith(("aux1.", "aux2.")) for name in tensors)
    names = _names(aux)
    flat: dict[str, np.ndarray] = {}
    for ours, theirs in names.items():
        if theirs not in tensors:
            raise WeightsError(f"{where} has no {theirs}; it holds no whole torchvision GoogLeNet")
        value = tensors[theirs]
        rank = 4 if theirs.endswith("conv.weight") else 2 if ours.endswith("/kernel") else 1
        if value.ndim != rank:
            raise WeightsError(f"{where}: {theirs} is {value.shape}; it must have rank {rank}")
        if rank > 1:
            value = value.transpose(2, 3, 1, 0) if rank == 4 else value.T
        channels = _channels_of(ours, flat)
        if channels is not None:
            if value.shape[0] != 16 * channels:
                raise WeightsError(
                    f"{where}: {theirs} has {value.shape[0]} inputs, not 4x4 of {channels} channels"
                )
            value = rows_to_channels_last(value, channels)
        flat[ours] = np.ascontiguousarray(value)
    known = set(names.values())
    for name in tensors:
        if name not in known and not name.endswith(".num_batches_tracked"):
            raise WeightsError(f"{where} has {name}, which torchvision's GoogLeNet has not")
    return with_shapes_of(flat, VARIANTS["torchvision"]), flat


def to_torchvision(arch: Architecture, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict as torchvision has it, from flat variables.

    Raises:
        WeightsError: if torchvision has no such net: only its own variant with any number of
            classes, and both auxiliary heads or none.
    """
    own = VARIANTS["torchvision"]
    for field in (
        "norm",
        "naive",
        "branch5_kernel",
        "pool4_window",
        "stem",
        "stem_padding",
        "stem_widths",
        "head",
    ):
        there, here = getattr(own, field), getattr(arch, field)
        if there != here:
            raise WeightsError(
                f"torchvision's GoogLeNet cannot hold this net: {field} is {there} there, and "
                f"{here} here"
            )
    if arch.widths != own.widths:
        raise WeightsError("torchvision's GoogLeNet cannot hold this net: its widths are Table 1's")
    aux_fields = (arch.aux_after, arch.aux_widths, arch.aux_pool)
    if arch.aux_after and aux_fields != (own.aux_after, own.aux_widths, own.aux_pool):
        raise WeightsError(
            f"torchvision's GoogLeNet has auxiliary heads after 4a and 4d or none, not {aux_fields}"
        )
    tensors, names = {}, _names(bool(arch.aux_after))
    odd = sorted(names.keys() ^ flat.keys())
    if odd:
        where = "lacks" if odd[0] in names else "has, and torchvision's lacks,"
        raise WeightsError(f"torchvision's GoogLeNet cannot hold this net, which {where} {odd[0]}")
    for ours, theirs in names.items():
        value = flat[ours]
        channels = _channels_of(ours, flat)
        if channels is not None:
            value = rows_to_channels_first(value, channels)
        if ours.endswith("/kernel"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        tensors[theirs] = np.ascontiguousarray(value)
        if theirs.endswith(".running_var"):
            tracked = theirs.replace("running_var", "num_batches_tracked")
            tensors[tracked] = np.zeros((), np.int64)
    return tensors

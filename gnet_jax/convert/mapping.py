"""What foreign formats share: find the network, map names, change layouts, check shapes."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model.architecture import Architecture
from gnet_jax.model_folder.variables import (
    WeightsError,
    rows_to_channels_last,
    with_shapes_of,
)


class Found(NamedTuple):
    """The network in a foreign file, without its class names."""

    arch: Architecture
    flat: dict[str, np.ndarray]  # the variables
    preprocessing: Preprocessing
    source: dict[str, str]  # beside the file's name and sha256
    notes: list[str]  # a sentence on everything that was assumed, skipped or renamed


def find_prefix(names: Collection[str], markers: tuple[str, str], kind: str, where: str) -> str:
    """Returns the prefix of the only GoogLeNet in a file; `markers` are two names of each one.
    Raises WeightsError if there is no GoogLeNet or more than one.
    """
    first, second = markers
    prefixes = [name.removesuffix(first) for name in names if name.endswith(first)]
    prefixes = [prefix for prefix in prefixes if prefix + second in names]
    if not prefixes:
        holds = ", ".join(list(names)[:3]) or "nothing"
        raise WeightsError(f"{where} is not {kind}: it holds {holds}, ...")
    if len(prefixes) > 1:
        both = " and ".join(prefix + first for prefix in prefixes)
        raise WeightsError(
            f"{where} holds {len(prefixes)} networks, {both}; save one of them in its own file"
        )
    return prefixes[0]


def drop_heads(network: dict[str, Any], classes: Mapping[str, int], expected: int) -> list[str]:
    """Delete the heads, by prefix in `classes`, with other classes; returns a note for each."""
    notes = []
    for head, count in classes.items():
        if count != expected:
            for name in [name for name in network if name.startswith(head)]:
                del network[name]
            notes.append(
                f"skipped the auxiliary head {head}, which has {count} classes; the network has "
                f"{expected}"
            )
    return notes


def name_variables(modules: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """Returns the foreign name for each variable: every module filled into every part. `modules`
    has the foreign module for ours ("conv1", "inception_3a/b1"), `parts` the foreign name for ours
    ("{}.conv.weight" for "params/{}/conv/kernel").
    """
    return {
        our_part.format(ours): part.format(theirs)
        for ours, theirs in modules.items()
        for our_part, part in parts.items()
    }


def map_variables(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    where: str,
    base: Architecture,
    *,
    channels_first: bool = True,
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Returns the architecture and the flat variables of a network, in float32. `tensors` are
    exactly those of the network, `names` has the tensor for every variable, a head's convolution
    before its `fc`, and `base` supplies what the shapes do not determine. With `channels_first`, as
    in Caffe and torch, kernels are OIHW, linear layers (outputs, inputs), and feature maps are
    flattened in the order C, H, W; otherwise HWIO and (inputs, outputs). Raises WeightsError naming
    the first tensor that is missing, unknown, or of another type or shape.
    """
    known = set(names.values())
    unknown = [name for name in tensors if name not in known]
    flat: dict[str, np.ndarray] = {}
    for ours, theirs in names.items():
        if theirs not in tensors:
            instead = f", and there is the unknown {unknown[0]}" if unknown else ""
            raise WeightsError(f"{where} is not a whole GoogLeNet: {theirs} is missing{instead}")
        value = tensors[theirs]
        rank = 4 if ours.endswith("conv/kernel") else 2 if ours.endswith("/kernel") else 1
        if value.dtype.kind != "f":
            raise WeightsError(f"{where}: {theirs} has type {value.dtype}; expected floats")
        if value.ndim != rank:
            raise WeightsError(
                f"{where}: {theirs} has shape {value.shape}; expected {rank} dimensions"
            )
        if channels_first and rank > 1:
            value = value.transpose(2, 3, 1, 0) if rank == 4 else value.T
        if channels_first and ours.endswith("/fc/kernel"):
            channels = flat[ours.removesuffix("fc/kernel") + "conv/conv/kernel"].shape[-1]
            side = round((value.shape[0] / channels) ** 0.5)
            if not side or side**2 * channels != value.shape[0]:
                raise WeightsError(
                    f"{where}: {theirs} has {value.shape[0]} inputs; expected a square map of "
                    f"{channels} channels"
                )
            value = rows_to_channels_last(value, channels)
        flat[ours] = np.ascontiguousarray(value, np.float32)
    if unknown:
        raise WeightsError(f"{where} has {unknown[0]}, which this GoogLeNet does not have")
    return with_shapes_of(flat, base), flat


def assumed_preprocessing(whose: str, p: Preprocessing) -> str:
    """Returns the note that a file lacks its preprocessing, and which one is used."""
    side = f"{p.resize_to}x{p.resize_to}" if p.resize == "warp" else f"shorter side {p.resize_to}"
    mean, std = (tuple(round(value, 3) for value in values) for values in (p.mean, p.std))
    return (
        f"assumed the preprocessing of {whose}: resized to {side}, central "
        f"{p.image_size}x{p.image_size}, {p.channels}, (pixels - {mean}) / {std}; if the network "
        "was trained with another, edit the model folder's config.json"
    )

"""Helpers for readers of other programs' files: find the network, map names, convert layouts."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.widths import Widths
from gnet_jax.model_folder.card import describe_preprocessing
from gnet_jax.model_folder.folder import WeightsError


def find_prefix(names: Collection[str], markers: tuple[str, str], kind: str, where: str) -> str:
    """Returns the prefix that all names of the GoogLeNet in a file have in common.

    `names` are all names in the file. `markers` are two names that every GoogLeNet of this format
    has, without the prefix. Raises WeightsError if there is no GoogLeNet or more than one.
    """
    first, second = markers
    prefixes = [name.removesuffix(first) for name in names if name.endswith(first)]
    prefixes = [prefix for prefix in prefixes if prefix + second in names]
    if not prefixes:
        holds = ", ".join(list(names)[:3]) or "nothing"
        raise WeightsError(f"{where} is not {kind}: it holds {holds}, ...")
    if len(prefixes) > 1:
        both = " and ".join(prefix + first for prefix in prefixes)
        raise WeightsError(f"{where} contains two networks ({both}); save each in its own file")
    return prefixes[0]


def drop_heads(network: dict[str, Any], classes: Mapping[str, int], expected: int) -> list[str]:
    """Delete the auxiliary heads that do not have `expected` classes, and return notes on them."""
    notes = []
    for head, count in classes.items():
        if count != expected:
            for name in [name for name in network if name.startswith(head)]:
                del network[name]
            why = f"which has {count} classes; the network has {expected}"
            notes.append(f"skipped the auxiliary head {head}, {why}")
    return notes


def name_variables(modules: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """Returns the other program's name of each variable, by our name.

    Each module fills the braces of each part ("params/{}/conv/kernel"). The keys are our names.
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
    """Returns the architecture and the flat variables (float32) of the network in `tensors`.

    `names` maps each variable to the name of its tensor. The convolution of an auxiliary head must
    come before its `fc`. `base` supplies the fields that no shape determines. With
    `channels_first`, as in Caffe and torch, kernels are OIHW, weights of linear layers are
    (outputs, inputs), and feature maps are flattened in the order C, H, W. Otherwise kernels are
    HWIO, and weights of linear layers are (inputs, outputs).
    Raises WeightsError naming the first missing, unknown or invalid tensor.
    """
    known = set(names.values())
    unknown = [name for name in tensors if name not in known]
    flat: dict[str, np.ndarray] = {}
    for ours, theirs in names.items():
        if theirs not in tensors:
            instead = f", and {unknown[0]} is unknown" if unknown else ""
            raise WeightsError(f"{where} is not a complete GoogLeNet: {theirs} is missing{instead}")
        value = tensors[theirs]
        rank = 4 if ours.endswith("conv/kernel") else 2 if ours.endswith("/kernel") else 1
        if value.dtype.kind != "f":
            raise WeightsError(f"{where}: {theirs} has type {value.dtype}; expected floats")
        if value.ndim != rank:
            raise WeightsError(f"{where}: {theirs} has shape {value.shape}; expected {rank} axes")
        if channels_first and rank > 1:
            value = value.transpose(2, 3, 1, 0) if rank == 4 else value.T
        if channels_first and ours.endswith("/fc/kernel"):
            channels = flat[ours.removesuffix("fc/kernel") + "conv/conv/kernel"].shape[-1]
            side = round((value.shape[0] / channels) ** 0.5)
            if not side or side**2 * channels != value.shape[0]:
                raise WeightsError(
                    f"{where}: {theirs} does not take {channels} square feature maps"
                )
            maps_CHWO = value.reshape(channels, side, side, -1)
            value = maps_CHWO.transpose(1, 2, 0, 3).reshape(value.shape)
        flat[ours] = np.ascontiguousarray(value, np.float32)
    if unknown:
        raise WeightsError(f"{where} has {unknown[0]}, which is not part of this GoogLeNet")
    return _with_shapes_of(flat, base), flat


def _with_shapes_of(flat: Mapping[str, np.ndarray], base: Architecture) -> Architecture:
    """Returns a copy of `base` with fields replaced by values from the shapes of `flat`.

    These are the widths, the auxiliary heads, the number of classes and the size of 5x5 kernels.
    """

    def width(module: str) -> int:
        return flat[f"params/{module}/kernel"].shape[-1]

    aux_after = tuple(name for name in base.widths if f"params/aux_{name}/fc/kernel" in flat)
    head = f"aux_{aux_after[0]}" if aux_after else None
    return dataclasses.replace(
        base,
        num_classes=width("classifier"),
        widths={
            block: Widths(*(width(f"inception_{block}/{b}/conv") for b in Widths._fields))
            for block in base.widths
        },
        stem_widths=tuple(width(f"{name}/conv") for name in ("conv1", "conv2_reduce", "conv2")),
        branch5_kernel=flat["params/inception_3a/b5/conv/kernel"].shape[0],
        aux_after=aux_after,
        aux_widths=(width(f"{head}/conv/conv"), width(f"{head}/fc")) if head else base.aux_widths,
    )


def rows_to_channels_first(matrix_IO: np.ndarray, channels: int) -> np.ndarray:
    """Reorder the rows of a linear layer's weights from H, W, C (Flax) to C, H, W (Caffe, torch).

    The input of the layer is a flattened square feature map with this number of channels.
    """
    side = round((matrix_IO.shape[0] / channels) ** 0.5)
    maps = matrix_IO.reshape(side, side, channels, -1)
    return np.ascontiguousarray(maps.transpose(2, 0, 1, 3)).reshape(matrix_IO.shape)


def assumed_preprocessing(whose: str, p: Preprocessing) -> str:
    """Returns a note that says which preprocessing is assumed, because the file contains none."""
    pixels = describe_preprocessing(dataclasses.asdict(p))
    return (
        f"assumed the preprocessing of {whose}: {pixels}; if the network was trained with another "
        "preprocessing, edit config.json in the model folder"
    )

"""The variables of a model under flat names, and the check that every file of weights must pass."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from gnet_jax.config import UserError
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables
from gnet_jax.model.widths import Widths


class WeightsError(UserError):
    """A file of weights is missing, corrupt or does not fit."""


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns every variable in float32 by its path: "params/inception_3a/b1/conv/kernel"."""
    leaves = traverse_util.flatten_dict(dict(variables), sep="/").items()
    return {name: np.asarray(value, np.float32) for name, value in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}`; the latter is empty without batch norm."""
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(dict(flat), sep="/")


def expected_shapes(model: GoogLeNet, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every variable of `model` by its flat name. Raises ValueError if the
    image is too small for the network.
    """
    shapes: Any = traverse_util.flatten_dict(abstract_variables(model, image_size), sep="/")
    return {name: value.shape for name, value in shapes.items()}


def check(model: GoogLeNet, flat: Mapping[str, Any], image_size: int, where: str) -> None:
    """Raise a WeightsError naming `where` and the variable if `flat` has other variables than
    `model`, or values that are not finite. Fully connected layers depend on `image_size`.
    """
    expected = expected_shapes(model, image_size)
    for name in sorted(expected.keys() | flat.keys()):
        found = tuple(flat[name].shape) if name in flat else "absent"
        wanted = expected.get(name, "absent")
        if found != wanted:
            raise WeightsError(
                f"{where} does not fit the network: {name} is {found} instead of {wanted}"
            )
        if not np.isfinite(flat[name]).all():
            raise WeightsError(f"{where} has values in {name} that are not finite")


def with_shapes_of(flat: Mapping[str, np.ndarray], base: Architecture) -> Architecture:
    """Returns `base` with the widths, heads, classes and 5x5 kernel of the variables' shapes.
    `flat` must hold a kernel for every convolution outside auxiliary heads.
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


def rows_to_channels_last(matrix_IO: np.ndarray, channels: int) -> np.ndarray:
    """Returns the rows of a linear layer over a square map in H,W,C order (Flax), given those in
    C,H,W order (Caffe, torch).
    """
    side = round((matrix_IO.shape[0] / channels) ** 0.5)
    maps = matrix_IO.reshape(channels, side, side, -1)
    return np.ascontiguousarray(maps.transpose(1, 2, 0, 3)).reshape(matrix_IO.shape)


def rows_to_channels_first(matrix_IO: np.ndarray, channels: int) -> np.ndarray:
    """Returns the inverse of `rows_to_channels_last`."""
    side = round((matrix_IO.shape[0] / channels) ** 0.5)
    maps = matrix_IO.reshape(side, side, channels, -1)
    return np.ascontiguousarray(maps.transpose(2, 0, 1, 3)).reshape(matrix_IO.shape)

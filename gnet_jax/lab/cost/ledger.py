"""Counts each layer's parameters and multiply-adds, including those on padding as in the paper."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from rich.table import Column, Table

from gnet_jax.config import UserError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model.layers import ConvBlock, roles
from gnet_jax.ops.reference import REFERENCE


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer's cost for one image; a convolution includes the norm of its `ConvBlock`."""

    name: str
    kind: Literal["conv", "linear", "norm"]
    kernel: tuple[int, ...]  # (height, width, in, out), or (in, out), or () for a norm
    stride: int
    output: tuple[int, ...]  # (height, width, channels), or (units,)
    params: int  # 0 for later uses of a layer
    macs: int  # 0 for a norm

    @property
    def is_aux(self) -> bool:
        """Whether the layer belongs to an auxiliary head, and so runs only in training."""
        return self.name.startswith("aux_")

    @property
    def activation_bytes(self) -> int:
        """Size of the output in float32."""
        return 4 * math.prod(self.output)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The cost of a network for one image: totals for inference and training, and every layer."""

    params: int
    params_with_aux: int
    macs: int
    macs_with_aux: int
    layers: tuple[Layer, ...]


def ledger(module: nn.Module, input_shape: tuple[int, ...], **call: Any) -> Ledger:
    """Trace a Linen module of convolutions, linear layers and norms, and return its cost.

    `input_shape` has no batch axis. `call` are more arguments for the module. Raises UserError
    if the cost of a module is unknown, or if a parameter belongs to no layer.
    """
    layers: list[Layer] = []
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # names of layers by path of their module
    rows: dict[tuple[str, ...], int] = {}  # index in `layers` of the first layer with each name
    counted: set[tuple[str, ...]] = set()  # paths of modules whose parameters are counted
    running: set[tuple[str, ...]] = set()  # paths of the modules that are being called

    def record(call_next, args, kwargs, context):
        part: Any = context.module
        if context.method_name != "__call__" or part.path in running:  # `super().__call__`
            return call_next(*args, **kwargs)
        running.add(part.path)
        output = call_next(*args, **kwargs)
        running.remove(part.path)
        params = part.variables.get("params", {}).items()
        own = {name: value.shape for name, value in params if not isinstance(value, Mapping)}
        if not own:
            return output
        count = 0 if part.path in counted else sum(map(math.prod, own.values()))
        counted.add(part.path)
        block = _block_of(part)
        shape = output.shape[1:]
        where = "/".join(part.path)
        if "norm" in roles(own, where).values():
            if block in rows:
                row = rows[block]
                layers[row] = dataclasses.replace(layers[row], params=layers[row].params + count)
            else:
                layers.append(Layer(where, "norm", (), 1, shape, count, 0))
            return output
        if not isinstance(part, nn.Conv | nn.Dense):
            raise UserError(
                f"the cost of {where or 'the network'}, a {type(part).__name__}, is unknown; "
                "the ledger counts nn.Conv, nn.Dense and norms"
            )
        # The first convolution of a `ConvBlock` has the name of the block; others have their own.
        path = names.setdefault(part.path, part.path if block is None or block in rows else block)
        rows.setdefault(path, len(layers))
        kind = "conv" if isinstance(part, nn.Conv) else "linear"
        stride = int(np.max(getattr(part, "strides", 1)))
        macs = math.prod(shape) * math.prod(own["kernel"][:-1])
        layers.append(Layer("/".join(path), kind, own["kernel"], stride, shape, count, macs))
        return output

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        variables: Any = jax.eval_shape(lambda image: module.init(keys, image, **call), image)
    tree: Any = traverse_util.flatten_dict(variables.get("params", {}))
    unknown = sorted("/".join(path) for path in tree if path[:-1] not in counted)
    if unknown:
        raise UserError(f"parameter {unknown[0]} belongs to no layer that the ledger counts")
    return Ledger(
        params=sum(layer.params for layer in layers if not layer.is_aux),
        params_with_aux=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers if not layer.is_aux),
        macs_with_aux=sum(layer.macs for layer in layers),
        layers=tuple(layers),
    )


def _block_of(part: Any) -> tuple[str, ...] | None:
    """Returns the path of the `ConvBlock` that contains a module, or None."""
    while isinstance(part, nn.Module) and not isinstance(part, ConvBlock):
        part = part.parent
    return part.path if isinstance(part, ConvBlock) else None


def network_ledger(model: GoogLeNet, image_size: int) -> Ledger:
    """Returns the cost of a GoogLeNet for square images; ValueError if they are too small."""
    plain = model.clone(ops=REFERENCE, batch_norm_group=None)  # traces fastest
    return ledger(plain, (image_size, image_size, 3), train=True)


def worked_examples() -> Iterator[tuple[str, int]]:
    """Yield (description, cost) of the paper's examples: 1x1 reductions and average pooling."""
    grid = (14, 14, 480)
    five = ledger(ConvBlock(48, 5), grid)
    yield "multiply-adds of a 5x5 convolution, 480 -> 48 channels on 14x14", five.macs
    reduced = ledger(nn.Sequential([ConvBlock(16, 1), ConvBlock(48, 5)]), grid)
    yield "multiply-adds of the same with a 1x1 reduction to 16 channels before", reduced.macs
    head = ledger(nn.Dense(1024, use_bias=False), (7 * 7 * 1024,))
    yield "weights of a fully connected layer 7x7x1024 -> 1024", head.params
    pooled = ledger(nn.Sequential([lambda x: jnp.mean(x, axis=(1, 2))]), (7, 7, 1024))
    yield "weights of global average pooling in its place", pooled.params


def ledger_table(costs: Ledger, title: str) -> Table:
    """Returns a table of all layers and the totals; * marks layers of auxiliary heads."""
    table = number_table(title, "layer", "kernel", "output", "parameters", "multiply-adds")
    for layer in costs.layers:
        name = f"{layer.name} *" if layer.is_aux else layer.name
        window = f"{_size(layer.kernel[:-2])}/{layer.stride}"
        kernel = window if layer.kind == "conv" else layer.kind
        table.add_row(name, kernel, _size(layer.output), f"{layer.params:,}", f"{layer.macs:,}")
    table.add_section()
    table.add_row("inference", "", "", f"{costs.params:,}", f"{costs.macs:,}")
    if costs.params_with_aux != costs.params:
        with_aux = f"{costs.params_with_aux:,}", f"{costs.macs_with_aux:,}"
        table.add_row("training (with * auxiliary heads)", "", "", *with_aux)
    return table


def ledger_csv(costs: Ledger) -> str:
    """Returns CSV with a header and a line for every layer; shapes are written as 7x7x3x64."""
    rows = [dataclasses.asdict(layer) for layer in costs.layers]
    for row in rows:
        row |= {name: _size(row[name]) for name in ("kernel", "output")}
    return csv_text(rows)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def number_table(title: str, first: str, *others: str) -> Table:
    """Returns an empty table for a terminal, with columns of numbers after the first."""
    # Fold the columns, because a truncated number would be wrong.
    numbers = (Column(name, justify="right", overflow="fold") for name in others)
    return Table(Column(first, no_wrap=True), *numbers, title=title, title_justify="left")


def csv_text(rows: Sequence[Mapping[str, Any]], header: Iterable[str] = ()) -> str:
    """Returns rows as CSV with a header, by default the keys of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, tuple(header) or rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

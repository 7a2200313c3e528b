"""The cost ledger: parameters and multiply-adds of every layer, by exact arithmetic.

Multiply-adds with padding are counted, as in every published figure. XLA does not count them.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from rich.table import Table

from gnet_jax.config import UserError
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model.layers import ConvBlock
from gnet_jax.model.roles import roles
from gnet_jax.ops.reference import REFERENCE


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution (with the norm of its `ConvBlock`), linear layer or norm, for one image."""

    name: str
    kind: Literal["conv", "linear", "norm"]
    kernel: tuple[int, ...]  # (height, width, in, out), or (in, out), or () for a norm
    stride: int
    output: tuple[int, ...]  # (height, width, channels), or (units,)
    params: int  # 0 where a layer is used again
    macs: int  # 0 for a norm

    @property
    def weights(self) -> int:
        """Weights of the kernel alone."""
        return math.prod(self.kernel) if self.kernel else 0

    @property
    def is_aux(self) -> bool:
        """Whether the layer belongs to an auxiliary head, so exists in training only."""
        return self.name.startswith("aux_")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Every layer of a network for one image, and their sums."""

    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Parameters of the network that infers."""
        return sum(layer.params for layer in self.layers if not layer.is_aux)

    @property
    def params_with_aux(self) -> int:
        """Parameters of the network that trains."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one image's inference, convolutions and linear layers."""
        return sum(layer.macs for layer in self.layers if not layer.is_aux)

    @property
    def macs_with_aux(self) -> int:
        """Multiply-adds of one image's forward pass in training."""
        return sum(layer.macs for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """The sums and the layers, ready for JSON."""
        totals = ("params", "params_with_aux", "macs", "macs_with_aux")
        layers = [dataclasses.asdict(layer) for layer in self.layers]
        return {name: getattr(self, name) for name in totals} | {"layers": layers}


def ledger(module: nn.Module, input_shape: tuple[int, ...], **call: Any) -> Ledger:
    """Returns the cost of a Linen module made of convolutions, linear layers and norms.

    Norms count their parameters and no multiply-adds. A `ConvBlock` is one layer. Nothing is
    computed.

    Args:
        module: the network.
        input_shape: of one image, without the batch: (height, width, channels) or (units,).
        call: further arguments of the module, such as `train=True`.

    Raises:
        UserError: naming a module of unknown cost, or a parameter without a layer.
    """
    layers: list[Layer] = []
    names: dict[tuple[str, ...], tuple[str, ...]] = {}  # of layers, by their modules' paths
    rows: dict[tuple[str, ...], int] = {}  # the first row of each name
    counted: dict[str, int] = {}  # every parameter and its size
    running: set[tuple[str, ...]] = set()  # paths of the modules that are being called

    def record(call_next, args, kwargs, context):
        part: Any = context.module
        called = context.method_name == "__call__" and part.path not in running
        if not called:  # another method, or `super().__call__`
            return call_next(*args, **kwargs)
        running.add(part.path)
        output = call_next(*args, **kwargs)
        running.remove(part.path)
        own = _own_params(part)
        if not own:
            return output
        where = "/".join(part.path)
        sizes = {
            "/".join((*part.path, name)): math.prod(value.shape) for name, value in own.items()
        }
        count = sum(size for name, size in sizes.items() if name not in counted)
        counted.update(sizes)
        block = _block_of(part)
        if "norm" in roles(own, where).values():
            if block in rows:
                row = rows[block]
                layers[row] = dataclasses.replace(layers[row], params=layers[row].params + count)
            else:
                layers.append(Layer(where, "norm", (), 1, output.shape[1:], count, 0))
            return output
        if not isinstance(part, nn.Conv | nn.Dense):
            raise UserError(
                f"the cost of {where or 'the network'}, a {type(part).__name__}, is unknown; "
                "the ledger counts nn.Conv, nn.Dense and norms"
            )
        kernel = own["kernel"].shape
        # The first convolution of a `ConvBlock` has the block's name, others have their own.
        path = names.setdefault(part.path, part.path if block is None or block in rows else block)
        rows.setdefault(path, len(layers))
        layers.append(
            Layer(
                name="/".join(path),
                kind="conv" if isinstance(part, nn.Conv) else "linear",
                kernel=kernel,
                stride=int(np.max(getattr(part, "strides", 1))),
                output=output.shape[1:],
                params=count,
                macs=math.prod(output.shape[1:]) * math.prod(kernel[:-1]),
            )
        )
        return output

    def forward(image):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return module.init(keys, image, **call)

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
        variables: Any = jax.eval_shape(forward, image)
    tree: Any = traverse_util.flatten_dict(variables.get("params", {}), sep="/")
    for name, value in tree.items():
        if counted.get(name) != math.prod(value.shape):
            raise UserError(f"parameter {name} belongs to no layer that the ledger counts")
    return Ledger(tuple(layers))


def _own_params(part: nn.Module) -> dict[str, Any]:
    """Returns the parameters of a module without those of the modules inside it."""
    params = part.variables.get("params", {})
    return {name: value for name, value in params.items() if not isinstance(value, Mapping)}


def _block_of(part: Any) -> tuple[str, ...] | None:
    """Returns the path of the `ConvBlock` that contains a module, or None."""
    while isinstance(part, nn.Module) and not isinstance(part, ConvBlock):
        part = part.parent
    return part.path if isinstance(part, ConvBlock) else None


def network_ledger(model: GoogLeNet, image_size: int) -> Ledger:
    """Returns the cost of a GoogLeNet for square images, with its auxiliary heads.

    Raises:
        ValueError: if the image is too small for the net.
        UserError: as `ledger`.
    """
    plain = model.clone(ops=REFERENCE)  # traces fastest
    return ledger(plain, (image_size, image_size, 3), train=True)


def worked_examples() -> Iterator[tuple[str, int]]:
    """Yields the paper's two arguments as (description, cost)."""
    grid = (14, 14, 480)
    five = ConvBlock(48, 5)
    reduced = nn.Sequential([ConvBlock(16, 1), ConvBlock(48, 5)])
    yield "multiply-adds of a 5x5 convolution, 480 -> 48 channels on 14x14", ledger(five, grid).macs
    yield "multiply-adds of the same through a 1x1 reduction to 16", ledger(reduced, grid).macs
    head = ledger(nn.Dense(1024, use_bias=False), (7 * 7 * 1024,))
    yield "weights of a fully connected layer 7x7x1024 -> 1024", head.params
    pooled = ledger(nn.Sequential([lambda x: jnp.mean(x, axis=(1, 2))]), (7, 7, 1024))
    yield "weights of global average pooling in its place", pooled.params


def ledger_table(costs: Ledger, title: str) -> Table:
    """Returns a table of every layer, with * for auxiliary heads, and the sums."""
    table = Table(title=title, title_justify="left")
    for name in ("layer", "kernel", "output", "parameters", "multiply-adds"):
        table.add_column(name, justify="right" if name != "layer" else "left", no_wrap=True)
    for layer in costs.layers:
        kernel = layer.kind
        if layer.kind == "conv":
            kernel = f"{'x'.join(map(str, layer.kernel[:-2]))}/{layer.stride}"
        table.add_row(
            f"{layer.name} *" if layer.is_aux else layer.name,
            kernel,
            "x".join(map(str, layer.output)),
            f"{layer.params:,}",
            f"{layer.macs:,}",
        )
    table.add_section()
    table.add_row("inference", "", "", f"{costs.params:,}", f"{costs.macs:,}")
    if costs.params_with_aux != costs.params:
        with_aux = f"{costs.params_with_aux:,}", f"{costs.macs_with_aux:,}"
        table.add_row("training (with * auxiliary heads)", "", "", *with_aux)
    return table


def ledger_csv(costs: Ledger) -> str:
    """Returns every layer as CSV with a header; shapes are written as 7x7x3x64."""
    rows = costs.as_dict()["layers"]
    for row in rows:
        row |= {name: "x".join(map(str, row[name])) for name in ("kernel", "output")}
    return csv_text(rows)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

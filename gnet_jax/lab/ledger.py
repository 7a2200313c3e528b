"""The cost ledger: parameters and multiply-adds of every layer, by exact arithmetic.

Padded taps are counted, as every published figure counts them; XLA's own count leaves them out.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gnet_jax.model import GoogLeNet
from gnet_jax.model.layers import ConvBlock
from gnet_jax.model.ops import OUTLINE


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution (with its batch norm, if any) or linear layer, for one image."""

    name: str
    kind: str  # "conv" or "linear"
    kernel: tuple[int, ...]  # (height, width, in, out), or (in, out)
    stride: int
    output: tuple[int, ...]  # (height, width, channels), or (units,)
    params: int
    macs: int

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
    """The cost of any Linen module made of convolutions, batch norms and linear layers.

    Args:
        module: the network; nothing of it is computed.
        input_shape: of one image, without the batch: (height, width, channels) or (units,).
        call: further arguments of the module, such as `train=True`.
    """
    layers: dict[str, Layer] = {}

    def record(call_next, args, kwargs, context):
        output = call_next(*args, **kwargs)
        part: Any = context.module
        if context.method_name == "__call__" and isinstance(
            part, nn.Conv | nn.Dense | nn.BatchNorm
        ):
            params = part.variables["params"]
            count = sum(math.prod(p.shape) for p in params.values())
            inside_block = isinstance(part.parent, ConvBlock)
            name = "/".join(part.path[:-1] if inside_block else part.path)
            if isinstance(part, nn.BatchNorm):
                own = layers[name]
                layers[name] = dataclasses.replace(own, params=own.params + count)
            else:
                kernel = params["kernel"].shape
                layers[name] = Layer(
                    name=name,
                    kind="conv" if isinstance(part, nn.Conv) else "linear",
                    kernel=kernel,
                    stride=int(np.max(getattr(part, "strides", 1))),
                    output=output.shape[1:],
                    params=count,
                    macs=math.prod(output.shape[1:]) * math.prod(kernel[:-1]),
                )
        return output

    def forward(image):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return module.init(keys, image, **call)

    with nn.intercept_methods(record):
        jax.eval_shape(forward, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    return Ledger(tuple(layers.values()))


def network_ledger(model: GoogLeNet, image_size: int) -> Ledger:
    """The cost of a GoogLeNet for square images, auxiliary heads among the layers.

    Raises:
        ValueError: if the image is too small for the net.
    """
    # What the layers cost is told by their shapes.
    return ledger(model.clone(ops=OUTLINE), (image_size, image_size, 3), train=True)


def worked_examples() -> Iterator[tuple[str, int]]:
    """The paper's two arguments as (what, cost), by the same arithmetic as the rest."""
    grid = (14, 14, 480)
    five = ConvBlock(48, 5)
    reduced = nn.Sequential([ConvBlock(16, 1), ConvBlock(48, 5)])
    yield "multiply-adds of a 5x5 convolution, 480 -> 48 channels on 14x14", ledger(five, grid).macs
    yield "multiply-adds of the same through a 1x1 reduction to 16", ledger(reduced, grid).macs
    head = ledger(nn.Dense(1024, use_bias=False), (7 * 7 * 1024,))
    yield "weights of a fully connected layer 7x7x1024 -> 1024", head.params
    pooled = ledger(nn.Sequential([lambda x: jnp.mean(x, axis=(1, 2))]), (7, 7, 1024))
    yield "weights of global average pooling in its place", pooled.params

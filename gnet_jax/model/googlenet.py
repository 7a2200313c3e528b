"""GoogLeNet (arXiv 1409.4842) as one Flax module.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from gnet_jax.config import UserError, choose
from gnet_jax.model.architecture import (
    Architecture,
    architecture,
    grid_sizes,
    pools,
    smallest_size,
)
from gnet_jax.model.blocks import AuxHead, InceptionBlock, NaiveInceptionBlock
from gnet_jax.model.initializers import caffe_xavier, constant
from gnet_jax.model.layers import ConvBlock
from gnet_jax.model.ops import FAST, Ops, outlined


class Outputs(NamedTuple):
    """What the network returns, in training and in inference alike."""

    logits: jax.Array  # (B, K) float32
    aux: tuple[jax.Array, ...]  # one (B, K) float32 per aux head; () in inference


class GoogLeNet(nn.Module):
    """Images (B, H, W, 3), normalised, to `Outputs`.

    `train=True` turns dropout on (an rng named "dropout" is needed), makes batch norm use the
    batch's own statistics, and runs the auxiliary heads. With `train=False` those heads cost
    nothing: they are not in the program, and their parameters may be stripped.

    Raises:
        ValueError: for an image too small for the net, naming the smallest size that works.
    """

    arch: Architecture = Architecture()
    dtype: Any = jnp.float32  # of the computation; parameters, LRN sums and logits stay float32
    axis_name: str | None = None  # under pmap: the axis over which batch norm averages
    momentum: float = 0.9  # share of batch norm's running statistics that a call in training keeps
    ops: Ops = FAST  # or PLAIN: the reference, which can also be differentiated forward

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> Outputs:
        arch = self.arch
        heads = arch.aux_after if train or self.is_initializing() else ()
        self._check_size(x_BHWC.shape, heads)
        conv = _conv(self, train)
        block = NaiveInceptionBlock if arch.naive else InceptionBlock
        aux = []

        x = self._stem(x_BHWC.astype(self.dtype), conv)
        for name, window in pools(arch).items():
            late = window is not None and self.ops.pool_first and name not in heads  # the ReLU
            x = block(
                arch.widths[name],
                conv,
                arch.branch5_kernel,
                self.ops,
                relu=not late,
                name=f"inception_{name}",
            )(x)
            self._named(f"inception_{name}/output", self.ops.relu(x) if late else x)
            if name in heads:
                aux.append(_aux_head(self, name, conv, train)(x))
            if window is not None:
                x = self.ops.max_pool(x, window, 2)
                pooled = f"pool{name[0]}/{window}x{window}_s2"
                x = self._named(pooled, self.ops.relu(x) if late else x)

        heads_of = {"average_pool": self._average_pool, "fc": self._fully_connected}
        x_BC = choose("head", arch.head, heads_of)(x)
        x_BC = nn.Dropout(arch.dropout, deterministic=not train)(x_BC)
        classifier = nn.Dense(
            arch.num_classes,
            kernel_init=caffe_xavier,
            bias_init=constant(0.0),
            dtype=jnp.float32,
            name="classifier",
        )
        logits = self._named("loss3/classifier", classifier(x_BC))
        return Outputs(logits, tuple(aux) if train else ())

    def _average_pool(self, x: jax.Array) -> jax.Array:
        return self._named("pool5/7x7_s1", jnp.mean(x, axis=(1, 2), dtype=jnp.float32))

    def _fully_connected(self, x: jax.Array) -> jax.Array:
        dense = nn.Dense(x.shape[-1], kernel_init=caffe_xavier, dtype=self.dtype, name="fc")
        return nn.relu(dense(x.reshape(x.shape[0], -1)))

    def _stem(self, x: jax.Array, conv: partial[ConvBlock]) -> jax.Array:
        """The layers in front of 3a; note the order: LRN after pool1, but in front of pool2."""
        conv1, reduce2, conv2 = self.arch.stem_widths
        lrn = self.ops.local_response_norm if self.arch.norm == "lrn" else lambda x: x
        if choose("stem", self.arch.stem, {"imagenet": True, "small": False}):
            late = self.ops.pool_first
            relu = None if late else self.ops.relu
            x = conv(conv1, 7, 2, padding=self.arch.stem_padding, relu=relu, name="conv1")(x)
            x = self.ops.max_pool(x, 3, 2)
            x = self._named("pool1/3x3_s2", self.ops.relu(x) if late else x)
        else:
            x = conv(conv1, 3, name="conv1")(x)
        x = self._named("pool1/norm1", lrn(x))
        x = conv(conv2, 3, name="conv2")(conv(reduce2, 1, name="conv2_reduce")(x))
        x = self._named("conv2/norm2", lrn(x))
        return self._named("pool2/3x3_s2", self.ops.max_pool(x, 3, 2))

    def _check_size(self, shape: tuple[int, ...], heads: tuple[str, ...]) -> None:
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(
                f"images have shape {shape}; GoogLeNet takes (batch, height, width, 3)"
            )
        blocks = {"stem", *(name[0] for name in self.arch.widths)}
        needed = blocks | {f"aux_{name}" for name in heads}
        sizes = [grid_sizes(self.arch, side) for side in shape[1:3]]
        if any(grid[stage] < 1 for grid in sizes for stage in needed):
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} are too small for this net; "
                f"the smallest that works is {smallest_size(self.arch)}x{smallest_size(self.arch)}"
                + (", or less with stem='small'" if self.arch.stem == "imagenet" else "")
            )

    def _named(self, name: str, x: jax.Array) -> jax.Array:
        """`x`, recorded under Caffe's name where the caller asked for intermediates."""
        self.sow("intermediates", name, x)
        return x


def _conv(model: GoogLeNet, train: bool) -> partial[ConvBlock]:
    """The convolution of every layer, with the model's norm, dtype and mode bound."""
    batch_norm = partial(
        model.ops.batch_norm,
        use_running_average=not train,
        momentum=model.momentum,
        epsilon=1e-3,
        dtype=model.dtype,
        scale_init=constant(1.0),
        bias_init=constant(0.0),
        axis_name=model.axis_name,
    )
    norm = choose("norm", model.arch.norm, {"lrn": None, "batch_norm": batch_norm})
    return partial(
        ConvBlock,
        norm=norm,
        dtype=model.dtype,
        convolve=model.ops.convolve,
        add_bias=model.ops.add_bias,
        relu=model.ops.relu,
    )


def _aux_head(model: GoogLeNet, block: str, conv: partial[ConvBlock], train: bool) -> AuxHead:
    """The auxiliary head after `block`."""
    arch = model.arch
    return AuxHead(
        arch.num_classes,
        arch.aux_widths,
        conv,
        arch.aux_pool,
        arch.aux_dropout,
        train,
        model.dtype,
        name=f"aux_{block}",
    )


def every_head(model: GoogLeNet, variables: Mapping[str, Any], x_BHWC: jax.Array) -> Outputs:
    """The outputs of all heads as in inference: no dropout, batch norm's running statistics.

    The network itself leaves the auxiliary heads out in inference; this is to study them.
    """
    outputs, state = model.apply(variables, x_BHWC, mutable=["intermediates"])
    found: Any = state["intermediates"]
    aux = tuple(
        aux_logits(model, variables, block, found[f"inception_{block}/output"][0])
        for block in model.arch.aux_after
    )
    return Outputs(outputs.logits, aux)


def aux_logits(
    model: GoogLeNet, variables: Mapping[str, Any], block: str, features_BHWC: jax.Array
) -> jax.Array:
    """Logits (B, K) of the auxiliary head after `block`, as in inference, of that block's output.

    Args:
        variables: the network's.
        block: one of `model.arch.aux_after`.
    """
    own = {kind: tree[f"aux_{block}"] for kind, tree in variables.items() if f"aux_{block}" in tree}
    head: Any = _aux_head(model, block, _conv(model, train=False), train=False)
    return head.apply(own, features_BHWC)


def googlenet(variant: str = "paper", num_classes: int | None = None, **knobs: Any) -> GoogLeNet:
    """The named variant as a module; `knobs` are those of `architecture`, and `dtype`.

    Raises:
        ValueError: for an unknown variant or a knob out of range.
    """
    dtype = knobs.pop("dtype", jnp.float32)
    return GoogLeNet(architecture(variant, num_classes, **knobs), dtype=dtype)


def init(model: GoogLeNet, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Fresh `{"params": ..., "batch_stats": ...}` for square images of `image_size` pixels.

    Parameters are float32, the aux heads' among them; `batch_stats` is empty without batch norm.
    Nothing is compiled and no convolution runs. Call it outside of `jit`.

    Raises:
        ValueError: if the image is too small for the net.
    """
    outline = model.clone(ops=outlined(model.ops))
    drawn: dict[str, Any] = {}

    def draw(images_BHWC: jax.Array) -> None:
        with jax.ensure_compile_time_eval():
            drawn.update(outline.init(key, images_BHWC))

    # Run the initialisers and trace the forward pass: its values are not needed. (Flax has
    # `lazy_init` for this, which computes both since flax 0.12.9.)
    jax.eval_shape(draw, jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32))
    # The names in JAX's order, as everything else that gives a tree of parameters has them.
    variables = jax.tree.map(lambda array: array, drawn)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def abstract_variables(model: GoogLeNet, image_size: int) -> dict[str, Any]:
    """Shapes and dtypes of what `init` gives, in the same trees; nothing is computed.

    Raises:
        ValueError: if the image is too small for the net.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    outline = model.clone(ops=outlined(model.ops))
    variables: Any = jax.eval_shape(outline.init, jax.random.PRNGKey(0), images)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def strip_aux(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` (or `batch_stats`) without the auxiliary heads: all that inference needs."""
    return {name: value for name, value in params.items() if not name.startswith("aux_")}


# Caffe's layer names (bvlc_googlenet/train_val.prototxt) for this module's.
CAFFE_STEM = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
CAFFE_BRANCHES = {
    "b1": "1x1",
    "reduce3": "3x3_reduce",
    "b3": "3x3",
    "reduce5": "5x5_reduce",
    "b5": "5x5",
    "pool_proj": "pool_proj",
}


def endpoints(
    model: GoogLeNet, variables: Mapping[str, Any], x_BHWC: jax.Array
) -> dict[str, jax.Array]:
    """Every layer's output in inference, by Caffe's name ("inception_3a/5x5", "pool5/7x7_s1", ...).

    A layer that Caffe's network lacks has its own path ("inception_3a/b6"). Convolutions are given
    after their ReLU; "prob" is the softmax of "loss3/classifier".

    Raises:
        UserError: for two layers of the same name.
    """
    outputs, state = model.apply(variables, x_BHWC, mutable=["intermediates"])
    found: dict[str, jax.Array] = {}
    for path, value in layer_outputs(state["intermediates"]).items():
        match path.split("/"):
            case [layer] if layer in CAFFE_STEM:
                name = CAFFE_STEM[layer]
            case [block, branch] if branch in CAFFE_BRANCHES:
                name = f"{block}/{CAFFE_BRANCHES[branch]}"
            case _:
                name = path
        if name in found:
            raise UserError(f"two layers of the network are named {name!r}; rename one of them")
        found[name] = value
    found["prob"] = jax.nn.softmax(outputs.logits)
    return found


def layer_outputs(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Every recorded output by its path: "conv1", "inception_3a/b1", "inception_3a/output", ...

    The outputs of a layer that is used several times are "conv1", "conv1 (2)" and so on.
    """
    flat: Any = traverse_util.flatten_dict(dict(intermediates))
    found: dict[str, jax.Array] = {}
    for path, values in flat.items():
        *layer, kind = path
        name = "/".join(layer if kind == "output" else path)
        for number, value in enumerate(values, 1):
            found[name if number == 1 else f"{name} ({number})"] = value
    return found

"""GoogLeNet (arXiv 1409.4842) as one Flax module.

Shapes: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from gnet_jax.errors import UserError, choose
from gnet_jax.model import custom
from gnet_jax.model.architecture import Architecture, architecture, grid_sizes, pools, smallest_size
from gnet_jax.model.blocks import AuxHead, InceptionBlock, NaiveInceptionBlock
from gnet_jax.model.layers import ConvBlock, dense
from gnet_jax.model.names import caffe_name
from gnet_jax.ops.fast import FAST, OPS, BatchNorm
from gnet_jax.ops.reference import REFERENCE


class Outputs(NamedTuple):
    """The return value of the network, in training and in inference."""

    logits: jax.Array  # (B, K) float32
    aux_logits: tuple[jax.Array, ...]  # one (B, K) float32 per aux head; () in inference


class GoogLeNet(nn.Module):
    """GoogLeNet: maps normalised images (B, H, W, 3) to `Outputs`.

    `train=True` turns on dropout (which requires an rng named "dropout"), makes batch norm use the
    statistics of the batch, and runs the auxiliary heads. With `train=False` the auxiliary heads do
    not run, and their parameters may be missing.

    Raises:
        ValueError: if the images are too small. The message gives the smallest possible size.
    """

    arch: Architecture = Architecture()
    dtype: Any = jnp.float32  # of the computation; parameters, LRN sums and logits stay float32
    axis_name: str | None = None  # name of the pmap axis over which batch norm averages
    batch_norm_group: int | None = None  # images over which batch norm averages; None: all
    momentum: float = 0.9  # of batch norm: new = momentum * running + (1 - momentum) * batch
    ops: Any = FAST  # `Ops`, or a name in OPS; "reference" supports forward-mode differentiation

    def __post_init__(self) -> None:
        if isinstance(self.ops, str):
            self.ops = choose("ops", self.ops, OPS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool = False) -> Outputs:
        arch, ops = self.arch, self.ops
        heads = arch.aux_after if train or self.is_initializing() else ()
        self._check_size(x_BHWC.shape, heads)
        conv = _conv(self, train)
        lrn = partial(ops.local_response_norm, lrn=arch.lrn) if arch.norm == "lrn" else lambda x: x
        block: Any = NaiveInceptionBlock if arch.naive else InceptionBlock
        if arch.block is not None:
            block = custom.load(arch.block)

        with jax.named_scope("stem"):  # `gnet profile` shows the time by scope
            x = x_BHWC.astype(self.dtype)
            conv1, reduce2, conv2 = arch.stem_widths
            if choose("stem", arch.stem, {"imagenet": True, "small": False}):
                x = conv(conv1, 7, 2, padding=arch.stem_padding, pool=(3, 2), name="conv1")(x)
                self._record("pool1/3x3_s2", x)
            else:
                x = conv(conv1, 3, name="conv1")(x)
            x = self._record("pool1/norm1", lrn(x))
            x = conv(reduce2, 1, name="conv2_reduce")(x)
            x = conv(conv2, 3, name="conv2")(x)
            x = self._record("conv2/norm2", lrn(x))
            x = self._record("pool2/3x3_s2", ops.max_pool(x, 3, 2))

        aux = []
        for name, window in pools(arch).items():
            x = block(
                widths=arch.widths[name],
                conv=conv,
                branch5_kernel=arch.branch5_kernel,
                ops=ops,
                name=f"inception_{name}",
            )(x)
            self._record(f"inception_{name}/output", x)
            if name in heads:
                aux.append(AuxHead(arch, conv, train, self.dtype, name=f"aux_{name}")(x))
            if window is not None:
                with jax.named_scope(f"pool{name[0]}"):
                    x = ops.max_pool(x, window, 2)
                self._record(f"pool{name[0]}/{window}x{window}_s2", x)

        with jax.named_scope("head"):
            if choose("head", arch.head, {"average_pool": True, "fc": False}):
                x_BC = self._record("pool5/7x7_s1", jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
            else:
                x_BC = nn.relu(dense(x.shape[-1], self.dtype, name="fc")(x.reshape(x.shape[0], -1)))
            x_BC = nn.Dropout(arch.dropout, deterministic=not train)(x_BC)
            logits = dense(arch.num_classes, jnp.float32, name="classifier")(x_BC)
        self._record("loss3/classifier", logits)
        return Outputs(logits, tuple(aux) if train else ())

    def _check_size(self, shape: tuple[int, ...], heads: tuple[str, ...]) -> None:
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(
                f"images have shape {shape}; GoogLeNet takes (batch, height, width, 3)"
            )
        sizes = grid_sizes(self.arch, min(shape[1:3])).items()
        if any(side < 1 and (heads or not stage.startswith("aux_")) for stage, side in sizes):
            smallest = smallest_size(self.arch)
            less = ", or less with stem='small'" if self.arch.stem == "imagenet" else ""
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} are too small for this network; "
                f"the smallest that works is {smallest}x{smallest}{less}"
            )

    def _record(self, name: str, x: jax.Array) -> jax.Array:
        """Returns `x`, and stores it under Caffe's name if the caller collects intermediates."""
        self.sow("intermediates", name, x)
        return x


def _conv(model: GoogLeNet, train: bool) -> partial[ConvBlock]:
    """Returns `ConvBlock` with the model's norm, dtype, operations and train mode bound."""
    if model.arch.norm in ("lrn", "none"):
        norm = None
    elif model.arch.norm == "batch_norm":
        norm = partial(
            model.ops.batch_norm,
            use_running_average=not train,
            momentum=model.momentum,
            epsilon=1e-3,
            dtype=model.dtype,
            axis_name=model.axis_name,
            # The reference, `nn.BatchNorm`, has no groups.
            **({} if model.batch_norm_group is None else {"group": model.batch_norm_group}),
        )
    else:
        own = custom.load(model.arch.norm)
        momentum = {"momentum": model.momentum} if custom.takes_momentum(own) else {}
        norm = partial(own, train=train, dtype=model.dtype, **momentum)
    return partial(ConvBlock, norm=norm, dtype=model.dtype, ops=model.ops)


def every_head(model: GoogLeNet, variables: Mapping[str, Any], x_BHWC: jax.Array) -> Outputs:
    """Returns the outputs of all heads in inference, where `model.apply` runs only the main one."""
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
    """Returns the inference logits (B, K) of the head after `block`, given the block's output."""
    own = {kind: tree[f"aux_{block}"] for kind, tree in variables.items() if f"aux_{block}" in tree}
    head: Any = AuxHead(model.arch, _conv(model, train=False), train=False, dtype=model.dtype)
    return head.apply(own, features_BHWC)


def googlenet(
    variant: str = "paper",
    num_classes: int | None = None,
    *,
    dtype: Any = jnp.float32,
    ops: str = "fast",
    **changes: Any,
) -> GoogLeNet:
    """Returns the named variant as a Flax module.

    Args:
        variant: a key of `VARIANTS`.
        num_classes: number of classes; None keeps the variant's own.
        dtype: dtype of the computation; parameters and logits are always float32.
        ops: "fast", or "reference" for forward-mode differentiation (`jax.jvp`, `jax.hessian`).
        changes: other arguments of `architecture`, such as `width_multiplier` or `dropout`.

    Raises:
        ValueError: for an unknown variant or a value out of range.
    """
    arch = architecture(variant, num_classes, **changes)
    return GoogLeNet(arch, dtype=dtype, ops=ops)


# The reference operations trace fastest, and `BatchNorm` computes nothing during initialisation.
_SHAPES_ONLY = dataclasses.replace(REFERENCE, batch_norm=BatchNorm)


def init(model: GoogLeNet, key: jax.Array, image_size: int) -> dict[str, Any]:
    """Returns new variables for square images of `image_size` pixels.

    They are `{"params": ..., "batch_stats": ...}`, in float32, and include the auxiliary heads. The
    dict `batch_stats` is empty if the model has no batch norm. Call this function outside of `jit`
    and `vmap`; inside, use `model.init`.

    Raises:
        ValueError: if the image is too small for the network.
    """
    plain = model.clone(ops=_SHAPES_ONLY)
    drawn: dict[str, Any] = {}

    def draw(images_BHWC: jax.Array) -> None:
        with jax.ensure_compile_time_eval():
            drawn.update(plain.init(key, images_BHWC))

    # Run the initialisers, but only trace the forward pass. (Since flax 0.12.9, `lazy_init` runs
    # the forward pass, too.)
    jax.eval_shape(draw, jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32))
    # jax.tree.map sorts the dicts by name, so all trees of parameters have the same order.
    variables = jax.tree.map(lambda array: array, drawn)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}


def abstract_variables(model: GoogLeNet, image_size: int) -> dict[str, Any]:
    """Returns the tree of `init` with shapes and dtypes as leaves; raises ValueError as `init`."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    plain = model.clone(ops=_SHAPES_ONLY)
    variables: Any = jax.eval_shape(plain.init, jax.random.PRNGKey(0), images)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}


def check_statistics(model: GoogLeNet, batch_stats: Mapping[str, Any]) -> None:
    """Raise UserError if a user's norm or block has statistics that training cannot average."""
    own = model.arch.norm in model.arch.own_parts
    averaged = not own or custom.takes_momentum(custom.load(model.arch.norm))
    for path in traverse_util.flatten_dict(dict(batch_stats)):
        if not averaged or "norm" not in path:
            raise UserError(
                f"{'/'.join(path)} is a statistic that training cannot average: a norm with "
                "statistics must take `momentum` and pass it on, as nn.BatchNorm(momentum=momentum)"
                " does; a block must use its `conv` instead of a norm with statistics"
            )


def strip_aux(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `params` (or `batch_stats`) without the auxiliary heads, for inference."""
    return {name: value for name, value in params.items() if not name.startswith("aux_")}


def endpoints(
    model: GoogLeNet, variables: Mapping[str, Any], x_BHWC: jax.Array
) -> dict[str, jax.Array]:
    """Returns a dict from each layer's name in Caffe ("inception_3a/5x5") to its inference output.

    A layer that Caffe's network does not have is named by its path in this network
    ("inception_3a/b6"). Outputs of convolutions are after the ReLU; "prob" is the softmax of
    "loss3/classifier". Raises UserError if two layers would have the same name.
    """
    outputs, state = model.apply(variables, x_BHWC, mutable=["intermediates"])
    found: dict[str, jax.Array] = {}
    for path, value in layer_outputs(state["intermediates"]).items():
        name = caffe_name(path)
        if name in found:
            raise UserError(f"two layers of the network are named {name!r}; rename one of them")
        found[name] = value
    found["prob"] = jax.nn.softmax(outputs.logits)
    return found


def layer_outputs(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns all recorded outputs by path. "conv1 (2)" is from the second call of conv1."""
    flat: Any = traverse_util.flatten_dict(dict(intermediates))
    found: dict[str, jax.Array] = {}
    for path, values in flat.items():
        *layer, kind = path
        name = "/".join(layer if kind == "output" else path)
        for number, value in enumerate(values, 1):
            found[name if number == 1 else f"{name} ({number})"] = value
    return found

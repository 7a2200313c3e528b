"""Builds GoogLeNet as an ONNX graph. Arrays are NCHW: N batch, C channels, H height, W width."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

import gnet_jax
from gnet_jax.config import choose
from gnet_jax.convert.mapping import rows_to_channels_first
from gnet_jax.model.architecture import Architecture, pools
from gnet_jax.model_folder.folder import WeightsError
from gnet_jax.ops.sizes import conv_size, pool_padding, pooled_size, same_padding

OPSET = 13  # the first with all these operators in their current form; needs onnxruntime >= 1.6
IR_VERSION = 8
NORM_EPSILON = 1e-3  # GoogLeNet's batch norm
_NO_PLACE = "cannot export to ONNX: the network has {}; use .stablehlo, which supports all networks"


def _window(size: int, stride: int, low: int, high: int) -> dict[str, list[int]]:
    """Returns ONNX attributes of a square window, with padding `low` before and `high` after it."""
    pads = [low, low, high, high]
    return {"kernel_shape": [size, size], "strides": [stride, stride], "pads": pads}


class _Graph:
    """Collects the nodes and constants of a graph. Its methods take and return tensor names."""

    def __init__(self, arch: Architecture, flat: Mapping[str, np.ndarray]) -> None:
        self.arch, self.unused = arch, dict(flat)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def variable(self, name: str) -> np.ndarray:
        if name not in self.unused:
            raise WeightsError(_NO_PLACE.format(f"no {name}"))
        return self.unused.pop(name)

    def constant(self, name: str, value: np.ndarray) -> str:
        array = np.ascontiguousarray(value, np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self, x: str, module: str, stride: int = 1, pads: tuple[int, int] | None = None
    ) -> str:
        """Add a convolution, its batch norm (if any) and a ReLU. Defaults keep the image size."""
        kernel_HWIO = self.variable(f"params/{module}/conv/kernel")
        if choose("norm", self.arch.norm, {"batch_norm": True, "lrn": False, "none": False}):
            scale, shift = (self.variable(f"params/{module}/norm/{n}") for n in ("scale", "bias"))
            mean, var = (self.variable(f"batch_stats/{module}/norm/{n}") for n in ("mean", "var"))
            factor = scale / np.sqrt(var.astype(np.float64) + NORM_EPSILON)
            kernel_HWIO, bias = kernel_HWIO * factor, shift - mean * factor
        else:
            bias = self.variable(f"params/{module}/conv/bias")
        size = kernel_HWIO.shape[0]
        weights = self.constant(f"{module}/weight", kernel_HWIO.transpose(3, 2, 0, 1))
        inputs = [x, weights, self.constant(f"{module}/bias", bias)]
        window = _window(size, stride, *(pads or (size // 2, size // 2)))
        return self.node("Relu", [self.node("Conv", inputs, f"{module}/conv", **window)], module)

    def max_pool(self, x: str, size: int, window: int, stride: int, pad: int, name: str) -> str:
        """Add a max pool with Caffe's output size, which may need padding below and right."""
        ((low, high),) = pool_padding([size], window, stride, pad)
        return self.node("MaxPool", [x], name, **_window(window, stride, low, high))

    def lrn(self, x: str, name: str) -> str:
        if self.arch.norm != "lrn":
            return x
        size, bias, alpha, power = self.arch.lrn
        return self.node("LRN", [x], name, size=size, bias=bias, alpha=size * alpha, beta=power)

    def block(self, x: str, size: int, name: str) -> str:
        at = f"inception_{name}"
        pooled = self.max_pool(x, size, 3, 1, 1, f"{at}/pool")
        reduced3, reduced5 = x, x
        if not self.arch.naive:
            reduced3 = self.conv(x, f"{at}/reduce3")
            reduced5 = self.conv(x, f"{at}/reduce5")
            pooled = self.conv(pooled, f"{at}/pool_proj")
        inputs = {"b1": x, "b3": reduced3, "b5": reduced5}
        branches = [self.conv(value, f"{at}/{branch}") for branch, value in inputs.items()]
        return self.node("Concat", [*branches, pooled], f"{at}/output", axis=1)

    def linear(self, x: str, module: str, matrix_IO: np.ndarray, name: str) -> str:
        weights = self.constant(f"{module}/weight", matrix_IO)
        bias = self.constant(f"{module}/bias", self.variable(f"params/{module}/bias"))
        return self.node("Gemm", [x, weights, bias], name)


def onnx_model(
    arch: Architecture, flat: Mapping[str, np.ndarray], size: int, metadata: Mapping[str, str]
) -> ModelProto:
    """Returns the network as a checked ONNX model in float32, without auxiliary heads.

    The model maps normalised images "input" (N, 3, size, size) to "logits" (N, classes), where N is
    symbolic. Raises WeightsError if `flat` lacks a variable or has an unknown one, and names it.
    """
    g, shape_NCHW = _Graph(arch, flat), ["N", 3, size, size]
    if choose("stem", arch.stem, {"imagenet": True, "small": False}):
        paddings = {"same": same_padding(size, 7, 2), "caffe": None}
        pads = choose("stem_padding", arch.stem_padding, paddings)
        x = g.conv("input", "conv1", 2, pads)
        size = conv_size(size, 7, stride=2, pad=3)
        x = g.max_pool(x, size, 3, 2, 0, "pool1")
        size = pooled_size(size, 3, 2)
    else:
        x = g.conv("input", "conv1")
    x = g.lrn(x, "norm1")
    x = g.lrn(g.conv(g.conv(x, "conv2_reduce"), "conv2"), "norm2")
    x = g.max_pool(x, size, 3, 2, 0, "pool2")
    size = pooled_size(size, 3, 2)
    for name, window in pools(arch).items():
        x = g.block(x, size, name)
        if window is not None:
            x = g.max_pool(x, size, window, 2, 0, f"pool{name[0]}")
            size = pooled_size(size, window, 2)
    if choose("head", arch.head, {"average_pool": True, "fc": False}):
        x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool5")], "features")
    else:
        kernel = g.variable("params/fc/kernel")
        x = g.node("Flatten", [x], "features")
        x = g.linear(x, "fc", rows_to_channels_first(kernel, kernel.shape[0] // size**2), "fc/out")
        x = g.node("Relu", [x], "fc")
    g.linear(x, "classifier", g.variable("params/classifier/kernel"), "logits")
    heads = {f"aux_{block}" for block in arch.aux_after}
    if unused := [name for name in g.unused if name.split("/")[1] not in heads]:
        raise WeightsError(_NO_PLACE.format(f"an unknown variable {min(unused)}"))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("input", shape_NCHW), ("logits", ["N", arch.num_classes]))
    )
    graph = helper.make_graph(g.nodes, "GoogLeNet", inputs, outputs, g.constants)
    model = helper.make_model(
        graph,
        producer_name="gnet_jax",
        producer_version=gnet_jax.__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(metadata))
    checker.check_model(model, full_check=True)
    return model

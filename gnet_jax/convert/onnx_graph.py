"""GoogLeNet as an ONNX graph, node by node. Shapes are ONNX's: N batch, C channels, H, W."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

import gnet_jax
from gnet_jax.config import choose
from gnet_jax.model.architecture import Architecture, pools
from gnet_jax.model_folder.variables import WeightsError, rows_to_channels_first
from gnet_jax.ops.sizes import conv_size, pooled_size, same_padding

OPSET = 13  # the first whose operators all have today's form; read by onnxruntime 1.6 and later
IR_VERSION = 8
NORM_EPSILON = 1e-3  # GoogLeNet's batch norm


class _Graph:
    """Collects nodes and constants; its methods take and return names of tensors."""

    def __init__(self, arch: Architecture, flat: Mapping[str, np.ndarray]) -> None:
        self.arch, self.unused = arch, dict(flat)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def variable(self, name: str) -> np.ndarray:
        if name not in self.unused:
            raise WeightsError(
                f"ONNX: the network has no {name}, which {self.arch.norm} networks of this project "
                "have; export it as .stablehlo, which holds any network"
            )
        return self.unused.pop(name)

    def constant(self, name: str, value: np.ndarray) -> str:
        array = np.ascontiguousarray(value, np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self, x: str, module: str, stride: int = 1, pads: tuple[int, int] | None = None
    ) -> str:
        """Convolution with batch norm folded in, and ReLU; the default pads are half the kernel."""
        kernel_HWIO = self.variable(f"params/{module}/conv/kernel")
        if choose("norm", self.arch.norm, {"batch_norm": True, "lrn": False}):
            scale, shift = (self.variable(f"params/{module}/norm/{n}") for n in ("scale", "bias"))
            mean, var = (self.variable(f"batch_stats/{module}/norm/{n}") for n in ("mean", "var"))
            factor = scale / np.sqrt(var.astype(np.float64) + NORM_EPSILON)
            kernel_HWIO, bias = kernel_HWIO * factor, shift - mean * factor
        else:
            bias = self.variable(f"params/{module}/conv/bias")
        size = kernel_HWIO.shape[0]
        low, high = pads or (size // 2, size // 2)
        weights = self.constant(f"{module}/weight", kernel_HWIO.transpose(3, 2, 0, 1))
        x = self.node(
            "Conv",
            [x, weights, self.constant(f"{module}/bias", bias)],
            f"{module}/conv",
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[low, low, high, high],
        )
        return self.node("Relu", [x], module)

    def max_pool(self, x: str, size: int, window: int, stride: int, pad: int, name: str) -> str:
        """Max pool by Caffe's rule: if it rounds up, the high sides are padded explicitly."""
        out = pooled_size(size, window, stride, pad)
        high = max(0, (out - 1) * stride + window - size - pad)
        return self.node(
            "MaxPool",
            [x],
            name,
            kernel_shape=[window, window],
            strides=[stride, stride],
            pads=[pad, pad, high, high],
        )

    def lrn(self, x: str, name: str) -> str:
        if self.arch.norm != "lrn":
            return x
        return self.node("LRN", [x], name, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    def block(self, x: str, size: int, name: str) -> str:
        at = f"inception_{name}"
        pooled = self.max_pool(x, size, 3, 1, 1, f"{at}/pool")
        reduced3, reduced5 = x, x
        if not self.arch.naive:
            reduced3 = self.conv(x, f"{at}/reduce3")
            reduced5 = self.conv(x, f"{at}/reduce5")
            pooled = self.conv(pooled, f"{at}/pool_proj")
        branches = [
            self.conv(x, f"{at}/b1"),
            self.conv(reduced3, f"{at}/b3"),
            self.conv(reduced5, f"{at}/b5"),
            pooled,
        ]
        return self.node("Concat", branches, f"{at}/output", axis=1)

    def linear(self, x: str, module: str, matrix_IO: np.ndarray, name: str) -> str:
        weights = self.constant(f"{module}/weight", matrix_IO)
        bias = self.constant(f"{module}/bias", self.variable(f"params/{module}/bias"))
        return self.node("Gemm", [x, weights, bias], name)


def onnx_model(
    arch: Architecture,
    flat: Mapping[str, np.ndarray],
    image_size: int,
    metadata: Mapping[str, str],
) -> ModelProto:
    """Returns the network without its auxiliary heads, in float32, as a checked model. It maps
    "input" (N, 3, image_size, image_size), normalised, with channels in the network's order, to
    "logits" (N, classes). N is symbolic. `flat` holds the variables by name; `metadata` is stored
    as text. Raises WeightsError naming a variable that is missing or has no place in the graph.
    """
    g = _Graph(arch, flat)
    size = image_size
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
        raise WeightsError(
            f"ONNX: the network has {min(unused)}, of a layer that this project's networks do not "
            "have; export it as .stablehlo, which holds any network"
        )
    shape_NCHW = ["N", 3, image_size, image_size]
    graph = helper.make_graph(
        g.nodes,
        "GoogLeNet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape_NCHW)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", arch.num_classes])],
        g.constants,
    )
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

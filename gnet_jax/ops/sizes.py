"""Sizes and padding of convolutions and pools, by the rules of Caffe and TensorFlow."""

from collections.abc import Sequence


def conv_size(size: int, kernel: int, *, stride: int, pad: int) -> int:
    """Returns the side length of a convolution's output, rounded down."""
    return (size + 2 * pad - kernel) // stride + 1


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns TensorFlow's "SAME" padding, (low, high). If the sum is odd, high is larger."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def pooled_size(size: int, window: int, stride: int, pad: int = 0) -> int:
    """Returns the side length of a pool's output, rounded up, as in Caffe (pooling_layer.cpp).

    The last window begins in the image or its low padding. A size below 1 means that the image is
    too small.
    """
    out = -(-(size + 2 * pad - window) // stride) + 1
    if pad and (out - 1) * stride >= size + pad:
        out -= 1
    return out


def pool_padding(
    sizes: Sequence[int], window: int, stride: int, pad: int = 0
) -> list[tuple[int, int]]:
    """Returns for each axis the padding (low, high) that a pool needs for its `pooled_size`."""
    ends = [(pooled_size(n, window, stride, pad) - 1) * stride + window for n in sizes]
    return [(pad, max(0, end - n - pad)) for n, end in zip(sizes, ends, strict=True)]

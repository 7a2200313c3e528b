"""The crops that an evaluation averages over, as boxes (paper, section 7).

Shapes: N crops, S side of the network's input, C channels (red, green, blue).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data.decode import evaluation_size, shorter_side_size

Crops = Literal[1, 10, 144]
SCALES = (256, 288, 320, 352)  # shorter sides, for a network that sees 224
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Crop(NamedTuple):
    """A part of a resized photo, optionally resized again and mirrored."""

    scale: tuple[int, int]  # width and height that the whole photo is resized to
    box: Box  # in the resized photo
    resize: int | None  # side that the box is resized to; None if it has that side already
    mirror: bool


def crop_plan(width: int, height: int, crops: Crops, preprocessing: Preprocessing) -> list[Crop]:
    """Returns the crops of a photo of `width` x `height` pixels, each followed by its mirror image.

    1: the central crop of `central_crop`, not mirrored. 10: the centre and four corners of the same
    resized photo. 144: the paper's. 4 scales of the shorter side, whatever `preprocessing.resize`
    is; 3 squares along the longer side; the centre, the four corners and the whole of each square.
    The three squares of a square photo coincide, and count three times.
    Raises UserError for another number of crops or an image_size above resize_to, and ImageError
    for a photo so narrow that the resized one would be too large.
    """
    size = preprocessing.image_size
    if crops not in get_args(Crops):
        raise UserError(f"crops is {crops}; it must be 1, 10 or 144")
    if preprocessing.resize_to < size:
        raise UserError(
            f"resize_to is {preprocessing.resize_to}; it must be at least {size} (image_size)"
        )
    if crops == 144:
        return [
            Crop(scale, box, resize, mirror)
            for shorter in SCALES
            for scale in [shorter_side_size((width, height), round(shorter * size / 224))]
            for square in _squares(*scale)
            for box, resize in [*((b, None) for b in _five(square, size)), (square, size)]
            for mirror in (False, True)
        ]
    scale = evaluation_size((width, height), preprocessing)
    boxes = _five((0, 0, *scale), size)
    if crops == 1:
        return [Crop(scale, boxes[0], None, False)]
    return [Crop(scale, box, None, mirror) for box in boxes for mirror in (False, True)]


def _five(area: Box, size: int) -> list[Box]:
    left, top, right, bottom = area
    centre = ((left + right - size) // 2, (top + bottom - size) // 2)
    corners = [(x, y) for y in (top, bottom - size) for x in (left, right - size)]
    return [(x, y, x + size, y + size) for x, y in (centre, *corners)]


def _squares(width: int, height: int) -> Iterator[Box]:
    """Yields the left, central and right square of a wide photo, the top ... of a tall one."""
    side, spare = min(width, height), abs(width - height)
    for start in (0, spare // 2, spare):
        x, y = (start, 0) if width > height else (0, start)
        yield x, y, x + side, y + side


def extract(picture: Image.Image, plan: Sequence[Crop]) -> np.ndarray:
    """Returns (N, S, S, 3) uint8: the crops of `plan`, which was made for this picture's size."""

    @functools.cache
    def scaled(scale: tuple[int, int]) -> Image.Image:
        return picture.resize(scale, Image.Resampling.BILINEAR)

    @functools.cache
    def square(scale: tuple[int, int], box: Box, resize: int | None) -> np.ndarray:
        part = scaled(scale).crop(box)
        if resize is not None:
            part = part.resize((resize, resize), Image.Resampling.BILINEAR)
        return np.asarray(part)

    return np.stack([square(*crop[:3])[:, :: -1 if crop.mirror else 1] for crop in plan])

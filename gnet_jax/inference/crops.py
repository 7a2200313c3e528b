"""The crops that an evaluation averages over, as boxes (paper, section 7).

Shapes: N crops, S side of the network's input, C channels (red, green, blue).
"""

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
    """One view of a photo: the photo resized, a box of that, perhaps resized again and mirrored."""

    scale: tuple[int, int]  # width and height that the whole photo is resized to
    box: Box  # in the resized photo
    resize: int | None  # side that the box is resized to; None where it has that side already
    mirror: bool


def crop_plan(width: int, height: int, crops: Crops, preprocessing: Preprocessing) -> list[Crop]:
    """The crops of a photo of `width` x `height` pixels, each box followed by its mirror image.

    1 is the central crop of `central_crop`; 10 adds the four corners of the same resized photo,
    and the mirror images. 144 is the paper's: 4 scales, 3 squares along the longer side, of each
    the centre, the four corners and the whole square made smaller, and the mirror images. It
    scales the shorter side whatever `preprocessing.resize` says. In a square photo the three
    squares coincide, in one of 5:4 a few of their corners do; they still count.

    Raises:
        UserError: for another number of crops, or an image_size above resize_to.
        ImageError: for a photo so narrow that the resized one would be a bomb.
    """
    size = preprocessing.image_size
    if crops not in get_args(Crops):
        raise UserError(f"{crops} crops are not defined; choose 1, 10 or 144")
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
    whole = (0, 0, *scale)
    if crops == 10:
        boxes = _five(whole, size)
        return [Crop(scale, box, None, mirror) for box in boxes for mirror in (False, True)]
    return [Crop(scale, _five(whole, size)[0], None, False)]


def _five(area: Box, size: int) -> list[Box]:
    """Squares of side `size`: the centre of `area` and its four corners."""
    left, top, right, bottom = area
    centre = ((left + right - size) // 2, (top + bottom - size) // 2)
    corners = [(x, y) for y in (top, bottom - size) for x in (left, right - size)]
    return [(x, y, x + size, y + size) for x, y in (centre, *corners)]


def _squares(width: int, height: int) -> Iterator[Box]:
    """The left, central and right square of a wide photo; top, centre and bottom of a tall one."""
    side, spare = min(width, height), abs(width - height)
    for start in (0, spare // 2, spare):
        x, y = (start, 0) if width > height else (0, start)
        yield x, y, x + side, y + side


def extract(picture: Image.Image, plan: Sequence[Crop]) -> np.ndarray:
    """(N, S, S, 3) uint8: the crops of `plan`, which was made for this picture's size."""
    resized: dict[tuple[int, int], Image.Image] = {}
    squares: dict[Crop, np.ndarray] = {}  # each box once, not mirrored
    crops = []
    for crop in plan:
        upright = crop._replace(mirror=False)
        if upright not in squares:
            if crop.scale not in resized:
                resized[crop.scale] = picture.resize(crop.scale, Image.Resampling.BILINEAR)
            part = resized[crop.scale].crop(crop.box)
            if crop.resize is not None:
                part = part.resize((crop.resize, crop.resize), Image.Resampling.BILINEAR)
            squares[upright] = np.asarray(part)
        square = squares[upright]
        crops.append(square[:, ::-1] if crop.mirror else square)
    return np.stack(crops)

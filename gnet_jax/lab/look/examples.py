"""Find and draw the images of a data set, and the places in them, that excite each channel most."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from gnet_jax.config import UserError
from gnet_jax.data.decode import central_crop
from gnet_jax.data.progress import progress_line
from gnet_jax.inference.images import Picture
from gnet_jax.inference.lettering import save
from gnet_jax.inference.predict import Predictor, feature_rows, layer_shapes
from gnet_jax.lab.look.contact_sheet import TILE, Seen, check_fits, draw
from gnet_jax.lab.look.objectives import channel
from gnet_jax.lab.look.visualize import Job, optimised
from gnet_jax.model.names import find_layer
from gnet_jax.model_folder import TrainedModel

CELLS = 4  # side of the frame around a place, in cells of the layer's map
FRAME = "#d55e00"
SILENT = "silent on all images"


class Example(NamedTuple):
    """One image that excites a channel."""

    value: float  # the largest activation of the channel in the image
    image: int  # its place in the pictures given
    y: int  # row and column of this activation in the layer's map; 0 for a vector
    x: int


def find_channels(trained: TrainedModel, names: Sequence[str]) -> tuple[str, list[int]]:
    """Returns a layer and its channels that `names` (LAYER or LAYER:CHANNEL) refer to.

    Raises UserError for unknown names, and for names of several layers.
    """
    shapes = layer_shapes(trained)
    found = [find_layer(name, shapes) for name in names]
    layers = list(dict.fromkeys(layer for layer, _ in found))
    if len(layers) != 1:
        raise UserError(f"give channels of one layer, not of {' and '.join(layers)}")
    every = range(shapes[layers[0]].shape[-1])
    numbers = [each for _, number in found for each in (every if number is None else [number])]
    return layers[0], list(dict.fromkeys(numbers))


def top_images(
    trained: TrainedModel,
    pictures: Sequence[Picture],
    layer: str,
    channels: Sequence[int],
    top: int,
    *,
    threads: int = 4,
) -> tuple[dict[int, list[Example]], list[tuple[str, UserError]]]:
    """Returns two values: at most `top` examples of each channel, the strongest first, and the
    name and error of each image that cannot be read.

    Images in which a channel is 0 everywhere are not examples of it. `layer` is a key of
    `endpoints`.
    """
    shape = layer_shapes(trained)[layer].shape[1:]
    best: dict[int, list[Example]] = {number: [] for number in channels}
    rows = feature_rows(Predictor(trained), pictures, layer, flatten=True, threads=threads)
    failed: list[tuple[str, UserError]] = []
    with progress_line("reading", "images", len(pictures), warm_up=True) as advance:
        for index, (picture, row) in enumerate(rows):
            advance()
            if isinstance(row, UserError):
                failed.append((picture.name, row))
                continue
            value_PC = row.reshape(-1, shape[-1])[:, list(channels)]
            places = value_PC.argmax(axis=0)
            for number, place, column in zip(channels, places, value_PC.T, strict=True):
                if not column[place]:
                    continue  # a ReLU blocks the channel in the whole image
                y, x = divmod(int(place), shape[1] if len(shape) == 3 else 1)
                best[number].append(Example(float(column[place]), index, y, x))
                best[number] = sorted(best[number], key=lambda each: -each.value)[:top]
    return best, failed


def draw_examples(
    trained: TrainedModel,
    pictures: Sequence[Picture],
    layer: str,
    best: dict[int, list[Example]],
    class_names: Sequence[str] | None,
    out: Path,
    steps: int,
    read: int,
) -> None:
    """Draw a row for each channel to `out`: its optimised image, then its examples, framed.

    With `steps` 0, there are no optimised images. They are saved as in `optimised`, in the folder
    with the name of `out` without its suffix. `class_names` are those of the pictures' labels, and
    `read` is the number of pictures that could be read.
    """
    side, shape = trained.preprocessing.image_size, layer_shapes(trained)[layer].shape[1:]
    block, most = layer.removesuffix("/output"), max(1, *map(len, best.values()))
    blank = np.full((min(side, TILE), min(side, TILE), 3), 255, np.uint8)
    columns = most + bool(steps)
    check_fits(out, len(best) * columns, len(blank), columns)
    images = {}
    if steps:
        job = Job(side, steps, images=1, seed=0)
        wanted = {f"{block}:{number}": channel(layer, number) for number in best}
        images = optimised(trained, wanted, out.with_suffix(""), job, batch=16)
    tiles, captions = [], []
    for number, examples in best.items():
        name = f"{block}:{number}"
        if steps:
            (image,), value = images[name]
            tiles.append(_shrunk(Image.fromarray(image)))
            captions.append([name, f"mean {value:.4g}"])
        for example in examples:
            picture = pictures[example.image]
            square = Image.fromarray(central_crop(picture.opened(), trained.preprocessing))
            if len(shape) == 3:
                height, width = (side / cells for cells in shape[:2])
                y, x = (example.y + 0.5) * height, (example.x + 0.5) * width
                reach = CELLS / 2 * height
                box = [max(0, x - reach), max(0, y - reach), x + reach, y + reach]
                box = [min(each, side - 1) for each in box]
                ImageDraw.Draw(square).rectangle(box, outline=FRAME, width=max(1, side // 64))
            tiles.append(_shrunk(square))
            text = Path(picture.name).name
            if class_names is not None and picture.label is not None:
                text = class_names[picture.label]
            captions.append([text, f"{example.value:.4g}"])
        tiles += [blank] * (most - len(examples))
        captions += [[] if examples else [name, SILENT], *[[]] * most][: most - len(examples)]
    subtitle = f"The strongest of {read:,} images, with place and value of the largest activation."
    if steps:
        subtitle += f" First in each row: an image optimised in {steps} steps."
    title = f"{Path(trained.source.get('file', 'model')).name}: {layer}"
    save(draw(Seen(np.stack(tiles), captions), columns, title, subtitle), out)


def _shrunk(image: Image.Image) -> np.ndarray:
    """Returns the image as an array, with sides of at most `TILE` pixels."""
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return np.asarray(image)

"""Draw what is inside a network: its filters, its activations, and the regions each head uses."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gnet_jax.config import UserError, choose
from gnet_jax.data.augment import CHANNEL_STEPS, preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.cam import ActivationMap, ActivationMapper, draw
from gnet_jax.inference.lettering import save
from gnet_jax.inference.predict import say_if_slow
from gnet_jax.lab.palette import COLOURS
from gnet_jax.model.googlenet import endpoints
from gnet_jax.model.names import find_layer
from gnet_jax.model_folder import TrainedModel

SHOWN = 64  # number of channels shown of an endpoint (named output): the strongest
DEFAULT = ("conv1/7x7_s2", "inception_3a/output", "inception_4a/output", "inception_5b/output")


def draw_inside(
    trained: TrainedModel,
    picture: Image.Image,
    folder: Path,
    names: Sequence[str] = (),
    index: int | None = None,
) -> list[Path]:
    """Draw first-layer filters, activations and each head's class activation map into `folder`.

    `names` are the outputs to draw, as `find_layer` reads them, by default those in `DEFAULT` that
    exist. `index` is the class to map, by default the most probable. Raises UserError for an
    unknown output or class, and ImageError for a picture that is too narrow to resize.
    """

    @jax.jit
    def run(variables: Any, square_HWC: jax.Array) -> dict[str, jax.Array]:
        x = preprocess(square_HWC[None], preprocessing=trained.preprocessing)
        return {name: value[0] for name, value in endpoints(trained.model, variables, x).items()}

    found = say_if_slow(run)(trained.variables, central_crop(picture, trained.preprocessing))
    names = names or [name for name in DEFAULT if name in found]
    values = {}
    for name in names:
        endpoint, channel = find_layer(name, found)
        channels = slice(None) if channel is None else slice(channel, channel + 1)
        values[name] = np.asarray(found[endpoint], np.float32)[..., channels]
    kernel = np.asarray(trained.variables["params"]["conv1"]["conv"]["kernel"])
    figures: list[Image.Image | Figure] = [
        filters_figure(kernel, trained.preprocessing.channels),
        heads_picture(ActivationMapper(trained)(picture, index)),
    ]
    figures += [activation_figure(name, value) for name, value in values.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    drawn = files(folder, values)
    for file, figure in zip(drawn, figures, strict=True):
        save(figure, file, dpi=110)
    return drawn


def files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Returns the files that `draw_inside` writes if it draws the outputs `names`."""
    names = ["filters", "heads", *names]
    return [folder / f"{name.replace('/', '-').replace(':', '-')}.png" for name in names]


def filters_figure(kernel_HWCF: np.ndarray, channels: str) -> Figure:
    """Returns a figure of filters (H, W, 3, F) as colours. Grey is 0; `channels` is RGB or BGR."""
    kernel_HWCF = kernel_HWCF[:, :, choose("channels", channels, CHANNEL_STEPS)]
    kernels = np.moveaxis(kernel_HWCF, -1, 0)
    tiles = [0.5 + 0.5 * tile / max(float(np.abs(tile).max()), 1e-12) for tile in kernels]
    size = "x".join(map(str, kernel_HWCF.shape[:2]))
    return _montage(tiles, f"first layer: {len(tiles)} filters of {size}, each on its own scale")


def activation_figure(name: str, value: np.ndarray) -> Figure:
    """Returns a figure of a layer's output: its strongest channels, or bars if it is a vector."""
    if value.ndim == 1:
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(value)), value, width=1.0, color=COLOURS[0])
        axes.set(title=f"{name}: {len(value)} values", xlabel="index")
        axes.spines[["top", "right"]].set_visible(False)
        return figure
    order = np.argsort(-value.mean(axis=(0, 1)))[:SHOWN]
    dead = int(np.all(value == 0, axis=(0, 1)).sum())
    height, width, channels = value.shape
    title = f"{name}: {channels} channels of {height}x{width}, {dead} of them zero everywhere"
    if channels > SHOWN:
        title += f"; the {SHOWN} strongest"
    return _montage([value[..., place] for place in order], title, top=float(value.max()))


def heads_picture(maps: Mapping[str, ActivationMap]) -> Image.Image:
    """Returns the maps of all heads side by side, each with the head's name and probability."""
    tiles = []
    for head, found in maps.items():
        guess = found.guess | {"label": f"{head}: {found.guess['label']}"}
        drawn = np.asarray(draw(found._replace(guess=guess)))
        tiles.append(np.pad(drawn, [(0, 0), (0, 12), (0, 0)], constant_values=255))
    return Image.fromarray(np.hstack(tiles)[:, :-12])


def _montage(tiles: Sequence[np.ndarray], title: str, top: float | None = None) -> Figure:
    """Returns a figure of tiles: colours (H, W, 3) from 0 to 1, or values (H, W) from 0 to top."""
    columns = min(16, max(1, round((2 * len(tiles)) ** 0.5)))
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(0.75 * columns + 0.2, 0.75 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, tile in zip(grid.flat, tiles, strict=False):
        axes.imshow(tile, cmap="inferno", vmin=0.0, vmax=top, interpolation="nearest")
    figure.suptitle(title, fontsize=9, wrap=True)
    return figure

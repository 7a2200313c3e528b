"""DeepDream: change a photo so that it excites a layer more (Mordvintsev et al., 2015).

The photo is changed at several sizes ("octaves"), from small to large, so that features of all
sizes appear. Gradients are computed in square tiles of one size, so photos of any size need little
memory and one compiled program. Each step shifts the tiles, so that their borders do not show.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from PIL import Image

from gnet_jax.config import UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.progress import progress_line
from gnet_jax.inference.predict import layer_shapes
from gnet_jax.lab.look.objectives import parse
from gnet_jax.lab.look.visualize import unblocked
from gnet_jax.model.googlenet import endpoints
from gnet_jax.model_folder import TrainedModel
from gnet_jax.training.sharding import xla_options


def dream(
    trained: TrainedModel,
    picture: Image.Image,
    layer: str,
    *,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    strength: float = 1.5,
    seed: int = 0,
) -> Image.Image:
    """Returns the RGB picture, changed at `octaves` sizes by `steps` steps each.

    Args:
        layer: a layer, whose mean square is increased, or another objective of `parse`.
        octave_scale: ratio of the sides of two octaves; the last octave has the picture's size.
        strength: mean change of a pixel in each step, in grey levels.

    Raises:
        UserError: for an unknown layer, and for an objective that no change of the picture affects.
    """
    text = layer if ":" in layer else f"dream:{layer}"
    ((_, objective),) = parse(text, layer_shapes(trained), trained.class_names)
    side, model = trained.preprocessing.image_size, unblocked(trained.model)

    @functools.partial(jax.jit, compiler_options=xla_options(jax.default_backend()))
    def gradient(variables: Any, tile_SSC: jax.Array) -> jax.Array:
        def score(tile_SSC: jax.Array) -> jax.Array:
            x = preprocess(tile_SSC[None], preprocessing=trained.preprocessing)
            return objective(endpoints(model, variables, x))

        return jax.grad(score)(tile_SSC)

    photo = np.asarray(picture.convert("RGB"), np.float32)
    sizes = [
        [max(1, round(length / octave_scale**octave)) for length in photo.shape[:2]]
        for octave in reversed(range(octaves))
    ]
    tiles = sum(math.ceil(height / side) * math.ceil(width / side) for height, width in sizes)
    generator, changes = np.random.default_rng(seed), False
    image = change = np.zeros((1, 1, 3), np.float32)
    with progress_line("dreaming", "tiles", steps * tiles) as advance:
        for size in sizes:
            base = _resized(photo, size)
            image = base + _resized(change, size)
            for _ in range(steps):
                shift = generator.integers(0, size)
                rolled = np.roll(image, shift, (0, 1))
                padding = [(0, -length % side) for length in size]
                padded = np.pad(rolled, [*padding, (0, 0)], mode="wrap")
                slopes = np.empty_like(padded)
                for y in range(0, padded.shape[0], side):
                    for x in range(0, padded.shape[1], side):
                        place = np.s_[y : y + side, x : x + side]
                        slopes[place] = gradient(trained.variables, padded[place])
                        advance()
                slope = np.roll(slopes[: size[0], : size[1]], -shift, (0, 1))
                changes |= bool(slope.any())
                image = np.clip(image + strength * slope / (np.abs(slope).mean() + 1e-12), 0, 255)
            change = image - base
    if not changes:
        raise UserError(f"{layer} has no gradient in this picture; choose another layer or channel")
    return Image.fromarray(np.round(image).astype(np.uint8))


def _resized(image_HWC: np.ndarray, size: list[int]) -> np.ndarray:
    """Returns a float32 image, resized to (height, width)."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(image_HWC, -1, 0)]
    resized = [plane.resize(size[::-1], Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=-1)

"""Draw the images of a batch as the network sees them. Shapes: N images, S height and width."""

import dataclasses
import itertools
import math
import textwrap
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from gnet_jax.config import AugmentConfig, Config, Preprocessing, UserError, choose
from gnet_jax.data.augment import CHANNEL_STEPS, preprocess
from gnet_jax.data.batches import BadRecords, Batch, eval_batches
from gnet_jax.data.sources import DataError, Source
from gnet_jax.inference.lettering import fitted, lettered, save
from gnet_jax.training.program import augmentation, training_batches
from gnet_jax.training.step import step_keys

TILE = 128  # smaller images are enlarged to at least this side
MARGIN, GAP = 28, 10
HEADER = 250  # pixels of the margins, the title and at most six lines of the subtitle
LIMITS = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # pixels of a side
INK, GREY, PAPER = "#1c1c1c", "#6e6e6e", "#ffffff"
# With this area and aspect, the crop is always the largest central square.
UNTOUCHED = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)


class Seen(NamedTuple):
    """Images of one batch as the network sees them."""

    images: np.ndarray  # (N, S, S, 3) uint8
    captions: list[list[str]]  # lines for each image: its class, or its classes with shares
    untouched: np.ndarray | None = None  # (N, S, S, 3) uint8: central squares without augmentation


def training_images(config: Config, source: Source, step: int, count: int) -> Seen:
    """Returns the first `count` images of the batch on which a run trains after `step` steps."""
    # To save time, read only what one of several hosts would read. Use the largest number of hosts
    # for which the host's share of the batch is even and has at least `count` images.
    most = config.batch_size // count
    hosts = max((n for n in range(1, most + 1) if config.batch_size / n % 2 == 0), default=1)

    def first_batch(config: Config) -> Batch:
        bad = BadRecords(source, config.data.bad_limit)
        return next(training_batches(config, source, start_step=step, hosts=hosts, bad=bad))

    batch = first_batch(config)
    key, _ = step_keys(jax.random.PRNGKey(config.seed), step)
    augment = jax.jit(augmentation(config, len(source.class_names)))
    x, targets = jax.device_get(augment(batch["image"], batch["label"], key))
    untouched = first_batch(dataclasses.replace(config, augment=UNTOUCHED))["image"]
    captions = [_caption(target, source.class_names) for target in targets[:count]]
    pixels = to_pixels(x[:count], config.data.preprocessing)
    return Seen(pixels, captions, untouched[:count])


def _caption(target_K: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    order = np.argsort(-target_K, kind="stable")
    labels = order[: np.count_nonzero(target_K)]
    if len(labels) == 1:
        return [class_names[labels[0]]]
    return [f"{target_K[label]:.0%} {class_names[label]}" for label in labels]


def evaluation_images(config: Config, source: Source, step: int, count: int) -> Seen:
    """Returns the first images, at most `count`, in an evaluation's batch number `step`."""
    size, p = config.eval_batch_size or config.batch_size, config.data.preprocessing
    last = (len(source) - 1) // size
    if step > last:
        raise DataError(f"--step is {step}, but the last evaluation batch is {last}")
    bad, threads = BadRecords(source, config.data.bad_limit), config.data.threads
    batches = eval_batches(source, batch_size=size, preprocessing=p, threads=threads, bad=bad)
    batch = next(itertools.islice(batches, step, None))
    images, labels = (batch[name][batch["mask"]][:count] for name in ("image", "label"))
    if not len(images):
        raise DataError(f"all images of evaluation batch {step} are corrupt; choose another --step")
    pixels = to_pixels(np.asarray(preprocess(jnp.asarray(images), preprocessing=p)), p)
    return Seen(pixels, [[source.class_names[label]] for label in labels])


def to_pixels(x: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Returns RGB uint8 images from the inputs of a network; the inverse of `preprocess`."""
    levels = x * np.array(preprocessing.std) + np.array(preprocessing.mean)
    levels = levels[..., choose("channels", preprocessing.channels, CHANNEL_STEPS)]
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def describe_augmentation(a: AugmentConfig) -> str:
    """Returns a line of text that describes the augmentation."""
    low, high = a.crop_aspect
    crops = f"crops of {a.crop_area[0]:.0%} to {a.crop_area[1]:.0%}, aspect {low:.3g} to {high:.3g}"
    known = {"random_area": crops, "fixed_scale": "crops of the evaluation's size"}
    parts = [choose("augment.crop", a.crop, known), f"{a.interpolation} interpolation"]
    parts.append("mirrored" if a.flip else "not mirrored")
    if a.shift:
        parts.append(f"shifted by up to {a.shift} pixels")
    amounts = {name: getattr(a, name) for name in ("brightness", "contrast", "saturation", "hue")}
    parts += [f"{name} \N{PLUS-MINUS SIGN}{each:.0%}" for name, each in amounts.items() if each]
    if a.erase:
        parts.append(f"{a.erase:.0%} partly erased")
    if a.mixup:
        parts.append(f"mixup Beta({a.mixup:g}, {a.mixup:g})")
    if a.early_size:
        size = f"{a.early_size}x{a.early_size}"
        parts.append(f"reduced to {size} in the first {a.early_share:.0%} of the steps (not drawn)")
    return ", ".join(parts)


def check_fits(out: Path, count: int, side: int, columns: int) -> None:
    """Raise a UserError if the format of `out` cannot store a sheet with captions of two lines."""
    tile, columns = side * math.ceil(TILE / side), min(columns, count)
    size = columns * (tile + GAP), HEADER + math.ceil(count / columns) * (tile + 64)
    limit = LIMITS.get(out.suffix.lower(), math.inf)
    if max(size) > limit:
        problem = f"{out} would have {size[0]}x{size[1]} pixels, but its format allows {limit}"
        raise UserError(f"{problem}; write a .png file, or change the number of columns or images")


def draw(seen: Seen, columns: int, title: str, subtitle: str) -> Image.Image:
    """Returns a sheet of `columns` images per row, each below its untouched version, if any."""
    side = seen.images.shape[1]
    tile = side * max(1, -(-TILE // side))
    title, heading = lettered(title, 19)
    subtitle, body = lettered(subtitle, 14)
    lines = max(len(caption) for caption in seen.captions)
    strips = [strip for strip in (seen.untouched, seen.images) if strip is not None]
    row_height = len(strips) * (tile + 4) + 18 * lines + 24
    columns = min(columns, len(seen.images))
    width = max(2 * MARGIN + columns * (tile + GAP) - GAP, 640)
    wrapped = textwrap.wrap(subtitle, int((width - 2 * MARGIN) / body.getlength("n")))
    top = MARGIN + 32 + 20 * len(wrapped) + 14
    rows = -(-len(seen.images) // columns)
    sheet = Image.new("RGB", (width, top + rows * row_height + MARGIN - 24), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), fitted(title, heading, width - 2 * MARGIN), INK, heading)
    pen.text((MARGIN, MARGIN + 28), "\n".join(wrapped), GREY, body, spacing=5)
    for place, caption in enumerate(seen.captions):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * (tile + GAP), top + row * row_height
        for strip in strips:
            image = Image.fromarray(strip[place])
            sheet.paste(image.resize((tile, tile), Image.Resampling.NEAREST), (x, y))
            y += tile + 4
        for number, line in enumerate(caption):
            line, font = lettered(line, 13)
            colour = GREY if number else INK
            pen.text((x, y + 18 * number), fitted(line, font, tile), colour, font)
    return sheet


def draw_sheet(
    config: Config,
    source: Source,
    out: Path,
    *,
    name: str,
    split: Literal["train", "val"],
    step: int,
    rows: int,
    columns: int,
) -> int:
    """Draw at most `rows` * `columns` images of batch `step` to `out`; returns their number."""
    d = config.data
    if split == "train":
        seen = training_images(config, source, step, rows * columns)
        what = f"training step {step}, seed {config.seed}"
        how = f"{describe_augmentation(config.augment)}; above each row: the original images"
    else:
        seen = evaluation_images(config, source, step, rows * columns)
        what = f"evaluation batch {step}"
        how = f"resized ({d.resize}) to {d.resize_to}, central crop"
    data = f"{d.source}, {split}: {len(source):,} images, {len(source.class_names)} classes"
    subtitle = f"{data}; seen at {d.image_size}x{d.image_size}. {how[0].upper()}{how[1:]}."
    save(draw(seen, columns, f"{name}: {what}", subtitle), out)
    return len(seen.images)

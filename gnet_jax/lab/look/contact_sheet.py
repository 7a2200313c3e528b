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
INK, GREY, PAPER = "#1c1c1c", "#6e6e6e", "#ffffff"
LIMITS = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # pixels of a side
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
    amounts = {name: getattr(a, name) for name in ("brightness", "contrast", "saturation", "hue")}
    parts += [f"{name} \N{PLUS-MINUS SIGN}{each:.0%}" for name, each in amounts.items() if each]
    if a.erase:
        parts.append(f"{a.erase:.0%} partly erased")
    if a.mixup:
        parts.append(f"mixup Beta({a.mixup:g}, {a.mixup:g})")
    return ", ".join(parts)


class Layout(NamedTuple):
    """The measures of a sheet, in pixels."""

    columns: int
    tile: int  # side of an image
    row_height: int
    subtitle: list[str]  # wrapped
    top: int  # of the first row
    size: tuple[int, int]  # width and height


def lay_out(count: int, side: int, columns: int, strips: int, lines: int, subtitle: str) -> Layout:
    """Returns the layout of `count` places, each of `strips` images and `lines` of a caption."""
    tile = side * max(1, -(-TILE // side))
    subtitle, body = lettered(subtitle, 14)
    row_height = strips * (tile + 4) + 18 * lines + 24
    columns = min(columns, count)
    width = max(2 * MARGIN + columns * (tile + GAP) - GAP, 640)
    wrapped = textwrap.wrap(subtitle, int((width - 2 * MARGIN) / body.getlength("n")))
    top = MARGIN + 32 + 20 * len(wrapped) + 14
    height = top + math.ceil(count / columns) * row_height + MARGIN - 24
    return Layout(columns, tile, row_height, wrapped, top, (width, height))


def check_fits(out: Path, count: int, side: int, columns: int, subtitle: str) -> None:
    """Raise a UserError if the format of `out` cannot store images with two lines each."""
    width, height = lay_out(count, side, columns, 1, 2, subtitle).size
    limit = LIMITS.get(out.suffix.lower(), max(width, height))
    if max(width, height) > limit:
        raise UserError(
            f"cannot write {out}: the sheet has {width}x{height} pixels, but a side of a "
            f"{out.suffix} file has at most {limit}; write a .png file, or use another number of "
            "columns or images"
        )


def draw(seen: Seen, columns: int, title: str, subtitle: str) -> Image.Image:
    """Returns a sheet of `columns` images per row, each below its untouched version, if any."""
    title, heading = lettered(title, 19)
    _, body = lettered(subtitle, 14)
    lines = max(len(caption) for caption in seen.captions)
    strips = [strip for strip in (seen.untouched, seen.images) if strip is not None]
    count, side = seen.images.shape[:2]
    columns, tile, row_height, wrapped, top, size = lay_out(
        count, side, columns, len(strips), lines, subtitle
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), fitted(title, heading, size[0] - 2 * MARGIN), INK, heading)
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

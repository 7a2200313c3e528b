"""A contact sheet: what the network sees of a batch, image by image.

Shapes: N images, S side.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gnet_jax.config import AugmentConfig, Config, Preprocessing, UserError, choose
from gnet_jax.data import BadRecords, Batch, DataError, Source, eval_batches, preprocess
from gnet_jax.data.augment import CHANNEL_STEPS
from gnet_jax.inference.lettering import fitted, lettered
from gnet_jax.training.program import augmentation, training_batches
from gnet_jax.training.step import step_keys

TILE = 128  # smaller images are enlarged to at least this side
MARGIN, GAP = 28, 10
INK, GREY, PAPER = "#1c1c1c", "#6e6e6e", "#ffffff"
# No rectangle of another aspect fits, so that the largest central square is what is cropped.
UNTOUCHED = AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)


@dataclasses.dataclass(frozen=True)
class Seen:
    """Images of one step as the network sees them."""

    images: np.ndarray  # (N, S, S, 3) uint8
    captions: list[list[str]]  # class names and, of a mixed image, their shares
    untouched: np.ndarray | None = None  # (N, S, S, 3) uint8: their central squares


def training_images(config: Config, source: Source, step: int, count: int) -> Seen:
    """The first images (at most `count`) of the batch after `step` finished steps of a run.

    They are read, cropped and augmented by the code of the run and with its random numbers.
    """
    # As on one of so many hosts: what is not shown need not be read.
    hosts = _hosts(config.batch_size, count)

    def first(config: Config) -> Batch:
        bad = BadRecords(source, config.data.bad_limit)
        return next(training_batches(config, source, start_step=step, hosts=hosts, bad=bad))

    batch = first(config)
    key, _ = step_keys(jax.random.PRNGKey(config.seed), step)
    augment = jax.jit(augmentation(config, len(source.class_names)))
    x, targets = jax.device_get(augment(batch["image"], batch["label"], key))
    plain = dataclasses.replace(config, augment=UNTOUCHED)
    untouched = first(plain)["image"]
    captions = [_shares(target, source.class_names) for target in targets[:count]]
    pixels = to_pixels(x[:count], config.data.preprocessing)
    return Seen(pixels, captions, untouched[:count])


def _shares(target_K: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """Returns the class names of a training target, the largest share first."""
    order = np.argsort(-target_K, kind="stable")
    labels = order[: np.count_nonzero(target_K)]
    if len(labels) == 1:
        return [class_names[labels[0]]]
    return [f"{target_K[label]:.0%} {class_names[label]}" for label in labels]


def evaluation_images(config: Config, source: Source, step: int, count: int) -> Seen:
    """The first images (at most `count`) of an evaluation's batch number `step`.

    Raises:
        DataError: if the evaluation has no such batch.
    """
    size, p = config.eval_batch_size or config.batch_size, config.data.preprocessing
    steps = -(-len(source) // size)
    if step >= steps:
        raise DataError(
            f"--step is {step}, but an evaluation of {len(source):,} images in batches of {size} "
            f"has {steps} steps, the last of them {steps - 1}"
        )
    bad, threads = BadRecords(source, config.data.bad_limit), config.data.threads
    batches = eval_batches(source, batch_size=size, preprocessing=p, threads=threads, bad=bad)
    batch = next(itertools.islice(batches, step, None))
    images, labels = (batch[name][batch["mask"]][:count] for name in ("image", "label"))
    pixels = to_pixels(np.asarray(preprocess(jnp.asarray(images), preprocessing=p)), p)
    return Seen(pixels, [[source.class_names[label]] for label in labels])


def _hosts(batch_size: int, count: int) -> int:
    """The most hosts that each have an even share of at least `count` images."""
    shares = ((hosts, batch_size / hosts) for hosts in range(1, batch_size // count + 1))
    return max((hosts for hosts, share in shares if share % 2 == 0), default=1)


def to_pixels(x: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 images, red, green, blue, from the network's inputs: `preprocess` undone."""
    levels = x * np.array(preprocessing.std) + np.array(preprocessing.mean)
    levels = levels[..., choose("channels", preprocessing.channels, CHANNEL_STEPS)]
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def in_words(a: AugmentConfig) -> str:
    """What an augmentation does, as one line of text."""
    low, high = a.crop_aspect
    crops = f"crops of {a.crop_area[0]:.0%} to {a.crop_area[1]:.0%}, aspect {low:.3g} to {high:.3g}"
    known = {"random_area": crops, "fixed_scale": "crops of the size that evaluation takes"}
    parts = [
        choose("augment.crop", a.crop, known),
        f"{a.interpolation} interpolation",
        "mirrored" if a.flip else "not mirrored",
    ]
    names = ("brightness", "contrast", "saturation", "hue")
    parts += [
        f"{name} \N{PLUS-MINUS SIGN}{getattr(a, name):.0%}" for name in names if getattr(a, name)
    ]
    if a.erase:
        parts.append(f"{a.erase:.0%} erased from")
    if a.mixup:
        parts.append(f"mixup Beta({a.mixup:g}, {a.mixup:g})")
    return ", ".join(parts)


def draw(seen: Seen, columns: int, title: str, subtitle: str) -> Image.Image:
    """The sheet: rows of images, above each row of a training batch the untouched ones.

    Args:
        seen: what to show.
        columns: images in a row.
        title, subtitle: what is written above.
    """
    side = seen.images.shape[1]
    tile = side * max(1, -(-TILE // side))
    title, heading = lettered(title, 19)
    subtitle, body = lettered(subtitle, 14)
    small = lettered("", 13)[1]
    lines = max(len(caption) for caption in seen.captions)
    strips = 1 if seen.untouched is None else 2
    row_height = strips * (tile + 4) + 18 * lines + 24
    columns = min(columns, len(seen.images))
    left = MARGIN + (22 if strips == 2 else 0)
    width = max(left + columns * (tile + GAP) - GAP + MARGIN, 640)
    wrapped = _wrapped(subtitle, body, width - 2 * MARGIN)
    top = MARGIN + 32 + 20 * len(wrapped) + 14
    rows = -(-len(seen.images) // columns)
    sheet = Image.new("RGB", (width, top + rows * row_height + MARGIN - 24), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), fitted(title, heading, width - 2 * MARGIN), INK, heading)
    pen.text((MARGIN, MARGIN + 28), "\n".join(wrapped), GREY, body, spacing=5)
    for place, (image, caption) in enumerate(zip(seen.images, seen.captions, strict=True)):
        row, column = divmod(place, columns)
        x, y = left + column * (tile + GAP), top + row * row_height
        if seen.untouched is not None:
            if column == 0:
                _sideways(sheet, "untouched", (MARGIN - 4, y), tile, small)
                _sideways(sheet, "seen", (MARGIN - 4, y + tile + 4), tile, small)
            sheet.paste(_enlarged(seen.untouched[place], tile), (x, y))
            y += tile + 4
        sheet.paste(_enlarged(image, tile), (x, y))
        for number, line in enumerate(caption):
            colour = GREY if number else INK
            line, font = lettered(line, 13)
            pen.text((x, y + tile + 4 + 18 * number), fitted(line, font, tile), colour, font)
    return sheet


def _enlarged(image: np.ndarray, tile: int) -> Image.Image:
    return Image.fromarray(image).resize((tile, tile), Image.Resampling.NEAREST)


def _sideways(
    sheet: Image.Image, text: str, place: tuple[int, int], length: int, font: ImageFont.FreeTypeFont
) -> None:
    """Write upwards, in the middle of `length` pixels."""
    strip = Image.new("RGB", (length, 18), PAPER)
    text = fitted(text, font, length)
    ImageDraw.Draw(strip).text((length / 2, 8), text, GREY, font, anchor="mm")
    sheet.paste(strip.transpose(Image.Transpose.ROTATE_90), place)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


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
    """Draw `rows` of `columns` images of a step of `config` into the file `out`.

    Returns:
        The number of images drawn: a batch may have fewer.

    Raises:
        DataError: for data that cannot be used.
        UserError: if `out` cannot be written.
    """
    d = config.data
    resized = f"resized ({d.resize}) to {d.resize_to}, central crop"
    training = (training_images, f"training step {step}, seed {config.seed}")
    evaluation = (evaluation_images, f"evaluation batch {step}")
    known = {"train": (*training, in_words(config.augment)), "val": (*evaluation, resized)}
    of_split, what, how = choose("split", split, known)
    seen = of_split(config, source, step, rows * columns)
    data = f"{d.source}, {split}: {len(source):,} images, {len(source.class_names)} classes"
    subtitle = f"{data}; seen at {d.image_size}x{d.image_size}. {how[0].upper()}{how[1:]}."
    sheet = draw(seen, columns, f"{name}: {what}", subtitle)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    return len(seen.images)

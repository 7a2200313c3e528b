"""The commands that look inside a network: visualize, dream, attribute, top-images, compare."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from gnet_jax.cli.models import Image, Model, open_models
from gnet_jax.cli.output import (
    PHOTOS,
    check_at_least,
    check_not_input,
    check_picture,
    console,
    data_files,
    say_not_read,
    several,
)
from gnet_jax.config import UserError


def visualize(
    model: Model,
    objectives: Annotated[Positional[tuple[str, ...]], several("OBJECTIVE ...")],
    out: Path = Path("sheet.png"),
    steps: int = 512,
    size: int | None = None,
    images: int = 1,
    seed: int = 0,
    batch: int = 16,
    columns: int = 8,
) -> None:
    """Optimise images that excite parts of a network, and draw them on one sheet.

    An OBJECTIVE is LAYER:CHANNEL, LAYER:CHANNEL@ROW,COLUMN (one neuron), class:NAME, dream:LAYER,
    or LAYER (all its channels), with Caffe's or Google's names of layers: inception_4a:12,
    mixed4d_3x3_bottleneck:139, class:golden_retriever. Sums have signs and factors:
    inception_4a:12-inception_4b:7, mixed4a:7+100*diversity:mixed4a. An objective that begins with a
    minus needs a space before it: ' -mixed4a:7'.

    Each image is also saved on its own, in a folder with the name of the sheet. If you repeat an
    interrupted command, it reuses them.

    Args:
        objectives: what to excite; see above.
        out: the picture to write.
        steps: number of optimisation steps.
        size: side of the images in pixels; the default is the side of the network's input.
        images: number of images of each objective; they differ if diversity:LAYER is part of it.
        seed: seed of the first images and of their movements.
        batch: largest number of images to optimise at once.
        columns: number of images in a row of the sheet.
    """
    from gnet_jax.lab.look.visualize import Job, draw_pictures

    if not objectives:
        raise UserError("no objective given after the model; give one, such as inception_4a:12")
    check_picture(out, PHOTOS)
    for name, value in {
        "steps": steps,
        "images": images,
        "batch": batch,
        "columns": columns,
    }.items():
        check_at_least(name, value)
    if size is not None:
        check_at_least("size", size)
    check_at_least("seed", seed, 0)
    check_not_input(out.with_suffix(""), [model], new=True)
    (trained,) = open_models([model])
    job = Job(size or trained.preprocessing.image_size, steps, images, seed)
    count = draw_pictures(trained, objectives, out, job, batch, columns)
    print(f"drew {out}: {count:,} objectives")


def dream(
    model: Model,
    image: Image,
    out: Path = Path("dream.png"),
    layer: str = "inception_4c/output",
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    strength: float = 1.5,
    seed: int = 0,
) -> None:
    """Change a photo so that it excites a layer more (DeepDream), and save it in its own size.

    Args:
        out: the picture to write.
        layer: a layer, or an objective of `gnet visualize`, such as inception_4c:12.
        octaves: number of sizes at which the photo is changed.
        octave_scale: ratio of the sides of two octaves.
        steps: number of steps in each octave.
        strength: mean change of a pixel in each step, in grey levels.
        seed: seed of the shifts of the tiles.
    """
    from gnet_jax.inference.images import open_picture
    from gnet_jax.inference.lettering import save
    from gnet_jax.lab.look.dream import dream as dream_of

    check_picture(out, PHOTOS)
    check_not_input(out, [image])
    check_at_least("octaves", octaves)
    check_at_least("steps", steps)
    check_at_least("seed", seed, 0)
    if not octave_scale > 1:
        raise UserError(f"--octave-scale is {octave_scale:g}; it must be above 1")
    if not abs(strength) <= 255:  # false for NaN, too
        raise UserError(f"--strength is {strength:g}; it must be from -255 to 255 grey levels")
    picture = open_picture(image)
    most = 1 + int(math.log(max(picture.size), octave_scale))  # the smallest has one pixel
    if octaves > most:
        raise UserError(f"--octaves is {octaves}; it must be at most {most} for this photo")
    (trained,) = open_models([model])
    changed = dream_of(
        trained,
        picture,
        layer,
        octaves=octaves,
        octave_scale=octave_scale,
        steps=steps,
        strength=strength,
        seed=seed,
    )
    save(changed, out)
    print(f"drew {out}")


def attribute(
    model: Model,
    image: Image,
    out: Path = Path("attribution.png"),
    target: str | None = None,
    layer: str | None = None,
    sanity: bool = False,
) -> None:
    """Draw which pixels and regions of a photo the logit of a class depends on.

    The figure shows the activation map of every head, Grad-CAM at a layer, the gradient, SmoothGrad
    and integrated gradients, whose sum is compared with the difference of the logits.

    Args:
        out: the picture to write; its suffix is .png, .svg or .pdf.
        target: name or number of the class; the default is the most probable one.
        layer: a block or a convolution for Grad-CAM, by Caffe's or Google's name; the default is
            inception_4e, or the last block of a network without it.
        sanity: add a row with random weights, and the rank correlation of its maps with the first.
    """
    from gnet_jax.inference.images import open_picture
    from gnet_jax.inference.lettering import save
    from gnet_jax.lab.look.attribution import draw_attribution
    from gnet_jax.lab.look.objectives import find_class

    check_picture(out)
    check_not_input(out, [image])
    picture = open_picture(image)
    (trained,) = open_models([model])
    index = None if target is None else find_class(target, trained.class_names)
    save(draw_attribution(trained, picture, index, layer, sanity=sanity), out, dpi=110)
    print(f"drew {out}")


def top_images(
    model: Model,
    layer: Annotated[Positional[tuple[str, ...]], several("LAYER[:CHANNEL] ...")],
    data: str,
    split: Literal["val", "test", "train"] = "val",
    out: Path = Path("top_images.png"),
    top: int = 8,
    steps: int = 256,
    threads: int = 4,
) -> int:
    """Draw the images of a data set, and the places in them, that excite each channel most.

    Each row shows a channel: an optimised image, then the images with the largest activations. An
    image in which the channel is 0 everywhere is not shown.

    Args:
        layer: a layer, or some channels of one layer, by Caffe's or Google's names.
        data: digits, folder:PATH, npz:PATH, tfds:NAME, or a folder of images; with #N, N images.
        split: split to read of a data set.
        out: the picture to write.
        top: number of images of each channel.
        steps: steps of the optimised image, which is saved in a folder with the name of the
            picture; 0 leaves it out.
        threads: number of threads that read and decode images.
    """
    from gnet_jax.inference.images import Pictures
    from gnet_jax.inference.predict import render_error
    from gnet_jax.lab.look import examples

    if not layer:
        raise UserError("no layer given after the model; give one, such as inception_4a")
    check_picture(out, PHOTOS)
    check_not_input(out, data_files([data]), new=True)
    if steps:  # the optimised images are saved in a folder
        check_not_input(out.with_suffix(""), data_files([data]), new=True)
    check_at_least("top", top)
    check_at_least("steps", steps, 0)
    check_at_least("threads", threads)
    pictures = Pictures(data, split=split)
    say_not_read(pictures.left_out)
    (trained,) = open_models([model])
    key, channels = examples.find_channels(trained, layer)
    best, failed = examples.top_images(trained, pictures, key, channels, top, threads=threads)
    for name, error in failed:
        render_error(console(stderr=True), name, error)
    if not (read := len(pictures) - len(failed)):
        raise UserError("no image could be read")
    for number, found in best.items():
        values = ", ".join(f"{pictures[each.image].name} ({each.value:.4g})" for each in found)
        print(f"{key}:{number}  {values or examples.SILENT}")
    examples.draw_examples(trained, pictures, key, best, pictures.class_names, out, steps, read)
    print(f"drew {out}")
    return 1 if failed else 0


def compare(
    models: Annotated[Positional[tuple[Path, ...]], several("MODEL MODEL ...")],
    data: str,
    split: Literal["val", "test", "train"] = "val",
    out: Path = Path("compare.png"),
) -> None:
    """Compare the blocks of networks: their similarity (CKA), and linear probes of their outputs.

    Args:
        models: model folders, workdirs or weight files; the first is compared with the others.
        data: digits, folder:PATH, npz:PATH, or tfds:NAME; with #N, only N images.
        split: split of the data. One half of its images fits the probes, the other tests them.
        out: the picture to write; its suffix is .png, .svg or .pdf.
    """
    from gnet_jax.inference.images import Pictures
    from gnet_jax.inference.lettering import save
    from gnet_jax.lab.look import similarity
    from gnet_jax.lab.sweeps.runs import name_runs

    check_picture(out)
    check_not_input(out, data_files([data]), new=True)
    named = name_runs(models)
    if len(named) < 2:
        raise UserError("give at least two different models to compare")
    pictures = Pictures(data, split=split)
    found = similarity.compare(
        dict(zip(named, open_models(list(named.values())), strict=True)), pictures
    )
    for name, accuracies in found.probes.items():
        probes = ", ".join(
            f"{block} {value:.1%}"
            for block, value in zip(found.blocks[name], accuracies, strict=True)
        )
        print(f"{name}: linear probes {probes}")
    save(similarity.draw_comparison(found), out, dpi=150)
    print(f"drew {out}")

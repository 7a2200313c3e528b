"""Commands about data: check-data, show-data, prepare."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import PHOTOS, check_picture, console, json_line, say_not_read
from gnet_jax.config import Config, UserError, check
from gnet_jax.config.command import parse_command


def prepare(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
    format: Literal["array_record", "tfrecord"] = "array_record",
    subset: bool = False,
    resize: int | None = None,
    out: Path | None = None,
    threads: int = 4,
) -> None:
    """Prepare a set of TensorFlow Datasets to be trained on, or a copy of smaller images.

    tfds:imagenet2012 is made of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which
    image-net.org gives to those who sign in. Other sets are downloaded; most of them need
    TensorFlow: pip install -e '.[prepare]'. With --resize, any source is copied instead, for
    hosts that cannot decode large images fast enough. ImageNet, and a copy, go on after an
    interruption when the same command is given again.

    Args:
        source: tfds:imagenet2012, tfds:cifar10 or another image classification set; with --resize
            any source.
        manual_dir: the folder of ImageNet's tars, or of what else has to be downloaded by hand.
        data_dir: where to write; without it TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        format: of the files.
        subset: accept tars of ImageNet that hold only a part of its images.
        resize: the longest that the shorter side of an image of the copy may be, in pixels.
        out: the folder to write the copy into.
        threads: that write files at once.
    """
    from gnet_jax.data.prepare.pack import pack
    from gnet_jax.data.prepare.tfds import prepare as prepare_set

    kind, _, name = source.partition(":")
    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    if (resize is None) != (out is None):
        raise UserError("--resize and --out need each other: --resize 256 --out DIR")
    if resize is not None and out is not None:
        if resize < 1:
            raise UserError(f"--resize is {resize}; it must be at least 1")
        preparing = {"manual-dir": manual_dir, "data-dir": data_dir, "subset": subset}
        for option, given in preparing.items():
            if given:
                raise UserError(
                    f"--{option} has no effect on a copy; --resize reads a prepared source, "
                    "a set of TensorFlow Datasets from the folder that TFDS_DATA_DIR names"
                )
        prepared = pack(source, out, resize, file_format=format, threads=threads)
        source, data_dir = f"tfds:{out.name}", out.absolute().parent
    elif kind != "tfds" or not name:
        raise UserError(f"{source!r} is no set of TensorFlow Datasets; name it tfds:NAME")
    else:
        prepared = prepare_set(
            name,
            data_dir=data_dir,
            manual_dir=manual_dir,
            file_format=format,
            subset=subset,
            threads=threads,
        )
    say_not_read(prepared.left_out)
    counts = ", ".join(f"{count:,} {split}" for split, count in prepared.images.items())
    print(f"{prepared.folder}: {counts} images. Train on them with:")
    setting = "" if data_dir is None else f"TFDS_DATA_DIR={shlex.quote(os.path.abspath(data_dir))} "
    print(f"  {setting}gnet train {_recipe(source)} --data.source {source}")


def _recipe(source: str) -> str:
    """The recipe to begin with on a prepared set: the default of `gnet train` is for the digits."""
    recipes = {"imagenet2012": "imagenet_modern", "cifar10": "cifar10"}
    return recipes.get(source.split(":")[1], "folder")  # a version may follow the name


def check_data(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    json: Annotated[bool, arg(name="json")] = False,
    threads: int = 4,
    write_manifest: Path | None = None,
    manifest: Path | None = None,
) -> int:
    """Read every image of every split; list what is damaged, odd, unbalanced or there twice.

    Exit code 1 if something must be fixed: damaged images, labels out of range, classes that are
    empty or that train lacks, images in several splits, under several labels or other than in the
    manifest, links to nothing, and images that are not read because of their format or their
    place. All else that is not read is listed. A train folder with an empty class, and .npz files
    whose labels do not fit, are refused at once (exit code 2).

    Args:
        source: digits, folder:PATH, npz:PATH, or tfds:NAME.
        json: print one JSON object that names every finding.
        threads: that read and decode.
        write_manifest: write name, length and crc32 of every image into this file.
        manifest: compare with such a file, which also finds the flipped bits that decode.
    """
    from gnet_jax.data.check.manifest import ManifestCheck, ManifestWriter
    from gnet_jax.data.check.report import print_scan
    from gnet_jax.data.check.scan import scan

    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    known = None if manifest is None else ManifestCheck(manifest)
    with contextlib.ExitStack() as stack:
        writer = None
        if write_manifest is not None:
            writer = stack.enter_context(ManifestWriter(write_manifest))
        see = None if writer is None else writer.see
        found = scan(source, threads=threads, see=see, manifest=known)
    if json:
        print(json_line(found.as_dict()))
    else:
        print_scan(console(), found)
    return 1 if found.must_be_mended else 0


@dataclasses.dataclass(frozen=True)
class ShowData:
    """What `gnet show-data` takes besides a config."""

    out: Path = Path("sheet.png")
    """The picture to write."""
    split: Literal["train", "val"] = "train"
    """train: what a training step sees, above it the untouched images; val: an evaluation."""
    step: int = 0
    """Finished steps before the one that is drawn."""
    rows: int = 3
    """Rows of images."""
    columns: int = 8
    """Images in a row."""


def show_data(arguments: Sequence[str]) -> None:
    """Draw what the network sees of its data at a step: the images of a batch as they enter it.

    Takes a recipe and its fields as train.py does: `gnet show-data CONFIG --out SHEET.png`.
    """
    command = parse_command(arguments, "gnet show-data", ShowData(), inspect.getdoc(show_data))
    config, given = command.config, command.options
    for name, least in (("rows", 1), ("columns", 1), ("step", 0)):
        if getattr(given, name) < least:
            raise UserError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    check(config)
    # Imported here, so that --help and a typo answer at once.
    from gnet_jax.data import open_source
    from gnet_jax.lab.look.contact_sheet import draw_sheet

    check_picture(given.out, PHOTOS)
    config = _prepared_as_loaded(config)
    source = open_source(config.data.source, given.split)
    images = draw_sheet(
        config,
        source,
        given.out,
        name=arguments[0] if arguments and arguments[0][0] != "-" else "digits",
        split=given.split,
        step=given.step,
        rows=given.rows,
        columns=given.columns,
    )
    print(f"drew {images} images into {given.out}")


def _prepared_as_loaded(config: Config) -> Config:
    """`config` with the preprocessing of the model that it starts from, where that is at hand."""
    from gnet_jax.convert.start import with_start

    if config.init is None:
        return config
    if not Path(config.init).expanduser().exists():
        print(f"there is no {config.init}: drawn with the preprocessing of the config")
        return config
    return with_start(config)[0]

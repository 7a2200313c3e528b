"""The commands for data sets: check-data, show-data, prepare."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import (
    PHOTOS,
    check_at_least,
    check_not_input,
    check_picture,
    console,
    data_files,
    say_not_read,
)
from gnet_jax.config import UserError, check, json_text
from gnet_jax.config.command import parse_command


def prepare(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
    format: Literal["array_record", "tfrecord"] = "array_record",
    subset: bool = False,
    resize: int | None = None,
    out: Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Path | None = None,
    bad_limit: float = 0.02,
    threads: int = 4,
) -> None:
    """Prepare a data set for training, or copy any data set and shrink its images.

    tfds:imagenet2012 is made from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which you
    download from image-net.org. cifar10, cifar100 and imagenette (160 pixels) are downloaded from
    their authors. Most other sets of TensorFlow Datasets require TensorFlow to be prepared:
    pip install -e '.[prepare]'. hf:OWNER/NAME downloads parquet files from the Hugging
    Face Hub: pip install -e '.[hub]'. With --resize, SOURCE may be any data source. To resume an
    interrupted command, repeat it.

    Args:
        source: cifar10, cifar100, imagenette, tfds:NAME, hf:OWNER/NAME, parquet:DIR or wds:DIR
            (WebDataset tars); with --resize also folder:PATH or npz:PATH.
        manual_dir: folder with the ImageNet tar files, or with other files downloaded by hand.
        data_dir: folder for prepared sets; the default is TFDS_DATA_DIR or ~/tensorflow_datasets.
        format: file format to write.
        subset: accept ImageNet tar files from which images are missing.
        resize: scale images down so that their shorter side has at most this many pixels.
        out: folder for the copy that --resize makes, or for an hf:, parquet: or wds: set.
        image_column: column of the images in parquet files.
        label_column: column of the labels in parquet files.
        class_names: file with the class names of an hf:, parquet: or wds: set: one on each line, or
            JSON.
        bad_limit: largest allowed fraction of bad rows in an hf:, parquet: or wds: set, which are
            listed and skipped.
        threads: number of threads that write files.
    """
    from gnet_jax.data.prepare import pack, tfds
    from gnet_jax.data.prepare.rows import RowOptions
    from gnet_jax.data.sources.tfds import data_folder

    check_at_least("threads", threads)
    if resize is not None:
        check_at_least("resize", resize)
    if not 0 <= bad_limit < 1:
        raise UserError(f"--bad-limit is {bad_limit}; it must be at least 0 and below 1")
    if source in tfds.ARCHIVES:
        source = "tfds:imagenette/160px-v2" if source == "imagenette" else f"tfds:{source}"
    kind, _, name = source.partition(":")
    rows = kind in pack.ROWS and name != ""
    copied = rows or resize is not None
    if (out is None and resize is not None) or (out is not None and not copied):
        raise UserError("--resize and --out require each other, as in --resize 256 --out DIR")
    if not copied and (kind != "tfds" or not name):
        raise UserError(
            f"the source is {source!r}; without --resize, it must be cifar10, cifar100, "
            "imagenette, tfds:NAME, hf:OWNER/NAME, parquet:DIR or wds:DIR"
        )
    options = RowOptions(image_column, label_column, class_names, bad_limit)
    unused = {} if rows else {"--class-names": class_names, "--bad-limit": bad_limit != 0.02}
    if not rows or kind == "wds":
        unused |= {"--image-column": image_column, "--label-column": label_column}
    if copied:
        unused |= {"--manual-dir": manual_dir, "--subset": subset, "--data-dir": out and data_dir}
    for option in (option for option, given in unused.items() if given):
        raise UserError(f"{option} has no effect on {source}, as it is to be prepared; omit it")
    if copied:
        stem = name if kind == "hf" else os.path.basename(os.path.abspath(name))
        default = re.sub("[^a-z0-9]+", "_", stem.lower()).strip("_")
        if out is None and not default:  # the folder would be that of all prepared sets
            raise UserError(
                f"{source!r} gives the prepared set no name; use --out with a name of lower-case "
                "letters, digits and _, as in flowers"
            )
        data_dir = data_dir if out is None else out.absolute().parent
        out = out or Path(data_folder(data_dir), default)
        prepared = pack.pack(
            source, out, resize, file_format=format, threads=threads, options=options
        )
        source = f"tfds:{out.name}"
    else:
        prepared = tfds.prepare(
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
    recipes = {
        "imagenet2012": "imagenet_modern",
        "cifar10": "cifar10",
        "cifar100": "cifar10",
        "imagenette": "imagenette",
    }
    name = re.split("[:/]", source)[1]  # without the size of the images and the version
    recipe = recipes.get(name, "folder")
    print(f"  {setting}gnet train {recipe} --data.source {source}")


def check_data(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    json: Annotated[bool, arg(name="json")] = False,
    threads: int = 4,
) -> int:
    """Read every image of every split, and report corrupt, unusual and duplicate images.

    The exit code is 1 if there are problems to fix: corrupt images, labels out of range, classes
    that are empty or missing in the train split, images that are in several splits or have several
    labels, broken links, and images that are skipped because of their format or location. The exit
    code is 2 if the data cannot be used for training, such as a train folder with an empty class.

    Args:
        source: digits, folder:PATH, npz:PATH, or tfds:NAME.
        json: print one JSON object with every finding.
        threads: number of threads that read and decode images.
    """
    from gnet_jax.data.check import print_scan, scan

    check_at_least("threads", threads)
    found = scan(source, threads=threads)
    if json:
        print(json_text(found.as_dict(), ensure_ascii=False))
    else:
        print_scan(console(), found)
    return 1 if found.must_be_mended else 0


@dataclasses.dataclass(frozen=True)
class ShowData:
    """The options of `gnet show-data` that are not fields of the config."""

    out: Path = Path("sheet.png")
    """Picture file to write."""
    split: Literal["train", "val"] = "train"
    """train: draw each image as a training step sees it, below its original.
    val: draw images as evaluation crops them."""
    step: int = 0
    """Which training step or evaluation batch to show; the first is 0."""
    rows: int = 3
    """Number of rows of images."""
    columns: int = 8
    """Number of images in a row."""


def show_data(arguments: Sequence[str]) -> None:
    """Draw the images of one training step as the network sees them.

    Usage: `gnet show-data CONFIG --out SHEET.png`. CONFIG and the fields are those of train.py.
    """
    command = parse_command(arguments, "gnet show-data", ShowData(), inspect.getdoc(show_data))
    config, given = command.config, command.options
    for name, least in (("rows", 1), ("columns", 1), ("step", 0)):
        check_at_least(name, getattr(given, name), least)
    check(config)
    # Imported here, so that --help and command-line errors return immediately.
    from gnet_jax.convert.published import locate
    from gnet_jax.convert.start import with_start
    from gnet_jax.data.sources import open_source
    from gnet_jax.lab.look.contact_sheet import draw_sheet

    check_picture(given.out, PHOTOS)
    if config.data.source.startswith(("folder:", "npz:")):
        check_not_input(given.out, data_files([config.data.source]), new=True)
    if config.init is not None and not locate(config.init).exists():
        print(f"{config.init} not found; using the config's preprocessing, not that of the weights")
    elif config.init is not None:
        config = with_start(config)[0]
    source = open_source(config.data.source, given.split)
    name = arguments[0] if arguments and arguments[0][0] != "-" else "digits"
    images = draw_sheet(config, source, name=name, **dataclasses.asdict(given))
    print(f"drew {images} images into {given.out}")

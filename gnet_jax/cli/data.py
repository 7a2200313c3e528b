"""Commands about data: check-data, show-data, prepare."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.config import UserError


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
    TensorFlow: pip install 'gnet-jax[prepare]'. With --resize, any source is copied instead, for
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
    from gnet_jax.data.pack import pack
    from gnet_jax.data.prepare import prepare as prepare_set

    kind, _, name = source.partition(":")
    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
    if (resize is None) != (out is None):
        raise UserError("--resize and --out need each other: --resize 256 --out DIR")
    if resize is not None and out is not None:
        if resize < 1:
            raise UserError(f"--resize is {resize}; it must be at least 1")
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
    counts = ", ".join(f"{count:,} {split}" for split, count in prepared.images.items())
    print(f"{prepared.folder}: {counts} images. Train on them with:")
    setting = "" if data_dir is None else f"TFDS_DATA_DIR={shlex.quote(os.path.abspath(data_dir))} "
    print(f"  {setting}python train.py --data.source {source}")

"""Commands about data: check-data, show-data, prepare."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.config import UserError


def prepare(
    source: Annotated[Positional[str], arg(metavar="tfds:NAME")],
    manual_dir: Path | None = None,
    data_dir: Path | None = None,
    format: Literal["array_record", "tfrecord"] = "array_record",
    subset: bool = False,
    threads: int = 4,
) -> None:
    """Prepare a set of TensorFlow Datasets to be trained on.

    tfds:imagenet2012 is made of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which
    image-net.org gives to those who sign in; the same command goes on after an interruption. Other
    sets are downloaded; most of them need TensorFlow: pip install 'gnet-jax[prepare]'.

    Args:
        source: tfds:imagenet2012, tfds:cifar10 or another image classification set.
        manual_dir: the folder of ImageNet's tars, or of what else has to be downloaded by hand.
        data_dir: where to write; without it TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        format: of the files.
        subset: accept tars of ImageNet that hold only a part of its images.
        threads: that write files at once.
    """
    from gnet_jax.data.prepare import prepare as prepare_set

    kind, _, name = source.partition(":")
    if kind != "tfds" or not name:
        raise UserError(f"{source!r} is no set of TensorFlow Datasets; name it tfds:NAME")
    if threads < 1:
        raise UserError(f"--threads is {threads}; it must be at least 1")
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

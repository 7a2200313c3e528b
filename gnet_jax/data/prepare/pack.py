"""Copy a data set to the layout of tensorflow-datasets, and scale its images down if wanted."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnet_jax.config.paths import as_text, plain_path, typed_path
from gnet_jax.data.batches import read_example
from gnet_jax.data.decode import ImageError, decode, shorter_side_size
from gnet_jax.data.prepare.parquet import download, open_parquet
from gnet_jax.data.prepare.rows import RowOptions, RowSource
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, write_set
from gnet_jax.data.prepare.tfds import Prepared, count_images
from gnet_jax.data.prepare.webdataset import open_webdataset
from gnet_jax.data.sources import Source, digest, open_splits
from gnet_jax.data.sources.classes import refuse_unknown
from gnet_jax.data.sources.folder import merged

QUALITY = 95  # JPEG quality of images that are scaled down
_DEFAULTS = RowOptions()
ROWS = ("hf", "parquet", "wds")  # kinds of sets that must be prepared before they can be used
VERSION = "1.0.0"  # version of a copied set
FILE_RECORDS = 2048  # largest number of images in a file of a copied set


def pack(
    spec: str,
    out: Path,
    shorter: int | None = None,
    *,
    file_format: Format = "array_record",
    threads: int = 4,
    options: RowOptions = _DEFAULTS,
) -> Prepared:
    """Copy the data set `spec` to the folder `out`, and scale its images with `scaled_down`.

    The copy is named like the folder. An interrupted copy can be resumed. In a set of `ROWS`, bad
    rows are skipped. Raises PrepareError if the copy cannot be written, or an image of another set
    is corrupt. Raises DataError if the source is invalid, a label is out of range, an image cannot
    be read, or there are too many bad rows.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", out.name):
        raise PrepareError(
            f"the folder of the copy is named {out.name!r}; use --out with a name of lower-case "
            "letters, digits and _, as in flowers_256"
        )
    if out.name in tfds.list_builders(with_community_datasets=False):
        raise PrepareError(
            f"tensorflow-datasets already has a set named {out.name}; use --out with another name"
        )
    sources = _open(spec, options)
    train = sources[0]
    for source in sources[1:]:
        refuse_unknown(train, source, spec)
    for name in train.class_names:
        if name != name.strip() or not name:  # tensorflow-datasets would strip the spaces
            raise PrepareError(f"{spec} has the class {name!r}; remove the spaces around it")
    label = tfds.features.ClassLabel(names=list(train.class_names))
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
    # The description has a hash of the source, so that a copy of other data is not taken for it.
    copied = digest(*(source.fingerprint().encode() for source in sources))
    folder = out.absolute() / VERSION
    scaled = f", shorter side at most {shorter} pixels" if shorter else ""
    about = f"{as_text(spec)}{scaled}; fingerprint {copied}"
    core: Any = tfds.core
    identity = core.dataset_info.DatasetIdentity(
        out.name, core.Version(VERSION), str(plain_path(folder)), module_name=""
    )
    info = core.DatasetInfo(builder=identity, features=features, description=about)
    info.set_file_format(file_format)
    if folder.exists():
        found = tfds.builder_from_directory(str(plain_path(folder))).info
        stored = found.as_proto.file_format
        if (found.description, stored) != (about, file_format):
            raise PrepareError(
                f"{out} already has a copy ({stored}) of {found.description}, but this would be a "
                f"copy ({file_format}) of {about}; delete {out}, or use another --out"
            )
    else:
        for source in sources:
            if isinstance(source, RowSource):
                source.skip_bad(options.bad_limit, decoded=shorter is not None)
        plans = [_plan(source, info.features, shorter) for source in sources]
        write_set(info, plans, origin=about, size=0, threads=threads)
    parent = out.absolute().parent
    left_out = merged(source.left_out for source in sources)
    return Prepared(folder, count_images(out.name, parent), left_out)


def _open(spec: str, options: RowOptions) -> list[Source]:
    """Returns the splits of a set, the train split first."""
    kind, _, where = spec.partition(":")
    if kind == "wds":
        return [*open_webdataset(typed_path(where), options)]
    if kind in ROWS:
        return [*open_parquet(download(where) if kind == "hf" else typed_path(where), options)]
    sources, missing = open_splits(spec)
    if "train" in missing:
        raise missing["train"]
    return sources


def _plan(source: Source, features: Any, shorter: int | None) -> SplitPlan:
    split = source.split if source.split in ("train", "test") else "validation"

    def record(index: int) -> bytes:
        try:
            example = read_example(source, index)
            image = scaled_down(example.image, shorter)
        except ImageError as error:
            name = as_text(source.describe(index))
            raise PrepareError(f"{name}: {error}; fix or remove this image") from error
        return features.serialize_example({"image": image, "label": example.label})

    count = -(-len(source) // FILE_RECORDS)
    return SplitPlan(split, [len(source) * i // count for i in range(count + 1)], record)


def scaled_down(image: bytes | np.ndarray, shorter: int | None) -> bytes:
    """Returns an encoded image, scaled down if its shorter side has more than `shorter` pixels.

    A scaled image is antialiased and encoded as JPEG. An image that is not scaled is returned
    unchanged if it is encoded already, and encoded as PNG if it is an array.
    """
    if shorter is None and isinstance(image, bytes):
        return image
    picture, out = decode(image), io.BytesIO()
    if shorter is not None and min(picture.size) > shorter:
        size = shorter_side_size(picture.size, shorter)
        picture.resize(size, Image.Resampling.BILINEAR).save(out, "JPEG", quality=QUALITY)
    elif isinstance(image, bytes):
        return image
    else:
        picture.save(out, "PNG")
    return out.getvalue()

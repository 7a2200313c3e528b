"""Copy a source as a set of smaller images, for hosts that cannot decode large ones fast."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnet_jax.config.paths import as_text, plain_path
from gnet_jax.data.bad_images import read_example
from gnet_jax.data.decode import ImageError, decode, shorter_side_size
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, write_set
from gnet_jax.data.prepare.tfds import Prepared
from gnet_jax.data.sources import MissingSplitError, Source, Split, digest, open_source
from gnet_jax.data.sources.classes import refuse_unknown
from gnet_jax.data.sources.tfds import TfdsSource
from gnet_jax.data.sources.walk import merged

VERSION = "1.0.0"
# The names of the splits in tensorflow-datasets, and ours.
SPLITS: Mapping[str, Split] = {"train": "train", "validation": "val", "test": "test"}
QUALITY = 95
FILE_RECORDS = 2048  # most images in a file


def pack(
    spec: str, out: Path, shorter: int, *, file_format: Format = "array_record", threads: int = 4
) -> Prepared:
    """Copy the images of a source so that none has a shorter side above `shorter` pixels.

    Larger ones are scaled down (antialiased) and become JPEGs, others stay as they are, and arrays
    become PNGs. A killed call is resumed by the next. The set is named after the folder `out`.
    Raises PrepareError if the set cannot be written or an image is damaged, and DataError if the
    source is missing, an image cannot be read, or a label is out of range.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", out.name):
        raise PrepareError(
            f"--out is named {out.name!r}; use lower-case letters, digits and _, as in flowers_256"
        )
    if out.name in tfds.list_builders(with_community_datasets=False):
        raise PrepareError(f"tensorflow-datasets has a set named {out.name}; rename --out")
    sources = _sources(spec)
    for name in sources["train"].class_names:
        if name != name.strip() or not name:  # tensorflow-datasets would strip it
            raise PrepareError(f"{spec} has the class {name!r}; rename it without outer spaces")
    label = tfds.features.ClassLabel(names=list(sources["train"].class_names))
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
    # The description identifies the source, so that a copy of other data is not reused.
    copied = digest(*(source.fingerprint().encode() for source in sources.values()))
    folder = out.absolute() / VERSION
    about = f"{as_text(spec)}, shorter side at most {shorter} pixels; fingerprint {copied}"
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
                f"{out} is already a copy as {stored} of {found.description}; asked for is "
                f"{file_format} of {about}: delete it, or name another --out"
            )
    else:
        plans = [_plan(name, source, info.features, shorter) for name, source in sources.items()]
        write_set(info, plans, origin=about, size=0, threads=threads)
    parent = out.absolute().parent
    images = {name: len(TfdsSource(out.name, SPLITS[name], parent)) for name in sources}
    return Prepared(folder, images, merged(source.left_out for source in sources.values()))


def _sources(spec: str) -> dict[str, Source]:
    """Returns the source of each existing split by the name that tensorflow-datasets has for it."""
    sources: dict[str, Source] = {}
    for name, split in SPLITS.items():
        try:
            source = open_source(spec, split)
        except MissingSplitError:
            if split == "train":
                raise
            continue
        if split != "train":
            refuse_unknown(sources["train"], source, spec)
        # The test split stands for a missing validation split.
        sources["test" if source.split == "test" else name] = source
    return sources


def _plan(name: str, source: Source, features: Any, shorter: int) -> SplitPlan:
    def record(index: int) -> bytes:
        try:
            example = read_example(source, index)
            image = scaled_down(example.image, shorter)
        except ImageError as error:
            name = as_text(source.describe(index))
            raise PrepareError(f"{name} is {error}; repair or remove it") from error
        return features.serialize_example({"image": image, "label": example.label})

    count = -(-len(source) // FILE_RECORDS)
    return SplitPlan(name, [len(source) * i // count for i in range(count + 1)], record)


def scaled_down(image: bytes | np.ndarray, shorter: int) -> bytes:
    """Returns the encoded image, scaled so that its shorter side has at most `shorter` pixels."""
    picture = decode(image)
    out = io.BytesIO()
    if min(picture.size) > shorter:
        size = shorter_side_size(picture.size, shorter)
        picture.resize(size, Image.Resampling.BILINEAR).save(out, "JPEG", quality=QUALITY)
    elif isinstance(image, bytes):
        return image
    else:
        picture.save(out, "PNG")
    return out.getvalue()

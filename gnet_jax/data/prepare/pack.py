"""Any source as a set of smaller images, for hosts that cannot decode large ones fast enough."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gnet_jax.config.paths import plain_path
from gnet_jax.config.text import as_text
from gnet_jax.data.bad_images import read_example
from gnet_jax.data.decode import ImageError, decode, shorter_side_size
from gnet_jax.data.prepare.shards import Format, PrepareError, SplitPlan, write_set
from gnet_jax.data.prepare.tfds import Prepared
from gnet_jax.data.sources import MissingSplitError, Source, Split, open_source
from gnet_jax.data.sources.classes import refuse_unknown
from gnet_jax.data.sources.source import digest
from gnet_jax.data.sources.tfds import TfdsSource
from gnet_jax.data.sources.walk import merged

VERSION = "1.0.0"
# tensorflow-datasets' names of the splits, and ours.
SPLITS: Mapping[str, Split] = {"train": "train", "validation": "val", "test": "test"}
QUALITY = 95
FILE_RECORDS = 2048  # most images in a file


def pack(
    spec: str,
    out: Path,
    shorter: int,
    *,
    file_format: Format = "array_record",
    threads: int = 4,
) -> Prepared:
    """Write the images of a source so that none has a shorter side above `shorter` pixels.

    Larger ones are scaled down (antialiased) and become JPEGs; others stay as they are, pixels
    become PNGs. A call that was killed is taken up where it stopped. The set is written in
    tensorflow-datasets' layout, under the name of the folder `out`, so it is read as `tfds:NAME`
    with TFDS_DATA_DIR naming the folder around `out`.

    Raises:
        PrepareError: if it cannot be written, or an image is damaged.
        DataError: if there is no such source, or an image cannot be read or its label is out of
            range.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", out.name):
        raise PrepareError(
            f"{out.name!r} is no name for a set; take lower-case letters, digits and _, such as "
            "--out flowers_256"
        )
    if out.name in tfds.list_builders(with_community_datasets=False):
        raise PrepareError(f"tensorflow-datasets has a set {out.name} of its own; name --out else")
    sources = _sources(spec)
    for name in sources["train"].class_names:
        if name != name.strip() or not name:
            raise PrepareError(
                f"{spec} has the class {name!r}, but tensorflow-datasets stores names without "
                "spaces around them; rename the class"
            )
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=list(sources["train"].class_names)),
    }
    # What was copied is kept in the description: a copy of what has changed since is refused.
    copied = digest(*(source.fingerprint().encode() for source in sources.values()))
    folder = out.absolute() / VERSION
    about = f"{as_text(spec)}, shorter side at most {shorter} pixels; fingerprint {copied}"
    info = _info(out.name, folder, tfds.features.FeaturesDict(features), file_format, about)
    if folder.exists():
        found = tfds.builder_from_directory(str(plain_path(folder))).info
        stored = found.as_proto.file_format
        if (found.description, stored) != (about, file_format):
            if found.description.rpartition(";")[0] == about.rpartition(";")[0]:
                raise PrepareError(
                    f"{out} is a copy ({stored}) of what {spec} was; it has changed since, or "
                    "another --format is asked for: delete the copy, or name another --out"
                )
            raise PrepareError(
                f"{out} is there already, as {stored} of: {found.description}; name another --out"
            )
    else:
        plans = [_plan(name, source, info.features, shorter) for name, source in sources.items()]
        write_set(info, plans, origin=about, size=0, threads=threads)
    images = {}
    for name, split in SPLITS.items():
        if name in sources:
            images[name] = len(TfdsSource(out.name, split, out.absolute().parent))
    left_out = merged(source.left_out for source in sources.values())
    return Prepared(folder, images, left_out)


def _sources(spec: str) -> dict[str, Source]:
    """The source of each split there is, by tensorflow-datasets' name for the split."""
    sources: dict[str, Source] = {}
    for name, split in SPLITS.items():
        try:
            source = open_source(spec, split)
        except MissingSplitError:
            if split == "train":
                raise
            continue
        # Where there is no validation split, the test split is read as one.
        if split != "train":
            refuse_unknown(sources["train"], source, spec)
        sources["test" if source.split == "test" else name] = source
    return sources


def _info(name: str, folder: Path, features: Any, file_format: Format, about: str) -> Any:
    import tensorflow_datasets as tfds

    core: Any = tfds.core
    identity = core.dataset_info.DatasetIdentity(
        name=name, version=core.Version(VERSION), data_dir=str(plain_path(folder)), module_name=""
    )
    info = core.DatasetInfo(builder=identity, features=features, description=about)
    info.set_file_format(file_format)
    return info


def _plan(name: str, source: Source, features: Any, shorter: int) -> SplitPlan:
    def record(index: int) -> bytes:
        try:
            example = read_example(source, index)
            image = scaled_down(example.image, shorter)
        except ImageError as error:
            raise PrepareError(
                f"{as_text(source.describe(index))} is {error}; mend it or take it out of the data"
            ) from error
        return features.serialize_example({"image": image, "label": example.label})

    count = -(-len(source) // FILE_RECORDS)
    return SplitPlan(name, [len(source) * i // count for i in range(count + 1)], record)


def scaled_down(image: bytes | np.ndarray, shorter: int) -> bytes:
    """An encoded image whose shorter side has at most `shorter` pixels.

    Raises:
        ImageError: if it cannot be decoded.
    """
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

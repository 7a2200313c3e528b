"""Read any file of GoogLeNet weights, model folder or training workdir."""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gnet_jax.convert import caffe, tf_slim, torchvision
from gnet_jax.convert.mapping import Found
from gnet_jax.convert.torch_file import is_torch_file, read_torch
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.folder import (
    TrainedModel,
    check_folder,
    folder_of,
    is_model_folder,
    read_folder,
    write_folder,
)
from gnet_jax.model_folder.tensor_file import is_safetensors, read_tensors
from gnet_jax.model_folder.variables import WeightsError, unflatten
from gnet_jax.training.checkpoints.restore import is_workdir, read_workdir

KNOWN = (
    "a caffemodel, a torchvision state dict (.pth or .safetensors), a checkpoint of TF-slim's "
    "Inception v1, a .safetensors of `gnet export`, a model folder and a training workdir"
)
# How files of other kinds begin, and what to say about them.
_OTHER_KINDS = {
    rb"\Z": "empty",
    rb"\s*<(!doctype|html|\?xml)": "a web page: the download led to an error or login page",
    rb"\s*version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    rb"\x89HDF": "an HDF5 file",
    rb"\x1f\x8b|.{257}ustar": "an archive: unpack it and name the file of weights inside",
}


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> TrainedModel:
    """Write the model in `src` as the model folder `dst`, replacing one there, and return it.
    Arguments and errors are those of `read` and `write_folder`.
    """
    folder = read(Path(src).expanduser(), class_names=class_names, transform_input=transform_input)
    write_folder(dst, folder)
    return folder


def read(
    src: Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> TrainedModel:
    """Returns the model in `src`, one of `KNOWN`; its content determines the format, and nothing in
    it is executed. TensorFlow's checkpoints of several files are named by their prefix, .index or
    .data file. What a foreign file lacks is assumed, printed on standard error, and noted in the
    model's `source`. `class_names` default to those of `src`; for foreign weights, to ImageNet's
    for 1,000 outputs (1,001 of TF-slim's), otherwise to "class 0", "class 1", ... `transform_input`
    is for torchvision's weights only and defaults to true for the published file alone. Raises
    WeightsError if `src` is missing, corrupt, of another kind or not a GoogLeNet, or the arguments
    do not fit it.
    """
    found = _read_directory(src) if src.is_dir() else _read_file(src, transform_input)
    foreign = isinstance(found, Found)
    folder, notes = (_without_names(found), found.notes) if foreign else (found, [])
    if transform_input is not None and not (foreign and "transform_input" in folder.source):
        raise WeightsError(
            f"transform_input is an option of torchvision's networks, which {src} is not; leave it "
            "out"
        )
    source, outputs = dict(folder.source), folder.model.arch.num_classes
    if outputs == 1:  # a softmax over it would be 1 for every image
        raise WeightsError(f"{src} has 1 output, but a softmax needs at least 2")
    if notes:
        source["notes"] = "; ".join(notes)
    if class_names is not None:
        source.pop("class_names", None)  # what was assumed before
    elif foreign:
        class_names, assumed = _assumed_names(outputs, source)
        if assumed:
            source["class_names"] = assumed
            notes.append(f"class names: {assumed}")
    else:
        class_names = folder.class_names
    if len(class_names) != outputs:
        raise WeightsError(
            f"there are {len(class_names)} class names, but {src} has {outputs} outputs; give one "
            "name for each output"
        )
    folder = dataclasses.replace(folder, class_names=tuple(class_names), source=source)
    check_folder(folder, str(src))
    for note in notes:
        print(f"{src}: {note}", file=sys.stderr)
    return folder


def _read_directory(src: Path) -> TrainedModel:
    if is_model_folder(src):
        return read_folder(src)
    if is_workdir(src):
        return read_workdir(src)
    raise WeightsError(f"the folder {src} contains no model; known are {KNOWN}")


def _read_file(src: Path, transform_input: bool | None) -> TrainedModel | Found:
    src = tf_slim.find_index(src)
    if not src.exists():
        if src.suffix:  # a file of weights
            raise WeightsError(
                f"{src} does not exist; docs/pretrained.md lists weights to download"
            )
        raise WeightsError(
            f"{src} does not exist; `gnet convert WEIGHTS {src}` makes a model folder of published "
            "weights (docs/pretrained.md), `gnet train` a workdir with your own"
        )
    try:
        with src.open("rb") as file:
            head = file.read(4096)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {src}: {error.strerror}") from error
    kind = {}
    if is_torch_file(head):
        found = torchvision.load(read_torch(src), src, sha256, transform_input)
        kind = {"format": "torch state dict"}
    elif is_safetensors(src):
        tensors, metadata = read_tensors(src)
        if metadata.get("format") == "gnet_jax":
            if "config" not in metadata:
                raise WeightsError(f"{src} is part of a model folder; name the folder instead")
            return folder_of(_parse_json(metadata["config"], src), tensors, src)
        found = torchvision.load(tensors, src, sha256, transform_input)
        kind = {"format": "safetensors state dict"}
    elif tf_slim.is_checkpoint(src):
        found = tf_slim.load(src)
    elif other := _other_kind(head):
        raise WeightsError(f"{src} is {other}; known are {KNOWN}")
    else:  # the format has no signature
        found = caffe.load(src, sha256)
    # An index of TensorFlow's holds a checksum of each tensor, so its sha256 identifies them too.
    source = {"file": src.name} | kind | found.source | {"sha256": sha256}
    return found._replace(source=source)


def _without_names(found: Found) -> TrainedModel:
    model, variables = GoogLeNet(found.arch), unflatten(found.flat)
    return TrainedModel(model, variables, found.preprocessing, (), found.source)


def _assumed_names(outputs: int, source: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """Returns class names for a foreign file, and a note; the note is empty if they are certain."""
    other = "gnet convert --class-names FILE sets others"
    if outputs == 1000:
        assumed = f"assumed ImageNet's, because there are 1,000 outputs; {other}"
        return tuple(imagenet_classes().values()), "" if "origin" in source else assumed
    if outputs == 1001 and source["format"] == "TF-slim checkpoint":
        assumed = f"assumed a background and ImageNet's, because there are 1,001 outputs; {other}"
        return ("background", *imagenet_classes().values()), assumed
    assumed = f"assumed class 0 to class {outputs - 1}, because the file has none; {other}"
    return tuple(f"class {i}" for i in range(outputs)), assumed


def _parse_json(text: str, src: Path) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise WeightsError(f"the metadata of {src} is corrupt: {error}") from error


def _other_kind(head: bytes) -> str | None:
    """Returns the kind of a file that begins with `head`, if it certainly holds no weights."""
    for pattern, kind in _OTHER_KINDS.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return kind
    text = head[:1000].decode(errors="replace")
    readable = "\ufffd" not in text and re.sub(r"\s", "", text).isprintable()
    return "a text file" if readable else None

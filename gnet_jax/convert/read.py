"""Any file of GoogLeNet weights, or a finished training run, to a model folder."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gnet_jax.config import Preprocessing
from gnet_jax.convert import caffe, tf_slim, torchvision
from gnet_jax.convert.torch_file import is_torch_file, read_torch
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model.architecture import Architecture
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.folder import (
    ModelFolder,
    check_folder,
    folder_of,
    is_model_folder,
    read_folder,
    write_folder,
)
from gnet_jax.model_folder.tensor_file import is_safetensors, read_tensors
from gnet_jax.model_folder.variables import WeightsError, unflatten
from gnet_jax.training.checkpoints.model import is_workdir, read_workdir

KNOWN = (
    "a caffemodel, a torchvision state dict (.pth or .safetensors), a checkpoint of TF-slim's "
    "Inception v1, a file that `export` wrote as .safetensors, a model folder, and a training "
    "workdir"
)
CAFFE_SHA1 = "405fc5acd08a3bb12de8ee5e23a96bec22f08204"  # of the published file, by its readme
_UNTRAINED = "never trained, says torchvision's documentation"
CAFFE_WITHOUT_HEADS = "afb3ba04dbee93e6e3228f8c399c5f439a786fbeafdb5b5870a990de80f7477b"  # a copy


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> ModelFolder:
    """Write the model that `src` holds as the model folder `dst`; the format is told by content.

    Args:
        src: one of `KNOWN`. Nothing in it is executed. TensorFlow's checkpoints of several files
            are named by their prefix, their .index or a .data file.
        dst: a new or empty folder, or a model folder, which is replaced.
        class_names: as `read`.
        transform_input: as `read`.

    Raises:
        WeightsError: as `read`, or if `dst` cannot be written.
    """
    folder = read(Path(src).expanduser(), class_names=class_names, transform_input=transform_input)
    write_folder(dst, folder)
    return folder


def read(
    src: Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> ModelFolder:
    """Returns the model that `src` holds; its content determines the format.

    What a foreign file does not say is assumed, printed on standard error, and noted in the
    folder's `source`.

    Args:
        src: one of `KNOWN`.
        class_names: one for each output; None takes those of `src`, ImageNet's for 1,000 outputs
            of foreign weights (1,001 of TF-slim's), and "class 0", "class 1", ... otherwise.
        transform_input: of torchvision's weights only: whether they were trained with that option
            (see `torchvision.preprocessing`). None: only the published file was.

    Raises:
        WeightsError: if `src` is missing, damaged, of another kind or not a GoogLeNet, or the
            arguments do not fit it.
    """
    folder, notes = _read(src, transform_input)
    foreign = not folder.class_names  # no other program's file holds names
    if transform_input is not None and not (foreign and "transform_input" in folder.source):
        raise WeightsError(
            f"transform_input is an option of torchvision's networks, but {src} is not a file of "
            "torchvision's weights; leave it out"
        )
    source, outputs = dict(folder.source), folder.model.arch.num_classes
    if outputs == 1:  # a softmax over it would be 1 for every image
        raise WeightsError(
            f"{src} has 1 output, as a yes-or-no network with a sigmoid has; a softmax needs at "
            "least 2"
        )
    if notes:
        source["notes"] = "; ".join(notes)
    if class_names is not None:
        source.pop("class_names", None)  # what was assumed of them before
    elif foreign:
        class_names, assumed = _assumed_names(folder.model.arch, source)
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


def _read(src: Path, transform_input: bool | None) -> tuple[ModelFolder, list[str]]:
    """The model, without class names if the file is a foreign one, and notes."""
    if src.is_dir():
        if is_model_folder(src):
            return read_folder(src), []
        if is_workdir(src):
            return read_workdir(src), []
        raise WeightsError(f"the folder {src} holds no model; known are {KNOWN}")
    src = tf_slim.index_of(src)
    if not src.exists():
        if src.suffix:  # a file of weights
            raise WeightsError(
                f"there is no {src}; docs/pretrained.md says where to download weights"
            )
        raise WeightsError(
            f"there is no {src}; `gnet convert WEIGHTS {src}` makes a model folder of published "
            "weights (docs/pretrained.md), `gnet train` a workdir with weights of your own"
        )
    try:
        with src.open("rb") as file:
            head = file.read(4096)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read {src}: {error.strerror}") from error
    if is_torch_file(src):
        return _torchvision(read_torch(src), src, "torch state dict", sha256, transform_input)
    if is_safetensors(src):
        tensors, metadata = read_tensors(src)
        if metadata.get("format") == "gnet_jax":
            if "config" not in metadata:
                raise WeightsError(f"{src} is a part of a model folder; give the folder itself")
            return folder_of(_json(metadata["config"], src), tensors, src), []
        return _torchvision(tensors, src, "safetensors state dict", sha256, transform_input)
    if tf_slim.is_checkpoint(src):
        return _slim(src, sha256)
    if caffe.is_caffemodel(head):
        return _caffe(src, sha256)
    raise WeightsError(f"{src} is {_what(head)}; known are {KNOWN}")


def _caffe(src: Path, sha256: str) -> tuple[ModelFolder, list[str]]:
    layers, notes = caffe.find_network(caffe.read_caffemodel(src), str(src))
    arch, flat = caffe.from_caffe(layers, str(src))
    preprocessing, told = caffe.read_preprocessing(src)
    source = {"file": src.name, "format": "caffemodel", "sha256": sha256}
    with src.open("rb") as file:
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    if sha1 == CAFFE_SHA1 or sha256 == CAFFE_WITHOUT_HEADS:
        source |= {"license": "unrestricted", "origin": "BVLC/caffe models/bvlc_googlenet"}
    else:
        whose = "Caffe's published GoogLeNet"
        notes += [told] if told else []
        notes.append(
            _assumed_preprocessing(f"{whose} for the rest" if told else whose, preprocessing)
        )
    return _foreign(arch, flat, preprocessing, source), notes


def _torchvision(
    tensors: dict[str, np.ndarray],
    src: Path,
    kind: str,
    sha256: str,
    transform_input: bool | None,
) -> tuple[ModelFolder, list[str]]:
    network, notes = torchvision.find_network(tensors, str(src))
    arch, flat = torchvision.from_torchvision(network, str(src))
    published = sha256.startswith(torchvision.PUBLISHED_SHA256)
    if published and transform_input is False:
        raise WeightsError(
            f"{src} holds torchvision's published weights, which need transform_input; leave the "
            "option out"
        )
    mapped = published if transform_input is None else transform_input
    preprocessing = torchvision.preprocessing(mapped)
    source = {
        "file": src.name,
        "format": kind,
        "sha256": sha256,
        "transform_input": "yes, as part of mean and std" if mapped else "no",
    }
    if published:
        source |= {"origin": "torchvision", "auxiliary_heads": _UNTRAINED}
    else:
        notes.append(_assumed_preprocessing("torchvision", preprocessing))
        if transform_input is None:
            notes.append(
                "assumed that the network was trained without torchvision's transform_input; if it "
                "was fine-tuned from torchvision's published weights, it was trained with it: gnet "
                "convert --transform-input yes"
            )
    return _foreign(arch, flat, preprocessing, source), notes


def _slim(src: Path, sha256: str) -> tuple[ModelFolder, list[str]]:
    tensors = tf_slim.read_checkpoint(src)
    notes = [_assumed_preprocessing("TF-slim", tf_slim.PREPROCESSING)]
    if any(name.endswith(tf_slim.AVERAGED) for name in tensors):
        notes.append("took the moving averages of the variables, as TF-slim evaluates")
    if not tf_slim.is_slim(tensors):
        first = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsError(f"{src} is not TF-slim's Inception v1: it holds {first}, ...")
    arch, flat = tf_slim.from_slim(tensors, str(src))
    # The sha256 of an index tells the weights too, because it holds a checksum of each.
    source = {"file": src.name, "format": "TF-slim checkpoint", "sha256": sha256}
    return _foreign(arch, flat, tf_slim.PREPROCESSING, source), notes


def _foreign(
    arch: Architecture,
    flat: dict[str, np.ndarray],
    preprocessing: Preprocessing,
    source: dict[str, str],
) -> ModelFolder:
    return ModelFolder(GoogLeNet(arch), unflatten(flat), preprocessing, (), source)


def _assumed_preprocessing(whose: str, p: Preprocessing) -> str:
    side = f"{p.resize_to}x{p.resize_to}" if p.resize == "warp" else f"shorter side {p.resize_to}"
    mean, std = (tuple(round(value, 3) for value in values) for values in (p.mean, p.std))
    return (
        f"assumed the preprocessing of {whose}: resized to {side}, central "
        f"{p.image_size}x{p.image_size}, {p.channels}, (pixels - {mean}) / {std}; change it in the "
        "model folder's config.json if the network was trained with another"
    )


def _assumed_names(arch: Architecture, source: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """Class names for a file that has none, and what was assumed, nothing if they are certain."""
    classes, remedy = arch.num_classes, "gnet convert --class-names FILE gives others"
    if classes == 1000:
        assumed = f"assumed ImageNet's, because there are 1,000 outputs; {remedy}"
        return tuple(imagenet_classes().values()), "" if "origin" in source else assumed
    if classes == 1001 and source["format"] == "TF-slim checkpoint":
        assumed = f"assumed a background and ImageNet's, because there are 1,001 outputs; {remedy}"
        return ("background", *imagenet_classes().values()), assumed
    assumed = f"assumed class 0 to class {classes - 1}, because the file holds none; {remedy}"
    return tuple(f"class {i}" for i in range(classes)), assumed


def _json(text: str, src: Path) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise WeightsError(f"the metadata of {src} are damaged: {error}") from error


def _what(head: bytes) -> str:
    """What a file that no reader takes seems to be."""
    start = head.lstrip()[:200].lower()
    if not head:
        return "empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download went to an error or login page"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: run git lfs pull"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file"
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "an archive: unpack it and name the file of weights inside"
    try:
        head[:1000].decode()
        return "a text file"
    except UnicodeDecodeError:
        return "of an unknown kind"

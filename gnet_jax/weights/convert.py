"""Any file of GoogLeNet weights, or a finished training run, to a model folder."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from gnet_jax.model import GoogLeNet
from gnet_jax.weights import caffe, tf_slim, torchvision
from gnet_jax.weights.folder import (
    ModelFolder,
    check_folder,
    folder_of,
    is_model_folder,
    read_folder,
    write_folder,
)
from gnet_jax.weights.tensor_file import is_safetensors, read_tensors
from gnet_jax.weights.torch_file import is_torch_file, read_torch
from gnet_jax.weights.variables import WeightsError, unflatten
from gnet_jax.weights.workdir import is_workdir, read_workdir

KNOWN = (
    "a caffemodel, a torchvision state dict (.pth or .safetensors), a checkpoint of TF-slim's "
    "Inception v1, a file that `export` wrote as .safetensors, a model folder, and a training "
    "workdir"
)
CAFFE_SHA1 = "405fc5acd08a3bb12de8ee5e23a96bec22f08204"  # of the published file, by its readme
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
        class_names: one for each output; None takes those of `src`, ImageNet's for 1,000 outputs
            of foreign weights (1,001 of TF-slim's), and "class 0", "class 1", ... otherwise.
        transform_input: of torchvision's weights only: whether they were trained with that option
            (see `torchvision.preprocessing`). None: only the published file was.

    Raises:
        WeightsError: if `src` is missing, damaged, of another kind or not a GoogLeNet, or `dst`
            cannot be written.
    """
    folder = read(Path(src).expanduser(), transform_input)
    if class_names is not None:
        folder = dataclasses.replace(folder, class_names=tuple(class_names))
    write_folder(dst, folder)
    return folder


def read(src: Path, transform_input: bool | None = None) -> ModelFolder:
    """The model that `src` holds, by content; see `convert`.

    Raises:
        WeightsError: if it is missing, damaged, of another kind or not a GoogLeNet.
    """
    if src.is_dir():
        if is_model_folder(src):
            return read_folder(src)
        if is_workdir(src):
            return read_workdir(src)
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
            return folder_of(_json(metadata["config"], src), tensors, src)
        return _torchvision(tensors, src, "safetensors state dict", sha256, transform_input)
    if tf_slim.is_checkpoint(src):
        return _slim(src, sha256)
    if caffe.is_caffemodel(head):
        return _caffe(src, sha256)
    raise WeightsError(f"{src} is {_what(head)}; known are {KNOWN}")


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the usual order, that of ILSVRC 2012's synsets."""
    file = resources.files("gnet_jax.weights") / "imagenet_classes.txt"
    return tuple(file.read_text("utf-8").splitlines())


def _caffe(src: Path, sha256: str) -> ModelFolder:
    arch, flat = caffe.from_caffe(caffe.read_caffemodel(src), str(src))
    source = {"file": src.name, "format": "caffemodel", "sha256": sha256}
    with src.open("rb") as file:
        sha1 = hashlib.file_digest(file, "sha1").hexdigest()
    if sha1 == CAFFE_SHA1 or sha256 == CAFFE_WITHOUT_HEADS:
        source |= {"license": "unrestricted", "origin": "BVLC/caffe models/bvlc_googlenet"}
    names = _class_names(arch.num_classes)
    model, variables = GoogLeNet(arch), unflatten(flat)
    folder = ModelFolder(model, variables, caffe.PREPROCESSING, names, source)
    check_folder(folder, str(src))
    return folder


def _torchvision(
    tensors: dict[str, np.ndarray],
    src: Path,
    kind: str,
    sha256: str,
    transform_input: bool | None,
) -> ModelFolder:
    if not torchvision.is_state_dict(tensors):
        first = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsError(f"{src} is no torchvision GoogLeNet: it holds {first}, ...")
    arch, flat = torchvision.from_torchvision(tensors, str(src))
    published = sha256.startswith(torchvision.PUBLISHED_SHA256)
    mapped = published if transform_input is None else transform_input
    source = {
        "file": src.name,
        "format": kind,
        "sha256": sha256,
        "transform_input": "yes, as part of mean and std" if mapped else "no",
    }
    if published:
        source["auxiliary_heads"] = "never trained, says torchvision's documentation"
    names = _class_names(arch.num_classes)
    model, variables = GoogLeNet(arch), unflatten(flat)
    folder = ModelFolder(model, variables, torchvision.preprocessing(mapped), names, source)
    check_folder(folder, str(src))
    return folder


def _slim(src: Path, sha256: str) -> ModelFolder:
    tensors = tf_slim.read_checkpoint(src)
    if not tf_slim.is_slim(tensors):
        first = ", ".join(list(tensors)[:3]) or "nothing"
        raise WeightsError(f"{src} is no Inception v1 of TF-slim: it holds {first}, ...")
    arch, flat = tf_slim.from_slim(tensors, str(src))
    # Of an index, too, sha256 tells the weights: it holds a checksum of each.
    source = {"file": src.name, "format": "TF-slim checkpoint", "sha256": sha256}
    names = _class_names(arch.num_classes)
    if arch.num_classes == 1001:
        names = ("background", *imagenet_classes())
    model, variables = GoogLeNet(arch), unflatten(flat)
    folder = ModelFolder(model, variables, tf_slim.PREPROCESSING, names, source)
    check_folder(folder, str(src))
    return folder


def _class_names(classes: int) -> tuple[str, ...]:
    if classes == 1000:
        return imagenet_classes()
    return tuple(f"class {i}" for i in range(classes))


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
    try:
        head[:1000].decode()
        return "a text file"
    except UnicodeDecodeError:
        return "of an unknown kind"

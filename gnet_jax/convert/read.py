"""Reads class names, and models from weight files, model folders and training workdirs."""

import dataclasses
import hashlib
import json
import lzma
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config.bucket import Place
from gnet_jax.config.paths import did_you_mean
from gnet_jax.convert import caffe, inception5h, tf_slim, torchvision
from gnet_jax.convert.published import PUBLISHED, locate
from gnet_jax.convert.tf_checkpoint import find_index, is_checkpoint
from gnet_jax.convert.torch_file import is_torch_file, read_torch
from gnet_jax.data.class_names import read_class_names
from gnet_jax.data.decode import image_format
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model_folder import TrainedModel, WeightsError, folder, read_folder, write_folder
from gnet_jax.training.checkpoints.verify import is_workdir, read_workdir

# Ends of the names of files of weights in archives.
_ARCHIVED = ("graph.pb", ".ckpt", ".onnx", ".caffemodel", ".pth", ".safetensors")


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> TrainedModel:
    """Read the model in `src`, write it to the model folder `dst`, and return it.

    An existing model folder is replaced. `read` describes the arguments. Raises WeightsError.
    """
    model = read(src, class_names=class_names, transform_input=transform_input)
    write_folder(dst, model)
    return model


def read(
    src: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    transform_input: bool | None = None,
) -> TrainedModel:
    """Returns the model in `src`: a model folder, a training workdir, or a file with weights.

    `src` is a path, or a name of a model that `published.locate` downloads. The file can be from
    `gnet export` or from another program. Its format is detected from the content, and nothing in
    the file is executed. What another program's file lacks is assumed, printed on standard error
    and recorded in `source` of the model. The names assumed are ImageNet's for 1,000 outputs (1,001
    for TF-slim), otherwise "class 0", "class 1", ... `transform_input` is an option of
    torchvision's network. By default, it is true for the file that torchvision publishes, false for
    others. Raises WeightsError if `src` is missing, corrupt, of an unknown format or not a
    GoogLeNet, or if an argument does not fit it.
    """
    path = locate(src)
    if not isinstance(path, Path) or path.is_dir():
        found, notes = _read_folder(path), []
        if class_names is None and transform_input is None:
            return found
    else:
        found, notes = _read_file(path, transform_input)
    foreign, source = not found.class_names, dict(found.source)
    if str(src) in PUBLISHED and path != Path(src):
        source |= PUBLISHED[str(src)].facts
    if transform_input is not None and not (foreign and "transform_input" in source):
        raise WeightsError(f"transform_input is only for files from torchvision; {src} is not one")
    if notes:
        source["notes"] = "; ".join(notes)
    if class_names is not None:
        source.pop("class_names", None)  # a note on names that were assumed before
    elif foreign:
        class_names, assumed = _assumed_names(found.model.arch.num_classes, source)
        if assumed:
            source["class_names"] = assumed
            notes.append(f"class names: {assumed}")
    else:
        class_names = found.class_names
    model = dataclasses.replace(found, class_names=tuple(class_names), source=source)
    folder.check_folder(model, str(src))
    for note in notes:
        print(f"{src}: {note}", file=sys.stderr)
    return model


def _read_folder(src: Place) -> TrainedModel:
    if is_workdir(src):
        return read_workdir(src)
    if isinstance(src, Path) and folder.is_model_folder(src):
        return read_folder(src)
    raise WeightsError(f"the folder {src} is neither a model folder nor a training workdir")


def _read_file(src: Path, transform_input: bool | None) -> tuple[TrainedModel, list[str]]:
    """Returns the model in a file, and notes on it.

    Other programs' models get no class names, unless there is a file with the names of inception5h.
    """
    src = find_index(src)
    try:
        with src.open("rb") as file:
            head = file.read(32)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise WeightsError(
            f"{src} does not exist{did_you_mean(src, PUBLISHED)}, and is not the name of published "
            "weights, such as caffe (gnet download --list)"
        ) from None
    except OSError as error:
        raise WeightsError(f"cannot read {src}: {error.strerror}") from error
    kind = {}
    if archived := _read_archive(src, transform_input):
        found, notes = archived
    elif is_torch_file(head):
        found, notes = torchvision.load(read_torch(src), src, sha256, transform_input)
        kind = {"format": "torch state dict"}
    elif folder.is_safetensors(head):
        tensors, metadata = folder.read_tensors(src)
        if metadata.get("format") == "gnet_jax":
            if "config" not in metadata:
                raise WeightsError(f"{src} is part of a model folder; pass the folder instead")
            try:
                return folder.folder_of(json.loads(metadata["config"]), tensors, src), []
            except json.JSONDecodeError as error:
                raise WeightsError(f"the metadata of {src} is corrupt: {error}") from error
        found, notes = torchvision.load(tensors, src, sha256, transform_input)
        kind = {"format": "safetensors state dict"}
    elif is_checkpoint(src):
        found, notes = tf_slim.load(src)
    elif image_format(head) is not None:
        raise WeightsError(f"{src} is an image, not a model; give the model before the images")
    elif inception5h.is_graph(head):
        found, notes = inception5h.load(src)
        labels, outputs = src.with_name(inception5h.LABELS), found.model.arch.num_classes
        if labels.is_file():  # it lacks the names of the last outputs, which are unused
            names = read_class_names(labels)
            names += tuple(f"class {i}" for i in range(len(names), outputs))
            found = dataclasses.replace(found, class_names=names)
    else:  # a caffemodel has no signature; an ONNX file begins with the tag of its version
        found, notes = caffe.load(src, sha256, onnx=head[:1] == b"\x08")
    # The .index of a TensorFlow checkpoint has a checksum of each tensor, so its sha256 is enough.
    source = {"file": src.name} | kind | found.source | {"file": src.name, "sha256": sha256}
    return dataclasses.replace(found, source=source), notes


def _read_archive(src: Path, transform_input: bool | None) -> tuple[TrainedModel, list[str]] | None:
    """Returns the model in a zip or tar archive with one file of weights; None for other files."""
    with tempfile.TemporaryDirectory() as temporary:
        weights = _extract(src, temporary)
        if weights is None:
            return None
        try:
            return _read_file(Path(temporary, weights), transform_input)
        except WeightsError as error:
            raise WeightsError(str(error).replace(temporary, str(src))) from error


def _extract(src: Path, folder: str) -> str | None:
    """Extracts an archive's file of weights, whose name it returns, and class names to `folder`.

    Returns None if `src` is not an archive with one file of weights.
    """
    try:
        if zipfile.is_zipfile(src):
            archive: Any = zipfile.ZipFile(src)
            names, options = archive.namelist(), {}
        elif tarfile.is_tarfile(src):
            archive = tarfile.open(src)  # noqa: SIM115
            names, options = archive.getnames(), {"filter": "data"}
        else:
            return None
        with archive:
            # macOS adds a file of attributes, ._NAME, for each file.
            names = [name for name in names if not Path(name).name.startswith("._")]
            weights = [name for name in names if name.endswith(_ARCHIVED)]
            if len(weights) != 1:
                return None
            for name in (*weights, *(n for n in names if n.endswith(inception5h.LABELS))):
                archive.extract(name, folder, **options)
            if isinstance(archive, tarfile.TarFile) and archive.fileobj:
                while archive.fileobj.read(2**20):  # the checksum of gzip is at its end
                    pass
            return weights[0]
    except RuntimeError as error:  # encrypted, or an unknown method of compression
        raise WeightsError(
            f"{src} cannot be extracted: {error}; extract it with another program, and give the "
            "file of weights"
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise WeightsError(f"{src} cannot be extracted to {folder}: {error}") from error
        raise _corrupt(src, error) from error  # from gzip or bz2
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise _corrupt(src, error) from error


def _corrupt(archive: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{archive} is a corrupt archive: {error}; download it again")


def _assumed_names(outputs: int, source: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """Returns class names for another program's file, and a note ("" if certain)."""
    other = "to set other names: gnet convert --class-names FILE"
    if outputs == 1000:
        assumed = f"assumed ImageNet's, because there are 1,000 outputs; {other}"
        return tuple(imagenet_classes().values()), "" if "origin" in source else assumed
    if outputs == 1001 and source["format"] == "TF-slim checkpoint":
        assumed = f'assumed "background" and ImageNet\'s, because there are 1,001 outputs; {other}'
        names = ("background", *imagenet_classes().values())
        return names, "" if "origin" in source else assumed
    assumed = f"assumed class 0 to class {outputs - 1}, because the file has no names; {other}"
    return tuple(f"class {i}" for i in range(outputs)), assumed

"""The model folder: weights, everything that is needed to use them, and a card for people.

model.safetensors   every variable by its path: "params/conv1/conv/kernel", "batch_stats/..."
config.json         architecture, dtype, preprocessing, class names, where all came from, and
                    the sha256 of model.safetensors
README.md           a model card with an example
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gnet_jax.config import ConfigError, Preprocessing
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.card import model_card
from gnet_jax.model_folder.description import (
    Description,
    SchemaError,
    read_description,
    write_description,
)
from gnet_jax.model_folder.tensor_file import read_tensors, write_tensors
from gnet_jax.model_folder.variables import WeightsError, check, flatten, unflatten

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A trained network and all that belongs to it."""

    model: GoogLeNet
    variables: dict[str, Any]  # {"params", "batch_stats"}, float32; heads as model.arch.aux_after
    preprocessing: Preprocessing
    class_names: tuple[str, ...]  # one for each output; they need not differ
    source: dict[str, str]  # file, format, sha256, and notes on where the weights came from


def write_folder(path: str | Path, folder: ModelFolder) -> None:
    """Write `folder`; a reader, or a kill, sees the old folder, the new one, or none, never half.

    A folder that this function wrote is replaced if nothing was added to it.

    Raises:
        WeightsError: if `path` holds anything else, cannot be written, or the variables or class
            names do not fit the model.
    """
    path = Path(path).expanduser().resolve()
    _refuse_to_overwrite(path)
    flat = flatten(folder.variables)
    check_folder(folder, f"what is to be written to {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".model-", dir=path.parent))
    except OSError as error:
        raise WeightsError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        new, old = partial / "new", partial / "old"
        new.mkdir()
        write_tensors(new / WEIGHTS_FILE, flat, {"format": "gnet_jax"})
        config = config_of(folder) | {"weights_sha256": _sha256(new / WEIGHTS_FILE)}
        (new / CONFIG_FILE).write_text(json_text(config, indent=2) + "\n", "utf-8")
        card = model_card(config, flat, path.name)
        (new / CARD_FILE).write_text(card, "utf-8", errors="backslashreplace")
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:  # Ctrl-C too: what was there comes back
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise WeightsError(f"{path} is a file; a model is written as a folder, name another place")
    try:
        found = {each.name for each in path.iterdir()} if path.exists() else set()
    except OSError as error:
        raise WeightsError(f"cannot look into {path}: {error.strerror}") from error
    others = sorted(found - {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE})
    if others:
        raise WeightsError(f"{path} holds {others[0]}, which would be lost; name another place")
    if found:
        try:
            ours = "gnet_jax" in json.loads((path / CONFIG_FILE).read_text("utf-8-sig"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise WeightsError(f"{path} is no model folder of gnet_jax; name another place")


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder with the two files that a model folder needs."""
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def read_folder(path: str | Path) -> ModelFolder:
    """The model folder at `path`, with every tensor's name, shape and bits checked.

    Raises:
        WeightsError: if it is missing, damaged, or its weights are not those of its architecture.
    """
    path = Path(path).expanduser()
    if not is_model_folder(path):
        what = "is no model folder" if path.exists() else "does not exist"
        raise WeightsError(
            f"{path} {what}; one holds {WEIGHTS_FILE} and {CONFIG_FILE}, made by `gnet convert`"
        )
    tensors, _ = read_tensors(path / WEIGHTS_FILE)
    file = path / CONFIG_FILE
    try:
        config = json.loads(file.read_text("utf-8-sig"))  # an editor may have added the mark
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} is damaged: {error}") from error
    folder = folder_of(config, tensors, path)
    sha256 = _sha256(path / WEIGHTS_FILE)
    if config.get("weights_sha256", sha256) != sha256:
        raise WeightsError(
            f"{path / WEIGHTS_FILE} is damaged, or not the one that {CONFIG_FILE} belongs to: "
            f"its sha256 is {sha256}; copy the folder again"
        )
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load(path: str | Path) -> tuple[GoogLeNet, dict[str, Any], Preprocessing]:
    """The network of a model folder, its variables on the device, and its preprocessing.

    Raises:
        WeightsError: as `read_folder`.
    """
    folder = read_folder(path)
    return folder.model, jax.tree.map(jnp.asarray, folder.variables), folder.preprocessing


def config_of(folder: ModelFolder) -> dict[str, Any]:
    """What config.json holds: all of `folder` but its variables.

    Raises:
        WeightsError: for a network that its architecture does not describe.
    """
    try:
        return write_description(
            Description(folder.model, folder.preprocessing, folder.class_names, folder.source)
        )
    except ConfigError as error:
        raise WeightsError(str(error)) from error


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON that is readable and valid UTF-8.

    Bytes of a file name that are not UTF-8 become JSON's own escapes, which `json.loads` reverses.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def folder_of(config: Any, tensors: dict[str, Any], where: str | Path) -> ModelFolder:
    """The folder that `config_of` described, with `tensors` as its variables.

    Raises:
        WeightsError: naming `where`, and the first thing in it that does not fit.
    """
    try:
        description = read_description(config)
    except (SchemaError, ConfigError) as error:
        raise WeightsError(f"the config of {where} cannot be used: {error}") from error
    model, preprocessing, names, source = description
    folder = ModelFolder(model, unflatten(tensors), preprocessing, names, dict(source))
    check_folder(folder, str(where))
    return folder


def check_folder(folder: ModelFolder, where: str) -> None:
    """Refuse variables or class names that are not those of the model.

    Raises:
        WeightsError: naming `where`, and the first thing in it that does not fit.
    """
    classes = folder.model.arch.num_classes
    if len(folder.class_names) != classes:
        raise WeightsError(
            f"{where} names {len(folder.class_names)} classes, but the net has {classes} outputs"
        )
    try:
        check(folder.model, flatten(folder.variables), folder.preprocessing.image_size, where)
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # no network at all
        raise WeightsError(f"{where} describes no network that works: {error}") from error

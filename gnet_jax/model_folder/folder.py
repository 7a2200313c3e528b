"""A trained model, and the folder that holds one.

model.safetensors   every variable by its path: "params/conv1/conv/kernel", "batch_stats/..."
config.json         architecture, dtype, preprocessing, class names, origin of the weights, and the
                    sha256 of model.safetensors
README.md           a model card with an example
"""

import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnet_jax.config import Preprocessing, UserError, json_text
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder.description import read_description, write_description
from gnet_jax.model_folder.variables import WeightsError, check, flatten, unflatten

if TYPE_CHECKING:
    from gnet_jax.inference.images import ImageLike
    from gnet_jax.inference.predict import Predictor

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A trained network with everything that is needed to use it.

    Attributes:
        model: the Flax module.
        variables: `{"params", "batch_stats"}` in float32, with the heads of `model.arch.aux_after`.
        preprocessing: how images are resized, cropped and normalised.
        class_names: one for each output; two classes can have the same name.
        source: file, format, sha256 and notes on the origin of the weights.
    """

    model: GoogLeNet
    variables: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    source: dict[str, str]

    def predict(
        self, images: "ImageLike | Sequence[ImageLike]", *, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Classify images.

        The first call compiles the network.

        Args:
            images: one image or a list of them. Each is the path or URL of a file, a PIL image, or
                an array of uint8 pixels, (height, width, 3) or grey (height, width).
            top: number of classes to return for each image.

        Returns:
            For each image a list of (class name, probability), most likely first.

        Raises:
            gnet_jax.config.UserError: naming an image that cannot be read.
        """
        from gnet_jax.inference.images import Picture, open_picture
        from gnet_jax.inference.predict import predictions

        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        given: Any = images if several else [images]
        pictures = (Picture("", open_picture(image)) for image in given)
        results = []
        for _, _, found in predictions(self._predictor, pictures, top):
            if isinstance(found, UserError):
                raise found
            results.append([(guess["label"], guess["probability"]) for guess in found])
        return results

    @functools.cached_property
    def _predictor(self) -> "Predictor":
        from gnet_jax.inference.predict import Predictor

        return Predictor(self)


def write_folder(path: str | Path, folder: ModelFolder) -> None:
    """Write `folder` atomically: a kill leaves the old folder, the new one or none.

    A folder that this function wrote is replaced if nothing was added to it.

    Raises:
        WeightsError: if `path` holds anything else or cannot be written, or if the variables or
            class names do not fit the model.
    """
    from gnet_jax.model_folder.card import model_card
    from gnet_jax.model_folder.tensor_file import write_tensors

    path = Path(path).expanduser().resolve()
    _refuse_to_overwrite(path)
    flat = flatten(folder.variables)
    check_folder(folder, f"the model for {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".model-", dir=path.parent, ignore_cleanup_errors=True
        ) as partial:
            new, old = Path(partial, "new"), Path(partial, "old")
            new.mkdir()
            write_tensors(new / WEIGHTS_FILE, flat, {"format": "gnet_jax"})
            config = config_of(folder) | {"weights_sha256": _sha256(new / WEIGHTS_FILE)}
            # Bytes of a file name that are not UTF-8 become escapes, which `json.loads` reverses.
            text = json_text(config, indent=2, ensure_ascii=False) + "\n"
            (new / CONFIG_FILE).write_text(text, "utf-8", errors="backslashreplace")
            card = model_card(config, flat, path.name)
            (new / CARD_FILE).write_text(card, "utf-8", errors="backslashreplace")
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:  # also Ctrl-C
                if old.exists():
                    old.rename(path)
                raise
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from error


def _refuse_to_overwrite(path: Path) -> None:
    """Raise if `path` is anything but a model folder that `write_folder` wrote."""
    try:
        found = sorted(each.name for each in path.iterdir()) if path.exists() else []
    except NotADirectoryError:
        raise WeightsError(f"{path} is a file; name a folder for the model") from None
    except OSError as error:
        raise WeightsError(f"cannot list {path}: {error.strerror}") from error
    lost = [name for name in found if name not in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)]
    try:
        if found and "gnet_jax" not in json.loads((path / CONFIG_FILE).read_text("utf-8-sig")):
            lost += found
    except (OSError, ValueError, TypeError):
        lost += found
    if lost:
        raise WeightsError(
            f"{path} is not a model folder of gnet_jax, and {lost[0]} in it would be lost; name "
            "another folder"
        )


def is_model_folder(path: Path) -> bool:
    """Returns whether `path` is a folder with the two files that a model folder needs."""
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def read_folder(path: str | Path) -> ModelFolder:
    """Returns the model folder at `path`, with the name, shape and bits of every tensor verified.

    Raises:
        WeightsError: if it is missing or corrupt, or its weights do not fit its architecture.
    """
    from gnet_jax.model_folder.tensor_file import read_tensors

    path = Path(path).expanduser()
    if not is_model_folder(path):
        what = "is not a model folder" if path.exists() else "does not exist"
        raise WeightsError(
            f"{path} {what}; `gnet convert` makes one, with {WEIGHTS_FILE} and {CONFIG_FILE}"
        )
    weights, file = path / WEIGHTS_FILE, path / CONFIG_FILE
    tensors, _ = read_tensors(weights)
    try:
        config = json.loads(file.read_text("utf-8-sig"))  # some editors add a byte-order mark
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} is corrupt: {error}") from error
    folder = folder_of(config, tensors, path)
    sha256 = _sha256(weights)
    if config.get("weights_sha256", sha256) != sha256:
        raise WeightsError(
            f"{weights} is corrupt, or belongs to another {CONFIG_FILE}: its sha256 is {sha256}; "
            "copy the folder again"
        )
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def config_of(folder: ModelFolder) -> dict[str, Any]:
    """Returns the content of config.json: all of `folder` except its variables.

    Raises:
        WeightsError: if the architecture does not describe the network.
    """
    return write_description(folder.model, folder.preprocessing, folder.class_names, folder.source)


def folder_of(config: Any, tensors: dict[str, Any], where: str | Path) -> ModelFolder:
    """Returns the model that `config_of` described, with `tensors` as its variables.

    Raises:
        WeightsError: naming `where`, and the first thing in it that does not fit.
    """
    try:
        model, preprocessing, names, source = read_description(config)
    except UserError as error:
        raise WeightsError(f"the config of {where} is invalid: {error}") from error
    folder = ModelFolder(model, unflatten(tensors), preprocessing, names, source)
    check_folder(folder, str(where))
    return folder


def check_folder(folder: ModelFolder, where: str) -> None:
    """Raise if the variables or class names do not belong to the model.

    Raises:
        WeightsError: naming `where`, and the first thing in it that does not fit.
    """
    classes = folder.model.arch.num_classes
    if classes < 2:
        raise WeightsError(f"{where} has {classes} output; a softmax needs at least 2")
    if len(folder.class_names) != classes:
        raise WeightsError(
            f"{where} names {len(folder.class_names)} classes, but the network has {classes} "
            "outputs"
        )
    try:
        check(folder.model, flatten(folder.variables), folder.preprocessing.image_size, where)
    except WeightsError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise WeightsError(f"{where} describes a network that cannot be built: {error}") from error

"""How large a data set is, also where it is not: a plan needs no image of it."""

from typing import NamedTuple

from gnet_jax.data.prepare.ilsvrc import IMAGES
from gnet_jax.data.sources import DataError, open_source
from gnet_jax.data.sources.tfds import class_names, open_builder


class DataSize(NamedTuple):
    """What a training program depends on of its data."""

    images: int  # to train on
    class_names: tuple[str, ...]


def data_size(spec: str, images: int | None = None, classes: int | None = None) -> DataSize:
    """The size of the data that `spec` names: of the source where it is at hand, of ImageNet
    anywhere, and of any other as it is told.

    Args:
        spec: see `open_source`.
        images: to train on, where that is told.
        classes: likewise; they are then numbered.

    Raises:
        DataError: if the data are not here, and not told either.
    """
    names = None if classes is None else tuple(map(str, range(classes)))
    if images is None or names is None:
        found = _found(spec)
        images = found.images if images is None else images
        names = found.class_names if names is None else names
    return DataSize(images, names)


def _found(spec: str) -> DataSize:
    try:
        source = open_source(spec, "train")
    except DataError as error:
        if spec.split(":")[:2] == ["tfds", "imagenet2012"]:
            return DataSize(
                IMAGES["train"], class_names(spec, open_builder("imagenet2012").info.features)
            )
        raise DataError(
            f"{error}. A plan needs its size alone: give --images and --classes"
        ) from error
    return DataSize(len(source), source.class_names)

"""Start from a trained model: which variables it fills, and which start fresh."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from gnet_jax.config import ConfigError
from gnet_jax.data.sources.classes import nfc, same_classes
from gnet_jax.model.architecture import smallest_size
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables
from gnet_jax.model_folder.folder import ModelFolder


class Takeover(NamedTuple):
    """The variables of a new network that a trained one fills, by path ("params/conv1/...")."""

    loaded: tuple[str, ...]
    fresh: Mapping[str, str]  # path -> why it starts fresh


def compare(shapes: Mapping[str, Any], old: ModelFolder, class_names: tuple[str, ...]) -> Takeover:
    """Returns which variables of a new network, concrete or abstract `shapes`, `old` fills.

    Variables that depend on the number of classes, auxiliary heads included, are loaded only if the
    new data have the same `class_names` in the same order.
    """
    reordered = set(map(nfc, old.class_names)) == set(map(nfc, class_names))
    why = "same classes in another order" if reordered else "other classes"
    same = same_classes(old.class_names, class_names)
    class_dependent = () if same else class_variables(old.model)
    found, loaded, fresh = flat(old.variables), [], {}
    for name, new in flat(shapes).items():
        if name not in found:
            fresh[name] = "not in the trained model"
        elif found[name].shape != new.shape:
            fresh[name] = f"{found[name].shape} there, {new.shape} here"
        elif name in class_dependent:
            fresh[name] = why
        else:
            loaded.append(name)
    return Takeover(tuple(loaded), fresh)


def class_variables(model: GoogLeNet) -> set[str]:
    """Returns the paths of the variables whose shape depends on the number of classes.

    Raises a ConfigError if there are none.
    """
    arch, side = model.arch, smallest_size(model.arch)
    other = model.clone(arch=dataclasses.replace(arch, num_classes=arch.num_classes + 1))
    own, others = (flat(abstract_variables(each, side)) for each in (model, other))
    found = {name for name, value in own.items() if others[name].shape != value.shape}
    if not found:
        raise ConfigError(
            "no parameter of the pretrained network depends on the number of classes, so its "
            "classifier cannot be found; train without --init"
        )
    return found


def take_over(
    variables: Mapping[str, Any], old: ModelFolder, loaded: Iterable[str]
) -> dict[str, Any]:
    """Returns `variables` with those in `loaded` replaced by the trained model's."""
    trained = flat(old.variables)
    own = flat(variables) | {name: jax.numpy.asarray(trained[name]) for name in loaded}
    return {"batch_stats": {}} | traverse_util.unflatten_dict(own, sep="/")


def layers(names: Iterable[str]) -> list[str]:
    """Returns the layers or blocks of variables, each once: "conv1", "inception_3a", ..."""
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested tree of variables as one dict, with paths joined by "/"."""
    return traverse_util.flatten_dict(dict(variables), sep="/")  # pyright: ignore[reportReturnType]

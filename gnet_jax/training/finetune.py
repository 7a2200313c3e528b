"""Starting from a trained model: what is taken over, what begins anew, and what stays as it is."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from gnet_jax.config import ConfigError
from gnet_jax.data.sources.classes import nfc, same_classes
from gnet_jax.model.architecture import smallest_size
from gnet_jax.model.googlenet import GoogLeNet, abstract_variables


class Pretrained(NamedTuple):
    """A trained model to start from."""

    model: GoogLeNet
    variables: Mapping[str, Any]  # {"params", "batch_stats"}
    class_names: tuple[str, ...]


class Takeover(NamedTuple):
    """Which variables of a new network a trained one fills, by their path ("params/conv1/...")."""

    loaded: tuple[str, ...]
    fresh: Mapping[str, str]  # path -> why it begins anew


def compare(shapes: Mapping[str, Any], old: Pretrained, class_names: tuple[str, ...]) -> Takeover:
    """What `old` has for a network of the given shapes, made for `class_names`.

    What depends on the number of classes, the auxiliary heads' too, is taken over only if the
    classes are the same, by name and in the same order.

    Args:
        shapes: the new network's variables, concrete or abstract.
        old: the trained model.
        class_names: of the new data, in order.
    """
    same = same_classes(old.class_names, class_names)
    reordered = set(map(nfc, old.class_names)) == set(map(nfc, class_names))
    why = "of the same classes in another order" if reordered else "of other classes"
    of_classes = frozenset() if same else class_variables(old.model)
    found, loaded, fresh = flat(old.variables), [], {}
    for name, new in flat(shapes).items():
        if name not in found:
            fresh[name] = "not in the trained model"
        elif found[name].shape != new.shape:
            fresh[name] = f"{found[name].shape} there, {new.shape} here"
        elif name in of_classes:
            fresh[name] = why
        else:
            loaded.append(name)
    return Takeover(tuple(loaded), fresh)


def class_variables(model: GoogLeNet) -> frozenset[str]:
    """Paths of the variables that depend on the number of classes: those of the classifiers.

    Raises:
        ConfigError: if the network has none.
    """
    arch, side = model.arch, smallest_size(model.arch)
    other = model.clone(arch=dataclasses.replace(arch, num_classes=arch.num_classes + 1))
    own, others = (flat(abstract_variables(each, side)) for each in (model, other))
    found = frozenset(name for name, value in own.items() if others[name].shape != value.shape)
    if not found:
        raise ConfigError(
            "the pretrained network has no parameter that depends on the number of classes, so "
            "its classifier cannot be told from the rest; train it without --init"
        )
    return found


def take_over(variables: Mapping[str, Any], old: Pretrained, takeover: Takeover) -> dict[str, Any]:
    """Fresh `variables` with those that `takeover` names replaced by the trained model's."""
    trained = flat(old.variables)
    own = flat(variables)
    own |= {name: jax.numpy.asarray(trained[name]) for name in takeover.loaded}
    nested = traverse_util.unflatten_dict(own, sep="/")
    return {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}


def layers(names: Iterable[str]) -> list[str]:
    """The layers or blocks that variables belong to, each once: "conv1", "inception_3a", ..."""
    return list(dict.fromkeys(name.split("/")[1] for name in names))


def check_patterns(patterns: tuple[str, ...], params: Any) -> None:
    """Refuse patterns of frozen parameters that match none, or leave nothing to learn.

    Raises:
        ConfigError: naming the pattern and what there is to match.
    """
    names = list(flat(params))
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            known = ", ".join(dict.fromkeys(name.split("/")[0] for name in names))
            raise ConfigError(
                f"optim.freeze pattern {pattern!r} matches no parameter; the layers are {known}"
            )
    if all(matches(name, patterns) for name in names):
        raise ConfigError(f"optim.freeze {patterns} matches every parameter; nothing would learn")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a parameter ("inception_3a/b5/conv/kernel") or a layer it is in fits a pattern."""
    parts = name.split("/")
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in patterns)


def select(params: Any, patterns: tuple[str, ...]) -> Any:
    """A tree of booleans like `params`: True where `matches`."""
    return jax.tree.map_with_path(
        lambda path, _: matches("/".join(part.key for part in path), patterns), params
    )


def without_gradient(params: Any, frozen: tuple[str, ...]) -> Any:
    """`params`, in which no gradient is computed for what is frozen, nor below it where all is."""
    return jax.tree.map(
        lambda x, still: jax.lax.stop_gradient(x) if still else x, params, select(params, frozen)
    )


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A nested tree of variables as one dict, paths joined by "/"."""
    return traverse_util.flatten_dict(dict(variables), sep="/")  # pyright: ignore[reportReturnType]

"""The role of each parameter, from the parameter tree alone.

A module's own parameters, without those of the modules inside it, are one of
    kernel, kernel and bias   a layer: a convolution or a linear layer
    scale, scale and bias     a norm
The names of modules do not matter, so networks with other parts are read correctly.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from flax import traverse_util

from gnet_jax.errors import UserError

Role = Literal["kernel", "bias", "norm"]
_ROLES: Mapping[frozenset[str], Mapping[str, Role]] = {
    frozenset({"kernel"}): {"kernel": "kernel"},
    frozenset({"kernel", "bias"}): {"kernel": "kernel", "bias": "bias"},
    frozenset({"scale"}): {"scale": "norm"},
    frozenset({"scale", "bias"}): {"scale": "norm", "bias": "norm"},
}


def roles(names: Iterable[str], where: str = "") -> Mapping[str, Role]:
    """Returns the role of each of a module's own parameters.

    Args:
        names: "kernel", "bias", ...
        where: path of the module, for the message.

    Raises:
        UserError: naming a parameter whose role is unknown.
    """
    own = frozenset(names)
    if own in _ROLES:
        return _ROLES[own]
    odd = sorted(own - {"kernel", "bias", "scale"}) or sorted(own - {"kernel"})
    raise UserError(
        f"parameter {'/'.join(filter(None, (where, odd[0])))!r} has no known role among "
        f"{', '.join(sorted(own))}; a layer has kernel and bias, a norm has scale and bias"
    )


def roles_by_path(params: Mapping[str, Any]) -> dict[tuple[str, ...], Role]:
    """Returns the role of every parameter of a tree, by its path.

    Raises:
        UserError: as `roles`.
    """
    modules: dict[tuple[str, ...], list[str]] = {}
    paths: Any = traverse_util.flatten_dict(dict(params))
    for path in paths:
        modules.setdefault(path[:-1], []).append(path[-1])
    found = {module: roles(names, "/".join(module)) for module, names in modules.items()}
    return {path: found[path[:-1]][path[-1]] for path in paths}

"""Objectives of feature visualisation: functions of activations, and their names as text.

An objective maps the activations of N images, a dict from each layer's name to (N, H, W, C) or
(N, C), to a number that the images are optimised to increase. Those made here are pytrees: their
channels and weights are leaves, so one compiled program serves all channels of a layer.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from gnet_jax.config import UserError, suggestion
from gnet_jax.model.names import find_layer

Activations = Mapping[str, Any]
Objective = Callable[[Activations], jax.Array]
LOGITS = "loss3/classifier"
# Sign, factor and objective. Names of classes contain signs, so a sign ends the name of a class
# only if a colon follows it.
_TERM = re.compile(r"([+-]?)\s*(?:(\d+\.?\d*)\*)?(class:.*?(?=[+-][^+-]*:|\Z)|[^+-]*)", re.DOTALL)


def channel(layer: str, index: int) -> Objective:
    """Returns the objective "mean activation of a channel"; for `LOGITS`, the logit of a class."""
    return Partial(_on(layer, _channel), jnp.asarray(index))


def neuron(layer: str, index: int, y: int, x: int) -> Objective:
    """Returns the objective "activation of a channel at row `y` and column `x` of its map"."""
    return Partial(_on(layer, _neuron), jnp.asarray(index), jnp.asarray([y, x]))


def direction(layer: str, vector_C: Any) -> Objective:
    """Returns the objective "mean product of a layer's activation and a vector"."""
    return Partial(_on(layer, _direction), jnp.asarray(vector_C, jnp.float32))


def deep_dream(layer: str) -> Objective:
    """Returns the objective "mean square of all activations of a layer"."""
    return Partial(_on(layer, _mean_square))


def diversity(layer: str) -> Objective:
    """Returns minus the mean cosine similarity between the Gram matrices of different images."""
    return Partial(_on(layer, _diversity))


def weighted_sum(weights: Sequence[float], objectives: Sequence[Objective]) -> Objective:
    """Returns the sum of objectives with weights; a negative weight decreases its objective."""
    return Partial(_sum, list(map(jnp.float32, weights)), list(map(as_pytree, objectives)))


def as_pytree(objective: Objective) -> Objective:
    """Returns an objective that can be an argument of a jitted function; a function is static."""
    return objective if isinstance(objective, Partial) else Partial(objective)


def stack(objectives: Sequence[Objective]) -> Objective:
    """Returns objectives of the same structure as one pytree; each leaf has a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *objectives)


@functools.cache  # jitted functions are not retraced for the same function
def _on(layer: str, score: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns `score(value of the layer, ...)` as a function of (..., activations)."""

    def objective(*leaves_and_activations: Any) -> jax.Array:
        *leaves, found = leaves_and_activations
        return score(found[find_layer(layer, found)[0]].astype(jnp.float32), *leaves)

    return objective


# A channel or position that does not exist gives NaN, which `visualize` refuses.
def _channel(value: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(value, index, axis=-1, mode="fill", fill_value=jnp.nan).mean()


def _neuron(value: jax.Array, index: jax.Array, place: jax.Array) -> jax.Array:
    at_place = value.at[:, place[0], place[1], index]
    return at_place.get(mode="fill", fill_value=jnp.nan).mean()


def _direction(value: jax.Array, vector_C: jax.Array) -> jax.Array:
    return (value @ vector_C).mean()


def _mean_square(value: jax.Array) -> jax.Array:
    return jnp.square(value).mean()


def _diversity(value: jax.Array) -> jax.Array:
    count = len(value)
    flat_NPC = value.reshape(count, -1, value.shape[-1])
    gram_NX = jnp.einsum("npc,npd->ncd", flat_NPC, flat_NPC).reshape(count, -1)
    gram_NX /= jnp.linalg.norm(gram_NX, axis=-1, keepdims=True) + 1e-12
    total = jnp.square(gram_NX.sum(axis=0)).sum() - count  # without each image with itself
    return -total / max(1, count * (count - 1))


def _sum(weights: Sequence[jax.Array], parts: Sequence[Objective], found: Activations) -> Any:
    return sum(weight * part(found) for weight, part in zip(weights, parts, strict=True))


WHOLE_LAYER = {"dream": deep_dream, "diversity": diversity}


def parse(
    text: str, shapes: Mapping[str, Any], class_names: Sequence[str]
) -> list[tuple[str, Objective]]:
    """Returns the objectives that a text names, each with its own name.

    LAYER is all of its channels, each an objective of its own. LAYER:CHANNEL, LAYER:CHANNEL@Y,X
    (one neuron), class:NAME or class:NUMBER (a logit), dream:LAYER (mean square) and
    diversity:LAYER are one objective each. They can be joined by + and -, and have a factor, as in
    "mixed4a:7+100*diversity:mixed4a". `shapes` are those of the activations of one image. Raises
    UserError for unknown names.
    """
    text = text.strip()
    if not re.search("[:+-]", text):
        layer, _ = find_layer(text, shapes)
        return [(f"{text}:{n}", channel(layer, n)) for n in range(shapes[layer].shape[-1])]
    weights, parts = [], []
    for sign, factor, term in filter(any, _TERM.findall(text)):
        weights.append((-1 if sign == "-" else 1) * float(factor or 1))
        parts.append(_parse_term(term.strip(), shapes, class_names))
    return [(text, parts[0] if weights == [1] else weighted_sum(weights, parts))]


def _parse_term(text: str, shapes: Mapping[str, Any], class_names: Sequence[str]) -> Objective:
    kind, _, name = text.partition(":")
    if kind == "class":
        return channel(LOGITS, find_class(name, class_names))
    if kind in WHOLE_LAYER:
        return WHOLE_LAYER[kind](find_layer(name, shapes)[0])
    unit, at, place = text.partition("@")
    layer, index = find_layer(unit, shapes)
    if index is None:
        raise UserError(f"{text!r} is a whole layer; in a sum, give a channel, as in {text}:0")
    if not at:
        return channel(layer, index)
    height, width = shapes[layer].shape[1:3] if len(shapes[layer].shape) == 4 else (0, 0)
    found = re.fullmatch(r"(\d+),(\d+)", place)
    y, x = map(int, found.groups()) if found else (height, width)
    if y >= height or x >= width:
        raise UserError(
            f"unknown position {text!r}; give @ROW,COLUMN, below {height},{width} for this layer "
            "and image size"
        )
    return neuron(layer, index, y, x)


def find_class(name: str, class_names: Sequence[str]) -> int:
    """Returns the number of a class, given its name, one of its synonyms, or its number.

    Upper case is ignored, and spaces can be underscores. A number is that of the class, unless a
    class has it as its name. Raises UserError if no class or more than one class has the name.
    """

    def plain(text: str) -> str:
        return text.strip().lower().replace(" ", "_")

    names = [{plain(each), *map(plain, each.split(","))} for each in class_names]
    numbers = [number for number, each in enumerate(names) if plain(name) in each]
    if not numbers and name.isdecimal() and int(name) < len(class_names):
        return int(name)
    if not numbers:
        numbered = f"there are classes 0 to {len(names) - 1}" if name.isdecimal() else ""
        known = sorted(set().union(*names))
        raise UserError(f"unknown class {name!r}; {numbered or suggestion(plain(name), known)}")
    if len(numbers) > 1:
        text = " and ".join(map(str, numbers))
        raise UserError(f"classes {text} are named {name!r}; give a number")
    return numbers[0]

"""Where each head of a network sees a class: the main one and the auxiliary ones.

An auxiliary head has no global average pooling, so its evidence is weighed by gradients
(Grad-CAM, arXiv 1610.02391); for a head with average pooling that is its activation map.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gnet_jax.config import UserError
from gnet_jax.data import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.cam import ActivationMap
from gnet_jax.inference.predict import Guess, TrainedModel, softmax
from gnet_jax.model import GoogLeNet, aux_logits, endpoints


def head_maps(
    trained: TrainedModel, picture: Image.Image, index: int | None = None
) -> dict[str, ActivationMap]:
    """What speaks for a class in each head: "main", then "aux 4a" and so on.

    A map is the features in front of a head, each channel weighted by the mean gradient of the
    class's logit; the guess holds the head's own probability of the class.

    Args:
        trained: the model, its auxiliary heads among its variables.
        picture: to look at.
        index: of the class; None is the main head's likeliest.

    Raises:
        UserError: if there is no class `index`.
        ImageError: for a picture too narrow to resize.
    """
    model, variables = trained.model, trained.variables
    classes = model.arch.num_classes
    if index is not None and not 0 <= index < classes:
        raise UserError(f"there is no class {index}; the model's are 0 to {classes - 1}")
    square = central_crop(picture, trained.preprocessing)

    @jax.jit
    def features_of(variables: Any, square_SSC: jax.Array) -> dict[str, jax.Array]:
        x_BHWC = preprocess(square_SSC[None], preprocessing=trained.preprocessing)
        found = endpoints(model, variables, x_BHWC)
        return {block: found[f"inception_{block}/output"] for block in model.arch.widths}

    features = features_of(variables, square)
    last = list(model.arch.widths)[-1]
    heads: dict[str, tuple[str, Callable[[jax.Array], jax.Array]]] = {
        "main": (last, lambda x_BHWC: main_logits(model, variables["params"], x_BHWC))
    }
    for block in present_heads(model, variables):
        heads[f"aux {block}"] = (
            block,
            lambda x_BHWC, block=block: aux_logits(model, variables, block, x_BHWC),
        )
    maps: dict[str, ActivationMap] = {}
    for head, (block, logits_of) in heads.items():
        logits_BK, pull_back = jax.vjp(logits_of, features[block].astype(jnp.float32))
        logits_K = np.asarray(logits_BK[0])
        index = int(logits_K.argmax()) if index is None else index
        (gradient_BHWC,) = pull_back(jnp.zeros_like(logits_BK).at[0, index].set(1.0))
        weights_C = np.asarray(gradient_BHWC[0].mean(axis=(0, 1)))
        evidence = np.asarray(features[block][0], np.float32) @ weights_C
        probability = float(softmax(logits_K)[index])
        label = trained.class_names[index]
        guess = Guess(index=index, label=label, probability=probability)
        maps[head] = ActivationMap(evidence, square, guess)
    return maps


def present_heads(model: GoogLeNet, variables: Mapping[str, Any]) -> list[str]:
    """Blocks whose auxiliary heads are among the variables: published weights may have none."""
    return [block for block in model.arch.aux_after if f"aux_{block}" in variables["params"]]


def main_logits(model: GoogLeNet, params: Mapping[str, Any], x_BHWC: jax.Array) -> jax.Array:
    """The logits (B, K) of the main head, as in inference, of the last block's output."""
    if model.arch.head == "average_pool":
        x_BC = jnp.mean(x_BHWC, axis=(1, 2))
    else:
        hidden = params["fc"]
        x_BC = jax.nn.relu(x_BHWC.reshape(x_BHWC.shape[0], -1) @ hidden["kernel"] + hidden["bias"])
    return x_BC @ params["classifier"]["kernel"] + params["classifier"]["bias"]

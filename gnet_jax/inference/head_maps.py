"""Where each head of a network sees a class: the main one and the auxiliary ones.

An auxiliary head has no global average pooling, so its evidence is weighed by gradients
(Grad-CAM, arXiv 1610.02391); for a head with average pooling that is its activation map.

Shapes: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
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

MAIN = "main"


class HeadMapper:
    """Guesses and maps of every head of one trained model, compiled for one picture at a time.

    The heads are "main", then "aux 4a" and so on, as far as the model's variables have them.
    """

    def __init__(self, trained: TrainedModel) -> None:
        model, variables = trained.model, trained.variables
        self._trained = trained
        last = list(model.arch.widths)[-1]
        heads: dict[str, tuple[str, Callable[[Any, jax.Array, jax.Array], jax.Array]]] = {
            MAIN: (last, partial(main_logits, model))
        }
        for block in present_heads(model, variables):
            heads[f"aux {block}"] = (
                block,
                lambda variables, _, x, block=block: aux_logits(model, variables, block, x),
            )
        self.heads = tuple(heads)

        @jax.jit
        def run(variables: Any, square_SSC: jax.Array, index: jax.Array) -> Any:
            """The logits of every head, and its evidence for `index`; its own likeliest if < 0."""
            x_BHWC = preprocess(square_SSC[None], preprocessing=trained.preprocessing)
            found = endpoints(model, variables, x_BHWC)
            results = {}
            for head, (block, logits_of) in heads.items():
                features_BHWC = found[f"inception_{block}/output"].astype(jnp.float32)
                logits_BK, pull_back = jax.vjp(partial(logits_of, variables, x_BHWC), features_BHWC)
                chosen = jnp.where(index < 0, jnp.argmax(logits_BK[0]), index)
                one_hot = jax.nn.one_hot(chosen, logits_BK.shape[-1], dtype=logits_BK.dtype)
                (gradient_BHWC,) = pull_back(one_hot[None])
                weights_C = gradient_BHWC[0].sum(axis=(0, 1))
                results[head] = logits_BK[0], features_BHWC[0] @ weights_C
            return results

        self._run: Callable[..., Any] = run

    def __call__(self, picture: Image.Image, index: int | None = None) -> dict[str, ActivationMap]:
        """What speaks for a class in each head.

        A map is the features in front of a head, each channel weighted by the summed gradient of
        the class's logit; the guess holds the head's own probability of the class.

        Args:
            picture: to look at.
            index: of the class; None is the main head's likeliest.

        Raises:
            UserError: if there is no class `index`.
            ImageError: for a picture too narrow to resize.
        """
        classes = self._trained.model.arch.num_classes
        if index is not None and not 0 <= index < classes:
            raise UserError(f"there is no class {index}; the model's are 0 to {classes - 1}")
        square = central_crop(picture, self._trained.preprocessing)
        if index is None:
            index = int(np.argmax(self._run(self._trained.variables, square, -1)[MAIN][0]))
        results = self._run(self._trained.variables, square, index)
        return {
            head: self._map(square, results[head], index)
            for head in self.heads  # a program's results come in alphabetical order
        }

    def own(self, picture: Image.Image, head: str) -> tuple[np.ndarray, ActivationMap]:
        """The probabilities (K,) that one head gives, and its map of the class it finds likeliest.

        Raises:
            ImageError: for a picture too narrow to resize.
        """
        square = central_crop(picture, self._trained.preprocessing)
        result = self._run(self._trained.variables, square, -1)[head]
        logits_K = np.asarray(result[0])
        return softmax(logits_K), self._map(square, result, int(np.argmax(logits_K)))

    def _map(self, square: np.ndarray, result: Any, index: int) -> ActivationMap:
        logits_K, evidence = result
        probability = float(softmax(np.asarray(logits_K))[index])
        label = self._trained.class_names[index]
        guess = Guess(index=index, label=label, probability=probability)
        return ActivationMap(np.asarray(evidence), square, guess)


def present_heads(model: GoogLeNet, variables: Mapping[str, Any]) -> list[str]:
    """Blocks whose auxiliary heads are among the variables: published weights may have none."""
    return [block for block in model.arch.aux_after if f"aux_{block}" in variables["params"]]


def main_logits(
    model: GoogLeNet, variables: Mapping[str, Any], x_BHWC: jax.Array, features_BHWC: jax.Array
) -> jax.Array:
    """The logits (B, K) of the main head, as in inference, of the last block's output.

    Args:
        model, variables: the network, whose own head computes them.
        x_BHWC: images, of which nothing but the shape counts.
        features_BHWC: what the last block is taken to put out.
    """
    last = f"inception_{list(model.arch.widths)[-1]}"

    def given(call_next, args, kwargs, context):
        if context.module.path == (last,) and context.method_name == "__call__":
            return features_BHWC
        return call_next(*args, **kwargs)

    with nn.intercept_methods(given):
        outputs: Any = model.apply(variables, x_BHWC)
    return outputs.logits

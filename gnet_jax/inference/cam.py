"""Class activation maps (arXiv 1512.04150): where a class was seen, without any gradient.

Global average pooling makes the logit of a class the mean, over the grid, of the last feature map
weighted by that class's column of the classifier. That weighted map is the class's evidence.

Shapes: S side of the network's input, C channels, K classes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from gnet_jax.config import UserError
from gnet_jax.data import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.lettering import fitted, lettered
from gnet_jax.inference.predict import Guess, TrainedModel, softmax
from gnet_jax.model.googlenet import GoogLeNet, aux_logits, endpoints, strip_aux

MAIN = "main"


class ActivationMap(NamedTuple):
    """The evidence for one class over the square that the network saw."""

    evidence: np.ndarray  # (h, w) float32; the main head's mean, plus a bias, is the logit
    square: np.ndarray  # (S, S, 3) uint8
    guess: Guess


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


COLOURS = "inferno"  # perceptually even, unlike jet, which draws borders where there are none
DRAWN_SIDE = 448  # pixels, at least


_OTHER_HEAD = "the model's classifier does not follow global average pooling of the last block"


class ActivationMapper:
    """Activation maps of one trained model, compiled for one picture at a time.

    Raises:
        UserError: if the model has a fully connected layer in place of global average pooling.
    """

    def __init__(self, trained: TrainedModel) -> None:
        arch = trained.model.arch
        if arch.head != "average_pool":
            raise UserError(
                f"the model's head is {arch.head!r}; an activation map needs global average pooling"
            )
        last_block = f"inception_{list(arch.widths)[-1]}/output"

        @jax.jit
        def last_and_logits(variables: Any, square_SSC: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = preprocess(square_SSC[None], preprocessing=trained.preprocessing)
            found = endpoints(trained.model, variables, x)
            return found[last_block][0], found["loss3/classifier"][0]

        self._trained = trained
        self._variables = {name: strip_aux(tree) for name, tree in trained.variables.items()}
        classifier = self._variables["params"].get("classifier", {})
        if {"kernel", "bias"} != set(classifier) or np.ndim(classifier["kernel"]) != 2:
            raise UserError(
                "the model has no linear layer classifier with kernel and bias; an activation map "
                "needs one behind global average pooling"
            )
        self._kernel_CK, self._bias_K = (np.asarray(classifier[n]) for n in ("kernel", "bias"))
        self._last_and_logits = last_and_logits

    def __call__(self, picture: Image.Image, index: int | None = None) -> ActivationMap:
        """The activation map of class `index`, or of the likeliest class.

        Raises:
            UserError: if there is no class `index`, or the map is not what the logit is made of.
            ImageError: for a picture too narrow to resize.
        """
        classes = self._trained.model.arch.num_classes
        if index is not None and not 0 <= index < classes:
            raise UserError(f"there is no class {index}; the model's are 0 to {classes - 1}")
        square = central_crop(picture, self._trained.preprocessing)
        features_HWC, logits_K = map(np.asarray, self._last_and_logits(self._variables, square))
        chosen = int(logits_K.argmax()) if index is None else index
        guess = Guess(
            index=chosen,
            label=self._trained.class_names[chosen],
            probability=float(softmax(logits_K)[chosen]),
        )
        if features_HWC.shape[-1] != len(self._kernel_CK):
            raise UserError(f"{_OTHER_HEAD}: {features_HWC.shape[-1]} channels go into it")
        evidence = features_HWC.astype(np.float32) @ self._kernel_CK[:, chosen]
        logit = evidence.mean() + self._bias_K[chosen]
        if abs(logit - logits_K[chosen]) > 0.01 * max(1.0, float(np.abs(logits_K).max())):
            raise UserError(f"{_OTHER_HEAD}: its logit is {logits_K[chosen]:g}, not {logit:g}")
        return ActivationMap(evidence, square, guess)


def draw(found: ActivationMap) -> Image.Image:
    """The map over the photo, under a line with the class and its probability.

    The photo shows through where there is little evidence. Colours run from the least to the most
    evidence in this map, so those of two maps do not compare.
    """
    side = found.square.shape[0]
    side *= -(-DRAWN_SIDE // side)
    photo = Image.fromarray(found.square).resize((side, side), Image.Resampling.BICUBIC)
    low, high = found.evidence.min(), found.evidence.max()
    share = (found.evidence - low) / max(high - low, np.finfo(np.float32).tiny)
    smooth = Image.fromarray(share).resize((side, side), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)
    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    weight = 0.25 + 0.45 * heat[..., None]
    overlaid = (1 - weight) * np.asarray(photo) + weight * colours
    return _titled(Image.fromarray(overlaid.round().astype(np.uint8)), found.guess)


def _titled(picture: Image.Image, guess: Guess) -> Image.Image:
    label, font = lettered(guess["label"], 18)
    probability = f"  {guess['probability']:.1%}"
    label = fitted(label, font, picture.width - 16 - font.getlength(probability))
    titled = Image.new("RGB", (picture.width, picture.height + 32), "white")
    titled.paste(picture, (0, 32))
    ImageDraw.Draw(titled).text((8, 16), label + probability, "black", font, anchor="lm")
    return titled

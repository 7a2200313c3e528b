"""Class activation maps (arXiv 1512.04150): where a class was seen, without any gradient.

Global average pooling makes the logit of a class the mean, over the grid, of the last feature map
weighted by that class's column of the classifier. That weighted map is the class's evidence.

Shapes: S side of the network's input, C channels, K classes.
"""

from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from gnet_jax.config import UserError
from gnet_jax.data import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.lettering import fitted, lettered
from gnet_jax.inference.predict import Guess, TrainedModel, softmax
from gnet_jax.model import endpoints, strip_aux

COLOURS = "inferno"  # perceptually even, unlike jet, which draws borders where there are none
DRAWN_SIDE = 448  # pixels, at least


_OTHER_HEAD = "the model's classifier does not follow global average pooling of the last block"


class ActivationMap(NamedTuple):
    """The evidence for one class over the square that the network saw."""

    evidence: np.ndarray  # (h, w) float32; the main head's mean, plus a bias, is the logit
    square: np.ndarray  # (S, S, 3) uint8
    guess: Guess


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

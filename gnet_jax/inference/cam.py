"""Class activation maps (arXiv 1512.04150). A map shows where in an image a class was seen.

To compute it, each channel of the feature map before a head is multiplied by the gradient of the
class's logit, summed over positions (arXiv 1610.02391), and the channels are added. After global
average pooling and a linear classifier, the mean of this map plus a bias is the logit, so the value
at a position is its evidence for the class.

Shapes: S side of the network's input, C channels, K classes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from gnet_jax.config import UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.decode import central_crop
from gnet_jax.inference.lettering import fitted, lettered
from gnet_jax.inference.predict import Guess, layer_shapes, say_if_slow, softmax
from gnet_jax.model.googlenet import GoogLeNet, aux_logits, endpoints
from gnet_jax.model.layers import ConvBlock
from gnet_jax.model.names import CONVS, caffe_name, find_layer
from gnet_jax.model_folder import TrainedModel

MAIN = "main"
COLOURS = "inferno"  # perceptually uniform, unlike jet, which shows edges that are not in the data
DRAWN_SIDE = 448  # smallest side of a drawn map, in pixels


class ActivationMap(NamedTuple):
    """The evidence for one class at each position of the square image that the network saw."""

    evidence: np.ndarray  # (h, w) float32; for the main head, mean + bias is the logit
    square: np.ndarray  # (S, S, 3) uint8
    guess: Guess


class ActivationMapper:
    """Computes the map and the class probabilities of every head of a model for one picture.

    The heads are "main" and those auxiliary heads ("aux 4a", ...) that the model has variables for.
    The map is that of the block before each head, or that of `layer` (Grad-CAM), which is zero for
    heads before `layer`. Raises UserError if `layer` is not the output of a block or a convolution.
    With `exact`, raises UserError if the main head's logit is not the mean of its map plus a bias.
    """

    def __init__(
        self, trained: TrainedModel, *, exact: bool = False, layer: str | None = None
    ) -> None:
        model, variables = trained.model, trained.variables
        if exact and model.arch.head != "average_pool":
            raise UserError(
                "a class activation map needs a classifier after global average pooling; the "
                f"model's head is {model.arch.head}"
            )
        self._trained = trained
        self.heads = {MAIN: list(model.arch.widths)[-1]}  # the block before each head
        for block in model.arch.aux_after:
            if f"aux_{block}" in variables["params"]:  # published weights may lack this head
                self.heads[f"aux {block}"] = block
        given = None if layer is None else _find_module(trained, layer)

        @jax.jit
        def run(variables: Any, square_SSC: jax.Array, index: jax.Array) -> Any:
            """Returns each head's logits and map of class `index`, or of the top class if -1."""
            x_BHWC = preprocess(square_SSC[None], preprocessing=trained.preprocessing)
            found = endpoints(model, variables, x_BHWC)
            results = {}
            for head, block in self.heads.items():
                output, path = given or (f"inception_{block}/output", f"inception_{block}")
                features_BHWC = found[output].astype(jnp.float32)
                aux = None if head == MAIN else block
                compute = partial(_logits, model, variables, x_BHWC, path, aux)
                if aux and given is None:  # without tracing the network again
                    compute = partial(aux_logits, model, variables, block)
                logits_BK, pull_back = jax.vjp(compute, features_BHWC)
                chosen = jnp.where(index < 0, jnp.argmax(logits_BK[0]), index)
                one_hot = jax.nn.one_hot(chosen, logits_BK.shape[-1])
                gradient_HWC = pull_back(one_hot[None])[0][0]
                results[head] = logits_BK[0], features_BHWC[0] @ gradient_HWC.sum(axis=(0, 1))
            return results

        self._run = say_if_slow(run)

    def __call__(self, picture: Image.Image, index: int | None = None) -> dict[str, ActivationMap]:
        """Returns each head's activation map of class `index`, with its probability of that class.

        By default, `index` is the main head's most probable class. Raises UserError if there is no
        class `index`, and ImageError if the picture is too narrow to resize.
        """
        trained, classes = self._trained, self._trained.model.arch.num_classes
        if index is not None and not 0 <= index < classes:
            raise UserError(f"there is no class {index}; the model has classes 0 to {classes - 1}")
        square = central_crop(picture, trained.preprocessing)
        if index is None:
            index = int(np.argmax(self._run(trained.variables, square, -1)[MAIN][0]))
        results = self._run(trained.variables, square, index)
        # Restore the order of the heads, because JAX returns dicts in alphabetical order.
        return {head: self._map(square, results[head], index) for head in self.heads}

    def own(self, picture: Image.Image, head: str) -> tuple[np.ndarray, ActivationMap]:
        """Returns the probabilities (K,) of one head, and the map of its most probable class."""
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


def _find_module(trained: TrainedModel, layer: str) -> tuple[str, str]:
    """Returns the key in `endpoints` of a block's or convolution's output, and its module path."""
    output, channel = find_layer(layer, layer_shapes(trained))
    paths = {caffe_name(path): path for path in CONVS}
    blocks = [f"inception_{block}" for block in trained.model.arch.widths]
    paths |= {f"{block}/output": block for block in blocks}
    if channel is not None or output not in paths:
        raise UserError(
            f"{layer} is not the output of a block or a convolution; use, for example, inception_4a"
        )
    return output, paths[output]


def _logits(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    x_BHWC: jax.Array,
    path: str,
    aux: str | None,
    features_BHWC: jax.Array,
) -> jax.Array:
    """Returns logits (B, K) if `features` were the output of the module at `path`.

    They are those of the head after block `aux`, or of the main head if `aux` is None.
    """

    def replace_output(call_next, args, kwargs, context):
        module: Any = context.module
        if module.path == tuple(path.split("/")) and context.method_name == "__call__":
            if isinstance(module, ConvBlock) and module.pool:  # the first convolution
                return model.ops.max_pool(features_BHWC, *module.pool)
            return features_BHWC
        return call_next(*args, **kwargs)

    with nn.intercept_methods(replace_output):
        found = endpoints(model, variables, x_BHWC)
    if aux is None:
        return found["loss3/classifier"]
    return aux_logits(model, variables, aux, found[f"inception_{aux}/output"])


def draw(found: ActivationMap) -> Image.Image:
    """Returns the photo with the map drawn over it, and its class and probability above it.

    The map is more transparent where there is little evidence. Each map is scaled to its own range,
    so the colours of two maps cannot be compared.
    """
    side = found.square.shape[0]
    side *= -(-DRAWN_SIDE // side)
    photo = Image.fromarray(found.square).resize((side, side), Image.Resampling.BICUBIC)
    low, high = found.evidence.min(), found.evidence.max()
    fraction = (found.evidence - low) / max(high - low, np.finfo(np.float32).tiny)
    smooth = Image.fromarray(fraction).resize((side, side), Image.Resampling.BICUBIC)
    heat = np.asarray(smooth).clip(0, 1)
    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    weight = 0.25 + 0.45 * heat[..., None]
    overlaid = (1 - weight) * np.asarray(photo) + weight * colours
    picture = Image.fromarray(overlaid.round().astype(np.uint8))
    label, font = lettered(found.guess["label"], 18)
    probability = f"  {found.guess['probability']:.1%}"
    label = fitted(label, font, side - 16 - font.getlength(probability))
    titled = Image.new("RGB", (side, side + 32), "white")
    titled.paste(picture, (0, 32))
    ImageDraw.Draw(titled).text((8, 16), label + probability, "black", font, anchor="lm")
    return titled

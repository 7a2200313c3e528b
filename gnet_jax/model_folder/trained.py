"""A trained model in memory, and what it can do with images."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.model.googlenet import GoogLeNet

if TYPE_CHECKING:
    import jax
    from PIL import Image

    from gnet_jax.data.sources import Split
    from gnet_jax.inference.cam import ActivationMapper
    from gnet_jax.inference.images import ImageLike
    from gnet_jax.inference.predict import Predictor


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained network with all information that is needed to use it.

    Every method takes one image or a list of them. An image is the path or URL of a file, the bytes
    of a file, a PIL image of any mode, or an array of uint8 pixels, (height, width, 3) or grey
    (height, width). Instead of a list, it can be an array (N, height, width, 3), a folder, or the
    name of a data set ("folder:PHOTOS", "npz:FILE", "tfds:NAME", "digits"; with #N, only N images),
    of which the validation split is read. Images are turned upright as their EXIF data says. The
    first call compiles the network. An image that cannot be used raises gnet_jax.config.UserError.
    """

    model: GoogLeNet
    # {"params", "batch_stats"} in float32, with the auxiliary heads
    variables: dict[str, Any] = dataclasses.field(repr=False)
    preprocessing: Preprocessing
    class_names: tuple[str, ...]  # the name of each output; two classes can have the same name
    source: dict[str, str]  # file, format, sha256 and notes on the origin of the weights

    def predict(
        self, images: "ImageLike | Sequence[ImageLike]", *, top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Returns the `top` most probable classes of each image, also if there is only one image.

        For each image, the result has a list of (class name, probability), most likely first.
        """
        from gnet_jax.inference.images import Pictures
        from gnet_jax.inference.predict import predictions

        if top < 1:
            raise UserError(f"top is {top}; it must be at least 1")
        results = []
        for picture, found in predictions(self._predictor, Pictures(images), top):
            if isinstance(found, UserError):
                raise UserError(f"{picture.name}: {found}") from found
            results.append([(guess["label"], guess["probability"]) for guess in found])
        return results

    def features(
        self,
        images: "ImageLike | Sequence[ImageLike]",
        *,
        layer: str = "pool5",
        flatten: bool = False,
        split: "Split" = "val",
    ) -> np.ndarray:
        """Returns the output of a layer for each image, (N, C) float32.

        Args:
            images: as above; `split` is the split to read of a data set.
            layer: name of the layer in Caffe's network, or the part of it before "/" if no other
                layer's name begins like this.
            flatten: keep all positions of a map, (N, H * W * C), instead of averaging over them.
        """
        from gnet_jax.inference.images import Pictures
        from gnet_jax.inference.predict import feature_rows, find_features

        layer, rows = find_features(self, layer), []
        for picture, row in feature_rows(
            self._predictor, Pictures(images, split=split), layer, flatten=flatten
        ):
            if isinstance(row, UserError):
                raise UserError(f"{picture.name}: {row}") from row
            rows.append(row)
        if not rows:
            raise UserError("there are no images to compute features of; give at least one")
        return np.stack(rows)

    def cam(
        self, images: "ImageLike | Sequence[ImageLike]", *, class_index: int | None = None
    ) -> "Image.Image | list[Image.Image]":
        """Returns a picture of each image with its class activation map; for one image, a picture.

        The map shows where class `class_index` was seen, by default the most probable class. Its
        name and probability are above the map. Raises UserError if the network has no classifier
        after global average pooling.
        """
        from gnet_jax.inference.cam import MAIN, draw
        from gnet_jax.inference.images import Pictures

        pictures = Pictures(images)
        drawn = [draw(self._mapper(found.opened(), class_index)[MAIN]) for found in pictures]
        return drawn if pictures.several else drawn[0]

    def batch(self, images: "ImageLike | Sequence[ImageLike]") -> "jax.Array":
        """Returns the network's input for the images, (N, S, S, 3) float32: cropped, normalised."""
        from gnet_jax.data.augment import preprocess
        from gnet_jax.data.decode import central_crop
        from gnet_jax.inference.images import Pictures

        p = self.preprocessing
        squares = [central_crop(found.opened(), p) for found in Pictures(images)]
        squares_NSSC = np.array(squares, np.uint8).reshape(-1, p.image_size, p.image_size, 3)
        return preprocess(squares_NSSC, preprocessing=p)  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def _predictor(self) -> "Predictor":
        from gnet_jax.inference.predict import Predictor

        return Predictor(self)

    @functools.cached_property
    def _mapper(self) -> "ActivationMapper":
        from gnet_jax.inference.cam import ActivationMapper

        return ActivationMapper(self, exact=True)

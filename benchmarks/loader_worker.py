"""torchvision's DataLoader and tf.data, timed by `input_pipeline.py`."""

from collections.abc import Callable
from typing import Any

import PIL
import torch
import torchvision
from torchvision.transforms import v2
from worker import Cases, serve


def prepare(setup: dict[str, Any]) -> tuple[dict[str, Any], Cases]:
    """Returns library versions and one case per loader; a call of a case reads `images` images.

    `setup`: "folder" (has CLASS/*.jpg), "images", "batch" (size), "workers" (processes, threads).
    """
    torch.set_num_threads(1)  # each worker process uses one thread
    facts = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "workers": setup["workers"],
    }
    crop = v2.RandomResizedCrop(224, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), antialias=True)
    flip = v2.RandomHorizontalFlip()
    cases = {
        "torchvision, PIL": _torch(setup, [crop, flip, v2.PILToTensor()]),
        "torchvision, tensor": _torch(setup, [v2.PILToTensor(), crop, flip]),
    }
    try:
        import tensorflow as tf
    except ImportError:
        return facts | {"tensorflow": None}, cases
    tf.config.set_visible_devices([], "GPU")
    return facts | {"tensorflow": tf.__version__}, cases | {"tf.data": _tensorflow(tf, setup)}


def _torch(setup: dict[str, Any], transforms: list[Any]) -> Callable[[], object]:
    folder = torchvision.datasets.ImageFolder(setup["folder"], v2.Compose(transforms))
    times = -(-setup["images"] // len(folder))
    data = torch.utils.data.Subset(folder, (list(range(len(folder))) * times)[: setup["images"]])
    loader = torch.utils.data.DataLoader(
        data, setup["batch"], shuffle=True, num_workers=setup["workers"]
    )
    # The worker processes exit at the end of each loop, so their CPU time is counted.
    return lambda: sum(len(images) for images, _ in loader)


def _tensorflow(tf: Any, setup: dict[str, Any]) -> Callable[[], object]:
    # The distribution of RandomResizedCrop as a TensorFlow op; bilinear, without antialiasing.
    def load(file: Any) -> Any:
        content = tf.io.read_file(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(content),
            tf.zeros((1, 0, 4)),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (224, 224)))
        return tf.cast(tf.round(image), tf.uint8)

    files = tf.data.Dataset.list_files(setup["folder"] + "/*/*", shuffle=True).repeat()
    options = tf.data.Options()
    options.threading.private_threadpool_size = setup["workers"]
    batches = (
        files.map(load, num_parallel_calls=setup["workers"], deterministic=True)
        .batch(setup["batch"])
        .take(setup["images"] // setup["batch"])
        .prefetch(2)
        .with_options(options)
    )
    return lambda: sum(len(images) for images in batches)


if __name__ == "__main__":
    serve(prepare)

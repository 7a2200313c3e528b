"""Loads a trained model, computes classes and features of pictures, and prints classes.

Shapes: N pictures, S side of the network's input, H height, W width, C channels, K classes.
"""

import contextlib
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.config.bucket import locate
from gnet_jax.config.paths import as_text, typed_path
from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import prefetched
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference.images import Picture
from gnet_jax.model.googlenet import GoogLeNet, endpoints, strip_aux
from gnet_jax.model.names import find_layer
from gnet_jax.model_folder import TrainedModel, read_folder
from gnet_jax.model_folder.folder import is_model_folder
from gnet_jax.training import sharding
from gnet_jax.training.checkpoints.verify import is_workdir, read_workdir

T = TypeVar("T")

PATIENCE = 2.0  # seconds; programs from the cache start in less
COMPILING = "preparing the network; compiling it takes up to half a minute the first time ..."


def load(path: str | Path, step: int | None = None) -> TrainedModel:
    """Load a trained model: network, variables, preprocessing and class names.

    The format of a file is detected from its content, and nothing in it is executed. From a
    training workdir, the checkpoint with the best evaluation is loaded, with averaged parameters if
    the run has them; the training data is not needed. If a file of another program lacks
    information, defaults are used, and printed on standard error.

    Args:
        path: the name of published weights (caffe, torchvision, slim, inception5h) or hf:OWNER/NAME
            for a model on the Hugging Face Hub, which are downloaded once; otherwise, the path of a
            model folder, a training workdir, or a file that `gnet convert` reads.
        step: the checkpoint of a training workdir to load instead of the best one.

    Raises:
        gnet_jax.config.UserError: if there is no such model, it cannot be downloaded, or it is
            corrupt.
    """
    local, text = typed_path(path), os.fspath(path)
    if step is not None:
        workdir = locate(path)
        if not is_workdir(workdir):
            raise UserError(f"--step {step} needs a training workdir, which {workdir} is not")
        return read_workdir(workdir, step)
    if os.sep in text and is_model_folder(local):  # without a separator, it may be a name
        return read_folder(local)
    if os.sep in text and is_workdir(local):
        return read_workdir(local)
    from gnet_jax.convert.read import read  # reads protobuf and other formats, so it imports late

    return read(path)


class Guess(TypedDict):
    """One class and its probability."""

    index: int
    label: str
    probability: float


class Predictor:
    """Runs a trained model, without auxiliary heads, on the devices of this process.

    All batches have one size: `batch_size`, rounded up to a multiple of the number of devices.
    """

    def __init__(self, trained: TrainedModel, batch_size: int = 8) -> None:
        mesh = sharding.data_mesh(jax.local_devices())
        self.trained = trained
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        variables = {name: strip_aux(tree) for name, tree in trained.variables.items()}
        self.variables = sharding.put_state(variables, mesh)
        fixed: Any = trained.model, trained.preprocessing
        self._program = functools.partial(_program, *fixed)

    def logits(self, squares_NSSC: np.ndarray) -> np.ndarray:
        """Returns the float32 logits (N, K) of uint8 RGB images (N, S, S, 3)."""
        if not len(squares_NSSC):
            return np.zeros((0, self.trained.model.arch.num_classes), np.float32)
        return self._run(self._program(), squares_NSSC)

    def features(self, squares_NSSC: np.ndarray, layer: str, *, flatten: bool) -> np.ndarray:
        """Returns the output (N, C) of a layer, a key of `endpoints`, for at least one image.

        Maps are averaged over their positions or, with `flatten`, are (N, H * W * C).
        """
        return self._run(self._program(layer, flatten), squares_NSSC)

    def _run(self, program: Callable[..., jax.Array], squares_NSSC: np.ndarray) -> np.ndarray:
        batches = []
        for start in range(0, len(squares_NSSC), self.batch_size):
            batch = squares_NSSC[start : start + self.batch_size]
            # Pad the last batch with black images, so that the program compiles only once.
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            batches.append(program(self.variables, np.pad(batch, padding)))
        # Fetch the results after the loop, so that the next batch is sent while one is computed.
        return np.concatenate(list(map(np.asarray, batches)))[: len(squares_NSSC)]

    def warm_up(self) -> None:
        side = self.trained.preprocessing.image_size
        self.logits(np.zeros((1, side, side, 3), np.uint8))


@functools.lru_cache(maxsize=8)  # each entry keeps a compiled program
def _program(
    model: GoogLeNet, preprocessing: Preprocessing, layer: str | None = None, flatten: bool = False
) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns a jitted function `(variables, uint8 images) -> rows` for this process's devices.

    The rows are the features of `layer`, or the logits if it is None. The variables are an
    argument, so that the models of an ensemble can share one program.
    """

    def compute_rows(variables: Any, squares_NSSC: jax.Array) -> jax.Array:
        x_NSSC = preprocess(squares_NSSC, preprocessing=preprocessing)
        if layer is None:
            outputs: Any = model.apply(variables, x_NSSC)
            return outputs.logits
        value = endpoints(model, variables, x_NSSC)[layer].astype(jnp.float32)
        if value.ndim == 4 and not flatten:
            return value.mean(axis=(1, 2))
        return value.reshape(len(value), -1)

    mesh = sharding.data_mesh(jax.local_devices())
    program = jax.jit(
        compute_rows,
        in_shardings=(sharding.replicated(mesh), sharding.split(mesh)),
        out_shardings=sharding.split(mesh),
        compiler_options=sharding.xla_options(mesh.devices.flat[0].platform),
    )
    return say_if_slow(program)


def layer_shapes(trained: TrainedModel, size: int | None = None) -> dict[str, Any]:
    """Returns the shapes of `endpoints` for one image; `size` is its side, by default the model's.

    Raises UserError if the network cannot process images of this size.
    """
    side = size or trained.preprocessing.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    try:
        return jax.eval_shape(functools.partial(endpoints, trained.model), trained.variables, image)
    except UserError:
        raise
    except (ValueError, flax.errors.ScopeParamShapeError) as error:
        needed = trained.preprocessing.image_size
        raise UserError(
            f"the network cannot process images of {side}x{side}; its own size is {needed}"
        ) from error


def find_features(trained: TrainedModel, name: str) -> str:
    """Returns the key of `endpoints` for a layer's name; see `find_layer` for names and errors."""
    layer, channel = find_layer(name, layer_shapes(trained))
    if channel is not None:
        raise UserError(f"{name} is one channel; use {layer}, and its feature {channel}")
    return layer


def say_if_slow(run: Callable[..., T]) -> Callable[..., T]:
    """Returns a jitted function that prints a note if its first call takes over `PATIENCE` seconds.

    The first call compiles `run`, or loads the compiled program from the cache.
    """
    calls = itertools.count()

    @functools.wraps(run)
    def run_with_note(*arguments: Any) -> T:
        note = threading.Timer(PATIENCE, print, [COMPILING], {"file": sys.stderr, "flush": True})
        note.daemon = True
        if next(calls) == 0:
            note.start()
        try:
            return run(*arguments)
        finally:
            note.cancel()

    return run_with_note


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Returns probabilities in float64, so that different float32 logits keep their order."""
    shifted = logits_NK.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def top_classes(probabilities_K: np.ndarray, class_names: Sequence[str], k: int = 5) -> list[Guess]:
    """Returns the `k` most probable classes. Equally probable ones are ordered by index."""
    best = np.argsort(-probabilities_K, kind="stable")[:k]
    return [
        Guess(index=int(i), label=class_names[int(i)], probability=float(probabilities_K[i]))
        for i in best
    ]


def predictions(
    predictor: Predictor, pictures: Iterable[Picture], k: int = 5
) -> Iterator[tuple[Picture, list[Guess] | UserError]]:
    """Yields each picture and its `k` most probable classes, or its error, in the order given."""
    names = predictor.trained.class_names
    for picture, row in _rows(predictor, pictures, predictor.logits):
        yield picture, row if isinstance(row, UserError) else top_classes(softmax(row), names, k)


def feature_rows(
    predictor: Predictor,
    pictures: Sequence[Picture],
    layer: str,
    *,
    flatten: bool = False,
    threads: int = 4,
) -> Iterator[tuple[Picture, np.ndarray | UserError]]:
    """Yields each picture and its row of `Predictor.features`, or its error, in the order given.

    The pictures are read in `threads` threads.
    """
    read = prefetched(pictures.__getitem__, range(len(pictures)), threads)
    run = functools.partial(predictor.features, layer=layer, flatten=flatten)
    with contextlib.closing(read):
        yield from _rows(predictor, read, run)


def _rows(
    predictor: Predictor, pictures: Iterable[Picture], run: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Picture, np.ndarray | UserError]]:
    """Yields each picture and the row of `run` for its central crop, or its error."""
    waiting = iter(pictures)
    while batch := list(itertools.islice(waiting, predictor.batch_size)):
        squares = [_crop(each.picture, predictor.trained.preprocessing) for each in batch]
        good = [square for square in squares if not isinstance(square, UserError)]
        rows = iter(run(np.stack(good)) if good else ())
        for picture, square in zip(batch, squares, strict=True):
            yield picture, square if isinstance(square, UserError) else next(rows)


def _crop(picture: Image.Image | UserError, p: Preprocessing) -> np.ndarray | UserError:
    try:
        return picture if isinstance(picture, UserError) else central_crop(picture, p)
    except ImageError as error:
        return error


def render(console: Console, name: str, top: Sequence[Guess]) -> None:
    """Print one picture's classes, with bars. On a terminal, lines are cut at its width."""
    line = "#" if console.options.ascii_only else "━"
    width = min(24, console.width // 3)
    console.print(Text(as_text(name), style="bold"), soft_wrap=True)
    for guess in top:
        bar = line * round(guess["probability"] * width)
        shown = Text.assemble(
            f"{guess['probability']:7.2%}  ", (bar.ljust(width), "cyan"), f"  {guess['label']}"
        )
        if console.is_terminal:
            shown.truncate(console.width, overflow="ellipsis")
        console.print(shown, soft_wrap=True)


def render_error(console: Console, name: str, error: UserError) -> None:
    """Print why there is no prediction for `name`."""
    console.print(Text.assemble((as_text(name), "bold"), ": ", (str(error), "red")), soft_wrap=True)

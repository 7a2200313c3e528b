"""Load a trained model, predict the classes of pictures, and print them. Shapes: N pictures, S side
of the network's input, C channels, K classes.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.config.paths import as_text
from gnet_jax.data.augment import preprocess
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference.images import Picture
from gnet_jax.model.googlenet import GoogLeNet, strip_aux
from gnet_jax.model_folder.folder import TrainedModel, is_model_folder, read_folder
from gnet_jax.training import sharding
from gnet_jax.training.checkpoints.restore import is_workdir, read_workdir


def load(path: str | Path) -> TrainedModel:
    """Load a trained model: network, variables, preprocessing and class names.

    The content of `path` determines what it is. Nothing in it is executed. A training workdir
    gives the checkpoint of the best evaluation, with averaged parameters if the run kept them; its
    training data may be gone. Assumptions about a file of another program are printed on standard
    error.

    Args:
        path: a model folder, a training workdir, or a file that `gnet convert` reads.

    Raises:
        gnet_jax.config.UserError: if there is no model at `path`, or it is corrupt.
    """
    path = Path(path).expanduser()
    if is_model_folder(path):
        return read_folder(path)
    if is_workdir(path):
        return read_workdir(path)
    from gnet_jax.convert.read import read  # here, because most models need no foreign reader

    return read(path)


class Guess(TypedDict):
    """One class and its probability."""

    index: int
    label: str
    probability: float


class Prediction(NamedTuple):
    """The most probable classes of one picture, or the reason why there are none."""

    name: str
    picture: Image.Image | UserError
    top: list[Guess] | UserError


class Predictor:
    """A trained model, without auxiliary heads, compiled for batches of one size on this process's
    devices. The size is rounded up to a multiple of the devices.
    """

    def __init__(self, trained: TrainedModel, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        mesh = sharding.data_mesh(jax.local_devices())
        self.trained = trained
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        variables = {name: strip_aux(tree) for name, tree in trained.variables.items()}
        self.variables = sharding.put_state(variables, mesh)
        self._program = _program(trained.model, trained.preprocessing)  # pyright: ignore[reportArgumentType]

    def logits(self, squares_NSSC: np.ndarray) -> np.ndarray:
        """Returns the (N, K) float32 logits of uint8 RGB squares (N, S, S, 3). The last batch is
        filled up with black squares, so that the program compiles once.
        """
        batches = []
        for start in range(0, len(squares_NSSC), self.batch_size):
            batch = squares_NSSC[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            batches.append(self._program(self.variables, np.pad(batch, padding)))
        empty = np.zeros((0, self.trained.model.arch.num_classes), np.float32)
        # Fetched after the loop, so that a batch is sent while the one before is computed.
        return np.concatenate([empty, *map(np.asarray, batches)])[: len(squares_NSSC)]

    def warm_up(self) -> None:
        side = self.trained.preprocessing.image_size
        self.logits(np.zeros((1, side, side, 3), np.uint8))


@functools.lru_cache(maxsize=8)  # each entry keeps a compiled program
def _program(
    model: GoogLeNet, preprocessing: Preprocessing
) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns `(variables, uint8 squares) -> logits`, jitted for this process's devices. The
    variables are arguments, so the models of an ensemble share one program.
    """

    def compute_logits(variables: Any, squares_NSSC: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, preprocess(squares_NSSC, preprocessing=preprocessing))
        return outputs.logits

    mesh = sharding.data_mesh(jax.local_devices())
    return jax.jit(
        compute_logits,
        in_shardings=(sharding.replicated(mesh), sharding.split(mesh)),
        out_shardings=sharding.split(mesh),
        compiler_options=sharding.xla_options(mesh.devices.flat[0].platform),
    )


def say_compiling() -> None:
    """Print on standard error that the first call of a program takes a while."""
    print("compiling, up to half a minute the first time ...", file=sys.stderr, flush=True)


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Returns probabilities in float64, in which distinct float32 logits keep their order."""
    shifted = logits_NK.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def top_classes(probabilities_K: np.ndarray, class_names: Sequence[str], k: int = 5) -> list[Guess]:
    """Returns the `k` most probable classes (at most all), those of equal probability by index."""
    best = np.argsort(-probabilities_K, kind="stable")[:k]
    return [
        Guess(index=int(i), label=class_names[int(i)], probability=float(probabilities_K[i]))
        for i in best
    ]


def predictions(
    predictor: Predictor, pictures: Iterable[Picture], k: int = 5
) -> Iterator[Prediction]:
    """Yields the `k` most probable classes of each picture in order, computed batch by batch."""
    trained, waiting = predictor.trained, iter(pictures)
    while batch := list(itertools.islice(waiting, predictor.batch_size)):
        squares = [_crop(picture, trained.preprocessing) for _, picture in batch]
        good = [square for square in squares if not isinstance(square, UserError)]
        rows_NK = iter(softmax(predictor.logits(np.stack(good))) if good else ())
        for (name, picture), square in zip(batch, squares, strict=True):
            if isinstance(square, UserError):
                yield Prediction(name, picture, square)
            else:
                yield Prediction(name, picture, top_classes(next(rows_NK), trained.class_names, k))


def _crop(picture: Image.Image | UserError, p: Preprocessing) -> np.ndarray | UserError:
    try:
        return picture if isinstance(picture, UserError) else central_crop(picture, p)
    except ImageError as error:
        return error


def render(console: Console, name: str, top: Sequence[Guess]) -> None:
    """Print the classes of one picture with a bar for each probability. A label that is too long
    for the terminal is truncated; a pipe gets all of it.
    """
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

"""Pictures to probabilities of classes, and how a person is shown them.

Shapes: N pictures, S side of the network's input, C channels, K classes.
"""

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.config.paths import as_text
from gnet_jax.data import preprocess
from gnet_jax.data.decode import ImageError, central_crop
from gnet_jax.inference.images import Picture
from gnet_jax.model.googlenet import GoogLeNet, strip_aux
from gnet_jax.training.sharding import (
    data_mesh,
    platform_of,
    put_state,
    replicated,
    split,
    xla_options,
)

Program = Callable[[Any, np.ndarray], jax.Array]


class TrainedModel(Protocol):
    """A network with its weights and what belongs to them, such as a `ModelFolder`."""

    @property
    def model(self) -> GoogLeNet: ...
    @property
    def variables(self) -> Any: ...  # {"params", "batch_stats"}
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


class Guess(TypedDict):
    """One class and its probability."""

    index: int
    label: str
    probability: float


class Prediction(NamedTuple):
    """The classes of one picture, likeliest first, or why there are none."""

    name: str
    picture: Image.Image | None
    top: list[Guess] | UserError


class Predictor:
    """A trained model compiled for batches of one size on this process's devices.

    Args:
        trained: the model; auxiliary heads are left out.
        batch_size: pictures a call of the program; rounded up to a multiple of the devices.
    """

    def __init__(self, trained: TrainedModel, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be at least 1")
        mesh = data_mesh(jax.local_devices())
        self.trained = trained
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.variables = put_state(
            {name: strip_aux(tree) for name, tree in trained.variables.items()}, mesh
        )
        self._program = _program(trained.model, trained.preprocessing)

    def logits(self, squares_NSSC: np.ndarray) -> np.ndarray:
        """(N, K) float32 logits of uint8 squares (N, S, S, 3), red, green, blue.

        Every call of the program has `batch_size` squares, the last ones black where N does not
        divide, so it is compiled once.
        """
        batches = []
        for start in range(0, len(squares_NSSC), self.batch_size):
            batch = squares_NSSC[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), (0, 0), (0, 0), (0, 0)]
            batches.append(self._program(self.variables, np.pad(batch, padding)))
        empty = np.zeros((0, self.trained.model.arch.num_classes), np.float32)
        # Fetched only now: while one batch is computed, the next is already on its way.
        return np.concatenate([empty, *map(np.asarray, batches)])[: len(squares_NSSC)]

    def probabilities(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(N, K) float32: the softmax for the central crop of each picture.

        Raises:
            ImageError: for a picture too narrow to resize.
        """
        p = self.trained.preprocessing
        squares = np.zeros((len(pictures), p.image_size, p.image_size, 3), np.uint8)
        for place, picture in enumerate(pictures):
            squares[place] = central_crop(picture, p)
        return softmax(self.logits(squares)).astype(np.float32)

    def warm_up(self) -> None:
        """Compile now, so that what is timed or waited for later is not compilation."""
        side = self.trained.preprocessing.image_size
        self.logits(np.zeros((1, side, side, 3), np.uint8))


# Weights are arguments, so models of one architecture share a program, as in an ensemble. A list,
# for an architecture has no hash; of the last few, for each holds what was compiled.
_programs: collections.deque[tuple[GoogLeNet, Preprocessing, Program]] = collections.deque(maxlen=8)


def say_compiling() -> None:
    """Say on standard error what the wait is for, before a program is called for the first time."""
    print("compiling, up to half a minute the first time ...", file=sys.stderr, flush=True)


def _program(model: GoogLeNet, preprocessing: Preprocessing) -> Program:
    """`(variables, uint8 squares) -> logits`, jitted for this process's devices."""
    for known_model, known_preprocessing, program in _programs:
        if (known_model, known_preprocessing) == (model, preprocessing):
            return program

    def logits_of(variables: Any, squares_NSSC: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, preprocess(squares_NSSC, preprocessing=preprocessing))
        return outputs.logits

    mesh = data_mesh(jax.local_devices())
    whole, parts = replicated(mesh), split(mesh)
    program = jax.jit(
        logits_of,
        in_shardings=(whole, parts),
        out_shardings=parts,
        compiler_options=xla_options(platform_of(mesh)),
    )
    _programs.append((model, preprocessing, program))
    return program


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    """Probabilities in float64, where distinct float32 logits stay distinct and in their order."""
    shifted = logits_NK.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def top(probabilities_K: np.ndarray, class_names: Sequence[str], k: int = 5) -> list[Guess]:
    """The `k` likeliest classes (all, where there are fewer), of equal ones the first first."""
    best = np.argsort(-probabilities_K, kind="stable")[:k]
    return [
        Guess(index=int(i), label=class_names[int(i)], probability=float(probabilities_K[i]))
        for i in best
    ]


def predictions(
    predictor: Predictor, pictures: Iterable[Picture], k: int = 5
) -> Iterator[Prediction]:
    """The `k` likeliest classes of each picture, in order, a batch of pictures at a time."""
    waiting: list[Prediction] = []  # with `top` still empty where there is a picture
    squares: list[np.ndarray] = []

    def finished() -> Iterator[Prediction]:
        rows_NK = iter(softmax(predictor.logits(np.stack(squares)))) if squares else iter(())
        for item in waiting:
            if item.picture is not None:
                item = item._replace(top=top(next(rows_NK), predictor.trained.class_names, k))
            yield item
        waiting.clear()
        squares.clear()

    for name, picture in pictures:
        if isinstance(picture, Image.Image):
            try:
                squares.append(central_crop(picture, predictor.trained.preprocessing))
                waiting.append(Prediction(name, picture, []))
            except ImageError as error:
                waiting.append(Prediction(name, None, error))
        else:
            waiting.append(Prediction(name, None, picture))
        if len(squares) in (0, predictor.batch_size):  # 0: nothing to wait for, say it at once
            yield from finished()
    yield from finished()


def render(console: Console, name: str, top: Sequence[Guess]) -> None:
    """Print the classes of one picture with a bar for each probability.

    A label too long for the terminal is cut short; where output is piped it is given whole.
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

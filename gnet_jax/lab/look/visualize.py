"""Optimise images that excite parts of a network (Olah et al., Feature Visualization, 2017).

The images are the inverse Fourier transform of the parameters, scaled so that all frequencies have
the same energy, in decorrelated colours. In each step they are moved, scaled and rotated a little,
because otherwise the optimum is noise.

Shapes: G objectives (groups of images), N images of each, S side, F frequencies of a row.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, PngImagePlugin

from gnet_jax.config import Preprocessing, UserError
from gnet_jax.data.augment import preprocess
from gnet_jax.data.progress import progress_line
from gnet_jax.inference.lettering import save
from gnet_jax.inference.predict import layer_shapes
from gnet_jax.lab.look.contact_sheet import Seen, check_fits, draw
from gnet_jax.lab.look.objectives import Objective, as_pytree, parse, stack
from gnet_jax.model.googlenet import GoogLeNet, endpoints, strip_aux
from gnet_jax.model_folder import TrainedModel
from gnet_jax.training.checkpoints.verify import digest
from gnet_jax.training.sharding import xla_options
from gnet_jax.training.workdir import replacing

# The square root of the covariance of the colours of ImageNet's photos (as in Lucid).
COLOURS = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)
COLOURS /= np.linalg.norm(COLOURS, axis=0).max()
START = 0.01  # standard deviation of the first parameters
CONTRAST = 0.25  # factor of the image before the sigmoid; more saturates the colours
SCALES, DEGREES, JITTER = (0.9, 1.1), 10.0, 1 / 16  # ranges; jitter is in sides of the image
GREY = 0.5
RGB = Preprocessing()


class Plan(NamedTuple):
    """What is fixed when a step is compiled."""

    model: GoogLeNet
    preprocessing: Preprocessing
    size: int
    robust: bool  # transform the images at each step


def visualize(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    objective: Objective | Sequence[Objective],
    *,
    preprocessing: Preprocessing = RGB,
    size: int | None = None,
    steps: int = 512,
    images: int = 1,
    seed: int = 0,
    learning_rate: float = 0.05,
    robust: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images that maximise an objective, and the value that they reach.

    The images are (N, S, S, 3) uint8 RGB. A list of G objectives of the same structure, such as
    channels of one layer, is optimised in one program; the images are then (G, N, S, S, 3) and the
    values (G,). An image depends on the seed, not on the objectives beside it.

    Args:
        objective: a function of activations, such as those in `objectives`.
        preprocessing: how the network's input is made of pixels.
        size: side of the images, by default that of the network's input.
        images: N, the number of images of each objective; with `diversity`, they differ.
        robust: move, scale and rotate the images at each step.
        advance: called after each step.

    Raises:
        UserError: if an objective is not finite, for example because its channel does not exist.
    """
    several = isinstance(objective, Sequence)
    given: Any = objective if several else [objective]
    objectives = stack([as_pytree(each) for each in given])
    plan = Plan(unblocked(model), preprocessing, size or preprocessing.image_size, robust)
    variables = {name: strip_aux(tree) for name, tree in variables.items()}
    key = jax.random.key(seed)
    shape = (len(given), images, plan.size, plan.size // 2 + 1, 3, 2)
    one = START * jax.random.normal(key, shape[1:])
    params = jnp.broadcast_to(one, shape)  # the same start for each objective
    state = params, optax.adam(learning_rate).init(params)
    step = _jitted(_step, donated=(3,))
    for number in range(steps):
        state, score_G = step(plan, variables, objectives, state, key, number, learning_rate)
        if number == 0:
            _check_finite(score_G)
        jax.block_until_ready(score_G)  # otherwise `advance` counts steps that have not run
        advance()
    pixels, score_G = jax.device_get(_jitted(_finish)(plan, variables, objectives, state[0]))
    _check_finite(score_G)
    return (pixels, score_G) if several else (pixels[0], score_G[0])


def _check_finite(score_G: Any) -> None:
    bad = np.flatnonzero(~np.isfinite(score_G))
    if bad.size:
        raise UserError(
            f"objective {bad[0]} is {float(score_G[bad[0]])}; check that its channel or position "
            "exists"
        )


@functools.cache
def _jitted(function: Callable[..., Any], donated: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Returns a jitted function of (plan, ...), compiled for the network's operations."""
    options = xla_options(jax.default_backend())
    return jax.jit(function, static_argnums=0, donate_argnums=donated, compiler_options=options)


def _step(
    plan: Plan,
    variables: Any,
    objectives: Objective,
    state: Any,
    key: jax.Array,
    number: jax.Array,
    learning_rate: jax.Array,
) -> Any:
    """Returns the state after one step of Adam, and the scores (G,) before it."""
    params, adam = state

    def total(params: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = render(params, plan.size)
        if plan.robust:
            x = transform(x, jax.random.fold_in(key, number))
        score_G = scores(plan, variables, objectives, x)
        return score_G.sum(), score_G

    gradient, score_G = jax.grad(total, has_aux=True)(params)
    updates, adam = optax.adam(learning_rate).update(-gradient, adam)
    return (params + updates, adam), score_G


def _finish(plan: Plan, variables: Any, objectives: Objective, params: jax.Array) -> Any:
    x = render(params, plan.size)
    return jnp.round(255 * x).astype(jnp.uint8), scores(plan, variables, objectives, x)


def scores(plan: Plan, variables: Any, objectives: Any, x_GNSSC: jax.Array) -> jax.Array:
    """Returns each objective's value (G,) for its own images, whose values are from 0 to 1."""
    groups = x_GNSSC.shape[:2]
    images = 255 * x_GNSSC.reshape(-1, *x_GNSSC.shape[2:])
    found = endpoints(plan.model, variables, preprocess(images, preprocessing=plan.preprocessing))
    found = {name: value.reshape(*groups, *value.shape[1:]) for name, value in found.items()}
    return jax.vmap(lambda objective, found: objective(found))(objectives, found)


def render(params: jax.Array, size: int) -> jax.Array:
    """Returns the images (G, N, S, S, 3), from 0 to 1, of Fourier parameters (G, N, S, F, 3, 2)."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    frequencies = np.maximum(np.hypot(rows, columns), 1 / size)
    scale = (CONTRAST * size / frequencies)[..., None].astype(np.float32)
    spectrum = scale * jax.lax.complex(params[..., 0], params[..., 1])
    x = jnp.fft.irfft2(spectrum, (size, size), axes=(2, 3))
    return jax.nn.sigmoid(x @ COLOURS.T)


def transform(x_GNSSC: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the images moved, scaled and rotated about the centre, all in the same way."""
    size = x_GNSSC.shape[2]
    scale_key, turn_key, move_key = jax.random.split(key, 3)
    scale = jax.random.uniform(scale_key, (), minval=SCALES[0], maxval=SCALES[1])
    limit = math.radians(DEGREES)
    turn = jax.random.uniform(turn_key, (), minval=-limit, maxval=limit)
    move = jax.random.uniform(move_key, (2, 1, 1), minval=-JITTER * size, maxval=JITTER * size)
    middle = (size - 1) / 2
    y, x = jnp.mgrid[:size, :size] - middle
    cos, sin = jnp.cos(turn) / scale, jnp.sin(turn) / scale
    places = jnp.stack([cos * y - sin * x, sin * y + cos * x]) + move + middle

    def sample(plane_SS: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(
            plane_SS, list(places), order=1, mode="constant", cval=GREY
        )

    planes_SSX = jnp.moveaxis(x_GNSSC, (2, 3), (0, 1)).reshape(size, size, -1)
    planes_SSX = jax.vmap(sample, -1, -1)(planes_SSX)
    moved = planes_SSX.reshape(size, size, *x_GNSSC.shape[:2], 3)
    return jnp.moveaxis(moved, (0, 1), (2, 3))


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns the ReLU. If it blocks the whole gradient of an image, the gradient is that of `x`.

    Many channels are zero everywhere for the first, nearly grey images, and would stay so.
    """
    return jax.nn.relu(x)


def _relu_backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    dx = jnp.where(x > 0, dy, 0)
    blocked = jnp.all(dx == 0, axis=tuple(range(1, x.ndim)), keepdims=True)
    return (jnp.where(blocked, dy, dx),)


relu.defvjp(lambda x: (jax.nn.relu(x), x), _relu_backward)


def unblocked(model: GoogLeNet) -> GoogLeNet:
    """Returns the same network with the gradient of `relu`."""
    return model.clone(ops=dataclasses.replace(model.ops, relu=relu))


class Job(NamedTuple):
    """The settings of a sheet. A picture that was made with the same settings is not made again."""

    size: int
    steps: int
    images: int
    seed: int


def draw_pictures(
    trained: TrainedModel, texts: Sequence[str], out: Path, job: Job, batch: int, columns: int
) -> int:
    """Draw an image for each objective in `texts` (see `parse`) to `out`; returns their number.

    The images are also saved as in `optimised`, in the folder with the name of `out` without its
    suffix.
    """
    shapes = layer_shapes(trained, job.size)
    wanted = dict(pair for text in texts for pair in parse(text, shapes, trained.class_names))
    check_fits(out, len(wanted) * job.images, job.size, columns)
    tiles, captions = [], []
    for name, (row, value) in optimised(trained, wanted, out.with_suffix(""), job, batch).items():
        tiles += list(row)
        captions += [[name, f"{value:.4g}"]] * len(row)
    title = f"{Path(trained.source.get('file', 'model')).name}: {len(wanted)} objectives"
    subtitle = f"{job.steps} steps, {job.size}x{job.size} pixels, seed {job.seed}. Below each "
    subtitle += "image: its objective, and the value that it reaches."
    save(draw(Seen(np.stack(tiles), captions), columns, title, subtitle), out)
    return len(wanted)


def optimised(
    trained: TrainedModel, wanted: Mapping[str, Objective], folder: Path, job: Job, batch: int
) -> dict[str, tuple[np.ndarray, float]]:
    """Returns the images (N, S, S, 3) of each objective and the value that they reach, by name.

    Each objective's images are saved in one file in `folder`. Files of an earlier call with the
    same settings and model are reused. At most `batch` images are optimised together.
    """
    facts = (trained.model.arch, trained.preprocessing, trained.class_names)
    identity = f"{digest(trained.variables)} {facts}".encode()
    settings = {**job._asdict(), "model": hashlib.sha256(identity).hexdigest()}
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from error
    files = {name: folder / _file_name(name) for name in wanted}
    found = {name: _read(files[name], {**settings, "name": name}) for name in wanted}
    groups: dict[Any, list[str]] = {}
    for name, objective in wanted.items():
        if found[name] is None:
            groups.setdefault(jax.tree.structure(objective), []).append(name)
    chunks = []
    for names in groups.values():
        count = math.ceil(len(names) / max(1, batch // job.images))
        chunks += [names[start::count] for start in range(count)]  # of almost equal sizes
    options = {**job._asdict(), "preprocessing": trained.preprocessing}
    with progress_line("optimising", "steps", len(chunks) * job.steps, warm_up=True) as advance:
        for names in chunks:
            objectives = [wanted[name] for name in names]
            pixels, values = visualize(
                trained.model, trained.variables, objectives, **options, advance=advance
            )
            for name, row, value in zip(names, pixels, values, strict=True):
                found[name] = row, float(value)
                _save(row, files[name], {**settings, "name": name, "value": float(value)})
    return found  # pyright: ignore[reportReturnType]


def _file_name(name: str) -> str:
    """Returns the name of the file for an objective, which is different for each objective."""
    short = re.sub(r"[^A-Za-z0-9_.+]+", "-", name)
    # Plain names, such as a/b:1, remain different from each other.
    if len(name) > 100 or not re.fullmatch(r"-?[A-Za-z0-9_./]+:[A-Za-z0-9_.]+", name):
        short = f"{short[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{short}.png"


def _save(images: np.ndarray, file: Path, settings: Mapping[str, Any]) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("gnet", json.dumps(settings))
    try:
        with replacing(file) as partial:
            Image.fromarray(np.hstack(list(images))).save(partial, "PNG", pnginfo=notes)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def _read(file: Path, settings: Mapping[str, Any]) -> tuple[np.ndarray, float] | None:
    """Returns saved images and their value, or None if the file is not one with these settings."""
    try:
        with Image.open(file) as picture:
            notes = json.loads(picture.info.get("gnet", "{}"))
            value = notes.pop("value", None)
            if notes != settings:
                return None
            return np.stack(np.split(np.asarray(picture), settings["images"], axis=1)), value
    except (OSError, ValueError):  # missing, incomplete, or not ours
        return None

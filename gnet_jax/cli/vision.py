"""Commands that look at images: predict, evaluate, inspect, demo."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import (
    PHOTOS,
    check_not_input,
    check_picture,
    console,
    json_line,
    say_not_read,
    several,
)
from gnet_jax.config import UserError

if TYPE_CHECKING:  # imported where they are used, so that --help and a typo answer at once
    from PIL import Image

    from gnet_jax.inference.evaluate import Evaluation
    from gnet_jax.inference.predict import TrainedModel
    from gnet_jax.model_folder import ModelFolder


def predict(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    images: Annotated[Positional[tuple[str, ...]], several("IMAGE|FOLDER|URL|- ...")],
    json: Annotated[bool, arg(name="json")] = False,
    cam: Path | None = None,
    top: int = 5,
) -> int:
    """The likeliest classes of photos: files, folders, URLs, or - for standard input.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        images: what to look at. A file that is not an image is named and skipped; entries of a
            folder that are not read are counted at the end.
        json: print one JSON object a line: `file`, and `top` or `error`.
        cam: also draw where each likeliest class was seen into this PNG (NAME-2.png for
            the second photo, and so on).
        top: how many classes.
    """
    from gnet_jax.convert.read import read
    from gnet_jax.inference.images import pictures
    from gnet_jax.inference.predict import (
        Predictor,
        predictions,
        render,
        render_error,
        say_compiling,
    )

    if not images:
        raise UserError("there is no photo; name a file, a folder, a URL, or - for standard input")
    if top < 1:
        raise UserError(f"--top is {top}; it must be at least 1")
    if cam is not None:
        check_picture(cam, PHOTOS)
        check_not_input(cam, images)
    _use_device()
    trained = read(model)
    _say_which_steps([model], [trained])
    say_compiling()
    draw = None if cam is None else _map_writer(trained, cam, images)
    out, errors, seen, failed = console(), console(stderr=True), 0, 0
    left_out: dict[str, list[str]] = {}
    photos = pictures(images, left_out)
    for name, picture, found in predictions(Predictor(trained), photos, top):
        seen += 1
        if isinstance(found, UserError):
            failed += 1
            if json:
                print(json_line({"file": name, "error": str(found)}))
            else:
                render_error(errors, name, found)
            continue
        if json:
            print(json_line({"file": name, "top": found}))
        else:
            render(out, name, found)
        if draw is not None and picture is not None:
            draw(picture)
    say_not_read(left_out)
    if not seen:
        raise UserError(f"there is no image in {', '.join(images)}")
    return 1 if failed else 0


def _map_writer(
    trained: TrainedModel, file: Path, images: tuple[str, ...]
) -> Callable[[Image.Image], None]:
    """A function that draws the activation map of each picture it is given into the next file."""
    from gnet_jax.inference.cam import ActivationMapper, draw

    mapper, numbers = ActivationMapper(trained), itertools.count(1)

    def write(picture: Image.Image) -> None:
        number = next(numbers)
        target = file if number == 1 else file.with_stem(f"{file.stem}-{number}")
        check_not_input(target, images)
        try:
            draw(mapper(picture)).save(target)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write {target}: {error}") from error
        print(f"drew {target}", file=sys.stderr)

    return write


def evaluate(
    models: Annotated[Positional[tuple[Path, ...]], several("MODEL ...")],
    data: str,
    split: Literal["val", "test", "train"] = "val",
    crops: Literal[1, 10, 144] = 1,
    json: Annotated[bool, arg(name="json")] = False,
    table: bool = False,
    batch_size: int = 64,
    threads: int = 4,
    bad_limit: float = 0.02,
) -> None:
    """Top-1 and top-5 accuracy over every image, of one model or an ensemble.

    Classes are matched by name: the data need not have all of the model's, but no others. For
    ImageNet's models, WordNet ids are names too. If the data number the model's classes instead,
    from 0, they are paired by position, and the pairing is printed.

    Args:
        models: model folders (or workdirs, or weight files); several are averaged.
        data: digits, folder:PATH, npz:PATH, or tfds:NAME.
        split: of the data.
        crops: of each image, averaged: 1, 10, or the paper's 144.
        json: print one JSON object in place of the sentence.
        table: the paper's grid: the first model and all of them, with 1, 10 and 144 crops.
        batch_size: the largest number of crops in one call of a network.
        threads: that read, decode and crop.
        bad_limit: largest share of the images that may be damaged; they are left out and named.
    """
    from gnet_jax.convert.read import read
    from gnet_jax.data import open_source
    from gnet_jax.inference.evaluate import evaluate as evaluate_models
    from gnet_jax.inference.paper import evaluate_grid, paper_table

    if json and table:
        raise UserError("--json and --table exclude each other; choose one")
    source = open_source(data, split)
    say_not_read(source.left_out)
    _use_device()
    trained = [read(model) for model in models]
    _say_which_steps(models, trained)
    options = {"batch_size": batch_size, "threads": threads, "bad_limit": bad_limit}
    if table:
        grid = evaluate_grid(trained, source, **options)
        console().print(paper_table(grid))
        _print_damaged(grid[0])
        return
    result = evaluate_models(trained, source, crops, **options)
    if json:
        print(json_line(result.as_dict()))
    else:
        print(
            f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} of {result.images:,} images "
            f"({_counted(result.models, 'model')}, {_counted(result.crops, 'crop')}, "
            f"{result.images_per_sec:.1f} images/s)"
        )
        _print_damaged(result)


def inspect(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    image: Annotated[Positional[str], arg(metavar="IMAGE")],
    out: Path = Path("inside"),
    endpoint: tuple[str, ...] = (),
    class_index: int | None = None,
) -> None:
    """Draw what is inside a network that looks at a photo.

    First-layer filters, activations, and where the main and the auxiliary heads see the class.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        image: a file, a URL, or - for standard input.
        out: the folder to draw into.
        endpoint: layers whose activations are drawn, by Caffe's names, such as inception_4a/5x5.
        class_index: of the class that the heads are asked for; None is the likeliest.
    """
    from gnet_jax.convert.read import read
    from gnet_jax.inference.images import pictures
    from gnet_jax.inference.predict import say_compiling
    from gnet_jax.lab.look.inside import draw_inside

    _use_device()
    trained = read(model)
    name, picture = next(pictures([image]))
    if isinstance(picture, UserError):
        raise UserError(f"{name}: {picture}")
    _say_which_steps([model], [trained])
    say_compiling()
    for file in draw_inside(trained, picture, out, endpoint, class_index):
        print(f"drew {file}")


def demo(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    port: int | None = None,
) -> None:
    """Open a page on this machine: drop a photo, see the top-5 of any head and where it looked.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        port: to serve on; None takes the first free one from 7860 on.
    """
    from gnet_jax.convert.read import read
    from gnet_jax.inference.demo import build, serve
    from gnet_jax.inference.predict import say_compiling

    _use_device()
    trained = read(model)
    _say_which_steps([model], [trained])
    say_compiling()
    serve(build(trained, f"GoogLeNet: {model.name}"), port)


def _use_device() -> None:
    """Set this process up to run programs: compiled ones are kept, and so is their memory."""
    from gnet_jax.training.memory import call_in_this_thread, keep_freed_memory
    from gnet_jax.training.sharding import use_compilation_cache

    use_compilation_cache()
    call_in_this_thread()
    keep_freed_memory()


def _say_which_steps(paths: Sequence[Path], models: Sequence[ModelFolder]) -> None:
    """Name the steps that were read of workdirs: what training ended with may be another."""
    for path, model in zip(paths, models, strict=True):
        if "step" in model.source:
            top1 = model.source.get("validation_top1")
            which = (
                "the newest" if top1 is None else f"the best, validation top-1 {float(top1):.2%}"
            )
            print(f"{path}: step {model.source['step']}, {which}", file=sys.stderr)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _print_damaged(result: Evaluation) -> None:
    """Name what was left out, at most ten of it."""
    from gnet_jax.data.bad_images import SHOWN

    names = [str(record) for record in result.damaged]
    if names:
        what = "damaged image" if len(names) == 1 else "damaged images"
        print(f"{len(names):,} {what} left out:", *names[:SHOWN], sep="\n  ")
    if len(names) > SHOWN:
        print(f"  and {len(names) - SHOWN:,} more; `gnet check-data` lists all")

"""The `gnet` commands, each a thin call into one room of the package."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from gnet_jax.config import ConfigError, UserError

if TYPE_CHECKING:  # imported where they are used, so that --help and a typo answer at once
    from PIL import Image

    from gnet_jax.inference.predict import TrainedModel

app = tyro.extras.SubcommandApp()

Variant = Literal["paper", "batch_norm", "torchvision", "google_release", "naive"]


@app.command
def summary(
    variant: Variant = "paper",
    image_size: int = 224,
    num_classes: int | None = None,
    reduction_factor: float = 1.0,
    width_multiplier: float = 1.0,
    aux_after: tuple[str, ...] = ("4a", "4d"),
    head: Literal["average_pool", "fc"] = "average_pool",
    stem: Literal["imagenet", "small"] = "imagenet",
    format: Literal["table", "json", "csv"] = "table",
) -> None:
    """What every layer costs: kernel, output, parameters, multiply-adds of one image.

    Args:
        variant: the published network to start from.
        image_size: side of the input, in pixels.
        num_classes: outputs of the classifiers; None is the variant's own number.
        reduction_factor: scales the 1x1 reductions in front of the 3x3 and the 5x5 of every block.
        width_multiplier: scales every layer but the classifiers.
        aux_after: blocks that an auxiliary head follows.
        head: average_pool is the paper's; fc puts a fully connected layer in its place.
        stem: small has a 3x3 first layer and one pool, for images of 16 to 64 pixels.
        format: of the output.
    """
    from gnet_jax.lab.ledger import network_ledger, worked_examples
    from gnet_jax.lab.table import ledger_csv, ledger_table
    from gnet_jax.model import googlenet

    try:
        model = googlenet(
            variant,
            num_classes,
            reduction_factor=reduction_factor,
            width_multiplier=width_multiplier,
            aux_after=aux_after,
            head=head,
            stem=stem,
        )
        costs = network_ledger(model, image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if format == "json":
        print(json.dumps(costs.as_dict(), indent=2))
    elif format == "csv":
        print(ledger_csv(costs), end="")
    else:
        console = _console()
        console.print(ledger_table(costs, f"GoogLeNet, {variant}, {image_size}x{image_size}"))
        for what, cost in worked_examples():
            console.print(f"{cost:>13,}  {what}")


@app.command
def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    class_names: Path | None = None,
) -> None:
    """Make a model folder of a caffemodel, a torchvision or TF-slim file, or a training workdir.

    What SRC is, is told by its content; nothing in it is executed.

    Args:
        src: a .caffemodel, a .pth or .safetensors of torchvision's GoogLeNet, a checkpoint of
            TF-slim's Inception v1, or a workdir.
        dst: the folder to write.
        class_names: a text file with one name a line, in the order of the outputs.
    """
    from gnet_jax.weights.convert import convert as convert_file

    names = None if class_names is None else _lines(class_names)
    folder = convert_file(src, dst, class_names=names)
    arch = folder.model.arch
    heads = ", ".join(arch.aux_after) or "none"
    print(f"{folder.source['format']}: {arch.num_classes} classes, auxiliary heads: {heads}")
    print(f"wrote {dst}. Try:\n  gnet predict {dst} PHOTO.jpg")


@app.command
def predict(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE|FOLDER|URL|- ...")],
    json: Annotated[bool, arg(name="json")] = False,
    cam: Path | None = None,
    top: int = 5,
) -> int:
    """The likeliest classes of photos: files, folders, URLs, or - for standard input.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        images: what to look at; a file that is no image is named, and the rest goes on.
        json: print one JSON object a line: `file`, and `top` or `error`.
        cam: also draw where each likeliest class was seen into this PNG (NAME-2.png, NAME-3.png
            ... for the second photo and so on).
        top: how many classes.
    """
    from gnet_jax.inference.images import pictures
    from gnet_jax.inference.predict import Predictor, predictions, render, render_error
    from gnet_jax.weights.convert import read

    if not images:
        raise UserError("there is no photo; name a file, a folder, a URL, or - for standard input")
    if top < 1:
        raise UserError(f"--top is {top}; it must be at least 1")
    trained = read(model)
    draw = None if cam is None else _map_writer(trained, cam)
    console, errors, seen, failed = _console(), Console(stderr=True), 0, 0
    for name, picture, found in predictions(Predictor(trained), pictures(images), top):
        seen += 1
        if isinstance(found, UserError):
            failed += 1
            if json:
                print(_json_line({"file": name, "error": str(found)}))
            else:
                render_error(errors, name, found)
            continue
        if json:
            print(_json_line({"file": name, "top": found}))
        else:
            render(console, name, found)
        if draw is not None and picture is not None:
            draw(picture)
    if not seen:
        raise UserError(f"there is no image in {', '.join(images)}")
    return 1 if failed else 0


def _map_writer(trained: TrainedModel, file: Path) -> Callable[[Image.Image], None]:
    """A function that draws the activation map of each picture it is given into the next file."""
    from gnet_jax.inference.cam import ActivationMapper, draw

    if not file.absolute().parent.is_dir():
        raise UserError(f"there is no folder {file.absolute().parent} to draw {file.name} into")
    mapper, numbers = ActivationMapper(trained), itertools.count(1)

    def write(picture: Image.Image) -> None:
        number = next(numbers)
        target = file if number == 1 else file.with_stem(f"{file.stem}-{number}")
        try:
            draw(mapper(picture)).save(target)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write {target}: {error}") from error
        print(f"drew {target}", file=sys.stderr)

    return write


@app.command
def evaluate(
    models: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL ...")],
    data: str,
    split: Literal["val", "test", "train"] = "val",
    crops: Literal[1, 10, 144] = 1,
    json: Annotated[bool, arg(name="json")] = False,
    table: bool = False,
    batch_size: int = 64,
    threads: int = 4,
) -> None:
    """Top-1 and top-5 accuracy over every image, of one model or an ensemble.

    Args:
        models: model folders (or workdirs, or weight files); several are averaged.
        data: digits, folder:PATH, or tfds:NAME.
        split: of the data.
        crops: of each image, averaged: 1, 10, or the paper's 144.
        json: print one JSON object in place of the sentence.
        table: the paper's grid: the first model and all of them, with 1, 10 and 144 crops.
        batch_size: most crops in one call of a network.
        threads: that read, decode and crop.
    """
    from gnet_jax.data import open_source
    from gnet_jax.inference.evaluate import evaluate as evaluate_models
    from gnet_jax.inference.paper import evaluate_grid, paper_table
    from gnet_jax.weights.convert import read

    if json and table:
        raise UserError("--json and --table exclude each other; choose one")
    source = open_source(data, split)
    trained = [read(model) for model in models]
    if table:
        grid = evaluate_grid(trained, source, batch_size=batch_size, threads=threads)
        _console().print(paper_table(grid))
        return
    result = evaluate_models(trained, source, crops, batch_size=batch_size, threads=threads)
    if json:
        print(_json_line(result.as_dict()))
    else:
        print(
            f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} of {result.images:,} images "
            f"({result.models} models, {result.crops} crops, {result.images_per_sec:.1f} images/s)"
        )


@app.command
def export(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
) -> None:
    """Write a model for other programs, run what was written, and print the largest difference.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        out: OUT.onnx, OUT.stablehlo, OUT.safetensors, or OUT.pth (torchvision's variant only).
    """
    from gnet_jax.weights.convert import read
    from gnet_jax.weights.export import export as export_model

    difference = export_model(read(model), out)
    print(f"wrote {out}; largest difference of its logits, as a share of the largest: ", end="")
    print(f"{difference:.1e}")


@app.command
def curves(
    workdirs: Annotated[Positional[tuple[Path, ...]], arg(metavar="WORKDIR ...")],
    out: Path = Path("curves.png"),
) -> None:
    """Draw loss and accuracy of every head over the steps of training runs.

    Args:
        workdirs: of runs that train or have trained; one row each.
        out: the picture, .png, .svg or .pdf.
    """
    from gnet_jax.lab.curves import draw_curves

    if not workdirs:
        raise UserError("there is no run to draw; name at least one workdir")
    draw_curves(workdirs, out)
    print(f"drew {out}")


def _console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def _json_line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {file}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user's."""
    try:
        about = "GoogLeNet in JAX: its cost, its weights, and what it sees."
        return app.cli(prog="gnet", args=arguments, description=about) or 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"gnet: error: {error}", file=sys.stderr)
        return 2

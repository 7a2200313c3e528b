"""Commands about networks and weights: summary, convert, export."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_not_input, check_picture, console
from gnet_jax.config import ConfigError, UserError, choose, json_text

Variant = Literal[
    "paper", "batch_norm", "torchvision", "google_release", "naive", "naive_batch_norm"
]


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
    compare: tuple[str, ...] = (),
    picture: Path | None = None,
) -> None:
    """What every layer costs: kernel, output, parameters, multiply-adds of one image.

    With --compare, what the parts of several networks cost, beside each other, and the paper's own
    Table 1 with its errors marked.

    Args:
        variant: the published network to start from.
        image_size: side of the input, in pixels.
        num_classes: outputs of the classifiers; None is the variant's own number.
        reduction_factor: scales the 1x1 reductions in front of the 3x3 and the 5x5 of every block.
        width_multiplier: scales every layer but the classifiers.
        aux_after: blocks that an auxiliary head follows; none: --aux-after (with nothing after it).
        head: average_pool is the paper's; fc puts a fully connected layer in its place.
        stem: small has a 3x3 first layer and one pool, for images of 16 to 64 pixels.
        format: of the output.
        compare: networks, each a variant or a change of the one that the other options describe:
            reductions=0.25,0.5 width=0.5 head=fc aux=none stem=small; a + joins: naive+head=fc.
        picture: with --compare, draw what each block costs into this file.
    """
    if picture is not None:
        if not compare:
            raise UserError("--picture draws networks side by side; name them with --compare")
        check_picture(picture)
    from gnet_jax.lab.cost.ledger import network_ledger, worked_examples
    from gnet_jax.lab.table import ledger_csv, ledger_table
    from gnet_jax.model import googlenet

    knobs = {
        "variant": variant,
        "num_classes": num_classes,
        "reduction_factor": reduction_factor,
        "width_multiplier": width_multiplier,
        "aux_after": aux_after,
        "head": head,
        "stem": stem,
    }
    if compare:
        _compare(compare, image_size, knobs, format, picture)
        return
    try:
        model = googlenet(**knobs)
        costs = network_ledger(model, image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def print_tables() -> None:
        out = console()
        out.print(ledger_table(costs, f"GoogLeNet, {variant}, {image_size}x{image_size}"))
        for what, cost in worked_examples():
            out.print(f"{cost:>13,}  {what}")

    printers = {
        "table": print_tables,
        "json": lambda: print(json_text(costs.as_dict(), indent=2)),
        "csv": lambda: print(ledger_csv(costs), end=""),
    }
    choose("--format", format, printers)()


def _compare(
    words: tuple[str, ...],
    image_size: int,
    knobs: dict[str, Any],
    format: Literal["table", "json", "csv"],
    picture: Path | None,
) -> None:
    from gnet_jax.lab.cost.compare import (
        compare_csv,
        compare_rows,
        compare_tables,
        draw_blocks,
        networks,
        print_table,
    )
    from gnet_jax.lab.cost.table_1 import compare_with_print

    ledgers = networks(words, image_size, **knobs)
    printed = list(compare_with_print())

    def print_json() -> None:
        table_1 = [row._asdict() for row in printed]
        print(json_text({"networks": compare_rows(ledgers), "table_1": table_1}, indent=2))

    def print_tables() -> None:
        out = console()
        for table in (*compare_tables(ledgers, image_size), print_table(printed)):
            out.print(table)

    printers = {
        "table": print_tables,
        "json": print_json,
        "csv": lambda: print(compare_csv(ledgers), end=""),
    }
    choose("--format", format, printers)()
    if picture is not None:
        draw_blocks(ledgers, picture)
        print(f"drew {picture}", file=sys.stderr)


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    class_names: Path | None = None,
    transform_input: Literal["yes", "no"] | None = None,
) -> None:
    """Convert published weights, or a training workdir, to a model folder.

    SRC is a .caffemodel, a .pth or .safetensors of torchvision's GoogLeNet, a checkpoint of
    TF-slim's Inception v1, or a workdir. Its content determines the format; nothing in it is
    executed. What the file does not state is assumed, and each assumption is printed.

    Args:
        src: the file or workdir to read.
        dst: the folder to write.
        class_names: a text file with one name a line, in the order of the outputs, or JSON.
        transform_input: torchvision's option of that name; yes if fine-tuned from its weights.
    """
    from gnet_jax.convert.read import convert as convert_file
    from gnet_jax.model_folder.class_names import read_class_names
    from gnet_jax.model_folder.folder import is_model_folder

    names = None if class_names is None else read_class_names(class_names)
    mapped = None if transform_input is None else transform_input == "yes"
    done = "replaced the model in" if is_model_folder(dst.expanduser()) else "wrote"
    folder = convert_file(src, dst, class_names=names, transform_input=mapped)
    arch, classes = folder.model.arch, folder.class_names
    heads = ", ".join(arch.aux_after) or "none"
    print(f"{folder.source['format']}: {arch.num_classes} classes, auxiliary heads: {heads}")
    print(f"class names: {classes[0]!r} to {classes[-1]!r}")
    print(f"{done} {dst}. Try:\n  gnet predict {shlex.quote(str(dst))} PHOTO.jpg")


def export(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
) -> None:
    """Export a model to another format, run the file, and print the largest difference.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        out: OUT.onnx, OUT.stablehlo, OUT.safetensors, or OUT.pth (torchvision's variant only).
    """
    from gnet_jax.convert.export import export as export_model
    from gnet_jax.inference.predict import load

    if model.is_file():
        check_not_input(out, [model])
    difference = export_model(load(model), out)
    print(f"wrote {out}; its logits differ by at most {difference:.1e} of the largest")

"""The commands for networks and weights: summary, convert, export."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_not_input, check_picture, console
from gnet_jax.config import ConfigError, UserError, json_text
from gnet_jax.model.architecture import Choices


def summary(
    network: Annotated[Choices, arg(name="")],
    image_size: int = 224,
    format: Literal["table", "json", "csv"] = "table",
    compare: tuple[str, ...] = (),
    picture: Path | None = None,
) -> None:
    """Print the kernel, output shape, parameters and multiply-adds per image of every layer.

    With --compare, print the costs of the parts of several networks, and the paper's Table 1 with
    its errors marked.

    Args:
        network: the network.
        image_size: Height and width of the input in pixels.
        format: Format of the output.
        compare: Networks to compare. Each is a variant's name, or changes of the network that the
            other options define: reductions=0.25,0.5 width=0.5 head=fc aux=none stem=small. Join
            changes with +, as in naive+head=fc.
        picture: Draw the cost of each block into this file; requires --compare.
    """
    if picture is not None:
        if not compare:
            raise UserError("--picture requires --compare")
        check_picture(picture)
    from gnet_jax.lab.cost.ledger import ledger_csv, ledger_table, network_ledger, worked_examples
    from gnet_jax.model.googlenet import GoogLeNet

    if compare:
        _compare(compare, image_size, network, format, picture)
        return
    try:
        costs = network_ledger(GoogLeNet(network.build()), image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if format == "json":
        print(json_text(dataclasses.asdict(costs), indent=2))
    elif format == "csv":
        print(ledger_csv(costs), end="")
    else:
        out = console()
        out.print(ledger_table(costs, f"GoogLeNet, {network.variant}, {image_size}x{image_size}"))
        for what, cost in worked_examples():
            out.print(f"{cost:>13,}  {what}")


def _compare(
    words: tuple[str, ...],
    image_size: int,
    network: Choices,
    format: Literal["table", "json", "csv"],
    picture: Path | None,
) -> None:
    from gnet_jax.lab.cost import compare
    from gnet_jax.lab.cost.compare import compare_with_print, print_table
    from gnet_jax.lab.cost.ledger import csv_text

    ledgers = compare.networks(words, image_size, network)
    printed = list(compare_with_print())
    if format == "json":
        table_1 = [row._asdict() for row in printed]
        rows = compare.compare_rows(ledgers)
        print(json_text({"networks": rows, "table_1": table_1}, indent=2))
    elif format == "csv":
        print(csv_text(compare.compare_rows(ledgers)), end="")
    else:
        out = console()
        for table in (*compare.compare_tables(ledgers, image_size), print_table(printed)):
            out.print(table)
    if picture is not None:
        compare.draw_blocks(ledgers, picture)
        print(f"drew {picture}", file=sys.stderr)


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    class_names: Path | None = None,
    transform_input: Literal["yes", "no"] | None = None,
) -> None:
    """Convert published weights, or a training workdir, to a model folder.

    SRC is a .caffemodel file, a .pth or .safetensors file of torchvision's GoogLeNet, a checkpoint
    of TF-slim's Inception v1, or a workdir. The format is detected from the content, and no code in
    the file is executed. Settings that the file does not contain are assumed, and printed.

    Args:
        src: the file or workdir to read.
        dst: the model folder to write.
        class_names: a JSON file, or a text file with one class name per line, in output order.
        transform_input: the torchvision option; yes for models fine-tuned from its weights.
    """
    from gnet_jax.convert.read import convert as convert_file
    from gnet_jax.convert.read import read_class_names
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
    """Export a model to another format, run the exported file, and compare its logits.

    Args:
        model: a model folder, a training workdir, or a file that `gnet convert` reads.
        out: OUT.onnx, OUT.stablehlo, OUT.safetensors, or OUT.pth (torchvision's variant only).
    """
    from gnet_jax.convert.export import export as export_model
    from gnet_jax.inference.predict import load

    if model.is_file():
        check_not_input(out, [model])
    difference = export_model(load(model), out)
    print(f"wrote {out}; its logits differ by at most {difference:.1e} times the largest logit")

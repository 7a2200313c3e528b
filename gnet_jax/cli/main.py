"""Dispatch the `gnet` commands. Only the module of the command that was typed is imported."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from gnet_jax import __version__
from gnet_jax.cli.output import print_error, print_no_access, reader_may_leave, set_up_process
from gnet_jax.errors import UserError

HELP = """usage: gnet COMMAND [OPTIONS]

GoogLeNet in JAX. `gnet COMMAND --help` explains a command.
`gnet --version` prints the version.
"""
COMMON = 5  # --help lists the first five commands under a heading of their own
COMMANDS = {  # for each command: its module in gnet_jax.cli, and its summary in --help
    "train": ("train", "train a network, or resume a training run"),
    "predict": ("models", "print the most likely classes of photos"),
    "evaluate": ("models", "print top-1 and top-5 accuracy on labelled images"),
    "export": ("weights", "export a model to ONNX, StableHLO, LiteRT, safetensors and others"),
    "demo": ("models", "open a web page that classifies photos"),
    "download": ("weights", "download published weights, or list them"),
    "convert": ("weights", "convert published weights or a run to a model folder"),
    "push": ("weights", "upload a model to the Hugging Face Hub"),
    "features": ("models", "save the output of a layer for every image"),
    "inspect": ("models", "draw filters, activations and class activation maps"),
    "visualize": ("look", "optimise images that excite channels, neurons or classes"),
    "dream": ("look", "change a photo so that it excites a layer more (DeepDream)"),
    "attribute": ("look", "draw which pixels and regions of a photo a class depends on"),
    "top-images": ("look", "draw the images of a data set that excite each channel most"),
    "compare": ("look", "compare the blocks of networks: similarity and linear probes"),
    "summary": ("models", "print the cost of every layer"),
    "prepare": ("data", "prepare a data set such as ImageNet, or copy one with smaller images"),
    "check-data": ("data", "find corrupt, duplicate and unusual images, and class imbalance"),
    "show-data": ("data", "draw training images as the network sees them"),
    "curves": ("lab", "plot the loss and accuracy of training runs"),
    "runs": ("lab", "list training runs, and write their metrics as one CSV file"),
    "diagnose": ("lab", "plot the gradients, updates and dead channels of runs"),
    "profile": ("lab", "print the most expensive operations and the time by scope of a trace"),
    "replay": ("lab", "rerun the batch that stopped a training run, to find the cause"),
    "ablate": ("lab", "train every config of a sweep with several seeds"),
    "report": ("lab", "write the results of a sweep as HTML, Markdown and CSV"),
    "plan": ("lab", "estimate the memory and time of a run on a TPU pod or GPU server"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a `gnet` command line, and return its exit code, which after a UserError is its own."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up_process()
    try:
        if arguments[:1] == ["train"]:  # training continues even if its output pipe closes
            return _load("train")(arguments[1:])
        with reader_may_leave():
            return _run(arguments)
    except UserError as error:
        from gnet_jax.config.bucket import as_urls

        print_error(f"gnet: error: {as_urls(str(error))}")
        return error.exit_code
    except OSError as error:  # of `Path.is_file`, before Python 3.14
        return print_no_access("gnet", error)


def _run(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else ""
    name = first.replace("_", "-")
    if first in ("", "-h", "--help"):
        lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
        common, other = lines[:COMMON], lines[COMMON:]
        text = "\n".join([HELP, "common commands:", *common, "\nother commands:", *other])
        print(text) if first else print_error(text)
        return 0 if first else 2
    if first == "--version":
        print(f"gnet {__version__}")
        return 0
    if name not in COMMANDS:
        from gnet_jax.config import suggestion

        raise UserError(f"unknown command {first!r}; {suggestion(name, COMMANDS)}")
    command = _load(name)
    if "arguments" in inspect.signature(command).parameters:  # the command parses its own arguments
        return command(arguments[1:]) or 0
    import tyro

    return tyro.cli(_with_local_paths(command), prog=f"gnet {name}", args=arguments[1:]) or 0


def _with_local_paths(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `command`, refusing URLs as paths except for arguments marked with IN_BUCKET."""
    from gnet_jax.config.bucket import IN_BUCKET, check_local

    @functools.wraps(command)
    def checked(*args: Any, **options: Any) -> Any:
        hints = get_type_hints(command, include_extras=True)
        for name, value in inspect.signature(command).bind(*args, **options).arguments.items():
            marks = getattr(hints[name], "__metadata__", ())
            if isinstance(value, Path) and IN_BUCKET not in marks:
                check_local(name, value)
        return command(*args, **options)

    return checked


def _load(name: str) -> Callable[..., Any]:
    module = importlib.import_module(f"gnet_jax.cli.{COMMANDS[name][0]}")
    return getattr(module, name.replace("-", "_"))

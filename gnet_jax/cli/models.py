"""The commands that use models: predict, evaluate, features, inspect, demo, summary."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import (
    PHOTOS,
    check_at_least,
    check_not_input,
    check_picture,
    console,
    data_files,
    print_error,
    say_not_read,
    several,
)
from gnet_jax.config import ConfigError, UserError, json_text
from gnet_jax.config.bucket import IN_BUCKET, locate
from gnet_jax.config.command import Join, check_launch
from gnet_jax.model.architecture import Choices

if TYPE_CHECKING:  # imported late, so that --help and typos return immediately
    from gnet_jax.data.sources import Source, Split
    from gnet_jax.inference.evaluate import Evaluation
    from gnet_jax.model_folder import TrainedModel

MODEL = (
    "a model folder, a training workdir, or a file that `gnet convert` reads; or the name of "
    "published weights (`gnet download --list`), or hf:OWNER/NAME on the Hugging Face Hub."
)
Model = Annotated[Positional[Path], arg(metavar="MODEL", help=MODEL), IN_BUCKET]
Image = Annotated[
    Positional[str], arg(metavar="IMAGE", help="a file, a URL, or - for standard input.")
]


def predict(
    model: Model,
    images: Annotated[Positional[tuple[str, ...]], several("IMAGE|FOLDER|URL|- ...")],
    json: Annotated[bool, arg(name="json")] = False,
    cam: Path | None = None,
    top: int = 5,
) -> int:
    """Print the most probable classes of photos.

    Files that are not images are reported and skipped; the exit code is then 1.

    Args:
        images: files, folders, URLs, - for standard input, or the validation split of a data set.
        json: print a line of JSON for each image: an object with `file`, and `top` or `error`.
        cam: picture to write: the first image's class activation map. The next are NAME-2.png, ...
        top: number of classes to print for each image.
    """
    from gnet_jax.inference.cam import MAIN, ActivationMapper, draw
    from gnet_jax.inference.images import Pictures
    from gnet_jax.inference.lettering import save
    from gnet_jax.inference.predict import Predictor, predictions, render, render_error

    if not images:
        kinds = "a file, a folder, a URL, or - for standard input"
        raise UserError(f"no photo given after the model {model}; give {kinds}")
    _check_order(images)
    check_at_least("top", top)
    inputs = data_files(images)
    if cam is not None:
        check_picture(cam, PHOTOS)
        check_not_input(cam, inputs)
    (trained,) = open_models([model])
    mapper = None if cam is None else ActivationMapper(trained, exact=True)
    out, errors, seen, failed = console(), console(stderr=True), 0, 0
    pictures = Pictures(images)
    for (name, picture, _), found in predictions(Predictor(trained), pictures, top):
        seen += 1
        if isinstance(found, UserError):
            failed += 1
            if json:
                print(json_text({"file": name, "error": str(found)}, ensure_ascii=False))
            else:
                render_error(errors, name, found)
            continue
        if json:
            print(json_text({"file": name, "top": found}, ensure_ascii=False))
        else:
            render(out, name, found)
        if cam is not None and mapper is not None and not isinstance(picture, UserError):
            target = cam if seen - failed == 1 else cam.with_stem(f"{cam.stem}-{seen - failed}")
            check_not_input(target, inputs)
            save(draw(mapper(picture)[MAIN]), target)
            print(f"drew {target}", file=sys.stderr)
    say_not_read(pictures.left_out)
    return 1 if failed else 0


def evaluate(
    models: Annotated[Positional[tuple[Path, ...]], several("MODEL ..."), IN_BUCKET],
    data: str,
    split: Literal["val", "test", "train"] = "val",
    step: int | None = None,
    crops: Literal[1, 2, 10, 144] = 1,
    json: Annotated[bool, arg(name="json")] = False,
    table: bool = False,
    batch_size: int = 64,
    threads: int = 4,
    bad_limit: float = 0.02,
    join: Annotated[Join, arg(name="")] = Join(),  # noqa: B008 (frozen)
) -> int:
    """Print the top-1 and top-5 accuracy of a model, or of an ensemble, on labelled images.

    Classes are matched by name. The data can have fewer classes than the model, but every class of
    the data must be a class of the model. WordNet ids can be used as names of ImageNet's classes.
    If the data's class names are numbers that start at 0, they are matched with the model's classes
    by position, and the matches are printed.

    The accuracy of a single model in a model folder is also written into its model card.

    A run may train in the workdir meanwhile. If the same command runs on several hosts, each scores
    a part of the images, and host 0 prints the result.

    Args:
        models: model folders, workdirs or weight files. The models' probabilities are averaged.
        data: digits, folder:PATH, npz:PATH, or tfds:NAME.
        split: split of the data to evaluate on.
        step: checkpoint of the workdirs to evaluate, instead of the best.
        crops: crops per image to average over: 1, 2 (with its mirror image), 10 or 144 (the paper).
        json: print one JSON object instead of a sentence.
        table: print a table as in the paper: the first model and the ensemble of all models, each
            with 1, 10 and 144 crops.
        batch_size: largest number of crops that a network processes at once.
        threads: number of threads that read, decode and crop images.
        bad_limit: largest allowed fraction of corrupt images, which are listed and skipped.
    """
    import jax

    from gnet_jax.inference.evaluate import evaluate as evaluate_models
    from gnet_jax.inference.evaluate import paper_table, write_results
    from gnet_jax.training.hosts import start

    check_at_least("batch-size", batch_size)
    check_at_least("threads", threads)
    if not 0 <= bad_limit < 1:
        raise UserError(f"--bad-limit is {bad_limit}; it must be at least 0 and below 1")
    if json and table:
        raise UserError("--json and --table cannot be used together; choose one")
    check_launch(join)
    options = {"batch_size": batch_size, "threads": threads, "bad_limit": bad_limit}
    try:
        start.start(join)
        _set_up_jax()
        with start.abort_on_unexpected_error():
            # Otherwise the hosts would divide the images differently.
            shared = {"models": len(models), "split": split, "crops": crops, "table": table}
            start.compare(shared | {"batch-size": batch_size, "bad-limit": bad_limit})
            source, trained = _open_on_all_hosts(models, step, data, split)
            groups = [trained[:1], trained] if table and len(trained) > 1 else [trained]
            every = (1, 10, 144) if table else (crops,)
            results = [evaluate_models(g, source, n, **options) for g in groups for n in every]
    except start.HostsError as error:
        print_error(f"gnet: error: {error}")
        return start.EXIT_LOST
    if jax.process_index():
        return 0
    if table:
        console().print(paper_table(results))
    elif json:
        print(json_text(results[0].as_dict(), ensure_ascii=False))
    else:
        (result,) = results
        top5 = "" if result.top5 is None else f", top-5 {result.top5:.2%}"
        print(
            f"top-1 {result.top1:.2%}{top5} of {result.images:,} images "
            f"({_counted(result.models, 'model')}, {_counted(result.crops, 'crop')}, "
            f"{result.images_per_sec:.1f} images/s)"
        )
    if not json:
        _print_corrupt(results[0])
    write_results(models[0], data, source.split, results)
    return 0


def _open_on_all_hosts(
    models: Sequence[Path], step: int | None, data: str, split: Split
) -> tuple[Source, list[TrainedModel]]:
    """Open the data and the models. Raises UserError on all hosts if they differ or one fails."""
    import json

    import jax

    from gnet_jax.data.sources import open_source
    from gnet_jax.training.checkpoints.verify import digest, is_workdir
    from gnet_jax.training.hosts.start import compare, gather, run_on_all_hosts
    from gnet_jax.training.workdir import code_version

    first, source = jax.process_index() == 0, run_on_all_hosts(lambda: open_source(data, split))
    if first:
        say_not_read(source.left_out)
    # A run may save or delete checkpoints meanwhile, so host 0 chooses the steps.
    steps = [step] * len(models)
    trained = run_on_all_hosts(lambda: open_models(models, steps) if first else [])
    steps = [
        int(each.source["step"]) if is_workdir(locate(path)) else None
        for path, each in zip(models, trained, strict=False)
    ]
    steps = json.loads(gather(json.dumps(steps))[0])
    trained = run_on_all_hosts(lambda: trained if first else open_models(models, steps))
    if jax.process_count() > 1:
        own = {f"model {i}": digest(each.variables) for i, each in enumerate(trained, 1)}
        compare(own | {"data.fingerprint": source.fingerprint(), "code": code_version()})
    return source, trained


def features(
    model: Model,
    images: Annotated[Positional[tuple[str, ...]], several("IMAGE|FOLDER|URL|-|DATA ...")],
    out: Path = Path("features.npz"),
    layer: str = "pool5",
    flatten: bool = False,
    split: Literal["val", "test", "train"] = "val",
    threads: int = 4,
) -> int:
    """Save the output of a layer for every image, one row per image, for other programs.

    The .npz file contains `features` (N, C) float32, `files` (N,) and `layer`; for a data set, also
    `labels` (N,) and `class_names`. Images that cannot be read are reported and have no row; the
    exit code is then 1.

    Args:
        images: files, folders, URLs, - for standard input, or a data set: digits, folder:PATH,
            npz:PATH, or tfds:NAME.
        out: the .npz file to write.
        layer: name of the layer in Caffe's network, or its part before "/" if that is unique.
        flatten: keep all positions of a feature map, H * W * C values, instead of their average.
        split: split to read of a data set.
        threads: number of threads that read and decode images.
    """
    import numpy as np

    from gnet_jax.data.progress import progress_line
    from gnet_jax.inference.images import Pictures
    from gnet_jax.inference.predict import Predictor, feature_rows, find_features, render_error
    from gnet_jax.training.workdir import replacing

    check_at_least("threads", threads)
    check_picture(out, (".npz",))
    check_not_input(out, [model, *data_files(images)])
    pictures = Pictures(images, split=split)
    say_not_read(pictures.left_out)
    (trained,) = open_models([model])
    layer = find_features(trained, layer)
    found, failed = [], []
    with progress_line("computing features", "images", len(pictures)) as advance:
        for picture, row in feature_rows(
            Predictor(trained), pictures, layer, flatten=flatten, threads=threads
        ):
            if isinstance(row, UserError):
                failed.append((picture.name, row))
            else:
                found.append((row, picture.name, picture.label))
            advance()
    errors = console(stderr=True)
    for name, error in failed:
        render_error(errors, name, error)
    if not found:
        raise UserError(f"did not write {out}: no image could be read")
    rows, files, labels = zip(*found, strict=True)
    arrays: dict[str, Any] = {
        "features": np.stack(rows),
        "files": np.array(files),
        "layer": np.array(layer),
    }
    if pictures.class_names is not None:
        arrays |= {"labels": labels, "class_names": pictures.class_names}
    try:
        with replacing(out) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    print(f"wrote {out}: {layer} of {len(rows):,} images, {rows[0].size:,} values each")
    return 1 if failed else 0


def inspect(
    model: Model,
    image: Image,
    out: Path = Path("inside"),
    endpoint: tuple[str, ...] = (),
    class_index: int | None = None,
) -> None:
    """Draw a network's filters, its activations for one photo, and its class activation maps.

    Args:
        out: the folder to write the pictures to.
        endpoint: layers whose activations to draw, by Caffe's or Google's names, such as
            inception_4a/5x5 or mixed4a_5x5; mixed4a_5x5:7 draws only channel 7.
        class_index: class whose activation maps are drawn; the default is the most probable one.
    """
    from gnet_jax.inference.images import open_picture
    from gnet_jax.lab.look.inside import DEFAULT, draw_inside, files

    _check_order([image])
    for file in files(out, endpoint or DEFAULT):
        check_not_input(file, [image])
    picture = open_picture(image)
    (trained,) = open_models([model])
    for file in draw_inside(trained, picture, out, endpoint, class_index):
        print(f"drew {file}")


def demo(model: Model, port: int | None = None) -> None:
    """Serve a web page that classifies photos, draws activation maps and optimises images.

    Args:
        port: port to serve on; the default is the first free port from 7860 on.
    """
    from gnet_jax.inference.demo import build, serve
    from gnet_jax.lab.look.tab import add_channel_tab

    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"--port is {port}; it must be from 1 to 65535")
    (trained,) = open_models([model])
    page = build(trained, f"GoogLeNet: {model.name}", add_channel_tab)
    print(f"open {serve(page, port)} in a browser; Ctrl-C stops the server", flush=True)
    page.block_thread()


def summary(
    network: Annotated[Choices, arg(name="")],
    image_size: int = 224,
    format: Literal["table", "json", "csv"] = "table",
    compare: tuple[str, ...] = (),
    picture: Path | None = None,
) -> None:
    """Print the kernel, output shape, parameters and multiply-adds per image of every layer.

    With --compare, print the costs of each part of several networks. Below, the rows of the paper's
    Table 1 are compared with the costs counted here.

    Args:
        network: the network.
        image_size: Height and width of the input in pixels.
        format: Format of the output.
        compare: Networks to compare. Each is a variant's name, or a change to the network that the
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
    from gnet_jax.lab.cost.ledger import csv_text

    ledgers = compare.networks(words, image_size, network)
    rows, printed = compare.compare_rows(ledgers), list(compare.compare_with_print())
    if format == "json":
        table_1 = [row._asdict() for row in printed]
        print(json_text({"networks": rows, "table_1": table_1}, indent=2))
    elif format == "csv":
        print(csv_text(rows), end="")
    else:
        for table in (*compare.compare_tables(ledgers, image_size), compare.print_table(printed)):
            console().print(table)
    if picture is not None:
        compare.draw_blocks(ledgers, picture)
        print(f"drew {picture}", file=sys.stderr)


def _check_order(images: Iterable[str]) -> None:
    """Raise a UserError if one of the images is a model folder or a workdir."""
    from gnet_jax.model_folder.folder import is_model_folder
    from gnet_jax.training.checkpoints.verify import is_workdir

    for path in map(Path, images):
        if is_model_folder(path) or is_workdir(path):
            raise UserError(f"{path} is a model, not an image; give the model before the images")


def _set_up_jax() -> None:
    from gnet_jax.training import sharding

    sharding.use_compilation_cache()
    sharding.call_in_this_thread()
    sharding.keep_freed_memory()


def open_models(paths: Sequence[Path], steps: Sequence[int | None] = ()) -> list[TrainedModel]:
    """Set up this process to run models, load them, and print the step loaded from each workdir.

    `steps` are the checkpoints to load from workdirs; None or () loads the best one.
    """
    from gnet_jax.inference.predict import load

    _set_up_jax()
    models = []
    for path, step in itertools.zip_longest(map(locate, paths), steps):
        models.append(load(str(path)) if step is None else load(str(path), step))
        source = models[-1].source
        if "step" in source and step is None:
            top1 = source.get("validation_top1")
            best = "the best, validation top-1 " + f"{float(top1):.2%}" if top1 else "the newest"
            print(f"{path}: step {source['step']}, {best}", file=sys.stderr)
    return models


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _print_corrupt(result: Evaluation) -> None:
    if names := [str(record) for record in result.damaged]:
        print(f"{_counted(len(names), 'corrupt image')} left out:", *names[:10], sep="\n  ")
    if len(names) > 10:
        print(f"  and {len(names) - 10:,} more; `gnet check-data` lists all")

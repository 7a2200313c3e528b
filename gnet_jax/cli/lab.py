"""The commands for training runs: curves, runs, diagnose, profile, replay, ablate, report, plan."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gnet_jax.cli.output import check_at_least, check_picture, console, several
from gnet_jax.config import UserError, check, json_text
from gnet_jax.config.bucket import (
    IN_BUCKET,
    BucketPath,
    check_local,
    local_copy,
    locate,
    own_files,
    small_files,
    traces,
)
from gnet_jax.config.command import parse_command, parse_sweep
from gnet_jax.config.paths import typed_path

RUNS = "workdirs of running or finished training runs; each gets one row of the figure."
Workdirs = Annotated[Positional[tuple[Path, ...]], several("WORKDIR ...", RUNS), IN_BUCKET]


def curves(workdirs: Workdirs, out: Path = Path("curves.png"), overlay: bool = False) -> None:
    """Plot the loss and accuracy of every head over the training steps.

    Args:
        out: the picture to write; its suffix is .png, .svg or .pdf.
        overlay: plot all runs in the same axes, without auxiliary heads.
    """
    from gnet_jax.lab.sweeps.figures import draw_curves

    _check(workdirs, out)
    draw_curves(_copies(workdirs), out, overlay=overlay)
    print(f"drew {out}")


def runs(
    folders: Annotated[Positional[tuple[Path, ...]], several("DIR ..."), IN_BUCKET] = (
        Path("runs"),
    ),
    out: Path | None = None,
) -> None:
    """List the training runs in folders: how their configs differ, steps, accuracy, time and code.

    Args:
        folders: folders with workdirs at any depth; the default is the folder "runs".
        out: a .csv file to write with all metrics and diagnostics, one line for each number.
    """
    from gnet_jax.lab.sweeps.runs import list_runs, runs_table, write_metrics

    if out is not None:
        check_picture(out, (".csv",))
    found = list_runs(_copies(folders))
    console().print(runs_table(found))
    if out is not None:
        print(f"wrote {write_metrics(found, out):,} lines to {out}")


def diagnose(workdirs: Workdirs, out: Path = Path("diagnostics.png")) -> None:
    """Plot the gradients, dead channels and updates of runs that were trained with --diagnose N.

    Gradients are plotted for each block, for the total loss and for the loss of each head.

    Args:
        out: the picture to write; its suffix is .png, .svg or .pdf.
    """
    from gnet_jax.lab.sweeps.figures import draw_diagnostics

    _check(workdirs, out)
    draw_diagnostics(_copies(workdirs), out)
    print(f"drew {out}")


def _copies(folders: Sequence[Path]) -> tuple[Path, ...]:
    """Returns the folders, or copies of the small files of those in a bucket."""
    return tuple(local_copy(folder, small_files) for folder in folders)


def _check(workdirs: tuple[Path, ...], out: Path) -> None:
    if not workdirs:
        raise UserError("there is no run to plot; give at least one workdir")
    check_picture(out)


def profile(
    workdir: Annotated[Positional[Path], arg(metavar="WORKDIR"), IN_BUCKET],
    window: str | None = None,
    figure: Path | None = None,
) -> None:
    """Print the ten most expensive operations of a step, and the time by scope, from a trace.

    The run must have been trained with --profile FIRST:LAST. Times are means over the traced steps
    and devices. A fusion belongs to the scope of its last operation.

    Args:
        workdir: the workdir of the run.
        window: the traced steps, as FIRST:LAST; the default is the last window.
        figure: a picture of the time by scope to write; its suffix is .png, .svg or .pdf.
    """
    from gnet_jax.config import Config, profile_windows
    from gnet_jax.inference.lettering import save
    from gnet_jax.lab.cost.trace import draw_scopes, operations_table, read_profile, scopes_table

    if figure is not None:
        check_picture(figure)
    chosen = None if window is None else profile_windows(Config(profile=(window,)))[0]
    found = read_profile(local_copy(workdir, traces), chosen)
    steps = f"steps {found.first} to {found.last}, {found.devices} devices"
    print(f"{steps}: {found.ms:.3f} ms of operations per step and device")
    console().print(operations_table(found), scopes_table(found))
    if figure is not None:
        save(draw_scopes(found), figure, dpi=200)
        print(f"drew {figure}")


def replay(
    file: Annotated[Positional[Path], arg(metavar="FILE"), IN_BUCKET], json: bool = False
) -> None:
    """Rerun the batch that stopped a training run, and print which image and layer caused the stop.

    Args:
        file: the replay file, replay-STEP.npz in the workdir of the run.
        json: print the result as one line of JSON.
    """
    from gnet_jax.lab.look.replay import examine, read_replay

    found = examine(read_replay(local_copy(file, own_files)))
    if json:
        print(json_text(dataclasses.asdict(found), ensure_ascii=False))
        return
    loss, norm = found.metrics["loss"], found.metrics["grad_norm"]
    same = "as in the run" if found.reproduced else "NOT the same as in the run"
    print(f"step {found.step} again: loss {loss:g}, gradient norm {norm:g}, {same}")
    for name in found.bad_params:
        print(f"parameter that was not finite before the step: {name}")
    for bad in found.bad_examples[:10]:
        where = f"first in layer {bad.layer}" if bad.layer else "only in its gradients"
        print(
            f"image {bad.place} of the batch (example {bad.index}, label {bad.label}): "
            f"loss {bad.loss:g}, non-finite values {where}"
        )
    if len(found.bad_examples) > 10:
        print(f"and {len(found.bad_examples) - 10} more of the batch's {found.examples} images")
    if not found.bad_examples:
        print(f"all values are finite when each of the {found.examples} images is run alone")
    print(f"first layer whose output for the batch is not finite: {found.layer or 'none'}")
    if found.bad_gradients:
        print(f"gradients not finite: {', '.join(found.bad_gradients[:10])}")
    elif found.layer is None and found.metrics["skipped"]:
        print("loss and gradients are finite, but the update is not; lower optim.learning_rate")


@dataclasses.dataclass(frozen=True)
class Ablate:
    """The options of `gnet ablate`."""

    seeds: int = 3
    """Number of runs of each config. Run i uses the config's seed plus i."""
    baseline: str | None = None
    """Config with which the results compare the others; None is the first."""
    learning_rates: tuple[float, ...] = ()
    """Learning rates to tune over before the runs: each is trained on 90 % of the training images,
    and the best on the other 10 % is used. The validation images are not used for it."""
    shard: str = "0/1"
    """i/n divides the runs of the sweep into n parts and trains only part i, counted from 0.
    For example, each machine trains one part. All parts use the same workdir."""
    retry_failed: bool = False
    """Repeat runs that failed in an earlier call of this command."""


def ablate(arguments: Sequence[str]) -> int:
    """Train every config of a sweep with every seed, and print a table of the results.

    Runs are trained one after another, in DIR/CONFIG/seed-N. If you repeat the command, it skips
    finished runs and resumes interrupted ones. If a run fails, the sweep reports it and continues.

    gnet ablate SWEEP [--workdir DIR] [--seeds N] [--shard i/n] [--field.path value ...]
    """
    given, own, text = parse_sweep(arguments, "gnet ablate", Ablate(), inspect.getdoc(ablate))
    found = re.fullmatch(r"(\d+)/(\d+)", own.shard)
    index, shards = map(int, found.groups()) if found else (0, 0)
    if index >= shards:
        raise UserError(f"--shard is {own.shard}; it must be i/n, with i from 0 to n - 1")
    workdir = typed_path(next(iter(given.configs.values())).workdir)
    check_local("--workdir", workdir)  # of a sweep
    # Imported here, so that --help and command-line errors return immediately.
    from gnet_jax.lab.sweeps import report, sweep
    from gnet_jax.lab.sweeps.ablate import (
        Progress,
        StoppedError,
        check_configs,
        relative_cost,
        run_cells,
    )
    from gnet_jax.training.sharding import call_in_this_thread, use_compilation_cache

    use_compilation_cache()
    call_in_this_thread()
    progress = Progress()
    check_configs(given)
    for name in sweep.open_sweep(workdir, given, text):
        progress.say(f"config {name} has changed; its runs had no checkpoint and start again")
    groups = sweep.plan_cells(workdir, given)
    if shards > 1:
        cost = {name: relative_cost(config) for name, config in given.configs.items()}
        costs = [sum(cost[cell.name] for cell in group) for group in groups]
        groups = [groups[position] for position in sweep.select_shard(costs, index, shards)]
    cells = [cell for group in groups for cell in group]
    progress.say(f"{len(given.configs)} configs and {own.seeds} seeds, in {workdir}")
    try:
        run_cells(cells, given, progress, retry_failed=own.retry_failed)
    except StoppedError as error:
        number = signal.Signals(error.args[0])
        again = shlex.join(["gnet", "ablate", *arguments])
        progress.say(f"stopped by {number.name}; the state is saved. Resume with:\n  {again}")
        return 128 + number
    record = sweep.read_sweep(workdir)
    out = console()
    out.print(report.results_table(record, f"{arguments[0]}, {workdir}"))
    out.print("\n".join(report.list_notes(record)), soft_wrap=True, markup=False)
    failed = report.list_failures(record.rows)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"next:  gnet report {shlex.quote(str(workdir))}")
    return 1 if failed else 0


def report(
    workdir: Annotated[Positional[Path], arg(metavar="DIR"), IN_BUCKET],
    out: Path | None = None,
    figures: Path | None = None,
    columns: Literal[1, 2] = 1,
    baseline: str | None = None,
    layers: str | None = None,
) -> None:
    """Write the results of a sweep as a self-contained HTML page, Markdown, LaTeX and CSV.

    The page shows a table of results with paired differences from the baseline, plots of accuracy
    over multiply-adds and over parameters, learning curves, the configs, and the versions of the
    libraries.

    Args:
        workdir: the workdir of `gnet ablate`; the sweep need not be finished.
        out: the HTML file to write; the default is report.html in the workdir. The Markdown, LaTeX
            and CSV files have the same name with .md, .tex and .csv. The CSV file has one line per
            run.
        figures: a folder to write the figures to as SVG and PDF; by default, none are written.
        columns: width of the figures, in columns of a paper.
        baseline: the config to compare the others with; the default is the sweep's baseline.
        layers: a data set, such as digits#200, on whose validation images the blocks of the
            networks are compared: their similarity (CKA), and linear probes.
    """
    from gnet_jax.lab.sweeps.report import write_report

    if out is not None:
        check_picture(out, (".html",))
    if layers is not None:
        check_local("with --layers, DIR", workdir)  # because it reads the checkpoints
    copy, place = local_copy(workdir, small_files), locate(workdir)
    try:
        page = out or copy / "report.html"
        files = write_report(copy, page, figures, baseline, columns, layers)
    except UserError as error:
        raise UserError(str(error).replace(str(copy), str(place))) from error
    for file in files:
        if isinstance(place, BucketPath) and file.parent == copy:
            (place / file.name).write_bytes(file.read_bytes())
            print(f"wrote {place / file.name}")
        else:
            print(f"wrote {file}")


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """The options of `gnet plan`."""

    topology: tuple[str, ...] = ()
    """Machines to plan for, such as v5e:16x16 or h100:8. Each gets a column of the table."""
    batch: int | None = None
    """Images per step over all chips; sets --batch-size and --eval-batch-size."""
    json: bool = False
    """Print a JSON object, or a list of objects if there are several topologies."""
    images: int | None = None
    """Number of training images. Not needed for ImageNet, or if the data are on this machine."""
    classes: int | None = None
    """Number of classes. Not needed for ImageNet, or if the data are on this machine."""


def plan(arguments: Sequence[str]) -> int:
    """Estimate the memory, FLOPs, memory traffic and shortest time of a run on TPU pods or GPUs.

    Usage: `gnet plan CONFIG --topology v5e:16x16`. CONFIG and the fields are those of train.py. The
    training step is compiled for each topology. This takes minutes; no accelerator is needed.
    The exit code is 1 if the step does not fit into the memory.
    """
    command = parse_command(arguments, "gnet plan", PlanOptions(), inspect.getdoc(plan))
    config, given = command.config, command.options
    if not given.topology:
        raise UserError("no topology given; give at least one, such as --topology v5e:16x16")
    for name in ("batch", "images", "classes"):
        if getattr(given, name) is not None:
            check_at_least(name, getattr(given, name))
    if given.batch is not None:  # None: same as batch_size
        config = dataclasses.replace(config, batch_size=given.batch, eval_batch_size=None)
    check(config)
    # Imported here, so that --help and command-line errors return immediately.
    from gnet_jax.pods.plan import data_size, plan_program, plan_table, program_for
    from gnet_jax.pods.topology import get_topology, parse_topology

    # Find every user error before the first compilation, which takes minutes.
    for text in given.topology:
        parse_topology(text)
    size = data_size(config.data.source, given.images, given.classes)
    machines = [get_topology(text) for text in given.topology]
    programs = [program_for(config, machine, size) for machine in machines]
    plans = []
    for program, machine in zip(programs, machines, strict=True):
        note = f"compiling the training step for {machine.name}; this takes minutes ..."
        print(note, file=sys.stderr, flush=True)
        plans.append(plan_program(program, machine))
    if given.json:
        found = [dataclasses.asdict(each) for each in plans]
        print(json_text(found[0] if len(found) == 1 else found, ensure_ascii=False))
    else:
        recipe = arguments[0] if arguments[0][0] != "-" else "digits"
        title = f"{recipe}: {config.epochs:g} epochs of {size.images:,} images"
        console().print(plan_table(plans, title))
    return 0 if all(each.fits for each in plans) else 1

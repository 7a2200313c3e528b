"""Training: `gnet train [CONFIG] [--workdir DIR] [--field.path value ...]`, or `python train.py`.

CONFIG is a recipe's name (`digits` by default) or a Python file with a `get_config()`. If you
repeat the command, it resumes the run. Use the same command on all hosts. The exit codes are:

0        the training is done
1        values were not finite in too many steps, the last checkpoint could not be saved, heads did
         not learn (with dead_heads "stop"), or there was an unexpected error
2        the command or the data are invalid, or too many images are corrupt (the state is saved)
3, 134   the hosts did not connect, or one of them was lost (134: JAX itself ended the process)
128 + n  a host received signal n; the state was saved (129: hang-up, 130: Ctrl-C, 143: SIGTERM)

`--supervise` restarts a run that exits with 1, 3 or 134, or that is killed without saving.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnet_jax.cli.output import (
    leave_at_once,
    print_error,
    print_no_access,
    reader_may_leave,
    set_up_process,
)
from gnet_jax.config import Config, ConfigError, UserError, check
from gnet_jax.config.bucket import Place, local_copy, locate, small_files
from gnet_jax.config.command import Launch, check_launch, parse_command, parse_launch
from gnet_jax.training.hosts import start

if TYPE_CHECKING:
    from gnet_jax.training.loop import CompiledSteps, Result
    from gnet_jax.training.observe.track import Track
    from gnet_jax.training.program import Program, Run


def train(arguments: Sequence[str]) -> int:
    """Train a GoogLeNet; `gnet train --help` lists the recipes and every field."""
    return main(arguments, "gnet train")


def parse(arguments: Sequence[str], prog: str = "train.py") -> Config:
    """Returns the config of a command line. Exits the process for `--help` and for typos."""
    return parse_command(arguments, prog, Launch()).config


def main(arguments: Sequence[str], prog: str = "train.py") -> int:
    """Run a training command, and return its exit code. `prog` is "train.py" or "gnet train"."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    set_up_process()
    try:
        return _main(arguments, prog)
    except UserError as error:
        print_error(f"{prog}: error: {error}")
        return error.exit_code
    except OSError as error:  # of `Path.is_file`, before Python 3.14
        return print_no_access(prog, error)
    except KeyboardInterrupt:  # outside of the training loop, which handles signals itself
        leave_at_once(f"{prog}: interrupted; the same command resumes from the latest checkpoint")


def _main(arguments: Sequence[str], prog: str) -> int:
    try:
        with reader_may_leave():  # --help prints
            command = parse_command(arguments, prog, Launch())
            check_launch(command.options)
    except (ConfigError, SystemExit) as ended:
        # tyro has already printed the error of a typo. It exits with 2, or with 0 for `--help`.
        if isinstance(ended, SystemExit) and ended.code != 2:
            raise
        typo = ConfigError("there is a typo in its command")
        error = ended if isinstance(ended, ConfigError) else typo
        with contextlib.redirect_stderr(io.StringIO()):  # otherwise tyro prints the error again
            launch = parse_launch(arguments)
        if not start.should_join(launch):
            raise
        # The other hosts may have a valid command; they must not wait for this host.
        print_error(f"{prog}: reporting this error to the other hosts: {error}")
        brief = dataclasses.replace(launch, start_timeout=min(launch.start_timeout, 30))
        return run(error, brief, arguments, prog)
    config, launch = command.config, command.options
    if launch.supervise or launch.supervise_preempted:
        from gnet_jax.training.hosts import supervise

        if supervise.ACKNOWLEDGE not in os.environ:
            check(config)
            again = [sys.executable, *sys.orig_argv[1:]]
            checkpoints = locate(config.workdir) / "checkpoints"
            return supervise.Supervisor(again, checkpoints, launch, prog).run()
        supervise.end_with_supervisor()
    return run(config, launch, arguments, prog)


def run(config: Config | UserError, launch: Launch, arguments: Sequence[str], prog: str) -> int:
    """Train, and return the exit code. An error given as `config` ends the run on all hosts."""
    import jax  # here, so that --help and command-line errors return immediately

    from gnet_jax.convert.start import with_start
    from gnet_jax.training import loop, program, sharding
    from gnet_jax.training.observe.console import SafeConsole
    from gnet_jax.training.observe.track import Track, check_tracker

    def prepared() -> tuple["Run", dict[str, Any]]:
        if isinstance(config, UserError):
            raise config
        if jax.process_index() == 0:
            check_tracker(launch.track)
        run = program.prepare(*with_start(config))
        return run, run.fingerprints()

    try:
        start.start(launch)
        sharding.use_compilation_cache()
        sharding.call_in_this_thread()
        first = jax.process_index() == 0
        with start.abort_on_unexpected_error(start.TrainingError):
            ready, fingerprints = start.run_on_all_hosts(prepared)
            start.compare(start.identity(ready, fingerprints))
            workdir = start.open_shared_workdir(ready.config, fingerprints)
            if first:
                print_plan(ready, workdir)
            steps, peak = loop.CompiledSteps(ready.program), peak_images_per_sec(ready.program)
            tracker, own = launch.track if first else None, dataclasses.asdict(ready.config)
            with Track(tracker, workdir, own, SafeConsole().say) as track:
                result = loop.train(ready, workdir, steps, track=track, peak=peak)
                track.exit_code = exit_code(result)
                if tracker is not None and result.signal is None:
                    add_pictures(track, workdir)
    except start.HostsError as error:
        print_error(f"{prog}: error: {error}")
        return start.EXIT_LOST
    except start.TrainingError as error:
        print_error(f"{prog}: stopped: {error}")
        return 1
    if first:
        step = describe_step(result, steps, ready.program)
        print_result(result, ready.config, workdir, arguments, prog, step)
    return exit_code(result)


def exit_code(result: "Result") -> int:
    """Returns the exit code of a run that ended with `result`."""
    return 0 if result.signal is None else 128 + result.signal


def add_pictures(track: "Track", workdir: Place) -> None:
    """Add the curves of the run to its last step, and the diagnosis if it has one."""
    from gnet_jax.lab.sweeps.figures import draw_curves, draw_diagnostics, read_diagnostics

    copy = local_copy(workdir, small_files)
    track.picture("curves", lambda file: draw_curves([copy], file))
    if read_diagnostics(copy):
        track.picture("diagnostics", lambda file: draw_diagnostics([copy], file))


def print_plan(run: "Run", workdir: Place) -> None:
    """Print the model, data, devices and steps of a run before it starts."""
    import jax

    from gnet_jax.lab.cost.ledger import network_ledger
    from gnet_jax.training.observe.console import SafeConsole
    from gnet_jax.training.optimizer import scaled
    from gnet_jax.training.program import layers

    config, program = run.config, run.program
    cost = network_ledger(program.model, config.data.image_size)
    m, d, o, mesh = config.model, config.data, scaled(config), program.mesh
    heads = ", ".join(program.model.arch.aux_after) or "none"
    with_heads = "" if heads == "none" else f" ({cost.params_with_aux:,} with aux heads)"
    network = f"{m.variant}, width x{m.width_multiplier:g}, reductions x{m.reduction_factor:g}"
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    plan = {
        "model": f"GoogLeNet, {config.init or network}, {m.dtype}, aux heads: {heads}",
        "size": f"{cost.params:,} parameters{with_heads}, "
        f"{cost.macs / 1e6:,.1f} M multiply-adds per image",
        "data": f"{d.source}: {len(run.train):,} training and {len(run.val):,} validation images "
        f"({run.val.split} split), {len(run.train.class_names)} classes, "
        f"{d.image_size}x{d.image_size} pixels, decoder: {d.decoder}",
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}{hosts}",
        "steps": f"{program.total_steps:,} of {config.batch_size} images ({config.epochs:g} "
        f"epochs), {o.optimizer}, {o.schedule} from {o.learning_rate:g}",
        "workdir": f"{workdir} (checkpoints, metrics.jsonl, tensorboard, run.json, logs)",
    }
    if early := program.early_steps:
        size = config.augment.early_size
        plan["early"] = f"{size}x{size} pixels in the first {early:,} steps, which take less time"
    takeover = program.takeover
    if takeover is not None:
        fresh = {layers([name])[0]: why for name, why in takeover.fresh.items()}
        plan["loaded"] = ", ".join(layers(takeover.loaded)) or "nothing"
        plan["new"] = ", ".join(f"{layer} ({why})" for layer, why in fresh.items()) or "nothing"
        plan["frozen"] = ", ".join(o.freeze) or "nothing"
    if run.train.left_out or run.val.left_out:
        from gnet_jax.data.sources.folder import counted, merged

        left_out = counted(merged([run.train.left_out, run.val.left_out]))
        plan["skipped"] = f"{left_out} (gnet check-data lists them)"
    console = SafeConsole()
    for name, text in plan.items():
        console.say(f"{name:>8}  {text}")


def peak_images_per_sec(program: "Program") -> float | None:
    """Returns the images/s of a chip at its peak FLOP/s; None if that is not known, as on CPUs."""
    from gnet_jax.pods.topology import find_chip

    chip = find_chip(program.mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    from gnet_jax.pods.plan import ledger_flops

    return chip.peak(program.config.model.dtype) / ledger_flops(program)


def describe_step(result: "Result", steps: "CompiledSteps", program: "Program") -> str:
    """Returns the time of a step beside that of `gnet plan`; "" if the chip's peak is not known."""
    from gnet_jax.pods.topology import find_chip

    chip = find_chip(program.mesh.devices.flat[0].device_kind)
    if chip is None or "perf/mfu" not in result.heads:
        return ""
    from gnet_jax.pods.plan import read_cost, step_limits

    ms, mfu = result.heads["perf/step_ms"], result.heads["perf/mfu"]
    try:
        limits = step_limits(program, chip, read_cost(steps.train))
        bound = max(limits, key=lambda side: limits[side])
        least = f"at least {1000 * limits[bound]:.2f} ms by the plan for {chip.name} ({bound})"
    except UserError as error:
        least = f"no plan: {error}"
    return f"last measured step {ms:.2f} ms, MFU {mfu:.1%}; {least}"


def print_result(
    result: "Result",
    config: Config,
    workdir: Place,
    arguments: Sequence[str],
    prog: str,
    step: str = "",
) -> None:
    """Print how the run ended, and the commands to use next; `step` describes the last steps."""
    from gnet_jax.training.observe.console import SafeConsole, duration, goodput_line

    say = SafeConsole().say
    gnet, train = _typed(prog)
    if result.signal is not None:
        again = " ".join([train, *(shlex.quote(argument) for argument in arguments)])
        name = result.stopped_by or signal.Signals(result.signal).name
        say(f"stopped by {name}; step {result.step} is saved in {workdir}. Resume with:\n  {again}")
        return
    if result.heads:
        say(f"done in {duration(result.seconds)}\n  {goodput_line(result.goodput)}")
        if step:
            say(f"  {step}")
        for head, top1 in result.heads.items():
            if head.endswith("_top1"):
                say(f"  training top-1, {head[len('train/') : -len('_top1')]} head: {top1:.1%}")
    else:
        say(f"already finished: all {result.step} steps are done")
    if result.val:
        top5 = f", top-5 {result.val['val/top5']:.2%}" if "val/top5" in result.val else ""
        say(f"  validation top-1 {result.val['val/top1']:.2%}{top5}")
    if result.best is not None:
        say(f"  best: top-1 {result.best[1]:.2%} at step {result.best[0]}")
    say(f"  checkpoint: {result.checkpoint}")
    where = shlex.quote(str(workdir))
    digits = config.data.source.partition("#")[0] == "digits"
    image = "of one digit, white on black" if digits else "prints the classes of a photo"
    say(f"next:  {gnet} predict {where} PHOTO.png   ({image})")
    say(f"       {gnet} convert {where} DST         (a model folder to keep)")


def _typed(prog: str) -> tuple[str, str]:
    """Returns two shell commands, with a path if needed: `gnet`, and `gnet train` or `train.py`."""
    script = prog == "gnet train" and Path(sys.argv[0]).name == "gnet"
    name, path = ("gnet", sys.argv[0]) if script else ("python", sys.executable)
    found = name if shutil.which(name) == path else shlex.quote(os.path.relpath(path))
    gnet = found if script else f"{found} -m gnet_jax"
    return gnet, f"{gnet} train" if prog == "gnet train" else f"{found} train.py"

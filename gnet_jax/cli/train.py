"""Training: `gnet train [CONFIG] [--workdir DIR] [--field.path value ...]`, or `python train.py`.

CONFIG is a recipe's name (`digits` by default) or a Python file with a `get_config()`. The same
command again resumes the run. On several hosts, every host gets the same command
(docs/reliability.md), and all of them exit with the same code:

0        done
1        numbers that are not finite, a last checkpoint that could not be saved, heads that do not
         learn if dead_heads is "stop", or an unexpected error, after its traceback. If only one
         host fails, the others exit with 3 or 134
2        a mistake in the command, or too many damaged images, after saving
3        the hosts did not find each other, or lost one
128 + n  stopped by signal n to any host, after saving (129: hang-up, 130: Ctrl-C, 143: SIGTERM)
134      JAX ended this host because another did not answer for 15 s

`--supervise` restarts a run that exits with 1, 3, 134 or is killed by another signal.
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

from gnet_jax.cli.output import leave_at_once, print_error, reader_may_leave, set_up_process
from gnet_jax.config import Config, ConfigError, UserError, check
from gnet_jax.config.command import Launch, check_launch, parse_command, parse_launch
from gnet_jax.training.hosts.start import should_join
from gnet_jax.training.hosts.supervise import ACKNOWLEDGE, Supervisor, end_with_supervisor

if TYPE_CHECKING:
    from gnet_jax.training.loop import Result
    from gnet_jax.training.program import Run


def train(arguments: Sequence[str]) -> int:
    """Train a GoogLeNet; `gnet train --help` lists the recipes and every field."""
    return main(arguments, "gnet train")


def parse(arguments: Sequence[str], prog: str = "train.py") -> Config:
    """Returns the config of a command line. `--help` and typos exit here.

    Raises:
        ConfigError: if there is no such recipe.
    """
    return parse_command(arguments, prog, Launch()).config


def main(arguments: Sequence[str], prog: str = "train.py") -> int:
    """Run the command line and return the exit code.

    `arguments` were typed after the command `prog`, "train.py" or "gnet train".
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    set_up_process()
    try:
        return _main(arguments, prog)
    except UserError as error:
        print_error(f"{prog}: error: {error}")
        return 2
    except KeyboardInterrupt:  # outside the loop, which has its own handler
        leave_at_once(
            f"{prog}: interrupted; the same command resumes from the latest checkpoint in the "
            "workdir, if there is one"
        )


def _main(arguments: Sequence[str], prog: str) -> int:
    try:
        with reader_may_leave():  # --help prints
            command = parse_command(arguments, prog, Launch())
            check_launch(command.options)
    except (ConfigError, SystemExit) as ended:
        # tyro has already printed a typo's error; it exits with 2, `--help` with 0.
        if isinstance(ended, SystemExit) and ended.code != 2:
            raise
        typo = ConfigError("there is a typo in its command")
        error = ended if isinstance(ended, ConfigError) else typo
        with contextlib.redirect_stderr(io.StringIO()):  # tyro would print a typo again
            launch = parse_launch(arguments)
        if not should_join(launch):
            raise
        # The command of the other hosts may be right; if they are there, they must not wait.
        print_error(f"{prog}: telling the other hosts: {error}")
        brief = dataclasses.replace(launch, start_timeout=min(launch.start_timeout, 30))
        return run(error, brief, arguments, prog)
    config, launch = command.config, command.options
    if ACKNOWLEDGE in os.environ:
        end_with_supervisor()
    elif launch.supervise or launch.supervise_preempted:
        check(config)
        again = [sys.executable, *sys.orig_argv[1:]]
        checkpoints = Path(config.workdir).expanduser() / "checkpoints"
        return Supervisor(again, checkpoints, launch, prog).run()
    return run(config, launch, arguments, prog)


def run(config: Config | UserError, launch: Launch, arguments: Sequence[str], prog: str) -> int:
    """Train as `config` says, print the progress and return the exit code.

    A mistake in place of the config is raised on every host.
    """
    # Imported here, so that --help and typos answer at once.
    import jax

    from gnet_jax.training.hosts import agree
    from gnet_jax.training.hosts.start import (
        EXIT_LOST,
        HostsError,
        abort_on_unexpected_error,
        start,
    )
    from gnet_jax.training.loop import train
    from gnet_jax.training.memory import call_in_this_thread
    from gnet_jax.training.program import prepare
    from gnet_jax.training.sharding import use_compilation_cache

    def prepared() -> tuple["Run", dict[str, Any]]:
        if isinstance(config, UserError):
            raise config
        if config.init is None:
            run = prepare(config)
        else:
            from gnet_jax.convert.start import with_start

            run = prepare(*with_start(config))
        return run, run.fingerprints()

    try:
        start(launch)
        use_compilation_cache()
        call_in_this_thread()
        first = jax.process_index() == 0
        with abort_on_unexpected_error(agree.TrainingError):
            ready, fingerprints = agree.run_on_all_hosts(prepared)
            agree.compare(agree.identity(ready, fingerprints))
            workdir = agree.open_shared_workdir(ready.config, fingerprints)
            if first:
                print_plan(ready, workdir)
            result = train(ready, workdir)
    except HostsError as error:
        print_error(f"{prog}: error: {error}")
        return EXIT_LOST
    except agree.TrainingError as error:
        print_error(f"{prog}: stopped: {error}")
        return 1
    if first:
        print_result(result, ready.config, workdir, arguments, prog)
    return 0 if result.signal is None else 128 + result.signal


def print_plan(run: "Run", workdir: Path) -> None:
    """Print what is about to be trained."""
    import jax

    from gnet_jax.lab.cost.ledger import network_ledger
    from gnet_jax.training.observe.console import SafeConsole

    config, program = run.config, run.program
    cost = network_ledger(program.model, config.data.image_size)
    m, d, o, mesh = config.model, config.data, config.optim, program.mesh
    aux_after = program.model.arch.aux_after
    heads = ", ".join(aux_after) or "none"
    with_heads = f" ({cost.params_with_aux:,} with aux heads)" if aux_after else ""
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
        "workdir": f"{workdir} (checkpoints, metrics.jsonl, tensorboard, run.json)",
    }
    if program.takeover is not None:
        from gnet_jax.training.finetune import layers

        fresh = {layers([name])[0]: why for name, why in program.takeover.fresh.items()}
        plan["loaded"] = ", ".join(layers(program.takeover.loaded)) or "nothing"
        plan["new"] = ", ".join(f"{layer} ({why})" for layer, why in fresh.items()) or "nothing"
        plan["frozen"] = ", ".join(o.freeze) or "nothing"
    if run.train.left_out or run.val.left_out:
        from gnet_jax.data.sources.folder import counted, merged

        left_out = counted(merged([run.train.left_out, run.val.left_out]))
        plan["not read"] = f"{left_out} (gnet check-data lists them)"
    console = SafeConsole()
    for name, text in plan.items():
        console.say(f"{name:>8}  {text}")


def print_result(
    result: "Result", config: Config, workdir: Path, arguments: Sequence[str], prog: str
) -> None:
    """Print how the run ended, and what to type next."""
    from gnet_jax.training.observe.console import SafeConsole, duration, goodput_line

    say = SafeConsole().say
    gnet, train = _typed(prog)
    if result.signal is not None:
        again = " ".join([train, *(shlex.quote(argument) for argument in arguments)])
        name = signal.Signals(result.signal).name
        say(f"stopped by {name}; step {result.step} is saved in {workdir}. Resume with:\n  {again}")
        return
    if result.heads:
        say(f"done in {duration(result.seconds)}")
        say(f"  {goodput_line(result.goodput)}")
        for head, top1 in result.heads.items():
            if head.endswith("_top1"):
                say(f"  training top-1, {head[len('train/') : -len('_top1')]} head: {top1:.1%}")
    else:
        say(f"already finished: all {result.step} steps are done")
    if result.val:
        say(f"  validation top-1 {result.val['val/top1']:.2%}, top-5 {result.val['val/top5']:.2%}")
    if result.best is not None:
        say(f"  best: top-1 {result.best[1]:.2%} at step {result.best[0]}")
    say(f"  checkpoint: {result.checkpoint}")
    where = shlex.quote(str(workdir))
    digits = config.data.source.partition("#")[0] == "digits"
    image = "of one digit, white on black" if digits else "what it sees in a photo"
    say(f"next:  {gnet} predict {where} PHOTO.png   ({image})")
    say(f"       {gnet} convert {where} DST         (a model folder to keep)")


def _typed(prog: str) -> tuple[str, str]:
    """Returns what to type for `gnet` and for training, in the way that this process was started.

    Uses paths if the shell would not find the programs, as in `.venv` after `make`.
    """
    if prog == "gnet train" and Path(sys.argv[0]).name == "gnet":
        gnet = _in_shell("gnet", sys.argv[0])
        return gnet, f"{gnet} train"
    python = _in_shell("python", sys.executable)
    gnet = f"{python} -m gnet_jax"
    return gnet, f"{gnet} train" if prog == "gnet train" else f"{python} train.py"


def _in_shell(name: str, path: str) -> str:
    return name if shutil.which(name) == path else shlex.quote(os.path.relpath(path))

"""Trace steps of a run for XProf, TensorBoard and `gnet profile`."""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import Config, profile_windows
from gnet_jax.config.bucket import Place
from gnet_jax.training.workdir import replacing

# XProf and TensorBoard look for traces in plugins/profile/NAME below the folder that they open.
FOLDER = Path("profile", "plugins", "profile")
PROGRAM = "train_step.hlo.txt"  # the compiled step, which has the scope of every operation
SUFFIX = ".xplane.pb"


def window_folder(workdir: Path, first: int, last: int) -> Path:
    """Returns the folder with the traces of a window, one file for each host."""
    return workdir / FOLDER / f"steps-{first}-{last}"


class Profiler(contextlib.AbstractContextManager["Profiler"]):
    """Traces the windows of `config.profile` that begin after step `start`.
    `tell` prints a line. `place` is the workdir in messages, if `workdir` is a copy of it. Before
    and after each window the devices finish their work, so that a trace has whole steps only.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        start: int,
        tell: Callable[[str], None],
        place: Place | None = None,
    ) -> None:
        self._workdir, self._tell, self._place = workdir, tell, place or workdir
        windows = profile_windows(config)
        for first, last in windows:
            if first <= start < last:
                tell(f"steps {first} to {last} are not traced, because the run resumes among them")
        here = config.profile_hosts == "all" or jax.process_index() == 0
        self._windows = [window for window in windows if window[0] > start and here]
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._step = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        self._step.close()
        if self._local is not None:
            jax.profiler.stop_trace()
            self._local.cleanup()
            self._tell("the last trace is not saved, because the run ends inside its window")

    def begin(self, step: int, state: Any) -> None:
        """Start a trace if `step` is the first of a window; `state` is that before the step."""
        if self._windows and step == self._windows[0][0]:
            jax.block_until_ready(state)
            if jax.process_index() == 0:  # an earlier trace, and the files that XProf made from it
                old = window_folder(self._workdir, *self._windows[0])
                shutil.rmtree(old, ignore_errors=True)
            self._local = tempfile.TemporaryDirectory(prefix="gnet-profile-")
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it would slow down the host and hide its other events
            jax.profiler.start_trace(self._local.name, profiler_options=options)
        if self._local is not None:
            self._step.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def end(self, step: int, results: Any, compiled: jax.stages.Compiled) -> None:
        """Save the trace if `step`, which has the given `results`, is the last of the window."""
        self._step.close()
        if self._local is None or step != self._windows[0][1]:
            return
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        first, last = self._windows.pop(0)
        with self._local as folder:
            self._local = None
            try:
                self._save(Path(folder), window_folder(self._workdir, first, last), compiled)
            except OSError as error:
                why = error.strerror or error
                self._tell(f"warning: the trace of steps {first} to {last} is not saved ({why})")

    def _save(self, local: Path, folder: Path, compiled: jax.stages.Compiled) -> None:
        (trace,) = local.rglob(f"*{SUFFIX}")
        folder.mkdir(parents=True, exist_ok=True)
        # All processes of a run need different names, also on one machine.
        name = f"{socket.gethostname()}-{jax.process_index()}{SUFFIX}"
        with replacing(folder / name) as partial:
            shutil.copyfile(trace, partial)
        if jax.process_index() == 0:
            with replacing(folder / PROGRAM) as partial:
                partial.write_text(compiled.as_text() or "")
            self._tell(f"saved a trace of {folder.name}; see gnet profile {self._place}")

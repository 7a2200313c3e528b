"""Send a run's metrics to an experiment tracker. A tracker that fails never stops training.

To add a tracker, write a class with the methods of `Tracker`, and add it to `TRACKERS`.
"""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from gnet_jax.config import UserError, choose
from gnet_jax.config.bucket import Place
from gnet_jax.config.recipes import needs
from gnet_jax.training.workdir import write_json

FILE = "track.json"  # in the workdir; for each tracker: the run's id and the last step sent
PROJECT = "gnet_jax"


class Tracker(Protocol):
    """A run of a tracking service. Every method may raise any exception."""

    place: str  # where to see the run

    def __init__(self, run_id: str, workdir: Place, config: dict[str, Any]) -> None:
        """Create the run with this id, or continue it."""

    @staticmethod
    def check() -> None:
        """Raise a UserError if the user has to set up the service first. Never ask anything."""

    def log(self, step: int, values: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add the values and pictures of a step. Steps increase."""

    def close(self, exit_code: int) -> None:
        """Send what is not sent yet; `exit_code` is that of the training process."""


class WandB:
    """A run of Weights & Biases. Environment variables such as WANDB_MODE=offline apply."""

    def __init__(self, run_id: str, workdir: Place, config: dict[str, Any]) -> None:
        self._wandb: Any = import_module("wandb")
        # The console stays ours. Flush offline files every second: a killed process loses less.
        wanted = {"silent": True, "console": "off", "finish_timeout": 20}
        wanted["x_transaction_log_flush_interval"] = 1.0
        known = self._wandb.Settings.model_fields
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=run_id,
            resume="allow",
            dir=workdir if isinstance(workdir, Path) else None,  # W&B's default: ./wandb
            config=config,
            settings=self._wandb.Settings(**{k: v for k, v in wanted.items() if k in known}),
        )
        self.place = str(Path(self._run.dir).parent) if self._run.offline else self._run.url

    @staticmethod
    def check() -> None:
        wandb: Any = import_module("wandb")
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        local = settings.mode in ("offline", "dryrun", "disabled")
        if not local and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "--track wandb: this machine is not logged in to W&B; run `wandb login`, set "
                "WANDB_API_KEY, or set WANDB_MODE=offline"
            )

    def log(self, step: int, values: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        images = {name: self._wandb.Image(str(file)) for name, file in pictures.items()}
        self._run.log({**values, **images}, step=step, commit=True)

    def close(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        finally:  # also ends its process, which at the exit would print a traceback if it is gone
            self._wandb.teardown(exit_code)


class Trackio:
    """A run of Trackio, in a local database or wherever its environment variables say."""

    def __init__(self, run_id: str, workdir: Place, config: dict[str, Any]) -> None:
        self._trackio: Any = import_module("trackio")
        name = f"{workdir.name}-{run_id}"
        self._trackio.init(PROJECT, name=name, resume="allow", config=config)
        self.place = f"trackio show --project {PROJECT}"

    @staticmethod
    def check() -> None:
        import_module("trackio")

    def log(self, step: int, values: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        images = {name: self._trackio.Image(str(file)) for name, file in pictures.items()}
        self._trackio.log({**values, **images}, step=step)

    def close(self, exit_code: int) -> None:
        self._trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "trackio": Trackio}


def check_tracker(name: str | None) -> None:
    """Raise a UserError if the tracker `name` is not installed or not set up. None is valid."""
    if name is None:
        return
    try:
        choose("--track", name, TRACKERS).check()
    except ImportError as error:
        raise UserError(needs(f"--track {name}", error, name)) from error


class Track(contextlib.AbstractContextManager["Track"]):
    """Sends every step's metrics to the tracker `name` once, over all starts of the run.

    The values of a step are sent together when the next step comes, or on exit. After a kill, a
    resumed run repeats some steps; their first values stay. `tell` prints a line. If the tracker
    raises an exception, prints one warning, and does nothing from then on. Without a name, does
    nothing.
    """

    def __init__(
        self, name: str | None, workdir: Place, config: dict[str, Any], tell: Callable[[str], None]
    ) -> None:
        self._name, self._file, self.tell = name, workdir / FILE, tell
        self._tracker: Tracker | None = None
        self._step, self._values, self._draw = -1, {}, {}
        self._record: dict[str, dict[str, Any]] = {}
        self.exit_code = 1  # of the process, unless the run gets to its end
        if name is None:
            return
        with self._survived():
            if self._file.is_file():
                self._record = json.loads(self._file.read_text())
            self._own = self._record.setdefault(name, {"id": secrets.token_hex(4), "step": -1})
            write_json(self._file, self._record)
            self._tracker = TRACKERS[name](self._own["id"], workdir, config)
            tell(f"{name} run {self._own['id']}: {self._tracker.place}")

    def __exit__(self, *_: object) -> None:
        # After a signal, an evaluation of the last step may still come, in the next start.
        if self.exit_code < 128:
            self._send()
        with self._survived():
            if self._tracker is not None:
                self._tracker.close(self.exit_code)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values to a step; does nothing if the step was sent before. Steps do not decrease."""
        if self._tracker is None or step <= self._own["step"]:
            return
        if step != self._step:
            self._send()
        self._step = step
        self._values |= values

    def picture(self, name: str, draw: Callable[[Path], None]) -> None:
        """Add a picture to the last step, if it is not sent; `draw` writes it to a PNG file."""
        self._draw[name] = draw

    def _send(self) -> None:
        if self._tracker is not None and self._values:
            with self._survived(), tempfile.TemporaryDirectory() as folder:
                pictures = {name: Path(folder, f"{name}.png") for name in self._draw}
                for name, file in pictures.items():
                    self._draw[name](file)
                # Recorded first: a process that is killed in between must not send it again.
                self._own["step"] = self._step
                write_json(self._file, self._record)
                self._tracker.log(self._step, self._values, pictures)
        self._values, self._draw = {}, {}

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """Print a warning if the body raises an exception, and use the tracker no more."""
        try:
            yield
        except Exception as error:  # whatever a tracker raises
            tracker, self._tracker = self._tracker, None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.tell(
                f"warning: {self._name} failed ({reason}); training continues without it, and "
                "metrics.jsonl has all metrics"
            )
            with contextlib.suppress(Exception):  # the first error is the one to print
                if tracker is not None:
                    tracker.close(self.exit_code)

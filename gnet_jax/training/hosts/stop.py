"""Stop all hosts after the same step, if one of them gets a signal or cannot load its data.

The hosts agree without an extra wait. Each host passes a `stop` code to the compiled step, which
returns the largest code of all hosts. Every host reads the result of step n before it dispatches
step n + 2. So a code passed to step n ends the run on all hosts after step n + 1.
"""

import contextlib
import os
import platform
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gnet_jax.config import UserError
from gnet_jax.training.hosts.start import gather, handle_stop_signals, run_on_all_hosts
from gnet_jax.training.observe.faults import BadImages
from gnet_jax.training.sharding import AXIS, put_local, split
from gnet_jax.training.workdir import ACKNOWLEDGE

FAULT = 2**30  # the stop code of a host that cannot load its batch; larger than all other codes
HOST = 128  # the code of a signal is its number, plus this times the index of the host that got it
LEAD = 2  # number of steps from the one that is passed a code to the last of the run, inclusive


class StopRequest(contextlib.ExitStack):
    """On SIGINT, SIGTERM or SIGHUP, asks the loop to save and stop; on a second signal, exits."""

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self._numbers: Sequence[int] = ()

    def __enter__(self) -> "StopRequest":
        self._numbers = self.enter_context(handle_stop_signals(self._handle))
        return self

    def _handle(self, number: int, _frame: object) -> None:
        self.signal = number
        if ACKNOWLEDGE in os.environ:
            with contextlib.suppress(OSError):  # the supervisor is gone and needs no answer
                os.write(int(os.environ[ACKNOWLEDGE]), b".")
        name = f"{signal.Signals(number).name} received"
        if jax.distributed.is_initialized():
            name += f" by host {jax.process_index()} ({platform.node()})"
        text = f"\n{name}: saving once the current step is done; a second signal exits at once\n"
        os.write(2, text.encode())  # because the signal may have interrupted a print
        for each in self._numbers:
            signal.signal(each, signal.SIG_DFL)


class Vote:
    """The stop code that this host passes to each step, and the code on which all hosts agreed.
    All hosts must create it. `tell` is called once with a line if hosts agree to stop by a signal.
    """

    def __init__(
        self, mesh: Mesh, request: StopRequest, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self._mesh, self._request, self._tell = mesh, request, tell
        self._names = gather(platform.node())
        self._no_stop = self._flag(0)
        self._last_step: int | None = None
        self.code = 0  # of a signal or FAULT, set when all hosts know it

    def flag(self, fault: UserError | None) -> jax.Array:
        """Returns this host's `stop` code for the next step, as an array over all devices."""
        number = self._request.signal
        code = number + HOST * jax.process_index() if number else 0
        code = FAULT if fault is not None else code
        return self._flag(code) if code else self._no_stop

    def read(self, step: int, stop: jax.Array) -> None:
        """Record the stop code that training step `step` returned; the first non-zero code wins."""
        code = int(stop)
        if code and not self.code:
            self._last_step = step + LEAD - 1
            self._record(code)

    def stops_evaluation(self, stop: jax.Array) -> bool:
        """Record the code that an evaluation step returned. Returns whether to stop early."""
        if code := int(stop):
            self._record(code)
        return bool(code)

    def _record(self, code: int) -> None:
        self.code = code
        if self.signalled and len(self._names) > 1:
            self._tell(f"stopping and saving: {self.reason}")

    @property
    def signalled(self) -> bool:
        return 0 < self.code < FAULT

    @property
    def signal(self) -> int | None:
        """The number of the signal that stops the run; None if none does."""
        return self.code % HOST if self.signalled else None

    @property
    def reason(self) -> str:
        """The signal's name and, with several hosts, which of them received it."""
        host, number = divmod(self.code, HOST)
        where = f" on host {host} ({self._names[host]})" if len(self._names) > 1 else ""
        return f"{signal.Signals(number).name}{where}"

    def ends(self, step: int) -> bool:
        return self._last_step == step

    def _flag(self, code: int) -> jax.Array:
        own = np.full(len(self._mesh.local_devices), code, np.int32)
        return put_local(own, split(self._mesh), (self._mesh.size,))


def voting(step: Callable[..., Any], name: str, *, manual: bool = False) -> Callable[..., Any]:
    """Returns a function `(state, batch, stop) -> (step(state, batch), largest stop)`.
    A trace finds the operations of its program by `name`. With `manual`, `step` takes one device's
    share of the batch (see `compile_train_step`).
    """

    def voting_step(state: Any, batch: Any, stop: jax.Array) -> Any:
        vote = jnp.max(stop)
        return step(state, batch), jax.lax.pmax(vote, AXIS) if manual else vote

    voting_step.__name__ = name
    return voting_step


class _Batches:
    """The batches of this host; `fault` is the error that loading a batch raised, or None."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.fault: UserError | None = None

    def raise_fault(self) -> None:
        if self.fault is not None:
            raise self.fault


class TrainBatches(_Batches):
    """The batches of steps `start + 1` to `total`, loaded early enough to report a fault in time.
    `bad_images.step` is set to the step whose batch is being loaded. If a host cannot load its
    first batches, every host raises a UserError.
    """

    def __init__(
        self, batches: Iterator[Any], start: int, total: int, bad_images: BadImages
    ) -> None:
        super().__init__(batches)
        self._step, self._total, self._bad_images = start, total, bad_images
        self._loaded: deque[Any] = deque()
        for _ in range(LEAD):
            self._load()
        run_on_all_hosts(self.raise_fault)

    def take(self) -> Any:
        batch = self._loaded.popleft()
        self._load()
        return batch

    def _load(self) -> None:
        if self._step == self._total or self.fault is not None:
            return
        self._step += 1
        self._bad_images.step = self._step
        try:
            self._loaded.append(next(self._batches))
        except UserError as error:
            self.fault = error


class EvalBatches(_Batches):
    """The `count` evaluation batches. After one that cannot be loaded, all are `empty`.
    Every host yields `count` batches, because each evaluation step waits for all hosts, and the
    hosts know of a fault only one step later.
    """

    def __init__(self, batches: Iterator[Any], empty: Any, count: int) -> None:
        super().__init__(batches)
        self._empty, self._count = empty, count

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._count):
            batch = self._empty
            try:
                if self.fault is None:
                    batch = next(self._batches)
            except UserError as error:
                self.fault = error
            yield batch

"""When to stop: a signal or a fault on any host stops every host after the same step.

The hosts agree without waiting for each other. Each host passes a `stop` code to the compiled step,
and the step returns the largest of all hosts. Every host reads the results of step n after it has
dispatched step n + 1 at the latest, so a code passed to step n ends the run after step n + 1.
"""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gnet_jax.config import UserError
from gnet_jax.training.hosts.collectives import together
from gnet_jax.training.hosts.supervise import ACKNOWLEDGE
from gnet_jax.training.observe.bad_images import Damage
from gnet_jax.training.sharding import split

FAULT = 1000  # what a host says that has no batch to train on; beyond the number of every signal
LEAD = 2  # steps from saying so to the last one that is trained, itself included


class StopRequest:
    """SIGINT, SIGTERM and SIGHUP ask the loop to save and stop; a second one ends it at once.

    SIGHUP stays ignored where it was, as under nohup.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._old[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _asked(self, number: int, _frame: object) -> None:
        self.signal = number
        if ACKNOWLEDGE in os.environ:
            with contextlib.suppress(OSError):  # the supervisor is gone, and needs no answer
                os.write(int(os.environ[ACKNOWLEDGE]), b".")
        # os.write, for print may be interrupted inside itself
        os.write(2, b"\nsaving as soon as what is under way is done; once more ends it at once\n")
        for each in self._old:
            signal.signal(each, signal.SIG_DFL)


class Vote:
    """What this host says with each step, and what all of them then know."""

    def __init__(self, mesh: Mesh, request: StopRequest) -> None:
        self._mesh, self._request = mesh, request
        self._none = self._flag(0)
        self._last: int | None = None
        self.code = 0  # a signal's number, or FAULT, once the hosts know of it

    def flag(self, fault: UserError | None) -> jax.Array:
        """Returns this host's `stop` code for the next step, on each of its devices."""
        code = FAULT if fault is not None else self._request.signal or 0
        return self._flag(code) if code else self._none

    def read(self, step: int, stop: jax.Array) -> None:
        """Take note of the `stop` that training step `step` returned; the first non-zero counts."""
        code = int(stop)
        if code and not self.code:
            self.code, self._last = code, step + LEAD - 1

    def cut_short(self, stop: jax.Array) -> bool:
        """Returns whether the evaluation ends here, given the `stop` of its last batch."""
        code = int(stop)
        if code:
            self.code = code
        return bool(code)

    @property
    def signalled(self) -> bool:
        """Whether all hosts know of a signal."""
        return 0 < self.code < FAULT

    def ends(self, step: int) -> bool:
        """Whether the run ends after `step`."""
        return self._last == step

    def _flag(self, code: int) -> jax.Array:
        own = np.full(len(self._mesh.local_devices), code, np.int32)
        return jax.make_array_from_process_local_data(split(self._mesh), own, (self._mesh.size,))


def abstract_flag(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of what `Vote.flag` gives, over all hosts."""
    return jax.ShapeDtypeStruct((mesh.size,), jnp.int32)


def voting_train_step(step: Callable[..., Any], axis_name: str | None = None) -> Callable[..., Any]:
    """Returns `(state, batch, stop) -> (state, metrics, largest stop)`.

    `axis_name` is the mesh axis if the step takes one device's share.
    """

    def voting(state: Any, batch: Any, stop: jax.Array) -> Any:
        vote = jnp.max(stop)
        vote = vote if axis_name is None else jax.lax.pmax(vote, axis_name)
        return *step(state, batch), vote

    return voting


def voting_eval_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `(state, batch, stop) -> (sums, largest stop)`."""

    def voting(state: Any, batch: Any, stop: jax.Array) -> Any:
        return step(state, batch), jnp.max(stop)

    return voting


class Ahead:
    """Training batches, loaded `LEAD` steps ahead, so that all hosts know in time if one has none.

    `fault` is then why. All hosts must make one.

    Args:
        batches: those of the steps after `start`.
        damage: is told for which step a batch is loaded.

    Raises:
        UserError: on every host, if one has no first batches.
    """

    def __init__(self, batches: Iterator[Any], start: int, total: int, damage: Damage) -> None:
        self._batches, self._step, self._total = batches, start, total
        self._damage = damage
        self._ready: deque[Any] = deque()
        self.fault: UserError | None = None
        for _ in range(LEAD):
            self._load()
        together(self.check)

    def take(self) -> Any:
        """The next step's batch."""
        batch = self._ready.popleft()
        self._load()
        return batch

    def check(self) -> None:
        """Raise what keeps this host from going on, if anything does."""
        if self.fault is not None:
            raise self.fault

    def _load(self) -> None:
        if self._step == self._total or self.fault is not None:
            return
        self._step += 1
        self._damage.step = self._step
        try:
            self._ready.append(next(self._batches))
        except UserError as error:
            self.fault = error


class Spared:
    """Evaluation batches; where one cannot be had, `spare` in its place and `fault` says why."""

    def __init__(self, batches: Iterator[Any], spare: Any) -> None:
        self._batches, self._spare = batches, spare
        self.fault: UserError | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batches
        except UserError as error:
            self.fault = error
            yield self._spare

    def check(self) -> None:
        """Raise what keeps this host from going on, if anything does."""
        if self.fault is not None:
            raise self.fault

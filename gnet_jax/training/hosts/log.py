"""The log of each host in the workdir, `logs/host-N.log`: what the run prints, with time stamps."""

import contextlib
import logging
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gnet_jax.config import UserError

LOG = logging.getLogger("gnet_jax.run")
LOG.setLevel(logging.INFO)
LOG.propagate = False  # otherwise handlers of other libraries would print the lines again
LOG.addHandler(logging.NullHandler())


class _HostLog(logging.Handler):
    """Appends each message to a file. A full disk never stops training: the line is then missing.
    `newest` returns the newest step that this start has saved, or 0.
    """

    def __init__(self, file: Path, newest: Callable[[], int]) -> None:
        super().__init__()
        self._file, self.newest = file, newest

    def emit(self, record: logging.LogRecord) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = "".join(f"{stamp} {line}\n" for line in record.getMessage().splitlines())
        with contextlib.suppress(OSError), self._file.open("ab", buffering=0) as file:
            file.write(text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def host_log(workdir: Path, newest: Callable[[], int]) -> Iterator[None]:
    """Log the messages and warnings of the body, and the error that ends it (see `_HostLog`)."""
    host = jax.process_index()
    with contextlib.suppress(OSError):
        (workdir / "logs").mkdir(exist_ok=True)
    handler, show = _HostLog(workdir / "logs" / f"host-{host}.log", newest), warnings.showwarning

    def log_and_show(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
        LOG.warning(warnings.formatwarning(message, category, filename, lineno).rstrip())
        show(message, category, filename, lineno, *rest)

    LOG.addHandler(handler)
    warnings.showwarning = log_and_show
    name = f"host {host} of {jax.process_count()} ({platform.node()})"
    LOG.info(f"{name}, process {os.getpid()}: {shlex.join(sys.orig_argv)}")
    try:
        yield
    except BaseException as error:
        LOG.error(f"{type(error).__name__}: {error}")
        interrupted = 130 if isinstance(error, KeyboardInterrupt) else 1
        end_log(error.exit_code if isinstance(error, UserError) else interrupted)
        raise
    finally:
        warnings.showwarning = show
        LOG.removeHandler(handler)


def end_log(code: int, step: int | None = None, stopped_by: str | None = None) -> None:
    """Log the closing line: the exit code, and the newest saved step, by default of this start."""
    reason = f"stopped by {stopped_by}; " if stopped_by else ""
    for handler in LOG.handlers:
        if isinstance(handler, _HostLog):
            step = handler.newest() if step is None else step
            saved = f"step {step} is saved" if step else "this start saved no step"
            LOG.info(f"exit code {code}: {reason}{saved}")

"""While the processes connect, find out which of them have started, for the error if some do not.

JAX's key-value store works only after all processes have connected. So until then, every process
sends its index and host name to process 0 by UDP, on the coordinator's port.
"""

import contextlib
import platform
import socket
import threading
from collections.abc import Iterator
from typing import Any

from jax._src.distributed import global_state  # no public name; Orbax uses it, too

INTERVAL = 1.0  # seconds between two messages of a process


class RollCall:
    """The processes from which process 0 has heard; `describe` is safe in any thread."""

    def __init__(self) -> None:
        self._heard: dict[int, str] = {}  # host names by process
        self._connected = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator["RollCall"]:
        """Call the roll, or answer it, in the background of the body, which connects."""
        threading.Thread(target=self._run, name="roll call", daemon=True).start()
        try:
            yield self
        finally:
            self._connected.set()

    def describe(self) -> str:
        """Returns which processes have started, as far as this process can know."""
        state: Any = global_state
        if state.client is None:  # JAX is still asking the cluster
            return "the cluster has not named them yet"
        if state.process_id:
            try:
                socket.create_connection(_split(state.coordinator_address), timeout=3).close()
            except OSError as error:
                reason = error.strerror or error
                return f"process 0 does not answer at {state.coordinator_address} ({reason})"
            return f"process 0 answers at {state.coordinator_address}; its message lists the others"
        heard = {0: platform.node()} | self._heard
        started = ", ".join(f"{each} ({heard[each]})" for each in sorted(heard))
        missing = [str(each) for each in range(state.num_processes) if each not in heard]
        return f"started: {started}; not heard from: {', '.join(missing) or 'none'}"

    def _run(self) -> None:
        state: Any = global_state
        # JAX sets these fields, and then waits for the others.
        while state.client is None:
            if self._connected.wait(INTERVAL / 10):
                return
        host, port = _split(state.coordinator_address)
        with contextlib.suppress(OSError):  # a missing message must not end the run
            if state.process_id == 0:
                self._listen(port, state.num_processes)
            else:
                self._answer(host, port, f"{state.process_id} {platform.node()}".encode())

    def _listen(self, port: int, count: int) -> None:
        dual = socket.has_dualstack_ipv6()
        with socket.socket(socket.AF_INET6 if dual else socket.AF_INET, socket.SOCK_DGRAM) as own:
            if dual:
                own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            own.bind(("", port))
            own.settimeout(INTERVAL)
            while not self._connected.is_set():
                with contextlib.suppress(TimeoutError):
                    number, _, name = own.recv(300).decode(errors="replace").partition(" ")
                    if number.isdecimal() and int(number) < count and name.isprintable():
                        self._heard[int(number)] = name

    def _answer(self, host: str, port: int, message: bytes) -> None:
        while not self._connected.wait(INTERVAL):
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            for family, kind, _, _, address in found:
                with contextlib.suppress(OSError), socket.socket(family, kind) as own:
                    own.sendto(message, address)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)

"""In processes of their own: malloc's settings are the process's."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from gnet_jax.training.sharding import keep_freed_memory

ROOT = Path(__file__).parents[2]
SIDE = 4096
TEMPORARY = 4 * SIDE**2  # bytes of what each call makes of a product, to reduce it again
CODE = f"""
import ctypes, resource, statistics
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: 32 of them would do
import jax, jax.numpy as jnp
from gnet_jax.training.sharding import call_in_this_thread, keep_freed_memory
call_in_this_thread()
kept = KEEP
x = jnp.ones(({SIDE}, 8))
run = jax.jit(lambda x: jnp.sin(x @ x.T) @ x)
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(run(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    pages()
print(kept, statistics.median(pages() for _ in range(9)))
"""


def pages(keep: str) -> tuple[str, float]:
    """Whether memory is kept, and the pages that the kernel gives anew for a call.

    The median of nine calls: a small block may come to lie where the large one was, and the next
    call then makes the heap longer, once.
    """
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("KEEP", keep)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept, float(count)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is glibc's on Linux alone")
def test_a_program_finds_the_memory_of_its_last_call_again():
    kept, few = pages("keep_freed_memory()")
    assert kept == "True"
    _, many = pages("None")
    assert many > TEMPORARY / os.sysconf("SC_PAGE_SIZE")  # what would be paid without
    assert few < many / 50


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is glibc's on Linux alone")
def test_what_would_not_fit_twice_is_given_back_as_usual():
    kept, many = pages("keep_freed_memory() and keep_freed_memory(2**50)")
    assert kept == "False"
    assert many > TEMPORARY / os.sysconf("SC_PAGE_SIZE")


def test_an_environment_that_sets_malloc_up_has_the_last_word(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", mock.Mock(side_effect=AssertionError))
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "131072")
            assert not keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is glibc's on Linux alone")
def test_malloc_keeps_memory_on_a_heap_that_never_shrinks_or_as_glibc_does_by_default(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    libc = mock.Mock()
    libc.mallopt.return_value = 1
    monkeypatch.setattr("ctypes.CDLL", lambda _: libc)
    assert keep_freed_memory()
    assert libc.mock_calls == [mock.call.mallopt(-4, 0), mock.call.mallopt(-1, -1)]
    libc.reset_mock()
    assert not keep_freed_memory(2**60)
    assert libc.mock_calls == [
        mock.call.mallopt(-4, 65536), mock.call.mallopt(-1, 131072), mock.call.malloc_trim(0),
    ]  # fmt: skip
    libc.mallopt.side_effect = [1, 0]  # refused
    assert not keep_freed_memory()
    libc.reset_mock(side_effect=True)
    for name, value in (("default_backend", "gpu"), ("distributed.is_initialized", True)):
        with monkeypatch.context() as patch:
            patch.setattr(f"jax.{name}", lambda value=value: value)
            assert not keep_freed_memory()
    monkeypatch.setattr("ctypes.CDLL", lambda _: mock.Mock(spec=[]))  # not glibc
    assert not keep_freed_memory()
    assert libc.mallopt.mock_calls == []

"""Which tests execute a statement, and whether they pass, for `mutants.py`.

Nothing here touches the checkout but .pytest_cache/mutants: tests run in copies.
"""

import ast
import collections
import contextlib
import functools
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple, TypedDict

import coverage  # pyright: ignore[reportMissingImports]

PACKAGE = "gnet_jax"
SOURCES = (PACKAGE, "tests", "configs", "train.py", "pyproject.toml")  # what the map depends on
COVERAGE = """[run]
source = {copy}/{package}
data_file = {data}
parallel = true
patch = subprocess, _exit
disable_warnings = no-data-collected, module-not-imported, module-not-measured
"""
_running: set[subprocess.Popen] = set()


class TestFile(TypedDict):
    """What a test file does when nothing is mutated."""

    seconds: float
    failed: list[str]  # tests that fail all the same
    lines: dict[str, list[int]]  # executed, by file of the package


class Statement(NamedTuple):
    """A statement of a module and where it is."""

    lines: range  # of a compound statement, the header's
    name: str | None  # that it defines
    function: range | None  # lines of the body of the function that contains it, or that it defines


@functools.cache
def statements(text: str) -> list[Statement]:
    """Returns all statements of a module."""
    found = []

    def visit(node: ast.AST, function: range | None) -> None:
        for child in ast.iter_child_nodes(node):
            own, end = function, getattr(child, "end_lineno", 0)
            if isinstance(child, ast.FunctionDef):
                own = range(child.body[0].lineno, end + 1)
            if isinstance(child, ast.stmt):
                body = getattr(child, "body", None)
                last = body[0].lineno - 1 if body else end
                target = getattr(child, "target", None) or getattr(child, "targets", [child])[0]
                name = getattr(target, "id", getattr(target, "name", None))
                found.append(Statement(range(child.lineno, max(last, child.lineno) + 1), name, own))
            visit(child, own)

    visit(ast.parse(text), None)
    return found


def _inside_functions(text: str) -> set[int]:
    return {line for s in statements(text) if s.function for line in s.function}


def find_tests(
    file: str, line: int, sources: Mapping[str, str], tests: Mapping[str, TestFile], root: Path
) -> list[str]:
    """Returns the test files that execute the statement on a line, the quickest first.

    The header of a function counts as executed where its body is. Any other statement outside
    functions counts as executed by the tests that execute, or contain, a line with its name.
    """
    own = [s for s in statements(sources[file]) if line in s.lines]
    at = max(own, key=lambda s: s.lines.start)
    word = None
    if at.function:
        places = {file: set(at.lines if at.lines.start in at.function else at.function)}
    elif at.name is None:
        places = {file: _inside_functions(sources[file])}
    else:
        word, places = re.compile(rf"\b{at.name}\b"), {}
        for other, text in sources.items():
            named = {n for n, row in enumerate(text.splitlines(), 1) if word.search(row)}
            places[other] = named & _inside_functions(text)

    def executes(test: str) -> bool:
        executed = tests[test]["lines"]
        if word and file in executed and word.search((root / test).read_text()):
            return True
        return any(not lines.isdisjoint(executed.get(f, ())) for f, lines in places.items())

    return sorted(filter(executes, tests), key=lambda test: tests[test]["seconds"])


def list_files(root: Path) -> list[str]:
    """Returns the files of a checkout that Git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(file for file in set(files.split("\0")) if file and (root / file).is_file())


def make_copy(root: Path, folder: Path) -> Path:
    """Copies a checkout. Raises RuntimeError if Python would import the package from elsewhere."""
    for file in list_files(root):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, folder / file)
    # Bytecode that carries its source's hash, so that a stale file cannot hide a mutant.
    compiled = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash", PACKAGE]
    subprocess.run([sys.executable, *compiled], cwd=folder, check=True)
    command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    where = subprocess.check_output(command, cwd="/", env=_environment(folder, root), text=True)
    if not Path(where.strip()).is_relative_to(folder):
        raise RuntimeError(f"the tests would import {where.strip()}, not the copy in {folder}")
    return folder


def _environment(copy: Path, root: Path) -> dict[str, str]:
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [str(copy), *(path for path in paths if Path(path).resolve() != root)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "PYTEST_"))}
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(
    copy: Path, root: Path, options: list[str], limit: float, rcfile: Path | None = None
) -> tuple[int | None, list[str]]:
    """Runs the fast tests among `options` in a copy, under coverage if there is an `rcfile`.

    Returns pytest's exit code, None after `limit` seconds, and the tests that failed.
    """
    under = ["-m", "coverage", "run", f"--rcfile={rcfile}"] if rcfile else []
    command = [sys.executable, *under, "-m", "pytest", "-m", "not slow", "--tb=no", "-q", "-rfE"]
    command += ["-o", f"cache_dir={root}/.pytest_cache/mutants/pytest", *options]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=_environment(copy, root),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(process)
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(limit)
        stop(process)  # what the tests started and left running, too
        output.seek(0)
        return code, re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output.read(), re.M)


def stop(*processes: subprocess.Popen) -> None:
    """Kills these test runs, or all, with the processes that they started."""
    for process in processes or tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _running.discard(process)


def measure(test: str, copy: Path, root: Path) -> TestFile:
    """Runs one test file under coverage."""
    with tempfile.TemporaryDirectory() as folder:
        rcfile = Path(folder) / "rc"
        rcfile.write_text(COVERAGE.format(copy=copy, package=PACKAGE, data=f"{folder}/data"))
        start = time.perf_counter()
        code, failed = run_tests(copy, root, [test], 3600, rcfile)
        seconds = time.perf_counter() - start
        lines = collections.defaultdict(set)
        for file in Path(folder).glob("data.*") if code in (0, 1) else ():
            data = coverage.CoverageData(str(file))
            data.read()
            for name in data.measured_files():
                lines[Path(name).relative_to(copy).as_posix()].update(data.lines(name) or ())
    if failed:  # perhaps only because coverage is slow
        _, failed = run_tests(copy, root, [test], 3600)
    executed = {file: sorted(numbers) for file, numbers in lines.items()}
    return TestFile(seconds=seconds, failed=failed, lines=executed)


def measure_all(
    root: Path, copies: queue.Queue[Path], pool: Executor, refresh: bool
) -> dict[str, TestFile]:
    """Returns what `measure` returns for each test file, from the cache if no source changed."""
    files = list_files(root)
    digest = hashlib.sha256()
    for file in filter(lambda file: file.startswith(SOURCES), files):
        digest.update(file.encode() + b"\0" + (root / file).read_bytes())
    cache = root / ".pytest_cache/mutants"
    known = cache / f"coverage-{digest.hexdigest()[:16]}.json"
    if known.is_file() and not refresh:
        return json.loads(known.read_text())
    programs = ".pytest_cache/d/xla"  # compiled by earlier tests; those of mutants stay apart
    if (root / programs).is_dir() and not (cache / "pytest/d/xla").is_dir():
        shutil.copytree(root / programs, cache / "pytest/d/xla")

    def job(test: str) -> TestFile:
        copy = copies.get()
        try:
            return measure(test, copy, root)
        finally:
            copies.put(copy)

    names = [file for file in files if re.search(r"^tests/(.*/)?test_\w+\.py$", file)]
    print(f"measuring what each of {len(names)} test files executes ...", flush=True)
    tests = {}
    for test, facts in zip(names, pool.map(job, names), strict=True):
        tests[test] = facts
        failed = f", failed without a mutant: {facts['failed']}" if facts["failed"] else ""
        print(f"  {facts['seconds']:4.0f} s  {test}{failed}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(tests))
    return tests

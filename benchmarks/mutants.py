"""Measure how many realistic one-line faults in the package the fast tests detect: `make mutants`.

First, every test file runs under coverage; .pytest_cache/mutants caches the result until a source
changes. Then a sample of faults (mutants), spread over packages and kinds, is tested in copies of
the checkout: the test files that execute the changed statement run, fastest first, until one fails.
"""

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import difflib
import hashlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import coverage  # pyright: ignore[reportMissingImports]
from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.operator import Operator  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import OperatorProvider  # pyright: ignore[reportMissingImports]

PACKAGE = "gnet_jax"
GROUPS = {"model", "ops", "training", "data", "model_folder", "convert", "inference", "lab"}
SOURCES = (PACKAGE, "tests", "configs", "train.py", "pyproject.toml")
OUTCOMES = ("killed", "survived", "uncovered")
COVERAGE = """[run]
source = {source}
data_file = {data}
parallel = true
patch = subprocess, _exit
"""
_running: set[subprocess.Popen] = set()
TAKEN = {
    "ReplaceComparisonOperator_": "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is",
    "ReplaceBinaryOperator_": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul",
    "ReplaceUnaryOperator_Delete_": "Not USub",
    "Replace": "TrueWithFalse FalseWithTrue AndWithOr OrWithAnd",
    "": "ReplaceBreakWithContinue ReplaceContinueWithBreak AddNot ZeroIterationForLoop",
}
MESSAGES = re.compile(
    "print|say|warn(ing)?|log|info|debug|report|text|legend|set_.*|.*(Error|Warning)"
)
UNSEEN = {"strict", "stacklevel", "flush", "encoding", "help", "description", "metavar", "match"}
UNTESTED = {"Literal", "Annotated", "axes", "axis", "figure", "gr", "plt"}
ARITHMETIC = {"arith_expr", "term", "power", "factor"}
PARTS = {"raise_stmt", "assert_stmt", "fstring", "fstring_expr", "decorator", "tfpdef"}
TYPED = {"isinstance", "issubclass", "getattr", "hasattr", "setattr", "super", "type"}


def code(node) -> str:
    """Returns the source of a node, without the surrounding whitespace."""
    return node.get_code().strip()


def callee(trailer) -> str:
    """Returns the name before the parentheses of a call: `mean` in `jnp.mean(x)`."""
    return trailer.get_previous_leaf().value


def is_call(node) -> bool:
    """Returns True if the node is the parentheses of a call, with their arguments."""
    return node.type == "trailer" and node.children[0].value == "("


def arguments(trailer) -> list:
    """Returns the nodes of a call's arguments."""
    inside = trailer.children[1]
    return inside.children[::2] if inside.type == "arglist" else trailer.children[1:-1]


def matters(leaf) -> bool:
    """Returns False in annotations, messages, static checks, paths and the layout of figures."""
    node, parent = leaf, leaf.parent
    if leaf.value in ("+", "-", "*", "/", "//", "%", "**"):
        others = "dir|file|folder|parent|path|root|new|out|where" if leaf.value == "/" else "[\"']"
        if parent.type not in ARITHMETIC or re.search(others, code(parent)):
            return False
    while parent is not None:
        kind, before = parent.type, node.get_previous_sibling()
        if (
            kind in PARTS
            or (kind == "annassign" and node is parent.children[1])
            or (kind == "funcdef" and before is not None and code(before) == "->")
            or (kind == "argument" and code(parent.children[0]) in UNSEEN)
            or (kind == "if_stmt" and re.search("TYPE_CHECKING|__name__", code(parent.children[1])))
        ):
            return False
        if kind in ("atom_expr", "power"):
            called = [callee(child) for child in parent.children if is_call(child)]
            if code(parent.children[0]) in UNTESTED or any(map(MESSAGES.fullmatch, called)):
                return False
        node, parent = parent, parent.parent
    return True


class Change(Operator):
    """Calls `change(node, target)` for one of the targets that `find(node)` returns."""

    def __init__(self, find: Callable[[Any], list], change: Callable[[Any, Any], Any]):
        self.find, self.change = find, change

    def mutation_positions(self, node) -> Any:
        return [(target.start_pos, target.end_pos) for target in self.find(node)]

    def mutate(self, node, index) -> Any:
        return self.change(node, self.find(node)[index])

    examples = classmethod(lambda cls: ())


def numbers(node) -> list:
    """Returns the node if it is a number, except 0.0."""
    fits = node.type == "number" and re.fullmatch(r"[\d._]+(e-?\d+)?", node.value)
    return [node] if fits and (node.value.isdigit() or float(node.value)) else []


def nudge_number(node, _) -> Any:
    """Adds 1 to an integer, and 10 % to a float."""
    text = node.value
    node.value = str(int(text) + 1) if text.isdigit() else f"{float(text) * 1.1:.6g}"
    return node


def keywords(node) -> list:
    """Returns the keyword arguments of a call."""
    found = [each for each in (arguments(node) if is_call(node) else []) if each.type == "argument"]
    return [each for each in found if code(each.children[1]) == "="]


def drop_keyword(node, target) -> Any:
    """Removes a keyword argument, and the comma after or before it."""
    inside = target.parent.children
    at = inside.index(target)
    last = at + 1 >= len(inside)
    del inside[slice(1, 2) if inside is node.children else slice(at - last, at - last + 2)]
    return node


def neighbours(node) -> list:
    """Returns the positional arguments that are followed by a different one of the same kind."""
    given = arguments(node) if is_call(node) and callee(node) not in TYPED else []
    return [
        first
        for first, second in itertools.pairwise(given)
        if first.type == second.type != "argument" and code(first) != code(second)
    ]


def swap_arguments(node, first) -> Any:
    """Swaps a positional argument with the next one."""
    inside = node.children[1].children
    at = inside.index(first)
    inside[at], inside[at + 2] = inside[at + 2], first
    return node


def call_statements(node) -> list:
    """Returns the call if the node is a statement that consists only of it, otherwise nothing."""
    call = node.children[0] if node.type == "simple_stmt" else None
    if call is None or call.type != "atom_expr" or not is_call(call.children[-1]):
        return []
    return [] if callee(call.children[-1]) == "__init__" else [call]


def omit_call(node, _) -> Any:
    """Replaces a statement by `pass`."""
    first = node.get_first_leaf()
    first.value = "pass"
    node.children[0] = first
    return node


NAMES = [start + end for start, ends in TAKEN.items() for end in ends.split()]
KINDS: dict[str, Any] = {name: OperatorProvider()[name]() for name in NAMES} | {
    "NudgeNumber": Change(numbers, nudge_number),
    "DropKeyword": Change(keywords, drop_keyword),
    "SwapArguments": Change(neighbours, swap_arguments),
    "OmitCall": Change(call_statements, omit_call),
}


class Mutant(NamedTuple):
    """One fault: the `occurrence`-th place in a file where an operator applies."""

    file: str
    line: int
    operator: str
    occurrence: int
    text: str  # the file's text without the fault

    def mutated(self) -> str | None:
        """Returns the mutated source, or None if it has a syntax error or the same syntax tree."""
        changed = mutate_code(self.text, KINDS[self.operator], self.occurrence) or self.text
        changed = re.sub(r"\bnot not\b ?", "", changed)
        try:
            dumps = [ast.dump(ast.parse(text)) for text in (changed, self.text)]
        except SyntaxError:
            return None
        return changed if dumps[0] != dumps[1] else None

    def diff(self) -> str:
        rows = self.text.splitlines(), (self.mutated() or "").splitlines()
        return "\n".join(difflib.unified_diff(*rows, self.file, self.file, n=1, lineterm=""))


def enumerate_mutants(file: str, text: str) -> list[Mutant]:
    """Returns the mutants of a file, except those in places where `matters` returns False."""
    found, tree, count = [], get_ast(text), collections.Counter()
    for node in ast_nodes(tree):
        for name, operator in KINDS.items():
            for start, _ in operator.mutation_positions(node):
                if matters(tree.get_leaf_for_position(start)):
                    found.append(Mutant(file, start[0], name, count[name], text))
                count[name] += 1
    return found


def draw(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """Returns up to `size` mutants, at most one per line, balanced over packages and kinds."""
    groups: dict[str, dict[str, list[Mutant]]] = {}
    for mutant in random.Random(seed).sample(mutants, len(mutants)):
        kinds = groups.setdefault(mutant.file.split("/")[1], {})
        kinds.setdefault(mutant.operator, []).append(mutant)
    turns = [collections.deque(kinds.values()) for _, kinds in sorted(groups.items())]
    sample: list[Mutant] = []
    while len(sample) < size and any(turns):
        for kinds in filter(None, turns):
            kind = kinds.popleft()
            mutant = kind.pop()
            if kind:
                kinds.append(kind)
            if mutant[:2] not in {other[:2] for other in sample} and mutant.mutated():
                sample.append(mutant)
    return sample[:size]


def find_tests(mutant: Mutant, tests: dict[str, Any]) -> dict[str, Any]:
    """Returns the test files that execute the statement (of a `def`: the body), fastest first."""
    nodes = [n for n in ast.walk(ast.parse(mutant.text)) if isinstance(n, ast.stmt)]
    own = [n for n in nodes if n.lineno <= mutant.line <= (n.end_lineno or 0)]
    at = max(own, key=lambda n: (n.lineno, -(n.end_lineno or 0)))
    first, last, body = at.lineno, at.end_lineno or at.lineno, getattr(at, "body", None)
    if isinstance(at, ast.FunctionDef):
        first = at.body[0].lineno
    elif body:
        last = max(first, body[0].lineno - 1)
    lines = set(range(first, last + 1))
    found = {t: f for t, f in tests.items() if lines.intersection(f["lines"].get(mutant.file, ()))}
    return dict(sorted(found.items(), key=lambda item: item[1]["seconds"]))


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
    command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    where = subprocess.check_output(command, cwd="/", env=environment(folder), text=True)
    if not Path(where.strip()).is_relative_to(folder):
        raise RuntimeError(f"the tests would import {where.strip()}, not the copy in {folder}")
    return folder


def environment(copy: Path) -> dict[str, str]:
    """Returns the environment variables with which tests import the copy."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "PYTEST_"))}
    paths = os.pathsep.join(filter(None, [str(copy), kept.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(
    copy: Path, root: Path, options: list[str], limit: float, *under: str
) -> tuple[int | None, list[str]]:
    """Returns pytest's exit code (None if stopped after `limit` seconds) and the failed tests."""
    command = [sys.executable, *under, "-m", "pytest", "-m", "not slow", "--tb=no", "-q", "-rfE"]
    command += ["-o", f"cache_dir={root}/.pytest_cache/mutants/pytest", *options]
    with tempfile.TemporaryFile("w+") as out:
        streams: dict[str, Any] = {"stdout": out, "stderr": out, "start_new_session": True}
        process = subprocess.Popen(command, cwd=copy, env=environment(copy), **streams)
        _running.add(process)
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(limit)
        stop(process)  # and any processes the tests left running
        out.seek(0)
        return code, re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", out.read(), re.MULTILINE)


def stop(*processes: subprocess.Popen) -> None:
    """Kills the given test runs, or all, and the processes that they started."""
    for process in processes or tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _running.discard(process)


def measure(test: str, copy: Path, root: Path) -> dict[str, Any]:
    """Runs a test file. Returns its seconds, failed tests and executed lines by source file."""
    with tempfile.TemporaryDirectory() as folder:
        rcfile = Path(folder) / "rc"
        rcfile.write_text(COVERAGE.format(source=copy / PACKAGE, data=f"{folder}/data"))
        start, under = time.perf_counter(), ("-m", "coverage", "run", f"--rcfile={rcfile}")
        _, failed = run_tests(copy, root, [test], 3600, *under)
        seconds = time.perf_counter() - start
        measured = coverage.Coverage(config_file=str(rcfile))
        with contextlib.suppress(coverage.exceptions.NoDataError):
            measured.combine()
        data = measured.get_data()
        lines = {Path(n).relative_to(copy).as_posix(): data.lines(n) for n in data.measured_files()}
    return {"seconds": seconds, "failed": failed, "lines": lines}


def find_killer(chosen: dict[str, Any], copy: Path, root: Path) -> str | None:
    """Returns the first test that fails or hangs on a mutated copy, None if all pass."""
    for test, facts in chosen.items():
        options = ["-x", f"--timeout={60 + 3 * facts['seconds']:.0f}", test]
        options += [f"--deselect={name}" for name in facts["failed"]]
        code, failed = run_tests(copy, root, options, 120 + 4 * facts["seconds"])
        if code not in (0, 5):  # 5: every test was deselected
            return failed[0] if failed else f"{test}, exit code {code}"
    return None


def report(results: list[dict[str, Any]]) -> float:
    """Prints the mutants not killed and a table by package. Returns the percentage killed."""
    groups = collections.defaultdict(collections.Counter)
    for result in results:
        for group in (result["group"], "all"):
            groups[group][result["outcome"]] += 1
        if result["outcome"] != "killed":
            print(f"\n{result['outcome']}: {result['operator']}\n{result['diff']}")
    print(f"\n| package | {' | '.join(OUTCOMES)} | score |\n|---|---:|---:|---:|---:|")
    for group in sorted(groups, key=lambda group: (group == "all", group)):
        numbers = [groups[group][outcome] for outcome in OUTCOMES]
        score = f"{100 * numbers[0] / sum(numbers):.1f} %"
        print(f"| {group} | {' | '.join(map(str, numbers))} | {score} |")
    return 100 * groups["all"]["killed"] / len(results)


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=120, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--only", metavar="PATH", help="mutate only this file or folder")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at the same time")
    parser.add_argument("--refresh", action="store_true", help="measure coverage again")
    parser.add_argument("--list", action="store_true", help="print the mutants and exit")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "--fail-under", type=float, default=0, help="exit with code 1 if fewer percent are killed"
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="checkout")
    args = parser.parse_args()
    root, mutants = args.root.resolve(), []
    files = list_files(root)
    for file in (f for f in files if f.startswith(f"{PACKAGE}/") and f.endswith(".py")):
        if Path(file).is_relative_to(args.only) if args.only else file.split("/")[1] in GROUPS:
            mutants += enumerate_mutants(file, (root / file).read_text())
    sample = draw(mutants, args.sample, args.seed)
    if not sample:
        parser.error("nothing to mutate")
    print(f"{len(sample)} of {len(mutants)} mutants, seed {args.seed}", flush=True)
    if args.list:
        print(*(mutant.diff() for mutant in sample), sep="\n")
        return 0

    digest = hashlib.sha256()
    for file in filter(lambda file: file.startswith(SOURCES), files):
        digest.update(file.encode() + b"\0" + (root / file).read_bytes())
    cache = root / ".pytest_cache/mutants"
    known = cache / f"coverage-{digest.hexdigest()[:16]}.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    copies: queue.Queue[Path] = queue.Queue()
    results = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        pool = concurrent.futures.ThreadPoolExecutor(args.jobs)

        def in_a_copy(function, *arguments) -> Any:
            copy = copies.get()
            try:
                return function(*arguments, copy, root)
            finally:
                copies.put(copy)

        def try_mutant(mutant: Mutant, copy: Path, root: Path) -> dict[str, Any]:
            chosen = find_tests(mutant, tests)
            (copy / mutant.file).write_text(mutant.mutated() or "")
            try:
                killer = find_killer(chosen, copy, root) if chosen else None
            finally:
                (copy / mutant.file).write_text(mutant.text)
            outcome = "killed" if killer else "survived" if chosen else "uncovered"
            facts = {"group": mutant.file.split("/")[1], "outcome": outcome, "killer": killer}
            facts |= {"file": mutant.file, "line": mutant.line, "operator": mutant.operator}
            return facts | {"tests": list(chosen), "diff": mutant.diff()}

        try:
            for number in range(args.jobs):
                copies.put(make_copy(root, Path(folder, str(number)).resolve()))
            if args.refresh or not known.is_file():
                names = [file for file in files if re.search(r"^tests/(.*/)?test_\w+\.py$", file)]
                print(f"measuring what each of {len(names)} test files executes ...", flush=True)
                measured = pool.map(lambda name: in_a_copy(measure, name), names)
                cache.mkdir(parents=True, exist_ok=True)
                known.write_text(json.dumps(dict(zip(names, measured, strict=True))))
            tests = json.loads(known.read_text())
            jobs = [pool.submit(in_a_copy, try_mutant, mutant) for mutant in sample]
            for number, future in enumerate(concurrent.futures.as_completed(jobs), 1):
                results.append(r := future.result())
                where = f"{r['file']}:{r['line']} {r['operator']}"
                print(f"[{number}/{len(sample)}] {r['outcome']}: {where}", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            pool.shutdown()
    results.sort(key=lambda result: (result["file"], result["line"]))
    score = report(results)
    if args.json:
        facts = {"seed": args.seed, "only": args.only, "score": score, "mutants": results}
        args.json.write_text(json.dumps(facts, indent=1))
    return int(score < args.fail_under)


if __name__ == "__main__":
    sys.exit(main())

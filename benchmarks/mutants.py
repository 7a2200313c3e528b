"""How many realistic one-line faults in the package the fast tests notice: `make mutants`.

A reproducible sample of mutants, spread over the packages and over the kinds of fault
(mutation_operators.py), is tested in temporary copies of the checkout. First every test file runs
alone under coverage; the result is kept in .pytest_cache/mutants until a source changes. Then
each mutant meets the test files that execute the mutated statement (mutation_tests.py), the
quickest first, until a test fails or hangs.
"""

import argparse
import ast
import collections
import concurrent.futures
import difflib
import json
import queue
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
from mutation_operators import literal_choices, matters, operators
from mutation_tests import (
    PACKAGE,
    TestFile,
    find_tests,
    list_files,
    make_copy,
    measure_all,
    run_tests,
    stop,
)

GROUPS = {"model", "ops", "training", "data", "weights", "model_folder", "convert"}
GROUPS |= {"inference", "lab"}
OUTCOMES = ("killed", "survived", "uncovered")
Kinds = Mapping[str, Any]  # operators by name


class Mutant(NamedTuple):
    """One fault: the `occurrence`-th place in a file where an operator applies."""

    file: str
    line: int
    operator: str
    occurrence: int

    @property
    def group(self) -> str:
        return self.file.split("/")[1]


def enumerate_mutants(sources: Mapping[str, str], kinds: Kinds) -> list[Mutant]:
    """Returns all mutants of these files except those that cannot matter."""
    found = []
    for file, text in sources.items():
        tree, count = get_ast(text), collections.Counter()
        for node in ast_nodes(tree):
            for name, operator in kinds.items():
                for start, _ in operator.mutation_positions(node):
                    if matters(tree.get_leaf_for_position(start)):
                        found.append(Mutant(file, start[0], name, count[name]))
                    count[name] += 1
    return found


def mutate(mutant: Mutant, text: str, kinds: Kinds) -> str | None:
    """Returns the mutated source, None if it does not compile or means the same."""
    changed = mutate_code(text, kinds[mutant.operator], mutant.occurrence) or text
    changed = re.sub(r"\bnot not\b ?", "", changed)
    try:
        return None if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)) else changed
    except SyntaxError:
        return None


def draw(
    mutants: list[Mutant], size: int, seed: int, usable: Callable[[Mutant], bool]
) -> list[Mutant]:
    """Returns up to `size` usable mutants, at most one of each line.

    Groups take turns, so each gets an equal share as long as it has mutants left; so do the
    kinds of fault within a group.
    """
    groups: dict[str, dict[str, list[Mutant]]] = {}
    for mutant in random.Random(seed).sample(mutants, len(mutants)):
        groups.setdefault(mutant.group, {}).setdefault(mutant.operator, []).append(mutant)
    turns = [collections.deque(kinds.values()) for _, kinds in sorted(groups.items())]
    sample, lines = [], set()
    while len(sample) < size and any(turns):
        for kinds in turns:
            while kinds:  # until one mutant of this group is found
                kind = kinds.popleft()
                mutant = kind.pop()
                if kind:
                    kinds.append(kind)
                if mutant[:2] not in lines and usable(mutant):
                    lines.add(mutant[:2])
                    sample.append(mutant)
                    break
    return sample[:size]


def difference(mutant: Mutant, text: str, kinds: Kinds) -> str:
    """Returns the mutant as a diff."""
    changed = mutate(mutant, text, kinds) or ""
    rows = text.splitlines(), changed.splitlines()
    return "\n".join(difflib.unified_diff(*rows, mutant.file, mutant.file, n=1, lineterm=""))


def find_killer(chosen: Mapping[str, TestFile], copy: Path, root: Path) -> str | None:
    """Runs test files on a mutated copy. Returns the first test that fails, None if none does.

    A test counts only if it fails alone, too, as it passes alone without the mutant.
    """
    seconds = [facts["seconds"] for facts in chosen.values()]
    hang, limit = f"--timeout={60 + 3 * max(seconds):.0f}", 120 + 4 * sum(seconds)
    left_out = [test for facts in chosen.values() for test in facts["failed"]]
    while True:
        options = ["-x", hang, *chosen, *(f"--deselect={test}" for test in left_out)]
        code, failed = run_tests(copy, root, options, limit)
        if code in (0, 5):  # 5: all tests were deselected
            return None
        if not failed:
            return "a hang" if code is None else f"exit code {code}"
        if run_tests(copy, root, [hang, failed[0]], limit)[0] != 0:
            return failed[0]
        left_out.append(failed[0])


def try_mutant(
    file: str, changed: str, chosen: Mapping[str, TestFile], copy: Path, root: Path
) -> tuple[str, str | None]:
    """Returns the outcome and, if the mutant was killed, the first test that failed."""
    batches: list[dict[str, TestFile]] = []  # a minute each: a process keeps what it compiled
    for name, facts in chosen.items():
        if not batches or sum(other["seconds"] for other in batches[-1].values()) > 60:
            batches.append({})
        batches[-1][name] = facts
    original = (copy / file).read_text()
    (copy / file).write_text(changed)
    try:
        killers = (find_killer(batch, copy, root) for batch in batches)
        killer = next(filter(None, killers), None)
    finally:
        (copy / file).write_text(original)
    return "killed" if killer else "survived" if chosen else "uncovered", killer


def report(results: list[dict[str, Any]]) -> float:
    """Prints what was not killed and a table by package. Returns the score, in percent."""
    groups = {group: collections.Counter() for group in sorted(r["group"] for r in results)}
    for result in results:
        groups[result["group"]][result["outcome"]] += 1
        if result["outcome"] != "killed":
            print(f"\n{result['outcome']}: {result['operator']}\n{result['diff']}")
    groups["all"] = sum(groups.values(), collections.Counter())
    print(f"\n| package | {' | '.join(OUTCOMES)} | score |\n|---|---:|---:|---:|---:|")
    for group, count in groups.items():
        numbers = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
        print(f"| {group} | {numbers} | {100 * count['killed'] / count.total():.1f} % |")
    return 100 * groups["all"]["killed"] / len(results)


def _exit(*_) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
    sys.exit("terminated")


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=120, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--only", metavar="PATH", help="mutate only files below this path")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested at the same time")
    parser.add_argument("--refresh", action="store_true", help="measure the coverage again")
    parser.add_argument("--list", action="store_true", help="print the mutants and exit")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--fail-under", type=float, default=0, help="exit with 1 below this score")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="checkout")
    args = parser.parse_args()
    root = args.root.resolve()
    files = [f for f in list_files(root) if f.startswith(f"{PACKAGE}/") and f.endswith(".py")]
    sources = {file: (root / file).read_text() for file in files}
    kinds = operators(literal_choices(sources.values()))

    def is_wanted(file: str) -> bool:
        return Path(file).is_relative_to(args.only) if args.only else file.split("/")[1] in GROUPS

    mutants = enumerate_mutants({f: t for f, t in sources.items() if is_wanted(f)}, kinds)
    sample = draw(
        mutants, args.sample, args.seed, lambda m: bool(mutate(m, sources[m.file], kinds))
    )
    if not sample:
        parser.error("there is nothing to mutate")
    shares = collections.Counter(mutant.group for mutant in sample)
    print(f"{len(sample)} of {len(mutants)} mutants, seed {args.seed}: {dict(shares)}", flush=True)
    if args.list:
        print(*(difference(mutant, sources[mutant.file], kinds) for mutant in sample), sep="\n")
        return 0

    copies: queue.Queue[Path] = queue.Queue()
    signal.signal(signal.SIGTERM, _exit)
    pool = concurrent.futures.ThreadPoolExecutor(args.jobs)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        try:
            for number in range(args.jobs):
                copies.put(make_copy(root, Path(folder, str(number)).resolve()))
            tests = measure_all(root, copies, pool, args.refresh)
            start = time.perf_counter()

            def job(mutant: Mutant) -> dict[str, Any]:
                copy, begun, text = copies.get(), time.perf_counter(), sources[mutant.file]
                names = find_tests(mutant.file, mutant.line, sources, tests, root)
                changed = mutate(mutant, text, kinds) or ""
                chosen = {name: tests[name] for name in names}
                outcome, killer = try_mutant(mutant.file, changed, chosen, copy, root)
                copies.put(copy)
                facts = {"group": mutant.group, "outcome": outcome, "killer": killer}
                facts |= {"tests": names, "seconds": time.perf_counter() - begun}
                return mutant._asdict() | facts | {"diff": difference(mutant, text, kinds)}

            jobs = [pool.submit(job, mutant) for mutant in sample]
            for number, future in enumerate(concurrent.futures.as_completed(jobs), 1):
                results.append(r := future.result())
                left = (time.perf_counter() - start) / number * (len(sample) - number) / 60
                print(
                    f"[{number}/{len(sample)}, {left:.0f} min left] {r['outcome']}: {r['file']}:"
                    f"{r['line']} {r['operator']}, {len(r['tests'])} test files, "
                    f"{r['seconds']:.0f} s{', by ' + r['killer'] if r['killer'] else ''}",
                    flush=True,
                )
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

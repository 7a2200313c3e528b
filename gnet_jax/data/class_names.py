"""Read class names from a file of the user."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.config.paths import typed_path
from gnet_jax.data.sources import DataError

_SYNSET = re.compile(r"(n\d{8})[\s,]+(\S.*)")  # n01440764 tench, Tinca tinca
_NUMBER_FIRST = re.compile(r"(?P<number>\d+)\s*[\s:,;]\s*(?P<name>\S.*)")  # 0: tench
_NUMBER_LAST = re.compile(r"(?P<name>.*\S)[\s:,;]+(?P<number>\d+)")  # /a/airfield 0


def read_class_names(file: Path) -> tuple[str, ...]:
    """Returns the class names in a file, in the order of a network's outputs.

    A text file has one name per line. If each line starts with a WordNet id, the ids are removed.
    If each line starts or ends with a number, and these are 0, 1, 2, ... in any order, the names
    are sorted by number and the numbers are removed. A file of JSON or a Python literal contains a
    list of names, a dict from index to name, or a dict from name to index. There, a pair of
    WordNet id and name can replace a name. Raises DataError naming the first bad line or entry.
    """
    try:
        text = typed_path(file).read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the class names in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        line = error.object.splitlines()[number - 1].strip()[:80]
        raise DataError(
            f"line {number} of {file} is not UTF-8: {line!r}; save the file as UTF-8, for example "
            "with iconv -f LATIN1 -t UTF-8"
        ) from error
    if text.lstrip().startswith(("[", "{")):
        return _from_json(text.strip(), file)
    return _from_lines(re.split(r"\r\n|\r|\n", text), file)


def _from_lines(lines: Sequence[str], file: Path) -> tuple[str, ...]:
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"line {names.index('') + 1} of {file} is blank; each line must be a class name"
        )
    synsets = [_SYNSET.fullmatch(name) for name in names]
    if any(synsets):
        if None in synsets:
            odd = synsets.index(None)
            raise DataError(f"line {odd + 1} of {file} has no WordNet id: {names[odd]!r}")
        return tuple(match[2] for match in synsets if match)
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        numbered = [match for match in map(pattern.fullmatch, names) if match]
        found = {int(match["number"]): match["name"] for match in numbered}
        # Keep the numbers of "class 0", "class 1": without them, the names would be equal.
        in_order = tuple(found[i] for i in range(len(names)) if i in found)
        if len(numbered) == len(names) == len(set(in_order)):
            return in_order
    return tuple(names)


def _from_json(text: str, file: Path) -> tuple[str, ...]:
    try:
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, list | dict):  # a set has no order
        raise DataError(
            f"{file} contains a {type(value).__name__} of class names; use a list, [...], or a dict"
        )
    if isinstance(value, dict) and all(type(i) is int for i in value.values()):
        value = {index: name for name, index in value.items()}
    if isinstance(value, dict):
        found = {int(k) if str(k).isdecimal() else k: name for k, name in value.items()}
        if found.keys() != set(range(len(value))):
            raise DataError(f"the class names in {file} are not numbered 0, 1, 2, ...")
        value = [found[i] for i in range(len(found))]
    # A pair of WordNet id and name becomes one line of text.
    names = [" ".join(map(str, e)) if isinstance(e, list | tuple) else e for e in value]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"entry {index} of {file} is {str(name)[:80]!r}, not a class name")
    return _from_lines(names, file)

"""Class names from a file that a user names."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnet_jax.model_folder.variables import WeightsError

_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SYNSET = re.compile(r"(n\d{8})[\s,]+(\S.*)")  # n01440764 tench, Tinca tinca
_NUMBER_FIRST = re.compile(r"(?P<number>\d+)\s*[\s:,;]\s*(?P<name>\S.*)")  # 0: tench
_NUMBER_LAST = re.compile(r"(?P<name>.*\S)[\s:,;]+(?P<number>\d+)")  # /a/airfield 0


def read_class_names(file: Path) -> tuple[str, ...]:
    """Returns the class names in a text or JSON file, in the order of a network's outputs. A text
    file has one name on each line; blank lines at the end are ignored. WordNet ids before the names
    are removed if every line has one. Numbers before or after the names set the order if they are
    0, 1, 2, ... JSON, or a Python literal, is a list of names, a dict of names by index, or a dict
    of indices by name. A pair of WordNet id and name can stand for a name. Raises WeightsError
    naming the file and its first invalid line or entry.
    """
    try:
        data = file.expanduser().read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the class names in {file}: {error.strerror}") from error
    marks = [code for mark, code in _BYTE_ORDER_MARKS.items() if data.startswith(mark)]
    try:
        text = data.decode(marks[0] if marks else "utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        line = data.split(b"\n")[number - 1].strip()[:80]
        raise WeightsError(
            f"line {number} of {file} is not {error.encoding.upper()}: {line!r}; save the "
            "file as UTF-8, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise WeightsError(
            f"{file} contains zero bytes, so it is binary or UTF-16 without a byte-order mark; "
            "save it as UTF-8"
        )
    if text.lstrip().startswith(("[", "{")):
        return _from_json(text.strip(), file)
    return _from_lines(re.split(r"\r\n|\r|\n", text), file)


def _from_lines(lines: Sequence[str], file: Path) -> tuple[str, ...]:
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise WeightsError(f"line {names.index('') + 1} of {file} is blank; each line is a class")
    synsets = [_SYNSET.fullmatch(name) for name in names]
    if any(synsets):
        if not all(synsets):
            odd = synsets.index(None)
            raise WeightsError(
                f"line {odd + 1} of {file} is {names[odd][:80]!r}, without the WordNet id that "
                "other lines start with"
            )
        return tuple(match[2] for match in synsets if match)
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        numbered = [match for match in map(pattern.fullmatch, names) if match]
        found = {int(match["number"]): match["name"] for match in numbered}
        # "class 0", "class 1" are names: without the numbers they would be the same name.
        if len(numbered) == len(names) == len(set(found.values())) and _is_range(found):
            return tuple(found[i] for i in range(len(found)))
    return tuple(names)


def _from_json(text: str, file: Path) -> tuple[str, ...]:
    try:
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise WeightsError(f"{file} is not valid JSON: {error}") from error
    if isinstance(value, dict) and all(type(i) is int for i in value.values()):
        value = {index: name for name, index in value.items()}
    if isinstance(value, dict):
        found = {int(k) if str(k).isdecimal() else k: name for k, name in value.items()}
        if len(found) != len(value) or not _is_range(found):
            raise WeightsError(f"the class names in {file} are not numbered 0, 1, 2, ...")
        value = [found[i] for i in range(len(found))]
    names = [entry[-1] if _is_synset(entry) else entry for entry in value]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise WeightsError(f"entry {index} of {file} is {str(name)[:80]!r}, not a class name")
    return _from_lines(names, file)


def _is_synset(entry: Any) -> bool:
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    return pair and re.fullmatch(r"n\d{8}", str(entry[0])) is not None


def _is_range(found: dict[Any, Any]) -> bool:
    return found.keys() == set(range(len(found)))

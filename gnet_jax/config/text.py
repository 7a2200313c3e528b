"""Names of files and classes, which need not be text, and paths that were typed."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Control characters, line separators, and what Python makes of bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def as_text(name: str) -> str:
    r"""Returns `name` as one line of valid text, which JSON, protobuf and a terminal accept.

    A byte that is not UTF-8 becomes \xNN, a control character the escape that Python writes: the
    Latin-1 name of a folder "café" becomes r"caf\xe9". All other names stay as they are.
    """
    return _UNPRINTABLE.sub(_escaped, name)


def _escaped(found: re.Match[str]) -> str:
    byte = ord(found[0]) - 0xDC00  # os.fsdecode maps the byte 0x80 to U+DC80, and so on
    if 0x80 <= byte <= 0xFF:
        return f"\\x{byte:02x}"
    return found[0].encode("unicode_escape").decode()


def typed_path(text: str) -> Path:
    """Returns the path that `text` names: as it is if it exists, otherwise with ~ expanded."""
    path = Path(text)
    try:
        return path if os.path.exists(text) else path.expanduser()
    except RuntimeError:  # ~NAME of a user that there is not
        return path


def json_text(value: Any, **options: Any) -> str:
    """Returns `value` as JSON, with null for every float that is not finite.

    Args:
        value: what `json.dumps` takes.
        options: of `json.dumps`, such as `indent`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""How the commands print."""

import json
import sys

from rich.console import Console


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def json_line(value: object) -> str:
    """`value` as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)

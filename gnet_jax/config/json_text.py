"""JSON that every reader accepts: NaN and Infinity, which JSON does not have, become null."""

import json
import math
from collections.abc import Mapping
from typing import Any


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

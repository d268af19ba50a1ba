"""Nested values -> strict JSON, which every reader understands."""

import json
import math
from typing import Any


def strict_json(document: Any) -> str:
    """Return nested dicts, lists, texts and numbers as JSON; null is a number that does not exist, or is infinite."""
    return json.dumps(_without_nan(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """Return None for every NaN and infinity: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

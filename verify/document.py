"""JSON documents, without anything heavy to load."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SCHEMA = "ringfence/1"
"""Name and version of the documents; a change that breaks a reader changes it."""


def to_json(document: Any) -> str:
    """The document as JSON text: floats at full precision; NaN and infinity, which JSON does not know, as null."""
    return json.dumps(_finite(document), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value

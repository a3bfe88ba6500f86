"""Feedback: late ground-truth labels, from any door, on their way to the inference table.

A label names its prediction by `prediction_id`, or the caller's own `client_request_id`. It may come late, twice,
corrected, or before its prediction: nothing is looked up here, the table joins when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from .config import Durability
from .errors import BadInput, nearest
from .scoring import microseconds
from .spool import FEEDBACK, SpoolWriter, model_spool
from .times import parse_time

LABEL_FIELDS = ("prediction_id", "client_request_id", "label", "label_time", "source")
_WORDS = {"true": 1.0, "false": 0.0}


class FeedbackLog:
    """Where a door leaves labels. `kind` is the type of the model's predictions: "double" or "string"."""

    def __init__(
        self, root: str | Path, model_name: str, kind: str, *, source: str, durability: Durability = "process"
    ) -> None:
        self._kind = kind
        self._source = source
        self._writer = SpoolWriter(model_spool(root, model_name) / FEEDBACK, durability)

    def submit(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Keep labels, all or none of them; return how many.

        Each row has `prediction_id` or `client_request_id`, `label` (number, boolean or string), and optionally
        `label_time` (ISO 8601, when it became true; default now) and `source`.
        Raises BadInput that names the row, Unavailable when they cannot be written.
        """
        now = microseconds(datetime.now(timezone.utc))
        columns: dict[str, list[Any]] = {name: [] for name in LABEL_FIELDS}
        for i, row in enumerate(rows):
            for name, value in parse_feedback(row, self._kind, i, now).items():
                columns[name].append(value)
        if rows:
            columns["source"] = [source or self._source for source in columns["source"]]
            self._writer.append(orjson.dumps({"k": {"received_time": now}, "c": columns}))
        return len(rows)

    def close(self) -> None:
        self._writer.close()


def parse_feedback(
    row: Mapping[str, Any], kind: str, number: int = 0, now_us: int | None = None
) -> dict[str, Any]:
    """Check one label of a request and return its fields, times as microseconds since 1970 UTC.

    Raises BadInput that names the row, the field and the remedy.
    """
    try:
        if not isinstance(row, Mapping):
            raise BadInput(f"must be an object with prediction_id and label, got {type(row).__name__}")
        for name in row:
            if name not in LABEL_FIELDS:
                raise BadInput(
                    f"unknown field {name!r}{nearest(str(name), LABEL_FIELDS)}; known: {', '.join(LABEL_FIELDS)}"
                )
        return check_label(row, kind, now_us)
    except BadInput as error:
        raise BadInput(f"feedback row {number}: {error.message}") from None


def check_label(row: Mapping[str, Any], kind: str, now_us: int | None = None) -> dict[str, Any]:
    """Check the fields of one label and return them as `parse_feedback` does; others are passed over.

    Raises BadInput that names the field and the remedy.
    """
    ids = {name: row.get(name) for name in ("prediction_id", "client_request_id")}
    for name, value in ids.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise BadInput(f"{name} must be a non-empty string, got {value!r}")
    if all(value is None for value in ids.values()):
        raise BadInput("give prediction_id or client_request_id, so that the label finds its prediction")
    source = row.get("source")
    if source is not None and not isinstance(source, str):
        raise BadInput(f"source must be a string, got {source!r}")
    if ids["prediction_id"] is not None:
        ids["client_request_id"] = None  # the more exact of the two
    return {
        **ids,
        "label": _label(row.get("label"), kind),
        "label_time": _label_time(row.get("label_time"), now_us),
        "source": source,
    }


def _label(value: Any, kind: str) -> float | str:
    if value is None:
        raise BadInput("label is missing")
    if kind == "string":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value)
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    try:
        label = float(value)
    except (TypeError, ValueError):
        raise BadInput(f"label must be a number, as the model's predictions are, got {value!r}") from None
    if not math.isfinite(label):
        raise BadInput(f"label must be finite, got {value!r}")
    return label


def _label_time(value: Any, now_us: int | None) -> int:
    if value is None:
        return now_us if now_us is not None else microseconds(datetime.now(timezone.utc))
    try:
        return microseconds(parse_time(value))
    except ValueError:
        raise BadInput(f"label_time must be ISO 8601, got {value!r}") from None

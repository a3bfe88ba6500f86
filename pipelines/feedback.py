"""Feedback: late ground-truth labels, from any door, on their way to the inference table.

A label names its prediction by `prediction_id`, or the caller's own `client_request_id`. It may come late, twice,
corrected, or before its prediction: nothing is looked up here, the table joins when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from .config import Durability
from .errors import BadInput, NotFound, nearest
from .scoring import microseconds
from .spool import FEEDBACK, SpoolWriter, model_spool
from .times import parse_time

_FIELDS = ("prediction_id", "client_request_id", "label", "label_time", "source")
_WORDS = {"true": 1.0, "false": 0.0}
_CHUNK = 50_000


class FeedbackLog:
    """Where a door leaves labels. `kind` is the type of the model's predictions: "double" or "string"."""

    def __init__(
        self, root: str | Path, model_name: str, kind: str, *, source: str, durability: Durability = "process"
    ) -> None:
        self._kind = kind
        self._source = source
        self._writer = SpoolWriter(model_spool(root, model_name) / FEEDBACK, durability)

    @property
    def slot(self) -> Path:
        """The folder in which this log's segments wait for the committer."""
        return self._writer.slot

    def submit(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Keep labels, all or none of them; return how many.

        Each row has `prediction_id` or `client_request_id`, `label` (number, boolean or string), and optionally
        `label_time` (ISO 8601, when it became true; default now) and `source`.
        Raises BadInput that names the row, Unavailable when they cannot be written.
        """
        now = microseconds(datetime.now(timezone.utc))
        columns: dict[str, list[Any]] = {name: [] for name in _FIELDS}
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
    """Check one label and return its fields, times as microseconds since 1970 UTC.

    Raises BadInput that names the row, the field and the remedy.
    """
    if not isinstance(row, Mapping):
        raise BadInput(
            f"feedback row {number}: must be an object with prediction_id and label, got {type(row).__name__}"
        )
    for name in row:
        if name not in _FIELDS:
            raise BadInput(
                f"feedback row {number}: unknown field {name!r}{nearest(str(name), _FIELDS)}; known: {', '.join(_FIELDS)}"
            )
    ids = {name: row.get(name) for name in ("prediction_id", "client_request_id")}
    for name, value in ids.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise BadInput(f"feedback row {number}: {name} must be a non-empty string, got {value!r}")
    if all(value is None for value in ids.values()):
        raise BadInput(
            f"feedback row {number}: give prediction_id or client_request_id, so that the label finds its prediction"
        )
    source = row.get("source")
    if source is not None and not isinstance(source, str):
        raise BadInput(f"feedback row {number}: source must be a string, got {source!r}")
    if ids["prediction_id"] is not None:
        ids["client_request_id"] = None  # the more exact of the two
    return {
        **ids,
        "label": _label(row.get("label"), kind, number),
        "label_time": _label_time(row.get("label_time"), number, now_us),
        "source": source,
    }


def read_feedback_file(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the labels of a CSV, Parquet or JSON Lines file in chunks of rows.

    Raises NotFound for a missing file, BadInput for an unknown ending or a file without the needed columns.
    """
    if not path.exists():
        raise NotFound(f"feedback file {str(path)!r} does not exist")
    try:
        for batch in _batches(path):
            missing = [n for n in ("label",) if n not in batch.schema.names]
            if missing or not {"prediction_id", "client_request_id"} & set(batch.schema.names):
                raise BadInput(
                    f"feedback file {str(path)!r} has the columns {batch.schema.names}; it needs label and "
                    "prediction_id or client_request_id"
                )
            keep = [name for name in batch.schema.names if name in _FIELDS]
            for start in range(0, batch.num_rows, _CHUNK):
                rows = batch.slice(start, _CHUNK).select(keep).to_pylist()
                yield [{name: value for name, value in row.items() if value is not None} for row in rows]
    except pa.ArrowInvalid as error:
        raise BadInput(f"feedback file {str(path)!r} cannot be read: {error}") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    name = path.name.lower()
    text = {"prediction_id": pa.string(), "client_request_id": pa.string(), "label_time": pa.string()}
    if name.endswith((".csv", ".csv.gz")):
        options = pyarrow.csv.ConvertOptions(column_types=text)
        yield from pyarrow.csv.open_csv(path, convert_options=options)
    elif name.endswith(".parquet"):
        yield from pq.ParquetFile(path).iter_batches(_CHUNK)
    elif name.endswith((".jsonl", ".ndjson", ".json")):
        yield from pyarrow.json.read_json(path).to_batches()
    else:
        raise BadInput(
            f"feedback file {str(path)!r} has no known ending; give .csv, .csv.gz, .parquet or .jsonl"
        )


def _label(value: Any, kind: str, number: int) -> float | str:
    if value is None:
        raise BadInput(f"feedback row {number}: label is missing")
    if kind == "string":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value)
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    try:
        label = float(value)
    except (TypeError, ValueError):
        raise BadInput(
            f"feedback row {number}: label must be a number, as the model's predictions are, got {value!r}"
        ) from None
    if not math.isfinite(label):
        raise BadInput(f"feedback row {number}: label must be finite, got {value!r}")
    return label


def _label_time(value: Any, number: int, now_us: int | None) -> int:
    if value is None:
        return now_us if now_us is not None else microseconds(datetime.now(timezone.utc))
    try:
        return microseconds(parse_time(value))
    except ValueError:
        raise BadInput(f"feedback row {number}: label_time must be ISO 8601, got {value!r}") from None

"""THE scoring core: every mode scores, names and logs rows here, and only here.

A door (web, stream, batch) turns what it received into a `Request` and what it gets back into an answer. What was
answered is in the log before `score` returns, so a door that answers afterwards has never answered an unlogged row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from .model import Predictions, Scorer
from .schema import TIMESTAMP, FeatureSchema
from .times import EPOCH

FEATURE_PREFIX = "feature."
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Request:
    """Rows to score: features that fit the schema, one id per row, and what the caller knows of each row.

    `client_request_ids` and `event_times` have one entry per row, or are None; naive times are not accepted.
    `request_times` is given where rows were asked for at different times, and stands for `request_time` then.
    Ids and event times may be Arrow arrays of the table's types: where there are many rows, Python values cost more
    than the model.
    """

    features: pa.RecordBatch | pa.Table
    prediction_ids: Sequence[str] | pa.Array
    client_request_ids: Sequence[str | None] | pa.Array | None = None
    event_times: Sequence[datetime | None] | pa.Array | None = None
    request_time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    request_times: Sequence[datetime] | None = None

    def take(self, rows: Sequence[int]) -> Request:
        """Return the rows at these positions."""
        return replace(
            self,
            features=self.features.take(pa.array(rows, pa.int64())),
            prediction_ids=_some(self.prediction_ids, rows),
            client_request_ids=_some(self.client_request_ids, rows),
            event_times=_some(self.event_times, rows),
            request_times=_some(self.request_times, rows),
        )


@dataclass(frozen=True)
class ScoredBatch:
    """A scored request: the answer, and its rows for the inference table in two equal forms.

    `adjustments` is the id of the live adjustment that each row was answered under, None where there is none.
    """

    request: Request
    predictions: Predictions
    constants: Mapping[str, Any]
    schema: FeatureSchema
    adjustments: Sequence[str] | None = None

    @property
    def prediction_ids(self) -> Sequence[str]:
        return values_of(self.request.prediction_ids)

    def take(self, rows: Sequence[int]) -> ScoredBatch:
        """Return the rows at these positions."""
        return replace(
            self,
            request=self.request.take(rows),
            predictions=self.predictions.take(rows),
            adjustments=_some(self.adjustments, rows),
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that vary by row as JSON-ready lists; times are microseconds since 1970 UTC."""
        request = self.request
        columns: dict[str, list[Any]] = {
            "prediction_id": list(self.prediction_ids),
            "prediction": self.predictions.values.to_pylist(),
        }
        if request.request_times is not None:
            columns["request_time"] = [microseconds(time) for time in request.request_times]
        if request.client_request_ids is not None:
            columns["client_request_id"] = list(values_of(request.client_request_ids))
        if request.event_times is not None:
            columns["event_time"] = [
                None if time is None else microseconds(time) for time in values_of(request.event_times)
            ]
        if self.predictions.proba is not None:
            columns["prediction_proba"] = self.predictions.proba.to_pylist()
        if self.adjustments is not None:
            columns["adjustment"] = list(self.adjustments)
        for name, values in zip(self.schema.names, self.schema.to_lists(request.features), strict=True):
            columns[FEATURE_PREFIX + name] = values
        return columns

    @cached_property
    def rows(self) -> pa.Table:
        """Return the rows as an Arrow table with the inference table's columns."""
        n = len(self.predictions)
        request = self.request
        data: dict[str, Any] = {
            name: constant(value, CONSTANT_COLUMNS[name], n) for name, value in self.constants.items()
        }
        if request.request_times is not None:
            times = pa.array([microseconds(time) for time in request.request_times], pa.int64())
        else:
            times = pa.repeat(pa.scalar(self.constants["request_time"], pa.int64()), n)
        data["request_time"] = times.cast(TIMESTAMP)
        data["prediction_id"] = _array(request.prediction_ids, pa.string())
        ids = request.client_request_ids
        data["client_request_id"] = pa.nulls(n, pa.string()) if ids is None else _array(ids, pa.string())
        data["event_time"] = self._event_times(data["request_time"])
        data["prediction"] = self.predictions.values
        if self.predictions.proba is not None:
            data["prediction_proba"] = self.predictions.proba
        if self.adjustments is not None:
            data["adjustment"] = _array(self.adjustments, pa.string())
        for feature, column in zip(self.schema.features, request.features.columns, strict=True):
            # not safe: an integer beyond 2**53 is logged as the nearest double
            data[FEATURE_PREFIX + feature.name] = column.cast(feature.table_type, safe=False)
        return pa.table(data)

    def _event_times(self, request_times: pa.Array) -> pa.Array:
        import pyarrow.compute as pc

        if self.request.event_times is None:
            return request_times
        return pc.coalesce(_array(self.request.event_times, TIMESTAMP), request_times)


CONSTANT_COLUMNS = {
    "request_time": pa.int64(),
    "deployment": pa.string(),
    "mode": pa.string(),
    "model_name": pa.string(),
    "model_version": pa.string(),
    "model_id": pa.string(),
    "variant": pa.string(),
    "execution_duration_us": pa.int64(),
    "status_code": pa.int32(),
    "sampling_fraction": pa.float64(),
}


class PredictionLog(Protocol):
    """Where scored rows go. `append` returns when they are as safe as the log promises, or raises Unavailable."""

    def append(self, batch: ScoredBatch) -> None: ...


class NullLog:
    """A log that keeps nothing: for `log=none` and for trying a model out."""

    def append(self, batch: ScoredBatch) -> None:
        return None


class ScoringCore:
    """A scorer together with the log that its deployment writes to. Safe to call from several threads."""

    def __init__(
        self, scorer: Scorer, *, deployment: str, mode: str, log: PredictionLog, variant: str = "champion"
    ) -> None:
        self.scorer = scorer
        self.deployment = deployment
        self._log = log
        self._constants = {
            "deployment": deployment,
            "mode": mode,
            "model_name": scorer.ref.name,
            "model_version": scorer.ref.version,
            "model_id": scorer.ref.model_id,
            "variant": variant,
            "status_code": 200,
            "sampling_fraction": 1.0,
        }

    def score(self, request: Request, params: Mapping[str, Any] | None = None) -> ScoredBatch:
        """Predict the rows and log them, then return both.

        Raises ModelError when the model raises (nothing is logged) and Unavailable when the log cannot be written
        (the caller must not answer).
        """
        scored = self.predict(request, params)
        self.log(scored)
        return scored

    def predict(self, request: Request, params: Mapping[str, Any] | None = None) -> ScoredBatch:
        """Predict the rows; whoever answers them must `log` them before. Raises ModelError when the model raises."""
        started = time.perf_counter_ns()
        predictions = self.scorer.predict(request.features, params)
        n = max(len(predictions), 1)
        constants = {
            **self._constants,
            "execution_duration_us": (time.perf_counter_ns() - started) // (1000 * n),
        }
        if request.request_times is None:
            constants["request_time"] = microseconds(request.request_time)
        return ScoredBatch(request, predictions, constants, self.scorer.schema)

    def log(self, scored: ScoredBatch) -> None:
        """Write scored rows to the log. Raises Unavailable when that fails: then nobody may be answered."""
        self._log.append(scored)


def values_of(values: Sequence[Any] | pa.Array) -> Sequence[Any]:
    """Return Python values of what a request may hold as an Arrow array."""
    return values.to_pylist() if isinstance(values, pa.Array) else values


def constant(value: Any, kind: pa.DataType, n: int) -> pa.Array:
    """Return n times the same value; text as a dictionary of one entry, which costs a file's writer next to nothing."""
    if value is None or not pa.types.is_string(kind):
        return pa.repeat(pa.scalar(value, kind), n)
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), n), pa.array([value], kind))


def _array(values: Sequence[Any] | pa.Array, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)


def _some(values: Any, rows: Sequence[int]) -> Any:
    if isinstance(values, pa.Array):
        return values.take(pa.array(rows, pa.int64()))
    return None if values is None else [values[i] for i in rows]


def microseconds(time: datetime) -> int:
    """Return microseconds since 1970 UTC of an aware datetime, exactly."""
    return (time - EPOCH) // _MICROSECOND

"""Looks for monitors, without a home: rows as the inference table returns them, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.look import Deployed, Look
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import TIMESTAMP, Feature, FeatureSchema
from mlflow_flywheel.pipelines.table_columns import predictions_schema

from .windows_of import WINDOW

_SCHEMA = predictions_schema(FeatureSchema([]), "double")
_LABELS = {name: TIMESTAMP for name in ("label_time", "received_time")} | {"label_source": pa.string()}


def logged(features: Mapping[str, Any], window: Window = WINDOW, **own: Any) -> pa.Table:
    """Return rows with all columns of the inference table and its labels, evenly over the window; `own` replaces some.

    A single value stands for all rows.
    """
    given = {f"feature.{name}": values for name, values in features.items()} | own
    n = next((len(v) for v in given.values() if not _is_single(v)), 0)
    every = {
        "prediction_id": [f"row-{window.start:%m%d}-{i}" for i in range(n)],
        "request_time": _times(window, n),
        "event_time": _times(window, n),
        "event_date": _times(window, n).cast(pa.date32()),
        "deployment": "web",
        "mode": "web",
        "model_name": "m",
        "model_version": "1",
        "variant": "champion",
        "execution_duration_us": pa.array(np.full(n, 800)),
        "status_code": pa.array(np.full(n, 200), pa.int32()),
        "prediction": np.zeros(n),
    } | given
    columns = {name: pa.repeat(v, n) if _is_single(v) else v for name, v in every.items()}
    for name, kind in {**{f.name: f.type for f in _SCHEMA}, **_LABELS}.items():
        columns.setdefault(name, pa.nulls(n, kind))
    columns.setdefault("label", pa.nulls(n, pa.table({"p": columns["prediction"]}).schema.field(0).type))
    return pa.table(columns)


def labelled(rows: pa.Table, labels: Any, delay: timedelta = timedelta(hours=3)) -> pa.Table:
    """Return the rows with these labels, true and received so long after the events."""
    late = pc.add(rows["event_time"], pa.scalar(delay, pa.duration("us")))
    for name, column in {"label": pa.array(labels), "label_time": late, "received_time": late}.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return rows


def look_of(
    rows: pa.Table,
    reference: Reference | None = None,
    *,
    others: Sequence[pa.Table] = (),
    deployments: Sequence[Deployed] = (Deployed("web", "web"),),
    load: Callable[[], Scorer] | None = None,
    window: Window = WINDOW,
    **policy: Any,
) -> Look:
    """Return a look at rows; `others` are in the table too, but not of this window or version."""
    everything = pa.concat_tables(
        [rows, *(_as_logged_beside(rows, other) for other in others)], promote_options="permissive"
    ).sort_by("event_time")

    def read(
        span: Window,
        *,
        deployment: str | None = None,
        requests: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        found = everything
        times = found["event_time"]
        keep = pc.and_(pc.greater_equal(times, pa.scalar(span.start)), pc.less(times, pa.scalar(span.end)))
        if deployment is not None:
            keep = pc.and_(keep, pc.equal(found["deployment"], deployment))
        if requests is not None:
            keep = pc.and_(keep, pc.is_in(found["client_request_id"], pa.array(requests, pa.string())))
        found = found.filter(keep)
        return found if columns is None else found.select(list(columns))

    return Look(
        "m",
        "1",
        window,
        rows,
        reference,
        PolicySpec.parse(policy),
        read,
        load or _no_model,
        tuple(deployments),
    )


def scorer_of(answer: Callable[[pd.DataFrame], Any], *features: str, kind: str = "double") -> Scorer:
    """Return a loaded model that answers with a function of a frame of numbers: predictions, or (predictions, proba)."""

    def call(frame: pd.DataFrame, params: Mapping[str, Any] | None) -> tuple[Any, Any]:
        said = answer(frame)
        return said if isinstance(said, tuple) else (said, None)

    schema = FeatureSchema([Feature(name, "double") for name in features])
    ref = ModelRef(name="m", version="1", model_id=None, path="/none")
    return Scorer(ref, schema, call, None, None, kind, None)


def _no_model() -> Scorer:
    raise AssertionError("this look's model is not to be loaded")


def _as_logged_beside(rows: pa.Table, other: pa.Table) -> pa.Table:
    """Drop columns of another type than in `rows`: a table has one type for each."""
    kinds = {field.name: field.type for field in rows.schema}
    return other.drop_columns([f.name for f in other.schema if kinds.get(f.name, f.type) != f.type])


def _is_single(value: Any) -> bool:
    return isinstance(value, str) or np.isscalar(value)


def _times(window: Window, n: int) -> pa.Array:
    start, length = int(window.start.timestamp() * 1e6), int(window.length.total_seconds() * 1e6)
    return pa.array(start + np.arange(n) * length // max(1, n), TIMESTAMP)

"""What a retraining learns from and what it is judged by: two files of labelled rows, and how to make them again.

The newest labelled rows are held out before any training starts, and the cut is made in event time: no training row
happened at or after the first held-out one. Only labels that were known at `as_of` count.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .errors import BadInput
from .inference_table import InferenceTable
from .lineage import HOLDOUT_FILE, LINEAGE_FILE, TRAIN_FILE, Lineage, TrainingSet, TrainingSetSpec
from .schema import TIMESTAMP, FeatureSchema
from .scoring import FEATURE_PREFIX
from .times import as_utc
from .training_files import EVENT_TIME, LABEL, PREDICTION_ID, WEIGHT, content_hash, read_rows, write_rows
from .training_rows import MIN_ROWS, bounded, thinned, weights


def build_training_set(
    spec: TrainingSetSpec, tables: str, schema: FeatureSchema, folder: Path, base: Path | None = None
) -> TrainingSet:
    """Write a training set to `folder`; `base` is the local file of the reference that `spec.base` names.

    Dated rows of the base count when they lie in the training window and before the hold-out; undated ones are taken
    as older than every logged row. When a window is to be chosen, classes are balanced and rows weighed for each by
    whoever fits. Raises BadInput when too few labelled rows are left on either side of the cut.
    """
    table = InferenceTable.open(tables, spec.model)
    spec = spec.model_copy(update={"table_versions": spec.table_versions or table.versions()})
    labelled = _labelled_rows(table, spec, schema)
    train, holdout = split_by_time(labelled, spec)
    cut = as_utc(holdout[EVENT_TIME][0].as_py()) if holdout.num_rows else as_utc(spec.as_of)
    logged_rows = train.num_rows
    if base is not None:
        train = pa.concat_tables([_base_rows(base, spec, schema, labelled, cut), train])
    base_rows = train.num_rows - logged_rows
    train = bounded(train, spec)
    if not spec.windows:
        train = thinned(train, spec)
    if train.num_rows < MIN_ROWS or holdout.num_rows < MIN_ROWS:
        raise BadInput(
            f"model {spec.model!r} has too few labelled rows between {spec.start:%Y-%m-%d %H:%M} and "
            f"{spec.as_of:%Y-%m-%d %H:%M} to retrain: {labelled.num_rows} labelled, which leaves {train.num_rows} to "
            f"train on (with the reference) and {holdout.num_rows} to hold out, at least {MIN_ROWS} each; send more "
            "feedback or widen loop.training_window"
        )
    weight = None if spec.windows else weights(train, spec)
    if weight is not None:
        train = train.append_column(WEIGHT, pa.array(weight))
    lineage = Lineage(
        **spec.model_dump(),
        holdout_start=cut,
        features=schema.names,
        base_rows=base_rows,
        train_rows=train.num_rows,
        holdout_rows_found=holdout.num_rows,
        train_hash=content_hash(train),
        holdout_hash=content_hash(holdout),
    )
    write_rows(train, folder / TRAIN_FILE)
    write_rows(holdout, folder / HOLDOUT_FILE)
    lineage.save(folder / LINEAGE_FILE)
    return TrainingSet(folder)


def rebuild_training_set(
    lineage: Lineage, tables: str, schema: FeatureSchema, folder: Path, base: Path | None = None
) -> TrainingSet:
    """Build the training set of a lineage again; raises BadInput unless it is equal, hash by hash."""
    again = build_training_set(lineage.spec(), tables, schema, folder, base)
    for name in ("train_hash", "holdout_hash"):
        if getattr(again.lineage, name) != getattr(lineage, name):
            raise BadInput(
                f"the training set of {lineage.model} as of {lineage.as_of:%Y-%m-%d %H:%M} cannot be made again: its "
                f"{name.replace('_', ' ')} differs ({getattr(again.lineage, name)[:12]}, was "
                f"{getattr(lineage, name)[:12]}); the rows of its inference table or its reference were changed since"
            )
    return again


def split_by_time(labelled: pa.Table, spec: TrainingSetSpec) -> tuple[pa.Table, pa.Table]:
    """Cut rows that are sorted by event time into (training, hold-out), never through rows of one moment."""
    n = labelled.num_rows
    held = min(spec.holdout_rows, round(n * spec.holdout_share))
    if held == 0:
        return labelled, labelled.slice(0, 0)
    times = labelled[EVENT_TIME]
    cut = as_utc(times[n - held].as_py())
    if spec.holdout_not_before is not None:
        cut = max(cut, as_utc(spec.holdout_not_before))
    first = pc.sum(pc.less(times, pa.scalar(cut, TIMESTAMP))).as_py() or 0
    return labelled.slice(0, first), labelled.slice(first)


def _labelled_rows(table: InferenceTable, spec: TrainingSetSpec, schema: FeatureSchema) -> pa.Table:
    """Read the champion's labelled rows of the window, features as the model takes them, oldest first.

    What was asked for or received later than `known_at` is left out, so that reading again finds the same rows.
    """
    logged = {FEATURE_PREFIX + name: name for name in schema.names}
    rows = table.read(
        start=as_utc(spec.start),
        end=as_utc(spec.as_of),
        variant="champion",
        labelled=True,
        known_before=as_utc(spec.as_of),
        received_before=as_utc(spec.known_at),
        columns=["prediction_id", "event_time", "request_time", *logged, "label"],
        order_by="event_time, prediction_id",
    )
    rows = rows.filter(pc.less(rows["request_time"], pa.scalar(as_utc(spec.known_at), TIMESTAMP)))
    features = schema.from_table(rows.select(list(logged)).rename_columns(list(logged.values())))
    return _assemble(features, rows["label"], rows["event_time"], rows["prediction_id"])


def _base_rows(
    base: Path, spec: TrainingSetSpec, schema: FeatureSchema, labelled: pa.Table, cut: datetime
) -> pa.Table:
    """Return the rows of the reference that may be trained on, undated ones first."""
    rows = read_rows(base, needs=(LABEL,))
    dated = EVENT_TIME in rows.column_names
    times = rows[EVENT_TIME] if dated else pa.nulls(rows.num_rows, TIMESTAMP)
    label = rows[LABEL].cast(labelled.schema.field(LABEL).type)
    table = _assemble(schema.from_table(rows), label, times, pa.nulls(rows.num_rows, pa.string()))
    table = table.filter(pc.is_valid(table[LABEL]))
    inside = pc.and_(
        pc.greater_equal(table[EVENT_TIME], pa.scalar(as_utc(spec.start), TIMESTAMP)),
        pc.less(table[EVENT_TIME], pa.scalar(cut, TIMESTAMP)),
    )
    undated = table.filter(pc.is_null(inside))
    return pa.concat_tables([undated, table.filter(inside).sort_by([(EVENT_TIME, "ascending")])])


def _assemble(features: pa.Table, label: Any, times: Any, ids: Any) -> pa.Table:
    table = features.append_column(LABEL, label).append_column(EVENT_TIME, times.cast(TIMESTAMP))
    return table.append_column(PREDICTION_ID, ids.cast(pa.string()))

"""Teaching an estimator: from the version's reference, and from recent labelled rows where there are enough."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.measures import Measured
from mlflow_flywheel.monitors.outcomes import Task, outcomes
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.pipelines.native_threads import on_one_thread
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL, PREDICTION, PREDICTION_PROBA

from .classifiers import Answers, Classifier
from .losses import Losses

# Fewer labelled rows, or of fewer blocks of time, teach nothing that could be checked.
LEAST_ROWS = 100
_LEAST_BLOCKS = 5
# Fewer rows of a class and its probabilities cannot be calibrated.
_LEAST_OF_CLASS = 10
# Recent labelled rows teach beside the reference from this many on; the newest of more.
LEAST_RECENT, MOST_RECENT = 1000, 20_000


class Estimator(Protocol):
    """Knows from labelled rows how good answers are.

    `estimate` returns the expected metrics of rows of the inference table, None when it cannot tell. The replicates
    hold the uncertainty of what was learnt and the chance in labels: they are where the realised metrics of these very
    rows will be. With `resampled` also the rows are drawn anew, in blocks, as when this window stands for others.
    """

    task: Task

    def estimate(self, table: pa.Table, resampled: bool = False) -> Measured | None: ...


@on_one_thread
def teach(known: pa.Table, names: tuple[str, ...], asked: pa.Table, task: Task, seed: int) -> Estimator | str:
    """Return an estimator that has learnt from labelled rows, or in words why there is none.

    `known` has the features by plain name, as a reference; `asked` are the rows that it will be asked about.
    """
    sample = outcomes(_as_outcomes(known), task)
    if len(sample) < LEAST_ROWS or int(sample.blocks.max()) + 1 < _LEAST_BLOCKS:
        return f"the reference has {len(sample):,} labelled rows, too few to learn from"
    if sample.proba is None:
        return Losses(known.take(pa.array(sample.places)), names, sample, seed)
    expected = Answers.of(asked, task.classes)
    if expected is None:
        return "the rows have no probabilities as the reference has"
    counts = np.bincount(np.asarray(sample.truth, dtype=np.int64) + 1, minlength=len(task.classes) + 1)[1:]
    scarce = int(counts.argmin())
    if counts[scarce] < _LEAST_OF_CLASS:
        return (
            f"the reference has {counts[scarce]} rows of class {task.classes[scarce]}, too few to learn from"
        )
    return Classifier(sample, expected, seed)


def with_recent(reference: Reference, recent: pa.Table) -> pa.Table | None:
    """Return the reference's rows and recent labelled rows of the inference table; None when these are too few."""
    labelled = (
        recent.filter(pc.is_valid(recent[LABEL])) if LABEL in recent.column_names else recent.slice(0, 0)
    )
    if labelled.num_rows < LEAST_RECENT:
        return None
    newest = labelled.slice(max(0, labelled.num_rows - MOST_RECENT))
    columns = {}
    for field in reference.table.schema:
        name = field.name
        logged = {EVENT_TIME: "event_time"}.get(
            name, name if name in (LABEL, PREDICTION, PREDICTION_PROBA) else FEATURE_PREFIX + name
        )
        if logged not in newest.column_names:
            return None
        columns[name] = newest[logged]
    try:
        return pa.concat_tables([reference.table, pa.table(columns).cast(reference.table.schema)])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError):
        return None  # a column has changed its type: the reference alone is what was validated


def _as_outcomes(known: pa.Table) -> pa.Table:
    return Reference(known).outcomes()

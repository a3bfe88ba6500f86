"""What a new version probably loses while its labels are on their way, against the version before on the same rows.

Both are estimated in the same way, from the same labelled rows: those that the new version was validated on, which the
one before answers anew. So what estimates cannot see, a changed meaning, is hidden from both alike, and the older
version does not look better for having learnt in an easier time.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.gate import MIN_BLOCKS
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION, PREDICTION_PROBA

from .estimation.estimator import teach
from .measures import Measured, quantiles
from .outcomes import infer_task
from .probation import Comparison, entropy_of, features_of
from .reference import Reference

# More rows cost time and tell nothing new.
MOST_ROWS = 20_000
_METRICS = ("log_loss", "mae", "accuracy")


@dataclass(frozen=True)
class Estimate(Comparison):
    """The estimated mean loss of both versions on the same rows, and what the new one probably gains."""

    def __str__(self) -> str:
        return (
            f"estimated {self.metric.replace('_', ' ')} {self.after:.4f} against {self.before:.4f} of the version before, on "
            f"{self.rows:,} rows whose labels are not there yet: {-self.difference:+.4f} (interval {-self.high:+.4f} to "
            f"{-self.low:+.4f}, tolerated {self.margin:.4f})"
        )


def compare_estimates(
    rows: pa.Table,
    old: Scorer,
    new: Scorer,
    reference: Reference | None,
    *,
    margin: float,
    confidence: float,
    seed: int = 0,
) -> Estimate | None:
    """Compare what both versions probably lose on rows that the new one answered.

    `reference` is the new version's. `margin` is as in `probation.compare`: of the labels' entropy for probabilities,
    else of the old version's loss. None when it cannot be estimated.
    """
    if reference is None or not {LABEL, PREDICTION} <= set(reference.table.column_names):
        return None
    if (old.kind, old.classes) != (new.kind, new.classes) or not rows.num_rows:
        return None
    try:
        learnt = _answered(old, reference.table, old.schema.from_table(reference.table))
        asked = _answered(old, rows, features_of(old, rows))
    except (BadInput, ModelError):
        return None
    task = infer_task(reference.outcomes(), rows)
    measured: list[Measured] = []
    for known, table in ((learnt, asked), (reference.table, rows)):
        estimator = teach(known, reference.feature_names, table, task, seed)
        found = None if isinstance(estimator, str) else estimator.estimate(table, resampled=True)
        if found is None:
            return None
        measured.append(found)
    metric = next((name for name in _METRICS if all(name in each.metrics for each in measured)), None)
    if metric is None:
        return None
    return _compared(metric, measured[0], measured[1], reference.table[LABEL], margin, confidence)


def _compared(
    metric: str, old: Measured, new: Measured, labels: pa.ChunkedArray, margin: float, confidence: float
) -> Estimate:
    before, after = old.metrics[metric], new.metrics[metric]
    gains = old.replicates[metric] - new.replicates[metric]
    if metric == "accuracy":
        before, after, gains = 1 - before, 1 - after, -gains
    blocks = min(old.blocks, new.blocks)
    low, high = quantiles(gains, blocks, (1 - confidence) / 2)
    tolerated = margin * (entropy_of(labels.combine_chunks()) if metric == "log_loss" else before)
    return Estimate(
        worse=blocks >= MIN_BLOCKS and high < -tolerated,
        metric="error_rate" if metric == "accuracy" else metric,
        before=before,
        after=after,
        difference=before - after,
        low=low,
        high=high,
        margin=tolerated,
        confidence=confidence,
        rows=new.rows,
        blocks=blocks,
        paired=True,
    )


def _answered(scorer: Scorer, rows: pa.Table, features: pa.Table) -> pa.Table:
    """Return rows as if this version had answered them."""
    said = scorer.predict(features)
    for name, values in ((PREDICTION, said.values), (PREDICTION_PROBA, said.proba)):
        if name in rows.column_names and values is not None:
            rows = rows.set_column(rows.column_names.index(name), name, pc.cast(values, rows[name].type))
    return rows

"""Did the promotion help? The new version's answers against what the old one would have said to the same events.

Looking again and again at growing evidence finds harm by luck sooner or later. So a look is worth it only when there is
clearly more to see than at the last one, and the j-th look may err with the probability alpha / (j (j + 1)): over all
looks together a version that is as good as the old one is rolled back with at most 1 - confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.pipelines.gate import MIN_BLOCKS, Scores, block_interval, kind_of, score, time_blocks
from mlflow_flywheel.pipelines.gate_checks import times_as_long
from mlflow_flywheel.pipelines.model import Predictions, Scorer
from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION, PREDICTION_PROBA

from .decisions import Probation
from .reference import FEATURE_PREFIX

if TYPE_CHECKING:
    from .policy import PolicySpec

# There is clearly more to see when there are this many times the labelled rows of the last look.
_GROWTH = 1.5
_REPLICATES = 4000
# Labels that are late are waited for, but not for ever: so many times the probation's length.
_PATIENCE = 3
# Below this a prediction is quick, however many times longer than before it takes.
_QUICK_US = 1000.0


@dataclass(frozen=True)
class Comparison:
    """The mean loss of both versions on the same labelled rows, and what the new one gains (negative: it loses more).

    `paired` is false when the old version could not score these rows: then its loss is the one that the gate found.
    """

    worse: bool
    metric: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    margin: float
    confidence: float
    rows: int
    blocks: int
    paired: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; what is not finite becomes None."""
        raw = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in raw.items()}

    def __str__(self) -> str:
        name = self.metric.replace("_", " ")
        against = "" if self.paired else " (found at the gate)"
        return (
            f"{name} {self.after:.4f} against {self.before:.4f}{against} of the version before, on {self.rows:,} "
            f"labelled rows: {-self.difference:+.4f} (interval {-self.high:+.4f} to {-self.low:+.4f}, tolerated "
            f"{self.margin:.4f})"
        )


@dataclass(frozen=True)
class Finding:
    """What one look at a version on probation comes to: `kind` is what follows, `state` is what to remember of it."""

    kind: Literal["goes_on", "passed", "unjudged", "worse"]
    state: Probation
    reason: str = ""
    evidence: dict[str, Any] | None = None


def judge(
    policy: PolicySpec,
    version: str,
    began: datetime,
    as_of: datetime,
    labelled: int,
    seen: Probation,
    compared: Callable[[Probation], Comparison | None],
) -> Finding:
    """Judge a version that was promoted at `began` by its labelled rows until now, or until the probation's end.

    `labelled` counts them, `seen` is what is remembered of earlier looks, `compared` makes the comparison of a look.
    """
    least, over = policy.min_rows, as_of >= began + policy.probation
    last = over and (labelled >= least or as_of >= began + _PATIENCE * policy.probation)
    found: Comparison | None = None
    if worth_a_look(labelled, least, seen.rows) or (last and labelled >= least and labelled > seen.rows):
        seen = seen.model_copy(update={"looks": seen.looks + 1, "rows": labelled})
        found = compared(seen)
    evidence: dict[str, Any] = {"looks": seen.looks, "labelled_rows": labelled}
    if found is not None:
        evidence |= {"comparison": found.to_dict()}
        if found.worse:
            return Finding("worse", seen, f"it is surely worse: {found}", evidence)
    if not last:
        return Finding("goes_on", seen)
    if labelled < least:
        why = f"it ended with {labelled:,} labelled rows, fewer than {least:,}: nobody knows whether version {version} is better"
        return Finding("unjudged", seen, why, evidence)
    said = f": {found}" if found is not None else f" on {labelled:,} labelled rows"
    return Finding("passed", seen, f"version {version} is not surely worse{said}", evidence)


def worth_a_look(labelled: int, least: int, seen: int) -> bool:
    """Whether so many labelled rows are enough, and clearly more than were seen at the last look."""
    return labelled >= least and labelled >= _GROWTH * seen


def confidence_of(look: int, confidence: float) -> float:
    """Return how sure the interval of the look-th look (1, 2, ...) must be."""
    return 1 - (1 - confidence) * 2 / (look * (look + 1))


def compare(
    rows: pa.Table,
    old: Scorer | None,
    new: Scorer,
    *,
    known: Mapping[str, float],
    margin: float,
    confidence: float,
    seed: int = 0,
) -> Comparison | None:
    """Compare the logged answers of a version with those of the one before it.

    `rows` are labelled rows of the inference table; `known` are the old version's metrics at the gate, for when it
    cannot score them. `margin` is the tolerated loss: of the labels' entropy for probabilities, else of the old
    version's loss. The new one is worse when the whole interval lies beyond. None when nothing can be compared.
    """
    kind = kind_of(new)
    labels = rows[LABEL].combine_chunks()
    proba = rows[PREDICTION_PROBA].combine_chunks()
    said = Predictions(
        rows[PREDICTION].combine_chunks(), proba if new.classes and not proba.null_count else None, []
    )
    after = score(said, new.classes, labels, kind)
    before = _scores(old, rows, labels) if old is not None else None
    if before is not None and before.metric != after.metric:
        assert old is not None
        after = score(replace(said, proba=None), None, labels, kind)
        before = _scores(old, rows, labels, classes_only=True)
    if before is None and after.metric not in known:
        return None
    base = before.losses if before is not None else np.full(len(labels), known[after.metric])
    blocks = time_blocks(rows["event_time"])
    gains = base - after.losses
    mean, low, high = block_interval(gains, blocks, seed=seed, n_bootstrap=_REPLICATES, confidence=confidence)
    tolerated = margin * (entropy_of(labels) if after.metric == "log_loss" else float(base.mean()))
    n_blocks = int(blocks.max()) + 1
    return Comparison(
        worse=n_blocks >= MIN_BLOCKS and high < -tolerated,
        metric=after.metric,
        before=float(base.mean()),
        after=float(after.losses.mean()),
        difference=mean,
        low=low,
        high=high,
        margin=tolerated,
        confidence=confidence,
        rows=len(labels),
        blocks=n_blocks,
        paired=before is not None,
    )


def slower(before: pa.Table, after: pa.Table, least: int, ratio: float) -> str | None:
    """Say which deployment's predictions take so many times as long as before; None when none does.

    Both tables have `deployment` and `execution_duration_us`, of the old and of the new version.
    """
    for deployment, (was, now) in paces(before, after, least).items():
        if now > ratio * was and now - was > _QUICK_US:
            return _pace(deployment, was, now)
    return None


def paces(before: pa.Table, after: pa.Table, least: int) -> dict[str, tuple[float, float]]:
    """Return each deployment's median microseconds per prediction, before and after, where both have enough rows."""
    was, now = (_medians(rows, least) for rows in (before, after))
    return {name: (was[name], now[name]) for name in sorted(was.keys() & now.keys())}


def pace_words(found: Mapping[str, tuple[float, float]]) -> str:
    """Say how long each deployment's predictions took."""
    return "; ".join(_pace(name, *medians) for name, medians in found.items())


def longer(rows: pa.Table, old: Scorer, new: Scorer) -> float:
    """Return how many times as much processor time the new version takes for the same rows, here and now.

    What was logged also tells of a busy machine; this does not.
    """
    return times_as_long(old, features_of(old, rows), new, features_of(new, rows))


def _scores(scorer: Scorer, rows: pa.Table, labels: pa.Array, classes_only: bool = False) -> Scores | None:
    """Return what a version would have lost on rows of the table; None when it cannot score them."""
    try:
        said = scorer.predict(features_of(scorer, rows))
    except (BadInput, ModelError):
        return None
    if classes_only:
        said = replace(said, proba=None)
    return score(said, None if classes_only else scorer.classes, labels, kind_of(scorer))


def features_of(scorer: Scorer, rows: pa.Table) -> pa.Table:
    """Return what a version would have been asked about rows of the table. Raises BadInput when it is not all there."""
    logged = [name for name in rows.column_names if name.startswith(FEATURE_PREFIX)]
    names = [name.removeprefix(FEATURE_PREFIX) for name in logged]
    return scorer.schema.from_table(rows.select(logged).rename_columns(names))


def _pace(deployment: str, was: float, now: float) -> str:
    return f"{deployment}: {now / 1000:.1f} ms per prediction (median) against {was / 1000:.1f} ms"


def _medians(rows: pa.Table, least: int) -> dict[str, float]:
    grouped = rows.group_by("deployment").aggregate(
        [("execution_duration_us", "approximate_median"), ("execution_duration_us", "count")]
    )
    return {
        row["deployment"]: float(row["execution_duration_us_approximate_median"])
        for row in grouped.to_pylist()
        if row["execution_duration_us_count"] >= least
    }


def entropy_of(labels: pa.Array) -> float:
    """Return the entropy of the labels' own shares: what a constant answer loses at least."""
    counts = np.array([row.as_py() for row in pc.value_counts(labels).field("counts")], dtype=np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())

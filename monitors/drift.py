"""Do the features and predictions of a window still look like the version's reference?

A column has drifted when a calibrated test says that the change is no chance (Benjamini-Hochberg over every test of
the run) and an effect size says that it matters. The verdict is `alarm` when the share of drifted features reaches the
policy's, or when the predictions moved far; `warn` when anything drifted; `unknown` below the fewest rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.training_files import PREDICTION

from .columns import Pair, Unreadable, kind_of, pair
from .look import Look, Monitor
from .outcomes import probabilities
from .reference import FEATURE_PREFIX, Reference
from .statistics import Comparison, benjamini_hochberg, compare_counts, compare_numbers, compare_shares
from .verdicts import Status, Verdict
from .windows import Window

if TYPE_CHECKING:
    from .policy import PolicySpec

MONITOR = "drift"
PREDICTION_SCORE = "prediction score"
# A change of the missing share that Cohen calls small: 0 to 1%, 5 to 10%, 50 to 60%.
MISSING_EFFECT = 0.2
# More rows than this on a side are sampled: the tests have power to spare, and time stays bounded.
MAX_ROWS = 200_000
_SHOWN_CATEGORIES = 5
_SHOWN_LENGTH = 40


@dataclass(frozen=True)
class DriftSpec:
    """Thresholds; `alpha` is the false discovery rate over all tests of a run."""

    min_rows: int = 200
    share: float = 0.3
    alpha: float = 0.05
    effect: float = 0.1
    prediction_effect: float = 0.25
    max_rows: int = MAX_ROWS

    @classmethod
    def of(cls, policy: PolicySpec) -> DriftSpec:
        """Return the thresholds that a policy asks for."""
        return cls(
            min_rows=policy.min_rows,
            share=policy.drift_share,
            alpha=round(1 - policy.confidence, 9),
            effect=policy.drift_effect,
            prediction_effect=policy.prediction_effect,
        )


@dataclass(frozen=True)
class ColumnDrift:
    """What was found out about one column; `note` says in words what numbers cannot."""

    column: str
    role: str
    pair: Pair | None
    values: Comparison
    missing: Comparison
    note: str = ""
    broken: bool = False
    values_p: float = math.nan
    missing_p: float = math.nan

    def drifted(self, spec: DriftSpec) -> bool:
        """Whether the change is no chance and matters."""
        moved = self.values_p <= spec.alpha and self.values.effect >= spec.effect
        lost = self.missing_p <= spec.alpha and self.missing.effect >= MISSING_EFFECT
        return self.broken or moved or lost

    def row(self, spec: DriftSpec) -> dict[str, Any]:
        """Return the evidence row."""
        shares = (
            [m / max(1, n) for m, n in zip(self.pair.missing, self.pair.rows, strict=True)]
            if self.pair
            else []
        )
        return {
            "column": self.column,
            "role": self.role,
            "drifted": self.drifted(spec),
            "kind": self.pair.kind if self.pair else None,
            "test": self.values.test,
            "p_value": _finite(self.values.p_value),
            "p_adjusted": _finite(self.values_p),
            "effect": _finite(self.values.effect),
            "effect_name": self.values.effect_name,
            "psi": _finite(self.values.psi),
            "missing_reference": shares[0] if shares else None,
            "missing_window": shares[1] if shares else None,
            "missing_p_adjusted": _finite(self.missing_p),
            "note": self.note,
        }


def drift(
    rows: pa.Table, reference: Reference | None, window: Window, spec: DriftSpec | None = None
) -> Verdict:
    """Compare a window of the inference table (features as `feature.<name>`) with the version's reference.

    Every feature of the reference is looked at, and the predictions; a column that is missing, or whose values cannot
    be read in the reference's type, counts as drifted and stops no other. Never raises for what the rows hold.
    """
    spec = spec or DriftSpec()
    if reference is None:
        return Verdict(MONITOR, "unknown", "the version has no reference to compare with", window)
    n = rows.num_rows
    if n < spec.min_rows or len(reference) < spec.min_rows:
        few = (
            f"{n:,} rows in the window and {len(reference):,} in the reference, fewer than {spec.min_rows:,}"
        )
        return Verdict(MONITOR, "unknown", f"{few}: too few to compare", window, {"rows": n})
    old, new = _sample(reference.table, spec.max_rows), _sample(rows, spec.max_rows)
    columns = _adjusted([*_features(old, new, reference.feature_names), *_predictions(old, new)])
    return _verdict(columns, n, window, spec, _added(rows, reference))


class DriftMonitor(Monitor):
    """See `drift`."""

    name = MONITOR
    series = (("share", "drift_share"),)

    def look(self, look: Look) -> Verdict:
        return drift(look.rows, look.reference, look.window, DriftSpec.of(look.policy))


def _features(old: pa.Table, new: pa.Table, names: tuple[str, ...]) -> Iterator[ColumnDrift]:
    for name in names:
        logged = FEATURE_PREFIX + name
        current = new[logged] if logged in new.column_names else None
        yield _compare(name, "feature", old[name], current)


def _predictions(old: pa.Table, new: pa.Table) -> Iterator[ColumnDrift]:
    """Compare what the model says: the score of a binary classifier, else the predicted value or class."""
    if PREDICTION not in old.column_names:
        return
    scores = [scores_of(table) for table in (old, new)]
    if scores[0] is not None and scores[1] is not None:
        yield _compare(PREDICTION_SCORE, "prediction", scores[0], scores[1])
    else:
        yield _compare(PREDICTION, "prediction", old[PREDICTION], new[PREDICTION])


def scores_of(table: pa.Table) -> pa.ChunkedArray | None:
    """Return the positive class's probability, or None when it is no binary classifier with probabilities."""
    proba = probabilities(table)
    return pa.chunked_array([pa.array(proba[:, 1])]) if proba is not None and proba.shape[1] == 2 else None


def _compare(name: str, role: str, old: pa.ChunkedArray, new: pa.ChunkedArray | None) -> ColumnDrift:
    nothing = Comparison("none", math.nan, math.nan, "")
    if new is None:
        return ColumnDrift(name, role, None, nothing, nothing, "not in the window", broken=True)
    try:
        both = pair(old, new)
    except Unreadable as error:
        return ColumnDrift(name, role, None, nothing, nothing, str(error), broken=True)
    missing = compare_shares(both.missing[0], both.rows[0], both.missing[1], both.rows[1])
    if both.numbers is not None:
        values = compare_numbers(*both.numbers)
    elif both.counts is not None:
        values = compare_counts(*both.counts)
    else:
        values = nothing
    changed = "" if kind_of(old.type) == kind_of(new.type) else f"logged as {new.type}, was {old.type}"
    return ColumnDrift(name, role, both, values, missing, "; ".join(filter(None, [changed, *_notes(both)])))


def _notes(both: Pair) -> Iterator[str]:
    if both.kind == "moment":
        yield "moments move on by nature: only their missing share is tested"
    if both.missing[0] == both.rows[0]:
        yield "no values in the reference"
    if both.missing[1] == both.rows[1]:
        yield "no values in the window"
    if any(both.infinite):
        yield f"infinite values, taken as missing: {both.infinite[0]} in the reference, {both.infinite[1]} in the window"
    if both.counts is None:
        return
    old, new = both.counts
    for what, here, there in (("new", new, old), ("vanished", old, new)):
        chosen = np.flatnonzero((here > 0) & (there == 0))
        if len(chosen) and there.sum() > 0:
            top = chosen[np.argsort(-here[chosen], kind="stable")][:_SHOWN_CATEGORIES]
            names = ", ".join(_shortened(both.categories[i]) for i in top)
            more = f" and {len(chosen) - len(top)} more" if len(chosen) > len(top) else ""
            yield f"{what}: {names}{more} ({here[chosen].sum() / here.sum():.1%} of its values)"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _adjusted(columns: list[ColumnDrift]) -> list[ColumnDrift]:
    raw = np.array([[c.values.p_value, c.missing.p_value] for c in columns], dtype=np.float64)
    adjusted = benjamini_hochberg(raw.ravel()).reshape(raw.shape)
    return [
        replace(c, values_p=float(values), missing_p=float(missing))
        for c, (values, missing) in zip(columns, adjusted, strict=True)
    ]


def _verdict(
    columns: list[ColumnDrift], rows: int, window: Window, spec: DriftSpec, added: list[str]
) -> Verdict:
    features = [c for c in columns if c.role == "feature"]
    drifted = [c for c in features if c.drifted(spec)]
    outputs = [c for c in columns if c.role == "prediction"]
    moved = [c for c in outputs if c.drifted(spec)]
    far = [c for c in moved if c.broken or not c.values.effect < spec.prediction_effect]
    share = len(drifted) / len(features) if features else 0.0
    status: Status = "ok"
    if drifted or moved:
        status = "alarm" if far or (drifted and share >= spec.share) else "warn"
    worst = sorted(drifted, key=lambda c: (not c.broken, -_order(c)))
    named = (
        ": " + ", ".join(_named(c) for c in worst[:3]) + (", ..." if len(worst) > 3 else "") if worst else ""
    )
    summary = f"{len(drifted)} of {len(features)} features drifted{named}"
    if outputs:
        summary += f"; predictions {'moved' if moved else 'steady'} ({_named(outputs[0])})"
    if added:
        summary += f"; {len(added)} columns are not in the reference"
    metrics: dict[str, float] = {
        "rows": rows,
        "share": share,
        "drifted_columns": len(drifted),
        "tested_columns": len(features),
        "largest_effect": max((_order(c) for c in features), default=0.0),
    }
    if outputs:
        metrics["prediction_effect"] = outputs[0].values.effect
    order = sorted(columns, key=lambda c: (not c.drifted(spec), -_order(c)))
    return Verdict(MONITOR, status, summary, window, metrics, [c.row(spec) for c in order])


def _named(column: ColumnDrift) -> str:
    if column.broken:
        return f"{column.column} {column.note}"
    return f"{column.column} {column.values.effect:.2f}"


def _order(column: ColumnDrift) -> float:
    """Return the larger of both effects, for ranking; 0 where nothing was measured."""
    effects = (column.values.effect, column.missing.effect)
    return max((e for e in effects if math.isfinite(e)), default=0.0)


def _added(rows: pa.Table, reference: Reference) -> list[str]:
    known = {FEATURE_PREFIX + name for name in reference.feature_names}
    return [n for n in rows.column_names if n.startswith(FEATURE_PREFIX) and n not in known]


def _sample(table: pa.Table, most: int) -> pa.Table:
    if table.num_rows <= most:
        return table
    chosen = np.random.default_rng(0).choice(table.num_rows, size=most, replace=False)
    return table.take(pa.array(np.sort(chosen)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

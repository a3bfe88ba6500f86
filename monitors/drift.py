"""Do the features, predictions and labels of a window still look like the version's reference?

A change of a column is *detected* when a calibrated test says that it is no chance (Benjamini-Hochberg over every test
of the run, rows of a day counted as alike as they are), and the column has *drifted* when its effect size is also not
too small to matter by more than its standard error: a shift that matters is then found whatever the number of rows, a trivial one of many rows is
not. The verdict is `alarm` when the share of drifted features reaches the policy's, or when the predictions
moved far; `warn` when anything drifted; `unknown` below the fewest rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mlflow_flywheel.pipelines.training_files import LABEL, PREDICTION

from .column_drift import Change, ColumnDrift, adjusted, compare, notes
from .columns import Unreadable, kind_of, summarise
from .dependence import Days, days_of
from .look import Look, Monitor
from .profile import PREDICTION_SCORE, Key, known_only, scores_of
from .reference import FEATURE_PREFIX, Reference
from .samples import Column
from .verdicts import Status, Verdict
from .windows import Window

if TYPE_CHECKING:
    from .policy import PolicySpec

MONITOR = "drift"
# More rows than this in a window are sampled: the reference, not the window, limits what the tests can see by then.
MAX_ROWS = 1_000_000
# A picture of more rows looks the same.
DRAWN_ROWS = 20_000


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


def drift(
    rows: pa.Table,
    reference: Reference | None,
    window: Window,
    spec: DriftSpec | None = None,
    *,
    before: pa.Table | None = None,
) -> Verdict:
    """Compare a window of the inference table (features as `feature.<name>`) with the version's reference.

    Every feature of the reference is looked at, the predictions, and the labels that came; a column that is missing, or
    whose values cannot be read in the reference's type, counts as drifted and stops no other. With the rows of the
    window `before`, the evidence says since when a column has drifted; these tests are a family of their own and no part
    of the verdict. Never raises for what the rows hold.
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
    earlier = _Rows.of(before, spec) if before is not None and before.num_rows >= spec.min_rows else None
    columns = _adjusted(list(_compared(reference, _Rows.of(rows, spec), earlier)))
    return _verdict(columns, n, window, spec, _added(rows, reference), earlier is not None)


class DriftMonitor(Monitor):
    """See `drift`."""

    name = MONITOR
    series = (("share", "drift_share"),)

    def look(self, look: Look) -> Verdict:
        spec = DriftSpec.of(look.policy)
        comparable = look.reference is not None and look.rows.num_rows >= spec.min_rows
        before = look.before if comparable else None
        return drift(look.rows, look.reference, look.window, spec, before=before)


@dataclass(frozen=True)
class _Rows:
    """A window's rows, sampled where there are too many, and their days."""

    table: pa.Table
    days: Days | None
    scores: pa.ChunkedArray | None
    fewest: int

    @classmethod
    def of(cls, rows: pa.Table, spec: DriftSpec) -> _Rows:
        table = sampled(rows, spec.max_rows)
        return cls(table, days_of(table, "event_time"), scores_of(table), spec.min_rows)

    def column(self, key: Key) -> tuple[pa.ChunkedArray | None, Days | None]:
        """Return a column under its name in a reference, with the days of its rows; None where it is not there."""
        role, name = key
        if key == ("prediction", PREDICTION_SCORE):
            return self.scores, self.days
        logged = FEATURE_PREFIX + name if role == "feature" else name
        values = self.table[logged] if logged in self.table.column_names else None
        if role != "label" or values is None:
            return values, self.days
        known, days = known_only(values, self.days)
        return (known, days) if len(known) >= self.fewest else (None, None)


def both_sides(
    rows: pa.Table, reference: Reference, wanted: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Column, Column]]:
    """Return columns, by role and name, of the reference and of a window as they are compared, where they can be.

    Of the window at most 20,000 rows are looked at: enough to draw it.
    """
    of_window = _Rows.of(rows, DriftSpec(min_rows=1, max_rows=DRAWN_ROWS))
    found: dict[tuple[str, str], tuple[Column, Column]] = {}
    known = {key: column for key, column in reference.profile.columns.items() if key in set(wanted)}
    for key, old in known.items():
        values, _ = of_window.column(key)
        try:
            if values is not None:
                found[key[0], key[1]] = old, summarise(values, None, old)
        except Unreadable:
            continue
    return found


def _compared(reference: Reference, rows: _Rows, before: _Rows | None) -> Iterator[ColumnDrift]:
    known = reference.profile.columns
    for name in reference.feature_names:
        yield _compare(("feature", name), known.get(("feature", name)), rows, before)
    score: Key = ("prediction", PREDICTION_SCORE)
    output = score if score in known and rows.scores is not None else ("prediction", PREDICTION)
    if output in known:
        yield _compare(output, known[output], rows, before)
    label: Key = ("label", LABEL)
    if label in known and rows.column(label)[0] is not None:
        yield _compare(label, known[label], rows, before)


def _compare(key: Key, old: Column | None, rows: _Rows, before: _Rows | None) -> ColumnDrift:
    role, name = key
    if old is None:
        return ColumnDrift(name, role, None, None, note="its values in the reference cannot be compared")
    values, days = rows.column(key)
    if values is None:
        return ColumnDrift(name, role, old, None, note="not in the window", broken=True)
    try:
        new = summarise(values, days, old)
    except Unreadable as error:
        return ColumnDrift(name, role, old, None, note=str(error), broken=True)
    changed = "" if kind_of(values.type) == _logged_kind(old) else f"logged as {values.type}, was {old.type}"
    note = "; ".join(filter(None, [changed, *notes(old, new)]))
    return ColumnDrift(name, role, old, new, compare(old, new), _since_before(key, old, new, before), note)


def _logged_kind(column: Column) -> str:
    return "number" if column.numeric else column.kind


def _since_before(key: Key, old: Column, new: Column, before: _Rows | None) -> Change | None:
    """Compare with the window before, in the reference's terms."""
    values, days = before.column(key) if before is not None else (None, None)
    if values is None:
        return None
    try:
        earlier = summarise(values, days, old)
    except Unreadable:
        return None
    if earlier.numbers is not None:
        earlier = replace(earlier, numbers=earlier.numbers.thinned())
    return compare(earlier, new)


def _adjusted(columns: list[ColumnDrift]) -> list[ColumnDrift]:
    changes = adjusted([c.change for c in columns])
    since = iter(adjusted([c.since_before for c in columns if c.since_before is not None]))
    return [
        replace(c, change=change, since_before=None if c.since_before is None else next(since))
        for c, change in zip(columns, changes, strict=True)
    ]


def _verdict(
    columns: list[ColumnDrift], rows: int, window: Window, spec: DriftSpec, added: list[str], before: bool
) -> Verdict:
    of_role = {role: [c for c in columns if c.role == role] for role in ("feature", "prediction", "label")}
    features = of_role["feature"]
    drifted = [c for c in features if c.drifted(spec)]
    others = [*of_role["prediction"], *of_role["label"]]
    moved = [c for c in others if c.drifted(spec)]
    far = [c for c in moved if c.role == "prediction" and not c.change.values.effect < spec.prediction_effect]
    share = len(drifted) / len(features) if features else 0.0
    status: Status = "ok"
    if drifted or moved:
        status = "alarm" if far or (drifted and share >= spec.share) else "warn"
    worst = sorted(drifted, key=_rank)
    named = (
        ": " + ", ".join(_named(c) for c in worst[:3]) + (", ..." if len(worst) > 3 else "") if worst else ""
    )
    summary = f"{len(drifted)} of {len(features)} features drifted{named}"
    for c in others:
        summary += f"; {c.role}s {'moved' if c in moved else 'steady'} ({_named(c)})"
    if added:
        summary += f"; {len(added)} columns are not in the reference"
    metrics: dict[str, float] = {
        "rows": rows,
        "share": share,
        "drifted_columns": len(drifted),
        "detected_columns": sum(c.detected(spec) for c in features),
        "tested_columns": len(features),
        "largest_effect": max((c.change.size for c in features), default=0.0),
    }
    metrics |= {f"{c.role}_effect": c.change.values.effect for c in others}
    if before:
        since = [c.since_before for c in features if c.since_before is not None]
        metrics["share_since_before"] = sum(c.relevant(spec) for c in since) / max(1, len(since))
    order = sorted(columns, key=lambda c: (not c.drifted(spec), *_rank(c)))
    return Verdict(MONITOR, status, summary, window, metrics, [c.row(spec) for c in order])


def _rank(column: ColumnDrift) -> tuple[bool, float]:
    return not column.broken, -column.change.size


def _named(column: ColumnDrift) -> str:
    if column.broken:
        return f"{column.column} {column.note}"
    return f"{column.column} {column.change.values.effect:.2f}"


def _added(rows: pa.Table, reference: Reference) -> list[str]:
    known = {FEATURE_PREFIX + name for name in reference.feature_names}
    return [n for n in rows.column_names if n.startswith(FEATURE_PREFIX) and n not in known]


def sampled(table: pa.Table, most: int, seed: int = 0) -> pa.Table:
    """Return at most so many rows of a table, drawn with a seed, in their order."""
    if table.num_rows <= most:
        return table
    chosen = np.random.default_rng(seed).choice(table.num_rows, size=most, replace=False)
    return table.take(pa.array(np.sort(chosen)))

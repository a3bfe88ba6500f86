"""Are the answers that batch runs left behind still those that the model would give now?

A sample of the newest day of answers of each batch deployment is asked again: the version in force is given the
logged features (has the model moved on?), and, where the same entity (`client_request_id`) was logged again later in
any mode, its newest features (have the features?). An answer differs when its class does, or when it moved by more
than the policy's tolerance. What is judged is the share of answers that differ from what would be said now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.training_files import PREDICTION, PREDICTION_PROBA

from .look import Look, Monitor
from .outcomes import infer_task, probabilities
from .reference import FEATURE_PREFIX
from .shares import share_bounds
from .verdicts import Status, Verdict
from .windows import Window

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.model import Scorer

MONITOR = "relevance"
Flags = npt.NDArray[np.bool_]

_SPAN = timedelta(days=1)
_MOST = 2_000
# Fewer answers than this that can be compared say nothing.
_LEAST = 30
_OWN = (
    "prediction_id",
    "client_request_id",
    "request_time",
    "event_time",
    "deployment",
    "model_version",
    PREDICTION,
    PREDICTION_PROBA,
)


@dataclass(frozen=True)
class Compared:
    """The sampled answers of one batch deployment, asked again.

    One flag per answer that could be asked again: `by_version` differs on its own features, `renewed` has newer
    features, `by_features` differs between both features, `now` differs from what would be said now.
    """

    deployment: str
    newest: datetime
    sampled: int
    by_version: Flags
    renewed: Flags
    by_features: Flags
    now: Flags
    unasked: str

    def row(self) -> dict[str, Any]:
        """Return the evidence row."""
        return {
            "deployment": self.deployment,
            "newest_answer": self.newest.isoformat(),
            "sampled": self.sampled,
            "compared": len(self.now),
            "changed": int(self.now.sum()),
            "changed_by_version": int(self.by_version.sum()),
            "with_newer_features": int(self.renewed.sum()),
            "changed_by_features": int(self.by_features.sum()),
            "not_compared": self.unasked or None,
        }


class RelevanceMonitor(Monitor):
    """See the module."""

    name = MONITOR
    series = (("changed_share", "changed_answers_share"),)

    def look(self, look: Look) -> Verdict | None:
        names = [d.name for d in look.deployments if d.mode == "batch"]
        if not names:
            return None
        samples = list(_samples(look, names))
        if not samples:
            return Verdict(MONITOR, "unknown", "no batch answer in the window", look.window)
        try:
            scorer = look.load()
        except FlywheelError as error:
            said = f"version {look.version} cannot be asked again: {' '.join(str(error).split())}"
            return Verdict(MONITOR, "unknown", said, look.window)
        return _verdict([_compare(look, scorer, sample) for sample in samples], look)


def _samples(look: Look, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield of each deployment the newest day of answers before the window's end, at most so many in all."""
    columns = _columns(look)
    for name in names:
        times = look.read(look.window, deployment=name, columns=["event_time"])["event_time"]
        newest = pc.max(times).as_py() if len(times) else None
        if newest is None:
            continue
        day = Window(max(newest - _SPAN, look.window.start), newest + timedelta(microseconds=1))
        rows = look.read(day, deployment=name, columns=columns)
        rows = rows.filter(pc.is_valid(rows[PREDICTION]))
        if rows.num_rows:
            yield _sampled(rows, _MOST // len(names))


def _columns(look: Look) -> list[str]:
    return [*_OWN, *(n for n in look.rows.column_names if n.startswith(FEATURE_PREFIX))]


def _sampled(rows: pa.Table, most: int) -> pa.Table:
    """Choose rows by a hash of their ids: the same ones whenever and in whatever order they are read."""
    import pandas as pd

    rank = pd.util.hash_array(rows["prediction_id"].to_numpy(zero_copy_only=False))
    return rows.take(pa.array(np.argsort(rank, kind="stable")[:most]))


def _compare(look: Look, scorer: Scorer, sample: pa.Table) -> Compared:
    from mlflow_flywheel.pipelines.backtest import score_again

    own = score_again(scorer, sample)
    asked = own.rows["row"].to_numpy()
    by_version, renewed, by_features = (np.zeros(len(asked), dtype=bool) for _ in range(3))
    now = by_version
    if len(asked):
        differs = _Difference.of(look, sample)
        by_version = now = differs.between(sample.take(pa.array(asked)), own.rows)
        later, owner = _newer(look, sample)
        again = score_again(scorer, later).rows if later.num_rows else later
        place = np.full(sample.num_rows, -1)
        place[asked] = np.arange(len(asked))
        at = place[owner[again["row"].to_numpy()]] if again.num_rows else np.zeros(0, dtype=np.int64)
        if (at >= 0).any():
            again, at = again.take(pa.array(np.flatnonzero(at >= 0))), at[at >= 0]
            renewed[at] = True
            by_features[at] = differs.between(own.rows.take(pa.array(at)), again)
            now = by_version.copy()
            now[at] = differs.between(sample.take(pa.array(asked[at])), again)
    reason = max(own.unscored, key=lambda text: own.unscored[text], default="")
    return Compared(
        sample["deployment"][0].as_py(),
        pc.max(sample["event_time"]).as_py(),
        sample.num_rows,
        by_version,
        renewed,
        by_features,
        now,
        " ".join(reason.split()),
    )


def _newer(look: Look, sample: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Return the newest rows of the sample's entities that were asked for after it, and whose they are in the sample."""
    entities = sample["client_request_id"]
    ids = pc.unique(entities.drop_null()).to_pylist()
    if not ids:
        return sample.slice(0, 0), np.zeros(0, dtype=np.int64)
    since = pc.min(sample["event_time"]).as_py()
    rows = look.read(Window(since, look.as_of), requests=ids, columns=_columns(look))
    order = [("request_time", "descending"), ("event_time", "descending"), ("prediction_id", "descending")]
    rows = rows.sort_by(order)
    codes = rows["client_request_id"].combine_chunks().dictionary_encode()
    newest = rows.take(pa.array(np.unique(codes.indices.to_numpy(), return_index=True)[1]))
    found = pc.index_in(entities, newest["client_request_id"].combine_chunks())
    position = np.flatnonzero(pc.is_valid(found).to_numpy())
    theirs = newest.take(found.drop_null())
    is_later = pc.greater(theirs["request_time"], sample["request_time"].take(pa.array(position)))
    return theirs.filter(is_later), position[is_later.to_numpy()]


@dataclass(frozen=True)
class _Difference:
    """When two answers of one model differ: by class and probability, or by a number's distance."""

    is_number: bool
    tolerance: float

    @classmethod
    def of(cls, look: Look, sample: pa.Table) -> _Difference:
        known = look.reference.table if look.reference is not None else sample
        yardstick = known if PREDICTION in known.column_names else sample
        is_number = infer_task(yardstick, sample).kind == "regression"
        tolerance = look.policy.answer_tolerance
        if is_number:
            values = yardstick[PREDICTION].cast(pa.float64()).to_numpy()
            spread = float(np.std(values[np.isfinite(values)])) if np.isfinite(values).any() else 0.0
            tolerance *= spread
        return cls(is_number, tolerance)

    def between(self, before: pa.Table, after: pa.Table) -> Flags:
        """Return which answers of `after` differ from those of `before`."""
        old, new = before[PREDICTION], after[PREDICTION]
        if self.is_number:
            moved = np.abs(new.to_numpy() - old.to_numpy())
            return np.asarray(~(moved <= self.tolerance), dtype=bool)
        if old.type != new.type:
            old, new = old.cast(pa.string()), new.cast(pa.string())
        differs = np.asarray(pc.not_equal(old, new).to_numpy(), dtype=bool)
        said = [probabilities(table) for table in (before, after)]
        if said[0] is not None and said[1] is not None and said[0].shape == said[1].shape:
            differs |= np.abs(said[1] - said[0]).max(axis=1) > self.tolerance
        return differs


def _verdict(found: Sequence[Compared], look: Look) -> Verdict:
    rows = [one.row() for one in found]
    total = {
        name: sum(row[name] for row in rows)
        for name in (
            "compared",
            "changed",
            "changed_by_version",
            "with_newer_features",
            "changed_by_features",
        )
    }
    n = total["compared"]
    if n < _LEAST:
        why = next((f": {one.unasked}" for one in found if one.unasked), "")
        few = f"{n:,} batch answers could be asked again, fewer than {_LEAST}{why}"
        return Verdict(MONITOR, "unknown", few, look.window, {"compared": n}, rows)
    share = total["changed"] / n
    surely = share_bounds(total["changed"], n, look.policy.confidence)[0]
    limit = look.policy.stale_share
    status: Status = "alarm" if surely > limit else "warn" if share > limit else "ok"
    metrics = {"compared": n, "changed_share": share, "changed_by_version": total["changed_by_version"] / n}
    newest = max(one.newest for one in found)
    summary = (
        f"{share:.1%} of {n:,} batch answers up to {newest:%Y-%m-%d %H:%M} would be different now: version "
        f"{look.version} changes {metrics['changed_by_version']:.1%}"
    )
    renewed = total["with_newer_features"]
    if renewed:
        metrics |= {
            "renewed_share": renewed / n,
            "changed_by_features": total["changed_by_features"] / renewed,
        }
        summary += f", newer features {metrics['changed_by_features']:.1%} of the {renewed:,} that have them"
    return Verdict(MONITOR, status, summary, look.window, metrics, rows)

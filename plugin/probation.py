"""A promoted version on probation: what it does on its own rows decides whether it stays.

Four questions, the cheapest first: does it fail more often than the version before it, does it take much longer, does it
lose more on labelled rows and, while these are too few, does it probably lose more on those without labels? Every
promotion is watched, whoever made it: the gate's own, a person's, an alias set by hand. A version to which one went back
is not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.decisions import Probation, Seen
from mlflow_flywheel.monitors.failures import Failures, can_judge, compare_failures
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.probation import (
    Comparison,
    compare,
    confidence_of,
    judge,
    longer,
    pace_words,
    paces,
    slower,
    worth_a_look,
)
from mlflow_flywheel.monitors.probation_estimate import MOST_ROWS, Estimate, compare_estimates
from mlflow_flywheel.monitors.reference import load_reference
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer

from .champion import CHAMPION, PARENT_TAG
from .database import utc_now
from .home import Home
from .kept_out import kept_out, without
from .model_files import load_version
from .record_types import ActionRecord
from .records import Records
from .release import GATE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)
# How far back the failures of the version before are counted.
_BEFORE = timedelta(days=30)


@dataclass(frozen=True)
class Watch:
    """One look at a version on probation: `kind` is what follows, `state` is what to remember of it."""

    kind: Literal["goes_on", "passed", "unjudged", "worse"]
    promotion: ActionRecord
    state: Probation
    reason: str = ""
    evidence: dict[str, Any] | None = None

    @property
    def before(self) -> str:
        """The version that was in force before."""
        return str(self.promotion.evidence["before"])


@dataclass(frozen=True)
class _Case:
    """What a look needs: the version, the promotion, and where its rows are."""

    home: Home
    records: Records
    client: MlflowClient
    policy: PolicySpec
    table: InferenceTable
    promotion: ActionRecord
    load: Callable[[], Scorer]
    as_of: datetime

    @property
    def ends(self) -> datetime:
        return self.promotion.as_of + self.policy.probation

    @property
    def before(self) -> str:
        """The version that was in force before."""
        return str(self.promotion.evidence["before"])

    @cached_property
    def old(self) -> Scorer | None:
        """That version, loaded; None when it is gone, or what was logged is not all that it would have been asked."""
        try:
            old = load_version(self.home, self.table.model_name, self.before)
        except FlywheelError:
            return None
        logged = set(self.load().schema.names) - set(kept_out(self.records, self.table.model_name))
        return old if set(old.schema.names) <= logged else None

    def rows(self, version: str, start: datetime, end: datetime, **more: Any) -> pa.Table:
        """Read what a version answered as champion."""
        return self.table.read(
            start=start, end=end, version=version, variant=CHAMPION, known_before=self.as_of, **more
        )


def watch(
    home: Home,
    records: Records,
    client: MlflowClient,
    policy: PolicySpec,
    table: InferenceTable,
    version: str,
    load: Callable[[], Scorer],
    seen: Probation | None,
    as_of: datetime,
) -> Watch | None:
    """Look at the version in force if it is on probation; None when it is not, or cannot be loaded now.

    `load` loads the version, `seen` is what the policy remembers of earlier looks.
    """
    promotion = _promotion(records, policy, table.model_name, version)
    if promotion is None:
        return None
    state = seen if seen is not None and seen.promotion == promotion.id else Probation(promotion=promotion.id)
    case = _Case(home, records, client, policy, table, promotion, load, as_of)
    try:
        return _asked(case, version, state)
    except FlywheelError as error:
        _log.warning("version %s of %s cannot be looked at: %s", version, table.model_name, error.message)
        return None


def end_action_key(watched: Watch) -> str:
    """Return the key under which the end of a probation is recorded, once."""
    return _end_key(watched.promotion)


def is_failing(records: Records, policy: PolicySpec, model: str, version: str) -> bool:
    """Tell whether a version on probation fails so often that it must be looked at, even when it answers nothing."""
    promotion = _promotion(records, policy, model, version)
    if promotion is None or policy.probation_errors >= 1:
        return False
    return can_judge(records.answers(model, version, promotion.created, utc_now()))


def _promotion(records: Records, policy: PolicySpec, model: str, version: str) -> ActionRecord | None:
    """Return the promotion whose probation a version is on; None when it is on none."""
    moves = records.moves(model, limit=1)
    if not moves or policy.probation <= timedelta(0):
        return None
    (promotion,) = moves
    if promotion.kind != "promote" or promotion.status != "done" or promotion.evidence["after"] != version:
        return None
    return None if records.actions(model, limit=1, key=_end_key(promotion)) else promotion


def _asked(case: _Case, version: str, state: Probation) -> Watch:
    """Ask all four questions; the first that is answered with "worse" ends it."""
    failures, seen = _failures(case, version, state.failures)
    state = state.model_copy(update={"failures": seen})
    said: dict[str, Any] = {"failures": [each.to_dict() for each in failures]} if failures else {}
    if failures and failures[0].worse:
        return Watch("worse", case.promotion, state, f"it fails more often: {failures[0]}", said)
    watched = _look(case, version, state)
    kept = {"failures": seen, "estimates": state.estimates}
    words = [str(failures[0])] if failures else []
    if watched.kind != "worse" and watched.state.rows == 0:
        estimate, kept["estimates"] = _estimated(case, version, state.estimates)
        if estimate is not None:
            said["estimate"] = estimate.to_dict()
            words.insert(0, str(estimate))
        if estimate is not None and estimate.worse:
            why = f"it is probably worse: {estimate}"
            watched = replace(watched, kind="worse", reason=why, evidence=watched.evidence or {})
    if watched.kind in ("passed", "unjudged"):
        pace = pace_words(_paces(case, version))
        words += [pace] if pace else []
        watched = replace(watched, reason="; ".join([watched.reason, *words]))
        said |= {"latency": pace} if pace else {}
    evidence = None if watched.evidence is None else {**said, **watched.evidence}
    return replace(watched, state=watched.state.model_copy(update=kept), evidence=evidence)


def _failures(case: _Case, version: str, seen: Seen) -> tuple[list[Failures], Seen]:
    """Compare how often each deployment's model failed; a test is made when there is clearly more to see.

    Failures are counted by the clock of the servers, not of the events.
    """
    began, model = case.promotion.created, case.table.model_name
    now = case.records.answers(model, version, began, utc_now())
    before = case.records.answers(model, case.before, began - _BEFORE, began)
    asked = sum(tally.asked for tally in now.values())
    judged = case.policy.probation_errors < 1 and can_judge(now) and worth_a_look(asked, 1, seen.rows)
    if judged:
        seen = Seen(looks=seen.looks + 1, rows=asked)
    alpha = (1 - confidence_of(seen.looks, case.policy.confidence)) / 2 if judged else 0.0
    return compare_failures(before, now, margin=case.policy.probation_errors, alpha=alpha), seen


def _estimated(case: _Case, version: str, seen: Seen) -> tuple[Estimate | None, Seen]:
    """Compare what both versions probably lose on rows without labels; None when nothing new can be said."""
    start, end = case.promotion.as_of, min(case.as_of, case.ends)
    times = case.rows(version, start, end, columns=["event_time"], order_by=None)["event_time"]
    if not worth_a_look(len(times), case.policy.min_rows, seen.rows):
        return None, seen
    if case.old is None:
        return None, seen
    seen = Seen(looks=seen.looks + 1, rows=len(times))
    if len(times) > MOST_ROWS:  # the newest are enough
        start = times.take(pc.sort_indices(times))[-MOST_ROWS].as_py()
    rows = case.rows(version, start, end)
    left_out = kept_out(case.records, case.table.model_name)
    reference = load_reference(case.table.model_name, version, case.home.tracking_uri)
    rows, reference = without(rows, reference, left_out)
    found = compare_estimates(
        rows,
        case.old,
        case.load(),
        reference,
        margin=case.policy.loss_margin,
        confidence=confidence_of(seen.looks, case.policy.confidence),
        seed=seen.looks,
    )
    return found, seen


def _look(case: _Case, version: str, state: Probation) -> Watch:
    slow = _slower(case, version)
    if slow is not None:
        return Watch("worse", case.promotion, state, f"its predictions are slow: {slow}", {"latency": slow})
    began = case.promotion.as_of
    labelled = case.rows(version, began, min(case.as_of, case.ends), labelled=True)
    found = judge(
        case.policy,
        version,
        began,
        case.as_of,
        labelled.num_rows,
        state,
        lambda look: _compared(case, labelled, look),
    )
    return Watch(found.kind, case.promotion, found.state, found.reason, found.evidence)


def _compared(case: _Case, labelled: pa.Table, state: Probation) -> Comparison | None:
    tags = case.client.get_model_version(case.table.model_name, str(case.promotion.evidence["after"])).tags
    judged = GATE_TAG in tags and tags.get(PARENT_TAG) == case.before
    gate = json.loads(tags[GATE_TAG]) if judged else {}
    return compare(
        labelled,
        case.old,
        case.load(),
        known=gate.get("champion") or {},
        margin=case.policy.loss_margin,
        confidence=confidence_of(state.looks, case.policy.confidence),
        seed=state.looks,
    )


def _slower(case: _Case, version: str) -> str | None:
    """Say how much slower the version is than the one before; None when it is not, or only the machine is."""
    ratio, least = case.policy.probation_latency, case.policy.min_rows
    if ratio <= 0:
        return None
    began = case.promotion.as_of
    if case.as_of <= began:
        return None
    said = slower(*_timed(case, version), least, ratio)
    if said is None or case.old is None:
        return None
    again = longer(case.rows(version, began, case.as_of), case.old, case.load())
    return f"{said}; {again:.1f} times the processor time for the same rows" if again > ratio else None


def _paces(case: _Case, version: str) -> dict[str, tuple[float, float]]:
    return paces(*_timed(case, version), case.policy.min_rows) if case.as_of > case.promotion.as_of else {}


def _timed(case: _Case, version: str) -> tuple[pa.Table, pa.Table]:
    """Return what the version before answered in as long a time before the promotion, and what this one answered."""
    began = case.promotion.as_of
    timed = {"columns": ["deployment", "execution_duration_us"], "order_by": None}
    return (
        case.rows(case.before, began - (case.as_of - began), began, **timed),
        case.rows(version, began, case.as_of, **timed),
    )


def _end_key(promotion: ActionRecord) -> str:
    return f"probation:{promotion.id}"

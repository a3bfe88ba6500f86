"""A challenger that passed the gate and is tried first: what it did beside the champion decides when its time is over.

Whoever has it as a shadow or a canary logs what it says. It takes over unless it surely loses more than the champion
would have on the same labelled rows, or surely fails more often; where nobody tried it, a person decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.failures import Tally, compare_failures
from mlflow_flywheel.monitors.probation import compare
from mlflow_flywheel.pipelines.training_files import LABEL

from .champion import CHALLENGER
from .database import utc_now
from .model_files import load_version
from .record_types import ActionRecord
from .records import Records
from .release import TRIAL_UNTIL
from .turn import Turn


@dataclass(frozen=True)
class TrialEnd:
    """What follows from a trial that is over: it is promoted, refused, or waits for a person."""

    action: ActionRecord
    kind: Literal["promote", "refuse", "wait"]
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return str((self.action.result or {})["version"])

    @property
    def outcome(self) -> dict[str, Any]:
        """Return what becomes of the retraining's result when it is not promoted."""
        kept = {name: value for name, value in (self.action.result or {}).items() if name != TRIAL_UNTIL}
        status = "refused" if self.kind == "refuse" else "waiting"
        return kept | {"status": status, "reason": self.reason, "trial": dict(self.evidence)}


def trial_end(turn: Turn) -> TrialEnd | None:
    """Judge the trial of a model that is over; None while there is none. Raises FlywheelError when it cannot be judged."""
    action = _over(turn.records, turn.model, turn.as_of)
    if action is None:
        return None
    result = action.result or {}
    version, in_force, policy = str(result["version"]), turn.look.version, turn.look.policy
    if result.get("parent") != in_force:
        why = f"version {in_force} became champion meanwhile, and version {version} was tried beside another one"
        return TrialEnd(action, "wait", why)
    rows = turn.table.read(
        start=action.as_of, end=turn.as_of, version=version, variant=CHALLENGER, known_before=turn.as_of
    )
    now = turn.records.answers(turn.model, version, action.updated, utc_now())
    if not rows.num_rows and not any(tally.asked for tally in now.values()):
        why = (
            f"nobody tried version {version}: no deployment has challenger=models:/{turn.model}@{CHALLENGER}, and trial="
            "0d promotes without"
        )
        return TrialEnd(action, "wait", why)
    before = turn.records.answers(turn.model, in_force, action.updated, utc_now())
    (failures,) = compare_failures(
        {"all deployments": _total(before)},
        {"all deployments": _total(now)},
        margin=policy.probation_errors,
        alpha=(1 - policy.confidence) / 2,
    )
    evidence: dict[str, Any] = {"rows": rows.num_rows, "failures": failures.to_dict()}
    if failures.worse:
        return TrialEnd(action, "refuse", f"on trial it failed more often: {failures}", evidence)
    return _by_labels(turn, action, rows, evidence)


def _by_labels(turn: Turn, action: ActionRecord, rows: pa.Table, evidence: dict[str, Any]) -> TrialEnd:
    """Compare a challenger with the champion on the labelled rows of its trial."""
    version, policy = str((action.result or {})["version"]), turn.look.policy
    labelled = rows.filter(pc.is_valid(rows[LABEL]))
    said = (
        f"version {version} was tried on {rows.num_rows:,} rows, {labelled.num_rows:,} of them with a label"
    )
    if labelled.num_rows < policy.min_rows:
        return TrialEnd(action, "promote", f"{said}: too few to judge, and the gate's word stands", evidence)
    found = compare(
        labelled,
        turn.look.load(),
        load_version(turn.home, turn.model, version),
        known={},
        margin=policy.loss_margin,
        confidence=policy.confidence,
    )
    if found is None:
        return TrialEnd(action, "promote", f"{said}; the champion cannot answer them", evidence)
    evidence = {**evidence, "comparison": found.to_dict()}
    if found.worse:
        return TrialEnd(action, "refuse", f"on trial it was surely worse: {found}", evidence)
    return TrialEnd(action, "promote", f"on trial it was not surely worse: {found}", evidence)


def _over(records: Records, model: str, as_of: datetime) -> ActionRecord | None:
    """Return the newest retraining whose challenger has been tried for long enough."""
    for action in records.actions(model, kinds=("retrain",), status="waiting"):
        until = (action.result or {}).get(TRIAL_UNTIL)
        if until is not None and datetime.fromisoformat(until).astimezone(timezone.utc) <= as_of:
            return action
    return None


def _total(tallies: Mapping[str, Tally]) -> Tally:
    """Put deployments together: one that only tries the challenger has no champion of its own to compare with."""
    return Tally(
        sum(tally.answered for tally in tallies.values()),
        sum(tally.failed for tally in tallies.values()),
        max((tally.failing_slots for tally in tallies.values()), default=0),
    )

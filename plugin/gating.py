"""A challenger before the gate: what it is asked beside the score, how often that was asked before, and the record.

An attempt is counted, so that nothing is tried again until it passes by luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.gate import GateResult, compare, kind_of, refuse
from mlflow_flywheel.pipelines.gate_checks import GateChecks
from mlflow_flywheel.pipelines.lineage import TrainingSet
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.registry import ResolvedModel

from .home import Home
from .policy_memory import policy_memory
from .record_types import ActionRecord
from .records import Records
from .release import GATE_TAG
from .suitability import unsuitable

if TYPE_CHECKING:
    from mlflow import MlflowClient

WORK = "retraining"
TEXT_LENGTH = 2000


@dataclass(frozen=True)
class Challenge:
    """One attempt: the model, its champion, the run that the challenger comes from, and the action that it is."""

    home: Home
    client: MlflowClient
    policy: PolicySpec
    champion: ResolvedModel
    reason: str
    as_of: datetime
    run_id: str
    experiment: str
    records: Records
    action: ActionRecord | None = None

    @property
    def model(self) -> str:
        return self.champion.name

    @property
    def folder(self) -> Path:
        """Return where the training set is while the attempt lasts."""
        return self.home.path / WORK / self.run_id


def judge(attempt: Challenge, champion: Scorer, challenger: Scorer, training_set: TrainingSet) -> GateResult:
    """Compare a challenger with the champion on the hold-out, and with what the deployments need."""
    gate = compare(
        champion,
        challenger,
        training_set.holdout(),
        kind_of(champion),
        seed=training_set.lineage.seed,
        confidence=attempt.policy.gate_confidence,
        margin=attempt.policy.gate_margin,
        checks=_checks(attempt, training_set),
    )
    if not gate.promote:
        return gate
    unfit = unsuitable(attempt.home, attempt.records, attempt.model, challenger)
    return gate if unfit is None else refuse(gate, unfit)


def log_gate(attempt: Challenge, gate: GateResult, model_id: str) -> None:
    """Show the comparison on the run: metrics of both, and the whole result as an artifact."""
    client, run_id = attempt.client, attempt.run_id
    numbers = {"gate_difference": gate.difference, "gate_low": gate.low, "gate_high": gate.high}
    numbers |= {f"champion_{name}": value for name, value in gate.champion.items()}
    numbers |= {f"challenger_{name}": value for name, value in gate.challenger.items()}
    for name, value in numbers.items():
        if math.isfinite(value):
            client.log_metric(run_id, name, value, model_id=model_id)
    client.log_dict(run_id, gate.to_dict(), "flywheel/gate.json")
    client.set_tag(run_id, GATE_TAG, gate.reason[:TEXT_LENGTH])


def _checks(attempt: Challenge, training_set: TrainingSet) -> GateChecks:
    """Return what the gate asks beside the score, and how many challengers it has refused on this evidence."""
    policy, action, cut = attempt.policy, attempt.action, training_set.lineage.holdout_start
    earlier = 0
    if action is not None:
        earlier = refused_before(attempt.records, policy, action, attempt.champion.version, cut)
    return GateChecks(
        policy.gate_slices,
        policy.gate_max_latency_ratio,
        policy.gate_max_size_ratio,
        1 + earlier,
    )


def refused_before(
    records: Records, policy: PolicySpec, action: ActionRecord, parent: str, holdout_start: datetime
) -> int:
    """Count the challengers of a champion that were refused for the same reason, or by an overlapping hold-out.

    The reason is a lasting alarm that may start a retraining; that of another monitor may last for good.
    """
    state = policy_memory(action.model, records.policy_state(action.model))
    began = state.alarmed_since(policy.retrain_on)
    refused = records.actions(action.model, limit=1000, kinds=("retrain",), status="refused")
    return sum(
        (earlier.as_of > holdout_start or (began is not None and earlier.as_of >= began))
        and earlier.as_of <= action.as_of
        and earlier.id != action.id
        and (earlier.result or {}).get("parent") == parent
        for earlier in refused
    )

"""A challenger before the gate: what it is asked beside the score, how often that was asked before, and the record.

An attempt is counted, so that nothing is tried again until it passes by luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.decisions import PolicyState
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.gate import GateResult, compare, kind_of, refuse
from mlflow_flywheel.pipelines.gate_checks import GateChecks
from mlflow_flywheel.pipelines.lineage import TrainingSet
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.registry import ResolvedModel

from .home import Home
from .records import Records
from .release import GATE_TAG
from .suitability import unsuitable

if TYPE_CHECKING:
    from mlflow import MlflowClient

WORK = "retraining"
TEXT_LENGTH = 2000


@dataclass(frozen=True)
class Challenge:
    """One attempt: the model, its champion, and the run that the challenger comes from."""

    home: Home
    client: MlflowClient
    policy: PolicySpec
    champion: ResolvedModel
    reason: str
    as_of: datetime
    run_id: str
    experiment: str
    records: Records
    action_id: int

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
    policy = attempt.policy
    return GateChecks(
        policy.gate_slices,
        policy.gate_max_latency_ratio,
        policy.gate_max_size_ratio,
        1 + _refused_before(attempt, training_set.lineage.holdout_start),
    )


def _refused_before(attempt: Challenge, holdout_start: datetime) -> int:
    """Count the challengers of this champion that were refused in the same lasting alarm, or by an overlapping hold-out."""
    state = PolicyState.model_validate(attempt.records.policy_state(attempt.model))
    since = min(holdout_start, state.alarmed_since or holdout_start)
    refused = attempt.records.actions(attempt.model, limit=1000, kinds=("retrain",), status="refused")
    return sum(
        since < action.as_of <= attempt.as_of
        and action.id != attempt.action_id
        and (action.result or {}).get("parent") == attempt.champion.version
        for action in refused
    )

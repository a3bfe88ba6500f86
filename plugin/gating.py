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
    import pyarrow as pa
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
    cut, earlier = training_set.lineage.holdout_start, 0
    if attempt.action is not None:
        earlier = refused_before(
            attempt.records, attempt.policy, attempt.action, attempt.champion.version, cut
        )
    gate = weigh(
        attempt.policy,
        champion,
        challenger,
        training_set.holdout(),
        attempt=1 + earlier,
        seed=training_set.lineage.seed,
    )
    if not gate.promote:
        return gate
    unfit = unsuitable(attempt.home, attempt.records, attempt.model, challenger)
    return gate if unfit is None else refuse(gate, unfit)


def weigh(
    policy: PolicySpec,
    champion: Scorer,
    challenger: Scorer,
    holdout: pa.Table,
    *,
    attempt: int,
    seed: int = 0,
) -> GateResult:
    """Ask the gate what the policy wants asked; `attempt` counts the challengers on this evidence."""
    checks = GateChecks(
        policy.gate_slices, policy.gate_max_latency_ratio, policy.gate_max_size_ratio, attempt
    )
    return compare(
        champion,
        challenger,
        holdout,
        kind_of(champion),
        seed=seed,
        confidence=policy.gate_confidence,
        margin=policy.gate_margin,
        checks=checks,
    )


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


def refused_before(
    records: Records, policy: PolicySpec, action: ActionRecord, parent: str, holdout_start: datetime
) -> int:
    """Count the challengers of a champion that were refused on the evidence of this attempt."""
    state = policy_memory(action.model, records.policy_state(action.model))
    refused = records.actions(action.model, limit=1000, kinds=("retrain",), status="refused")
    return sum(
        state.same_evidence(earlier.as_of, policy.retrain_on, holdout_start)
        and earlier.as_of <= action.as_of
        and earlier.id != action.id
        and (earlier.result or {}).get("parent") == parent
        for earlier in refused
    )

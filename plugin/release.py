"""From a gated version to the one in force: what the gate said and what the policy asks decide about the alias."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.monitors.policy import PolicySpec

from .champion import CHALLENGER, CHAMPION, PARENT_TAG, ROLLED_BACK_TAG, Registry, move
from .records import Records

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

GATE_TAG, AS_OF_TAG = "flywheel.gate", "flywheel.as_of"
# In the result of a retraining whose challenger waits: when its trial ends.
TRIAL_UNTIL = "trial_until"


def release(
    records: Records,
    registry: Registry,
    policy: PolicySpec,
    version: ModelVersion,
    as_of: datetime,
    requested_by: str,
) -> dict[str, Any]:
    """Move the alias when the gate and the policy allow it; safe to repeat."""
    gate = json.loads(version.tags[GATE_TAG])
    model, number = str(version.name), str(version.version)
    result = {"run_id": version.run_id, "version": number, "gate": gate, "reason": gate["reason"]}
    result["parent"] = version.tags[PARENT_TAG]
    if not gate["promote"]:
        return result | {"status": "refused", "promoted": False}
    if ROLLED_BACK_TAG in version.tags:
        why = f"refused: version {number} was rolled back ({version.tags[ROLLED_BACK_TAG]}); retrain instead"
        return result | {"status": "refused", "promoted": False, "reason": why}
    in_force = registry.champion(model)
    hold = _hold(records, policy, version, in_force)
    if in_force != number and hold is None and policy.trial > timedelta(0):
        until = as_of + policy.trial
        hold = f"tried beside version {in_force} until {until:%Y-%m-%d %H:%M} UTC"
        result[TRIAL_UNTIL] = until.isoformat()
    if in_force != number and hold is not None:
        registry.point(model, CHALLENGER, number)
        return result | {"status": "waiting", "promoted": False, "reason": f"{gate['reason']}; {hold}"}
    if in_force != number:
        evidence = {"requested_by": requested_by, "gate": gate, "run_id": version.run_id}
        move(records, registry, "promote", model, number, gate["reason"], evidence, as_of)
    return result | {"status": "promoted", "promoted": True}


def _hold(records: Records, policy: PolicySpec, version: ModelVersion, in_force: str) -> str | None:
    """Say why a version that passed the gate waits for a person; None when it need not."""
    parent = version.tags[PARENT_TAG]
    if in_force != parent:
        return f"version {in_force} became champion meanwhile, and the gate compared with {parent}"
    paused = records.paused(str(version.name))
    if paused is not None:
        return f"waiting for approval: the loop is paused {paused}"
    if policy.approval == "manual":
        return f"waiting for approval: 'flywheel promote {version.name}', or set the alias {CHAMPION} to version {version.version}"
    return None

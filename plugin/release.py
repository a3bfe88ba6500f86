"""From a gated version to the one in force: what the gate said and what the policy asks decide about the alias."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.monitors.policy import PolicySpec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
PARENT_TAG, GATE_TAG, AS_OF_TAG = "flywheel.parent", "flywheel.gate", "flywheel.as_of"


def release(client: MlflowClient, policy: PolicySpec, version: ModelVersion) -> dict[str, Any]:
    """Move the alias when the gate and the policy allow it; safe to repeat."""
    gate = json.loads(version.tags[GATE_TAG])
    number = str(version.version)  # MLflow's SQL stores count in integers, its server in texts
    result = {"run_id": version.run_id, "version": number, "gate": gate, "reason": gate["reason"]}
    if not gate["promote"]:
        return result | {"status": "refused", "promoted": False}
    in_force = str(client.get_model_version_by_alias(version.name, CHAMPION).version)
    if in_force not in (number, version.tags[PARENT_TAG]):
        client.set_registered_model_alias(version.name, CHALLENGER, number)
        why = f"version {in_force} became champion meanwhile, and the gate compared with {version.tags[PARENT_TAG]}"
        return result | {"status": "waiting", "promoted": False, "reason": f"{gate['reason']}; {why}"}
    if policy.approval == "manual" and in_force != number:
        client.set_registered_model_alias(version.name, CHALLENGER, number)
        why = f"waiting for approval: set the alias {CHAMPION} to version {number}"
        return result | {"status": "waiting", "promoted": False, "reason": f"{gate['reason']}; {why}"}
    client.set_registered_model_alias(version.name, CHAMPION, number)
    return result | {"status": "promoted", "promoted": True}

"""From a reason to retrain to a version that was gated: training set, project run, gate, registry, alias.

The champion serves on whatever happens here. Every step leaves its trace (the MLflow run, the version's tags, the
action record) before the next begins, so a retraining that was killed is taken up again without a second version.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow_flywheel.pipelines
from mlflow_flywheel.monitors.decisions import BY_POLICY
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import KIND_TAG, MODEL_TAG, experiment_id
from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.gate import GateResult
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.lineage import LINEAGE_FILE, TrainingSet, TrainingSetSpec
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.reference_file import make_reference
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, resolve_model
from mlflow_flywheel.pipelines.retrain import check_refittable
from mlflow_flywheel.pipelines.training_files import (
    BASE_TAG,
    HOLDOUT_START_TAG,
    LABEL_TAG,
    LINEAGE_ARTIFACT,
    REFERENCE_TAG,
    check_feature_names,
    write_rows,
)
from mlflow_flywheel.pipelines.training_set import build_training_set

from .champion import CHAMPION, PARENT_TAG, Registry
from .gating import TEXT_LENGTH, WORK, Challenge, judge, log_gate
from .home import Home
from .kept_out import check_trainable
from .project_run import run_project
from .records import Records
from .registration import add_version, log_reference
from .release import AS_OF_TAG, GATE_TAG, release
from .runners.base import path_with_interpreter, process_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TRIGGER_TAG, LINEAGE_TAG = "flywheel.trigger", "flywheel.lineage"

RETRAINING = "retraining"

_log = logging.getLogger(__name__)
_PROJECT = str(Path(mlflow_flywheel.pipelines.__file__).parent)
# A web or stream worker seals its segment within a second: what was received before `known_at` is committed by then.
_SETTLE_SECONDS = 1.5


def run_retraining(
    home: Home, records: Records, model: str, reason: str, as_of: datetime, action_id: int
) -> dict[str, Any]:
    """Refit the champion of a model on what was known at `as_of`, gate it, and promote it when the policy says so.

    Returns, and writes to the action record: `status` ("promoted", "waiting" for approval, "refused" by the gate,
    "failed", or "cancelled" because the loop was paused before it began), `reason`, `run_id`, `version`, `gate` and
    `promoted`. Expected failures are an outcome, not an error.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(home.tracking_uri)
    action = records.update_action(action_id, "running")
    run_id, requested_by = action.run_id, str(action.evidence.get("requested_by", ""))
    paused = records.paused(model)
    if paused is not None and requested_by == BY_POLICY and run_id is None:
        said = f"not started: the loop is paused {paused}"
        records.update_action(action_id, "cancelled", _outcome("cancelled", said, None))
        return _outcome("cancelled", said, None)
    try:
        policy = PolicySpec.parse(records.policy(model))
        version = _made_before(client, run_id)
        if version is None:
            check_trainable(records, model)
            shutil.rmtree(home.path / WORK, ignore_errors=True)  # of a try that was killed
            champion = resolve_model(f"models:/{model}@{CHAMPION}", home.tracking_uri)
            experiment = experiment_id(client, model)
            run_id = new_run(client, experiment, champion, reason, as_of)
            records.update_action(action_id, "running", run_id=run_id)
            version = _challenge(
                Challenge(home, client, policy, champion, reason, as_of, run_id, experiment, records, action)
            )
        result = release(records, Registry(client), policy, version, as_of, requested_by)
    except (FlywheelError, MlflowException) as error:
        _log.warning("retraining of %s failed: %s", model, error.message)
        _end_run(client, run_id, "FAILED")
        result = _outcome("failed", error.message, run_id)
    except Exception:
        _end_run(client, run_id, "FAILED")
        raise
    records.update_action(action_id, result["status"], result, result["run_id"])
    return result


def _outcome(status: str, reason: str, run_id: str | None) -> dict[str, Any]:
    """Return the result of a retraining that came to no version."""
    return {
        "status": status,
        "reason": reason,
        "run_id": run_id,
        "version": None,
        "gate": None,
        "promoted": False,
    }


def _challenge(attempt: Challenge) -> ModelVersion:
    """Train, gate and register a challenger, and return its version."""
    try:
        champion_ref = download_model(attempt.champion, attempt.home.models, attempt.home.tracking_uri)
        check_refittable(Path(champion_ref.path))
        champion = load_scorer(champion_ref)
        tags = attempt.client.get_model_version(attempt.model, attempt.champion.version).tags
        training_set = _training_set(attempt, champion, tags)
        model_id = train(attempt, training_set, champion_ref.path)
        resolved = resolve_model(f"models:/{model_id}", attempt.home.tracking_uri)
        challenger = load_scorer(download_model(resolved, attempt.folder, attempt.home.tracking_uri))
        check_feature_names(challenger.schema, f"the challenger {model_id}")
        InferenceTable.open(attempt.home.tables, attempt.model).ensure(challenger.schema, challenger.kind)
        gate = judge(attempt, champion, challenger, training_set)
        log_gate(attempt, gate, model_id)
        return _register(attempt, resolved, challenger, training_set, gate, tags)
    finally:
        shutil.rmtree(attempt.folder, ignore_errors=True)


def _training_set(attempt: Challenge, champion: Scorer, tags: Mapping[str, str]) -> TrainingSet:
    """Freeze what is known now and build the training set from it."""
    known_at = datetime.now(timezone.utc)
    base_uri = tags.get(BASE_TAG) or tags.get(REFERENCE_TAG)
    base = _download(attempt, base_uri) if base_uri else None
    settled = known_at + timedelta(seconds=_SETTLE_SECONDS)
    time.sleep(max(0.0, (settled - datetime.now(timezone.utc)).total_seconds()))
    Committer(attempt.home.spool, attempt.home.tables).commit_once()
    not_before = tags.get(HOLDOUT_START_TAG)
    spec = TrainingSetSpec(
        model=attempt.model,
        parent_version=attempt.champion.version,
        start=attempt.as_of - attempt.policy.training_window,
        as_of=attempt.as_of,
        known_at=known_at,
        max_rows=attempt.policy.max_rows,
        holdout_share=attempt.policy.holdout_share,
        holdout_rows=attempt.policy.holdout_rows,
        holdout_not_before=datetime.fromisoformat(not_before) if not_before else None,
        base=base_uri,
        table_versions=None,
    )
    made = build_training_set(spec, attempt.home.tables, champion.schema, attempt.folder / "set", base)
    attempt.client.log_artifact(
        attempt.run_id, str(made.folder / LINEAGE_FILE), LINEAGE_ARTIFACT.rpartition("/")[0]
    )
    return made


def train(attempt: Challenge, training_set: TrainingSet, parent: str) -> str:
    """Run the retraining project and return the id of the model that it logged."""
    parameters = {
        "training_set": str(training_set.folder),
        "parent": parent,
        "seed": str(training_set.lineage.seed),
    }
    for name, value in parameters.items():
        attempt.client.log_param(attempt.run_id, name, value)
    environment = process_environment(attempt.home.tracking_uri, attempt.home.path)
    environment["PATH"] = path_with_interpreter(os.environ.get("PATH", os.defpath))
    log_file = attempt.folder / "retrain.log"
    outcome = run_project(
        _PROJECT,
        parameters,
        run_id=attempt.run_id,
        experiment_id=attempt.experiment,
        environment=environment,
        log_file=log_file,
        timeout=attempt.policy.retrain_timeout.total_seconds(),
        memory_bytes=attempt.policy.retrain_memory_gb * 1e9 or math.inf,
    )
    attempt.client.log_artifact(attempt.run_id, str(log_file), "logs")
    if outcome.status == "KILLED":
        raise FlywheelError(f"the retraining run was killed {outcome.bound}; the champion serves on")
    if outcome.status == "FAILED":
        raise FlywheelError(
            f"the retraining run failed; the champion serves on. It said:\n{outcome.log_tail}"
        )
    outputs = attempt.client.get_run(attempt.run_id).outputs
    if outputs is None or not outputs.model_outputs:
        raise FlywheelError(
            "the retraining project finished without logging a model; call log_model in its run"
        )
    return str(outputs.model_outputs[-1].model_id)


def _register(
    attempt: Challenge,
    resolved: ResolvedModel,
    challenger: Scorer,
    training_set: TrainingSet,
    gate: GateResult,
    parent_tags: Mapping[str, str],
) -> ModelVersion:
    """Make the challenger a version whose tags say where it comes from and what the gate said."""
    lineage = training_set.lineage
    path = attempt.folder / "reference.parquet"
    write_rows(make_reference(challenger, training_set.holdout(), seed=lineage.seed), path)
    assert resolved.model_id is not None
    tags = {
        REFERENCE_TAG: log_reference(attempt.client, resolved.model_id, attempt.model, path),
        LABEL_TAG: parent_tags.get(LABEL_TAG, ""),
        BASE_TAG: lineage.base or "",
        PARENT_TAG: attempt.champion.version,
        AS_OF_TAG: attempt.as_of.isoformat(),
        TRIGGER_TAG: attempt.reason[:TEXT_LENGTH],
        LINEAGE_TAG: f"runs:/{attempt.run_id}/{LINEAGE_ARTIFACT}",
        HOLDOUT_START_TAG: lineage.holdout_start.isoformat(),
        GATE_TAG: json.dumps({**gate.to_dict(), "reason": gate.reason[:TEXT_LENGTH]}),
    }
    number = add_version(attempt.client, resolved, attempt.model, {k: v for k, v in tags.items() if v})
    return attempt.client.get_model_version(attempt.model, number)


def new_run(
    client: MlflowClient,
    experiment: str,
    champion: ResolvedModel,
    reason: str,
    as_of: datetime,
    kind: str = RETRAINING,
) -> str:
    """Make the run that the project will fill, with the tags that MLflow gives to project runs."""
    from mlflow.utils import mlflow_tags

    tags = {
        mlflow_tags.MLFLOW_SOURCE_TYPE: "PROJECT",
        mlflow_tags.MLFLOW_SOURCE_NAME: _PROJECT,
        mlflow_tags.MLFLOW_PROJECT_ENTRY_POINT: "main",
        KIND_TAG: kind,
        MODEL_TAG: champion.name,
        AS_OF_TAG: as_of.isoformat(),
        PARENT_TAG: champion.version,
        TRIGGER_TAG: reason[:TEXT_LENGTH],
    }
    return str(
        client.create_run(experiment, tags=tags, run_name=f"{kind} {as_of:%Y-%m-%d %H:%M}").info.run_id
    )


def _made_before(client: MlflowClient, run_id: str | None) -> ModelVersion | None:
    """Return the version that an earlier, killed try of this action made; else end what it left running."""
    if run_id is None:
        return None
    found = client.search_model_versions(f"run_id='{run_id}'")
    if not found:
        _end_run(client, run_id, "KILLED")
        return None
    return client.get_model_version(found[0].name, found[0].version)


def _end_run(client: MlflowClient, run_id: str | None, status: str) -> None:
    """Give a run that still counts as running its final status."""
    from mlflow.entities import RunStatus

    if run_id is not None and not RunStatus.is_terminated(
        RunStatus.from_string(client.get_run(run_id).info.status)
    ):
        client.set_terminated(run_id, status)


def _download(attempt: Challenge, uri: str) -> Path:
    """Bring the reference that training starts from to this machine."""
    import mlflow

    found = mlflow.artifacts.download_artifacts(
        uri, dst_path=str(attempt.folder / "base"), tracking_uri=attempt.home.tracking_uri
    )
    return Path(found)

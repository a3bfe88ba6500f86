"""From a reason to retrain to a version that was gated: training set, training, gate, registry, alias.

The champion serves on whatever happens here. Every step leaves its trace (the MLflow run, the version's tags, the
action record) before the next begins, so a retraining that was killed is taken up again without a second version.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.monitors.decisions import BY_POLICY
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import KIND_TAG, MODEL_TAG, experiment_id
from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError
from mlflow_flywheel.pipelines.gate import GateResult
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.lineage import LINEAGE_FILE, TrainingSet, TrainingSetSpec
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.reference_file import make_reference
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, resolve_model
from mlflow_flywheel.pipelines.retrain import check_refittable
from mlflow_flywheel.pipelines.scores import kind_of
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
from .own_project import OUR_PROJECT
from .project_run import end_project
from .records import Records
from .registration import add_version, log_reference
from .release import AS_OF_TAG, GATE_TAG, release
from .training import Challenger, log_lineage, train, versions, whose_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

TRIGGER_TAG, LINEAGE_TAG = "flywheel.trigger", "flywheel.lineage"

RETRAINING = "retraining"

_log = logging.getLogger(__name__)
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
        version = made_before(client, model, run_id)
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
        fail_run(client, run_id)
        result = _outcome("failed", error.message, run_id)
    except Exception:
        fail_run(client, run_id)
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
        project = whose_code(attempt.policy)
        if project is None:
            check_refittable(Path(champion_ref.path))
        champion = load_scorer(champion_ref)
        tags = attempt.client.get_model_version(attempt.model, attempt.champion.version).tags
        training_set = _training_set(attempt, champion, tags)
        challenger = train(attempt, training_set, project, champion_ref.path)
        check_feature_names(challenger.scorer.schema, f"the challenger {challenger.model_id}")
        table = InferenceTable.open(attempt.home.tables, attempt.model)
        table.ensure(challenger.scorer.schema, challenger.scorer.kind)
        gate = judge(attempt, champion, challenger.scorer, training_set)
        log_gate(attempt, gate, challenger.model_id)
        return _register(attempt, challenger, training_set, gate, tags)
    finally:
        shutil.rmtree(attempt.folder, ignore_errors=True)


def _training_set(attempt: Challenge, champion: Scorer, tags: Mapping[str, str]) -> TrainingSet:
    """Freeze what is known now and build the training set from it."""
    policy = attempt.policy
    if policy.class_balance != "none" and kind_of(champion) == "regressor":
        raise BadInput(
            f"{attempt.model!r} predicts numbers and has no classes to balance; set loop.class_balance=none"
        )
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
        start=attempt.as_of - policy.training_span,
        as_of=attempt.as_of,
        known_at=known_at,
        max_rows=policy.max_rows,
        rows_kept=policy.rows_kept,
        half_life=policy.recency_half_life,
        class_balance=policy.class_balance,
        class_ratio=policy.class_ratio,
        windows={window.name: window.length for window in policy.training_windows},
        seed=policy.training_seed,
        holdout_share=policy.holdout_share,
        holdout_rows=policy.holdout_rows,
        holdout_not_before=datetime.fromisoformat(not_before) if not_before else None,
        base=base_uri,
        table_versions=None,
    )
    made = build_training_set(spec, attempt.home.tables, champion.schema, attempt.folder / "set", base)
    lineage = made.lineage.model_copy(update={"environment": versions()})
    lineage.save(made.folder / LINEAGE_FILE)
    log_lineage(attempt, lineage)
    return TrainingSet(made.folder)


def _register(
    attempt: Challenge,
    challenger: Challenger,
    training_set: TrainingSet,
    gate: GateResult,
    parent_tags: Mapping[str, str],
) -> ModelVersion:
    """Make the challenger a version whose tags say where it comes from and what the gate said."""
    lineage = training_set.lineage
    path = attempt.folder / "reference.parquet"
    write_rows(make_reference(challenger.scorer, training_set.holdout(), seed=lineage.seed), path)
    tags = {
        REFERENCE_TAG: log_reference(attempt.client, challenger.model_id, attempt.model, path),
        LABEL_TAG: parent_tags.get(LABEL_TAG, ""),
        BASE_TAG: lineage.base or "",
        PARENT_TAG: attempt.champion.version,
        AS_OF_TAG: attempt.as_of.isoformat(),
        TRIGGER_TAG: attempt.reason[:TEXT_LENGTH],
        LINEAGE_TAG: f"runs:/{attempt.run_id}/{LINEAGE_ARTIFACT}",
        HOLDOUT_START_TAG: lineage.holdout_start.isoformat(),
        GATE_TAG: json.dumps({**gate.to_dict(), "reason": gate.reason[:TEXT_LENGTH]}),
    }
    given = {name: value for name, value in tags.items() if value}
    number = add_version(attempt.client, challenger.resolved, attempt.model, given)
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
        mlflow_tags.MLFLOW_SOURCE_NAME: OUR_PROJECT,
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


def made_before(client: MlflowClient, model: str, run_id: str | None) -> ModelVersion | None:
    """Return the version that an earlier, killed try of this action made; else end what it left running."""
    if run_id is None:
        return None
    for found in client.search_model_versions(f"run_id='{run_id}'"):
        version = client.get_model_version(found.name, found.version)
        if (
            version.name == model and GATE_TAG in version.tags
        ):  # else the user's code registered it, and no gate saw it
            return version
    end_project(run_id)
    _end_run(client, run_id, "KILLED")
    return None


def _end_run(client: MlflowClient, run_id: str | None, status: str) -> None:
    """Give a run that still counts as running its final status."""
    from mlflow.entities import RunStatus

    if run_id is not None and not RunStatus.is_terminated(
        RunStatus.from_string(client.get_run(run_id).info.status)
    ):
        client.set_terminated(run_id, status)


def fail_run(client: MlflowClient, run_id: str | None) -> None:
    """Mark a run FAILED, also one whose code went through and brought nothing that could be used, unless it was killed."""
    if run_id is not None and client.get_run(run_id).info.status != "KILLED":
        client.set_terminated(run_id, "FAILED")


def _download(attempt: Challenge, uri: str) -> Path:
    """Bring the reference that training starts from to this machine."""
    import mlflow

    found = mlflow.artifacts.download_artifacts(
        uri, dst_path=str(attempt.folder / "base"), tracking_uri=attempt.home.tracking_uri
    )
    return Path(found)

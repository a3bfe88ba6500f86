"""A retraining done again from what its run recorded: the same rows, hash by hash, and the same metrics."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import KIND_TAG, MODEL_TAG, experiment_id
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.pipelines.lineage import Lineage
from mlflow_flywheel.pipelines.model import load_scorer
from mlflow_flywheel.pipelines.registry import download_model, resolve_model
from mlflow_flywheel.pipelines.retrain import CHOSEN_WINDOW, VALIDATION
from mlflow_flywheel.pipelines.training_files import LINEAGE_ARTIFACT
from mlflow_flywheel.pipelines.training_set import rebuild_training_set

from .context import Context
from .gating import Challenge
from .retraining import RETRAINING, fail_run, new_run
from .training import CODE_TAG, HOLDOUT, train, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REPRODUCTION = "reproduction"
# Sums in another order differ in the last digits.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Reproduction:
    """A retraining that was done again: the new run, and each metric of both, on the same hold-out or in the search.

    `window` is the training window that was chosen then and now, `code` the hash of the user's own code; empty where
    there is none, or nobody can say.
    """

    run_id: str
    again: str
    lineage: Lineage
    metrics: Mapping[str, tuple[float, float | None]]
    window: tuple[str, str] = ("", "")
    code: tuple[str, str] = ("", "")

    @property
    def equal(self) -> bool:
        """Whether the same window was chosen and every metric came out the same."""
        return (
            bool(self.metrics)
            and self.window[0] == self.window[1]
            and all(
                now is not None and abs(then - now) <= _TOLERANCE * max(1.0, abs(then))
                for then, now in self.metrics.values()
            )
        )

    @property
    def other_code(self) -> bool:
        """Whether the code is not what it was, or nobody can say."""
        return self.lineage.project is not None and (not self.code[0] or self.code[0] != self.code[1])

    @property
    def other_versions(self) -> dict[str, tuple[str, str]]:
        """What trains here in another version than then, with both."""
        now = versions()
        return {
            name: (then, now.get(name, "none"))
            for name, then in self.lineage.environment.items()
            if now.get(name) != then
        }


def reproduce(context: Context, run_id: str) -> Reproduction:
    """Build the training set of a retraining run again, and train on it again, in a run of its own.

    Raises NotFound for a run that does not exist, BadInput for one that is no retraining, that did not get as far as
    training, or whose rows are not the same any more; FlywheelError when the training fails.
    """
    from mlflow import MlflowClient

    client = MlflowClient(context.tracking_uri)
    run = _retraining(client, run_id)
    model = run.data.tags[MODEL_TAG]
    name = run.data.tags.get("mlflow.runName", run_id)
    then = {key: value for key, value in run.data.metrics.items() if key.startswith(HOLDOUT)}
    if not then:
        raise BadInput(f"run {run_id!r} ({name}) trained no model, so there is nothing to compare with")
    parent_uri = f"models:/{model}/{run.data.tags['flywheel.parent']}"
    parent = resolve_model(parent_uri, context.tracking_uri)
    parent_ref = download_model(parent, context.home.models, context.tracking_uri)
    experiment = experiment_id(client, model)
    lineage_file = Path(
        _downloaded(client, f"runs:/{run_id}/{LINEAGE_ARTIFACT}", context.home.path / REPRODUCTION)
    )
    lineage = Lineage.load(lineage_file)
    if lineage.windows:
        then |= {key: value for key, value in run.data.metrics.items() if key.startswith(VALIDATION)}
    reason = f"run {run_id} again"
    again = new_run(client, experiment, parent, reason, lineage.as_of, REPRODUCTION)
    policy = PolicySpec.parse(context.records.policy(model))
    attempt = Challenge(
        context.home, client, policy, parent, reason, lineage.as_of, again, experiment, context.records
    )
    try:
        base = Path(_downloaded(client, lineage.base, attempt.folder / "base")) if lineage.base else None
        schema = load_scorer(parent_ref).schema
        made = rebuild_training_set(lineage, context.home.tables, schema, attempt.folder / "set", base)
        train(attempt, made, lineage.project, parent_ref.path)
        now = client.get_run(again).data
    except BaseException:
        fail_run(client, again)
        raise
    finally:
        shutil.rmtree(attempt.folder, ignore_errors=True)
        shutil.rmtree(context.home.path / REPRODUCTION, ignore_errors=True)
    return Reproduction(
        run_id,
        again,
        lineage,
        {key: (value, now.metrics.get(key)) for key, value in then.items()},
        (run.data.params.get(CHOSEN_WINDOW, ""), now.params.get(CHOSEN_WINDOW, "")),
        (run.data.tags.get(CODE_TAG, ""), now.tags.get(CODE_TAG, "")),
    )


def _retraining(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise NotFound(f"run {run_id!r} does not exist: {error.message}") from None
    if run.data.tags.get(KIND_TAG) != RETRAINING:
        raise BadInput(
            f"run {run_id!r} is no retraining of ours; the page, and the tag flywheel.lineage of a version, name such runs"
        )
    return run


def _downloaded(client: MlflowClient, uri: str, folder: Path) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return str(
            mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise FlywheelError(f"{uri!r} cannot be read: {error}") from error

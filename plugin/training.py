"""One training of a challenger: our project or the user's own code, in its run, and what the run says about it."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import table_input
from mlflow_flywheel.monitors.training_settings import GIVEN, parameters
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.lineage import LINEAGE_FILE, TRAIN_FILE, Lineage, TrainingSet
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.own_code import ProjectSpec
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, resolve_model
from mlflow_flywheel.pipelines.retrain import CHOSEN_WINDOW
from mlflow_flywheel.pipelines.scores import kind_of, score
from mlflow_flywheel.pipelines.training_files import LABEL, LINEAGE_ARTIFACT

from .gating import Challenge
from .own_project import OUR_PROJECT, TRAINING_SET, find_code
from .project_run import Launch, run_project
from .runners.base import path_with_interpreter, process_environment

HOLDOUT = "holdout_"
CODE_TAG = "flywheel.code_hash"
_PACKAGES = ("mlflow", "scikit-learn", "numpy", "pandas")
_SERVES_ON = "the champion serves on"


@dataclass(frozen=True)
class Challenger:
    """What a training logged, and the same, loaded."""

    resolved: ResolvedModel
    scorer: Scorer

    @property
    def model_id(self) -> str:
        """Return the id of the logged model."""
        return str(self.resolved.model_id)


def whose_code(policy: PolicySpec) -> ProjectSpec | None:
    """Return whose code trains by a policy; None when it is ours."""
    if not policy.retrain_with:
        return None
    return ProjectSpec(
        uri=policy.retrain_with,
        entry_point=policy.retrain_entry_point,
        version=policy.retrain_version,
        environment=policy.retrain_environment,
        parameters=parameters(policy.retrain_parameters),
    )


def train(
    attempt: Challenge, training_set: TrainingSet, project: ProjectSpec | None, parent: str
) -> Challenger:
    """Run the retraining and return what it logged, with its metrics on the hold-out, which it never saw.

    Raises FlywheelError, with its last words, when it failed or was killed, and when it logged no model.
    """
    folder = _given(attempt, training_set)
    _log_datasets(attempt, training_set)
    lineage = training_set.lineage
    training = _Training(attempt, lineage, project, folder, parent)
    environment = process_environment(attempt.home.tracking_uri, attempt.home.path)
    environment["PATH"] = path_with_interpreter(os.environ.get("PATH", os.defpath))
    environment["GIT_TERMINAL_PROMPT"] = "0"  # nobody would answer
    log_file = attempt.folder / "retrain.log"
    outcome = run_project(
        training.prepare,
        run_id=attempt.run_id,
        experiment_id=attempt.experiment,
        environment=environment,
        log_file=log_file,
        timeout=attempt.policy.retrain_timeout.total_seconds(),
        memory_bytes=attempt.policy.retrain_memory_gb * 1e9 or math.inf,
    )
    attempt.client.log_artifact(attempt.run_id, str(log_file), "logs")
    if outcome.status == "KILLED":
        raise FlywheelError(f"the retraining run was killed {outcome.reason}; {_SERVES_ON}")
    if outcome.status == "FAILED":
        said = outcome.reason or f"it said:\n{outcome.log_tail}"
        raise FlywheelError(f"the retraining run failed; {_SERVES_ON}: {said}")
    run = attempt.client.get_run(attempt.run_id)
    if run.outputs is None or not run.outputs.model_outputs:
        raise FlywheelError(
            f"the retraining finished without logging a model in its run; {_SERVES_ON}. Call "
            "mlflow.<flavor>.log_model(...) with a signature and an input example, in the run of the environment and not "
            "in one nested in it"
        )
    if lineage.windows:
        chosen = {"chosen_window": run.data.params[CHOSEN_WINDOW]}
        log_lineage(attempt, lineage.model_copy(update=chosen))
    return _scored(attempt, training_set, str(run.outputs.model_outputs[-1].model_id))


class _Training:
    """What is done in a training's run before its code begins: bring the code, and note what it is."""

    def __init__(
        self, attempt: Challenge, lineage: Lineage, project: ProjectSpec | None, folder: Path, parent: str
    ) -> None:
        self._attempt = attempt
        self._lineage = lineage
        self._project = project
        self._folder = folder
        self._parent = parent

    def prepare(self) -> Launch:
        """Return what is to be run. Raises what `find_code` does."""
        seed = str(self._lineage.seed)
        if self._project is None:
            ours = {TRAINING_SET: str(self._folder), "parent": self._parent, "seed": seed}
            self._note(ours)
            return Launch(OUR_PROJECT, ours)
        values = (str(self._folder / TRAIN_FILE), self._parent, seed, self._lineage.model)
        given = dict(zip(GIVEN, values, strict=True))
        found = find_code(self._project, given, self._attempt.folder / "code")
        self._lineage = self._lineage.model_copy(update={"project": found.spec})
        log_lineage(self._attempt, self._lineage)
        # what the code itself may log under the same names; another value would be refused
        self._note(found.spec.parameters if found.spec.is_function else found.launch.parameters)
        self._tag(found.spec)
        return found.launch

    def _note(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._attempt.client.log_param(self._attempt.run_id, name, value)

    def _tag(self, spec: ProjectSpec) -> None:
        from mlflow.utils import mlflow_tags

        tags = {
            mlflow_tags.MLFLOW_SOURCE_NAME: spec.uri,
            mlflow_tags.MLFLOW_PROJECT_ENTRY_POINT: spec.uri if spec.is_function else spec.entry_point,
            mlflow_tags.MLFLOW_GIT_COMMIT: spec.version,
            CODE_TAG: spec.code_hash,
        }
        for name, value in tags.items():
            if value:
                self._attempt.client.set_tag(self._attempt.run_id, name, value)


def versions() -> dict[str, str]:
    """Return which Python and packages train here; a project's own environment is described by its files."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def _given(attempt: Challenge, training_set: TrainingSet) -> Path:
    """Return a folder with what a training may see: its rows and their lineage, not what is held out."""
    folder = attempt.folder / "given"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(training_set.folder / TRAIN_FILE, folder / TRAIN_FILE)
    training_set.lineage.save(folder / LINEAGE_FILE)
    return folder


def log_lineage(attempt: Challenge, lineage: Lineage) -> None:
    """Keep the lineage with the run; a fuller one takes the place of what is there."""
    path = attempt.folder / LINEAGE_FILE
    lineage.save(path)
    attempt.client.log_artifact(attempt.run_id, str(path), LINEAGE_ARTIFACT.rpartition("/")[0])


def _log_datasets(attempt: Challenge, training_set: TrainingSet) -> None:
    """Show on the run which rows were trained on and which were held out."""
    lineage = training_set.lineage
    table = InferenceTable.open(attempt.home.tables, lineage.model).predictions
    version = (lineage.table_versions or {}).get("predictions")
    place: dict[str, Any] = {"path": table.uri, "delta_table_version": version}
    schema = pq.read_schema(training_set.folder / TRAIN_FILE)
    parts = (
        ("training", lineage.train_rows, lineage.train_hash),
        ("holdout", lineage.holdout_rows_found, lineage.holdout_hash),
    )
    attempt.client.log_inputs(
        attempt.run_id,
        [
            table_input(
                f"{lineage.model} {context}", place | {"sha256": full}, full[:8], schema, rows, context
            )
            for context, rows, full in parts
        ],
    )


def _scored(attempt: Challenge, training_set: TrainingSet, model_id: str) -> Challenger:
    """Load what was logged and log how it does on the hold-out."""
    resolved = resolve_model(f"models:/{model_id}", attempt.home.tracking_uri)
    scorer = load_scorer(download_model(resolved, attempt.folder, attempt.home.tracking_uri))
    holdout = training_set.holdout()
    labels = holdout[LABEL].combine_chunks()
    found = score(scorer.predict(holdout), scorer.classes, labels, kind_of(scorer)).metrics
    for name, value in found.items():
        attempt.client.log_metric(attempt.run_id, HOLDOUT + name, value, model_id=model_id)
    return Challenger(resolved, scorer)

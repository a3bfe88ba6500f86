"""Register once: a logged model becomes a version with a reference, ready for every mode and for the loop.

with mlflow.start_run():
    info = mlflow.sklearn.log_model(model, name="model", signature=..., input_example=X.head(5))
register(info.model_uri, "flight-late", reference=validation, label="late")
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_flywheel.monitors.profile import make_profile
from mlflow_flywheel.monitors.reference import keep_profile
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, nearest
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.reference_file import MAX_ROWS, make_reference
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, resolve_model
from mlflow_flywheel.pipelines.training_files import (
    EVENT_TIME,
    LABEL,
    LABEL_TAG,
    REFERENCE_ARTIFACT,
    REFERENCE_TAG,
    check_feature_names,
    read_rows,
    write_rows,
)
from mlflow_flywheel.pipelines.training_window import window_tags

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models.model import ModelInfo


def register(
    model: str | ModelInfo,
    name: str,
    reference: pd.DataFrame,
    label: str,
    alias: str | None = "champion",
    *,
    timestamp: str | None = None,
    training_window: tuple[datetime | str, datetime | str] | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    tracking_uri: str | None = None,
) -> str:
    """Register a logged model with the sample that it was validated on, and return the new version.

    `model` is what `log_model` returned, or a URI: `models:/m-...`, `runs:/<run>/<name>`, or `models:/<name>/3` for a
    version that exists already. `reference` holds the model's features and the column `label`; the newer these rows,
    the better drift is told from an old change. At most `max_rows` of them, drawn with `seed`, are kept, with the
    model's own predictions, as an artifact of the model's run. `timestamp` names the column that says when a row
    happened, so that a retraining can leave out what is older than its window; without it the rows count as older than
    anything that is logged later. `training_window` says when the rows happened that the model was trained on, from its
    start up to, and without, its end (datetimes or ISO 8601; without a zone they are UTC): back-tests mark these.

    Everything is checked before anything is made: raises BadInput for a model without signature or input example and
    for rows that do not fit, NotFound for a URI that leads nowhere, ModelError for a model that cannot predict.
    """
    from mlflow import MlflowClient

    uri = model if isinstance(model, str) else model.model_uri
    window = {} if training_window is None else window_tags(*training_window)
    client = MlflowClient(tracking_uri)
    resolved = resolve_model(uri, tracking_uri)
    if resolved.model_id is None:
        raise BadInput(f"{uri!r} was logged by an MLflow older than 3 and has no model id; log it again")
    with tempfile.TemporaryDirectory(prefix="flywheel-register-") as folder:
        scorer = load_scorer(download_model(resolved, Path(folder), tracking_uri))
        if scorer.input_example is None:
            raise BadInput(
                f"{uri!r} has no input example, so no deployment could try it before it serves; log it with "
                "input_example=X.head(5) where X is a pandas DataFrame of its features"
            )
        check_feature_names(scorer.schema, repr(uri))
        rows = _rows_of(reference, scorer, label, timestamp)
        path = Path(folder) / "reference.parquet"
        write_rows(make_reference(scorer, rows, max_rows=max_rows, seed=seed), path)
        reference_uri = log_reference(client, resolved.model_id, name, path)
    tags = {REFERENCE_TAG: reference_uri, LABEL_TAG: label, **window}
    version = add_version(client, resolved, name, tags)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    return version


def add_version(client: MlflowClient, resolved: ResolvedModel, name: str, tags: dict[str, str]) -> str:
    """Make a version of the logged model under `name`, or use the one that exists, and tag it; return its number."""
    from mlflow.exceptions import MlflowException

    if resolved.version and resolved.name == name:
        for key, value in tags.items():
            client.set_model_version_tag(name, resolved.version, key, value)
        return resolved.version
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise FlywheelError(f"model {name!r} cannot be registered: {error.message}") from error
    model_id = str(resolved.model_id)
    run_id = client.get_logged_model(model_id).source_run_id or None
    made = client.create_model_version(
        name, f"models:/{model_id}", run_id=run_id, tags=tags, model_id=model_id
    )
    return str(made.version)


def log_reference(client: MlflowClient, model_id: str, name: str, path: Path) -> str:
    """Keep a reference file, and its profile, with the run that logged the model; return the file's URI.

    A reference that is there already belongs to another version of that run: it is never replaced. A model without a
    run gets one in the experiment `flywheel/<name>`.
    """
    run_id = client.get_logged_model(model_id).source_run_id or _new_run(client, name)
    folder, _, file = REFERENCE_ARTIFACT.rpartition("/")
    taken = {found.path for found in client.list_artifacts(run_id, folder)}
    artifact, n = REFERENCE_ARTIFACT, 1
    while artifact in taken:
        n += 1
        artifact = f"{folder}/{n}/{file}"
        taken |= {found.path for found in client.list_artifacts(run_id, f"{folder}/{n}")}
    place = artifact.rpartition("/")[0]
    client.log_artifact(run_id, str(path), place)
    keep_profile(client, run_id, place, make_profile(read_rows(path)))
    return f"runs:/{run_id}/{artifact}"


def _new_run(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(f"flywheel/{name}")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(f"flywheel/{name}")
    run = client.create_run(experiment_id, run_name="reference")
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _rows_of(reference: pd.DataFrame, scorer: Scorer, label: str, timestamp: str | None) -> pa.Table:
    """Return the reference as an Arrow table under the names that references use."""
    import pandas as pd

    for role, column in (("label", label), ("timestamp", timestamp)):
        if column is not None and column not in reference.columns:
            hint = nearest(column, map(str, reference.columns))
            raise BadInput(
                f"the reference has no column {column!r} for the {role}{hint}; it has: {_some(reference)}"
            )
    if label in scorer.schema.names:
        raise BadInput(f"column {label!r} is a feature of the model and cannot be its label as well")
    present = [name for name in scorer.schema.names if name in reference.columns]
    columns: dict[str, Any] = {LABEL: reference[label]}
    if timestamp is not None:
        try:
            columns[EVENT_TIME] = pd.to_datetime(reference[timestamp], utc=True)
        except (TypeError, ValueError) as error:
            raise BadInput(f"column {timestamp!r} of the reference does not hold times: {error}") from None
    frame = pd.concat([reference[present], pd.DataFrame(columns)], axis=1)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException as error:
        raise BadInput(f"a column of the reference holds values of mixed types: {error}") from None


def _some(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")

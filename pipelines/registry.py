"""From a model URI to a folder on this machine: the registry's part of loading a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .config import ModelRef
from .errors import BadInput, NotFound, Unavailable

_FORMS = "models:/<name>/<version>, models:/<name>@<alias>, models:/m-<id> or runs:/<run id>/<path>"


@dataclass(frozen=True)
class ResolvedModel:
    """What a model URI means right now: an alias is already a version."""

    uri: str
    name: str
    version: str
    model_id: str | None

    @property
    def versioned_uri(self) -> str:
        """Return the URI that will mean the same tomorrow."""
        return f"models:/{self.name}/{self.version}" if self.version else self.uri


def resolve_model(uri: str, tracking_uri: str | None = None) -> ResolvedModel:
    """Look a model URI up in the tracking server's registry.

    A logged model or run that is one registered version stands for that version; otherwise its name is its model id.
    Raises BadInput for a URI of no known form, NotFound when it leads nowhere, Unavailable when MLflow is away.
    """
    client = _client(tracking_uri)
    if uri.startswith(("runs:/", "models:/m-")):
        return _resolve_logged(client, uri, tracking_uri)
    body = uri.removeprefix("models:/")
    if body == uri or not body.strip("/"):
        raise BadInput(f"model URI {uri!r} has no known form; give {_FORMS}")
    if "@" in body:
        name, _, alias = body.rpartition("@")
        version = _ask(
            lambda: client.get_model_version_by_alias(name, alias),
            uri,
            f"model {name!r} or its alias {alias!r}",
        )
    else:
        name, _, number = body.partition("/")
        if number == "latest":
            found = _ask(lambda: client.search_model_versions(f"name='{name}'"), uri, f"model {name!r}")
            if not found:
                raise NotFound(
                    f"{uri!r}: no version of model {name!r} is registered at {client.tracking_uri}"
                )
            version = max(found, key=lambda v: int(v.version))
        elif number.isdigit():
            version = _ask(
                lambda: client.get_model_version(name, number), uri, f"model {name!r} or its version {number}"
            )
        else:
            raise BadInput(f"model URI {uri!r} names no version; give {_FORMS}")
    return ResolvedModel(uri, version.name, str(version.version), _model_id(version))


def download_model(model: ResolvedModel, folder: Path, tracking_uri: str | None = None) -> ModelRef:
    """Bring a model's files to `folder`, once: a version never changes, so what is there is used again.

    The files appear under their final name only when they are complete. Raises Unavailable when they cannot be read.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    target = folder / quote(model.name, safe="@") / (model.version or "unregistered")
    if not (target / "MLmodel").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
        try:
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=_files_of(model, tracking_uri), dst_path=str(partial), tracking_uri=tracking_uri
            )
            _move_into_place(_folder_of_mlmodel(Path(found)), target)
        except mlflow.exceptions.MlflowException as error:
            raise Unavailable(
                f"the files of {model.versioned_uri!r} cannot be read: {error.message}"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ModelRef(name=model.name, version=model.version, model_id=model.model_id, path=str(target))


def model_signature(model: ResolvedModel, tracking_uri: str | None = None) -> Any:
    """Read the signature of a model without downloading the rest of it; None when it has none.

    Raises Unavailable when its files cannot be read.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="flywheel-signature-") as folder:
        try:
            uri = f"{_files_of(model, tracking_uri).rstrip('/')}/MLmodel"
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=uri, dst_path=folder, tracking_uri=tracking_uri
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise Unavailable(f"the signature of {model.versioned_uri!r} cannot be read: {error}") from error
        return mlflow.models.Model.load(found).signature


def _files_of(model: ResolvedModel, tracking_uri: str | None) -> str:
    """Return where a model's files are: for a models:/ URI MLflow would ask this process's default server instead."""
    client = _client(tracking_uri)
    if model.model_id:
        return str(client.get_logged_model(model.model_id).artifact_location)
    if model.version:
        return str(client.get_model_version_download_uri(model.name, model.version))
    return model.uri


def _move_into_place(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not (target / "MLmodel").exists():  # else another process brought the same files first
            raise


def _folder_of_mlmodel(found: Path) -> Path:
    if (found / "MLmodel").exists():
        return found
    inner = next(found.rglob("MLmodel"), None)
    if inner is None:
        raise NotFound(
            f"{found} holds no MLmodel file, so it is no MLflow model; log it with mlflow.<flavor>.log_model"
        )
    return inner.parent


def _resolve_logged(client: Any, uri: str, tracking_uri: str | None) -> ResolvedModel:
    from mlflow.models import get_model_info

    if uri.startswith("models:/"):
        model_id = uri.removeprefix("models:/").split("/")[0]
        _ask(lambda: client.get_logged_model(model_id), uri, f"logged model {model_id!r}")
    else:
        with _tracking(tracking_uri):
            model_id = _ask(lambda: get_model_info(uri), uri, "that run or its model").model_id
    if model_id:
        for version in client.search_model_versions(f"source_path='models:/{model_id}'"):
            return ResolvedModel(uri, version.name, str(version.version), model_id)
    return ResolvedModel(uri, model_id or uri.removeprefix("runs:/").replace("/", "-"), "", model_id)


class _tracking:
    """Point MLflow's module-level functions at a tracking server for a while."""

    def __init__(self, tracking_uri: str | None) -> None:
        self._wanted = tracking_uri

    def __enter__(self) -> None:
        import mlflow

        self._before = mlflow.get_tracking_uri()
        if self._wanted:
            mlflow.set_tracking_uri(self._wanted)

    def __exit__(self, *_: object) -> None:
        import mlflow

        mlflow.set_tracking_uri(self._before)


def _client(tracking_uri: str | None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _model_id(version: Any) -> str | None:
    """Return the logged model behind a version: open-source MLflow leaves `version.model_id` empty."""
    source = version.source or ""
    if source.startswith("models:/m-"):
        return str(source.removeprefix("models:/").split("/")[0])
    return version.model_id or None


def _ask(question: Any, uri: str, what: str) -> Any:
    """Ask the registry; turn its errors into ours."""
    from mlflow.exceptions import MlflowException

    try:
        return question()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise NotFound(
                f"{uri!r} leads nowhere: {what} does not exist; "
                "the Models page of the MLflow UI lists what is registered"
            ) from error
        raise Unavailable(f"{uri!r} cannot be looked up: {error.message}") from error

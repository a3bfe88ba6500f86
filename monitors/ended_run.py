"""The end of a run in MLflow, also of one that somebody has deleted there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_flywheel.pipelines.errors import NotFound

from .reporting import finish_run, mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FOR_GOOD = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")


def end_deployment_run(client: MlflowClient, run_id: str, status: str, ended: datetime) -> None:
    """End a deployment's run, when the deployment is gone; a later one of the same name starts anew.

    Raises NotFound when MLflow will never take it, Unavailable when it is away.
    """
    with mlflow_errors(client, "end a deployment's run"), refused(run_id):
        finish_run(client, run_id, status, ended)


@contextmanager
def refused(run_id: str) -> Iterator[None]:
    """Raise NotFound for what MLflow will never take, as of a run that somebody deleted."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in _FOR_GOOD:
            raise
        raise NotFound(f"MLflow does not take the end of run {run_id!r}: {error.message}") from error

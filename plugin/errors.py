"""Our errors as MLflow's callers expect them: an MlflowException in Python, one clear line on its command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_flywheel.pipelines.errors import FlywheelError


class FlywheelMlflowError(MlflowException, click.ClickException):  # type: ignore[misc]
    """An error of ours at MLflow's door; click prints `Error: ...` and exits with 1, without a traceback."""

    exit_code = 1

    def __init__(self, message: str, error_code: str) -> None:
        MlflowException.__init__(self, message, error_code=ErrorCode.Value(error_code))

    def format_message(self) -> str:
        return str(self.message)


@contextmanager
def at_mlflows_door() -> Iterator[None]:
    """Turn our errors into MLflow's; MLflow's own become clear lines too."""
    try:
        yield
    except FlywheelError as error:
        raise FlywheelMlflowError(error.message, error.error_code) from error
    except MlflowException as error:
        if isinstance(error, click.ClickException):
            raise
        raise FlywheelMlflowError(error.message, error.error_code) from error

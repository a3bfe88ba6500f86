"""The errors of this project: each names the thing, the value and the remedy.

`error_code` uses MLflow's names so that the plugin's door can translate without a table, `http_status` is what a
web caller gets, and `retryable` says whether trying again can help: terminal errors fail or dead-letter, transient
ones back off.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlywheelError(Exception):
    """Base of every error that a user may see; its text is one clear sentence or two."""

    error_code = "INTERNAL_ERROR"
    http_status = 500
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(FlywheelError):
    """What the caller gave does not fit: a value, a key, a row, a file."""

    error_code = "INVALID_PARAMETER_VALUE"
    http_status = 400


class NotFound(FlywheelError):
    """The named thing does not exist."""

    error_code = "RESOURCE_DOES_NOT_EXIST"
    http_status = 404


class AlreadyExists(FlywheelError):
    """The named thing exists already."""

    error_code = "RESOURCE_ALREADY_EXISTS"
    http_status = 409


class ModelError(FlywheelError):
    """A model that cannot be loaded, or that raises while it predicts."""


class Unavailable(FlywheelError):
    """A service or a disk is away for now; trying again may help."""

    error_code = "TEMPORARILY_UNAVAILABLE"
    http_status = 503
    retryable = True


class MissingExtra(FlywheelError):
    """An optional package is not installed; the message is the line that installs it."""

    error_code = "FEATURE_DISABLED"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs the extra {extra!r}: pip install "mlflow-flywheel[{extra}]"')


def nearest(value: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known name, or an empty string when none is close."""
    close = difflib.get_close_matches(value, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""How a retraining may be told what to learn from, and whose code does it: windows by name, projects and functions."""

from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import urlsplit

from pydantic import model_serializer

from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.own_code import is_function

from .windows import parse_duration

ALL_ROWS = "all"
# What every project and function may take, and no parameter may stand for.
GIVEN = ("training_set", "champion", "seed", "model")
_GIT_BY_SSH = re.compile(r"[\w.-]+@[\w.-]+:[\w./~-]+(#.*)?")
_SCHEMES = ("file", "http", "https", "ssh", "git")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_PARAMETER = re.compile(r"([A-Za-z_]\w*)=.*", re.DOTALL)


class NamedWindow(Frozen):
    """How far back to train, under the name that it was written with; None: all of the training window."""

    name: str
    length: timedelta | None

    @model_serializer
    def _text(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


def parse_windows(value: object) -> object:
    """Read windows from "30d,90d,all", or a list of such strings. Raises ValueError for pydantic."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        return value
    windows = tuple(_window(part) if isinstance(part, str) else part for part in value)
    lengths = [window.length for window in windows if isinstance(window, NamedWindow)]
    if len(set(lengths)) < len(lengths):
        raise ValueError("one of the windows stands there twice; give each length once")
    if len(windows) == 1:
        raise ValueError(f"one window leaves no choice; give another, or training_window={value[0]} alone")
    return windows


def _window(text: str) -> NamedWindow:
    if text == ALL_ROWS:
        return NamedWindow(name=text, length=None)
    try:
        length = parse_duration(text)
    except BadInput as error:
        raise ValueError(f"{error.message}, or {ALL_ROWS!r}") from None
    if length <= timedelta(0):
        raise ValueError(f'{text!r} must be longer than nothing, such as "30d"')
    return NamedWindow(name=text.replace(" ", ""), length=length)


def check_code(value: str) -> str:
    """Return whose code trains: nothing (ours), `module:function`, or a project's URI. Raises ValueError."""
    if value == "" or is_function(value):
        return value
    parts = urlsplit(value)
    if parts.password is not None or (parts.username is not None and parts.scheme in ("http", "https")):
        raise ValueError(
            "it holds a password or token, and policies are shown; let git's credential helper know it"
        )
    if any(c.isspace() for c in value) or not (
        value.startswith("/") or _GIT_BY_SSH.fullmatch(value) or parts.scheme in _SCHEMES
    ):
        raise ValueError(
            f"{value!r} is neither module:function nor an MLflow project; give an absolute folder, or a URI that git or "
            "a zip file has, such as https://github.com/us/late#training"
        )
    return value


def check_name(value: str) -> str:
    """Return an entry point or a git version; raises ValueError for what could be taken for anything else."""
    if value and not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name: letters, digits, '_', '-', '.' and '/', not beginning with '-'"
        )
    return value


def check_parameters(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return parameters as they were written, "epochs=20"; raises ValueError for what has no name of its own."""
    for text in value:
        match = _PARAMETER.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no parameter; write name=value, such as epochs=20")
        if match[1] in GIVEN:
            raise ValueError(f"{match[1]!r} is given to every project and function; give yours another name")
    return value


def parameters(texts: tuple[str, ...]) -> dict[str, str]:
    """Return parameters by name."""
    return dict(text.split("=", 1) for text in texts)

"""A policy as a file that people keep beside their code.

model: flight-late
policy:
  retrain_on: [performance, labels]
  cooldown: 7d

The file is the whole policy: a setting that it does not name has its default.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput, NotFound, nearest
from mlflow_flywheel.pipelines.yaml_text import NotYaml, read_yaml, write_yaml

_KEYS = ("model", "policy")
_WIDTH = 98


@dataclass(frozen=True)
class PolicyFile:
    """What a file says: the model (a registered name, or one of its deployments), and its whole policy."""

    model: str
    policy: PolicySpec


def read_policy_file(path: Path) -> PolicyFile:
    """Read a policy file.

    Raises NotFound when there is none, BadInput that names the file and what does not fit in it.
    """
    what = f"policy file {str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{what} does not exist; 'flywheel loop show MODEL --yaml' writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{what} cannot be read: {error}") from None
    return read_policy(text, what)


def read_policy(text: str, what: str) -> PolicyFile:
    """Read the text of a policy file; `what` is how errors call it.

    Raises BadInput that says what does not fit.
    """
    try:
        raw = read_yaml(text, strict=True)
    except NotYaml as error:
        raise BadInput(f"{what} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{what} holds no keys; it needs model: and policy:")
    for key in raw:
        if key not in _KEYS:
            hint = nearest(str(key), _KEYS) or _indented(str(key))
            raise BadInput(f"{what}: unknown key {key!r}{hint}; known: {', '.join(_KEYS)}")
    model, settings = raw.get("model"), raw.get("policy")
    if not isinstance(model, str) or not isinstance(settings or {}, dict):
        raise BadInput(f"{what} must name its model (model: NAME) and settings under policy:")
    try:
        policy = PolicySpec.parse({str(key): _text(value) for key, value in (settings or {}).items()})
    except BadInput as error:
        raise BadInput(f"{what}: {error.message}") from None
    return PolicyFile(model, policy)


def write_policy(model: str, policy: PolicySpec) -> str:
    """Return a policy file, each setting with its meaning; `read_policy_file` reads the same policy from it."""
    lines = [write_yaml({"model": model}), "policy:"]
    for name, value in policy.model_dump(mode="json").items():
        meaning = PolicySpec.model_fields[name].description or ""
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent="  # ", subsequent_indent="  # ")
        shown = ",".join(value) if isinstance(value, list) else value
        lines.append(f"  {write_yaml({name: shown}, width=1000)}")
    return "\n".join(lines) + "\n"


def changes(before: PolicySpec, after: PolicySpec) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, each with both values."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {name: (old[name], new[name]) for name in new if old[name] != new[name]}


def _text(value: Any) -> Any:
    """Return a value as the command line would give it, so that a number is no duration here either."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        raise BadInput(f"{dict(value)!r} is no value of a setting")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _indented(key: str) -> str:
    return " (it belongs under policy:)" if key in PolicySpec.model_fields else ""

"""The edge: strings in, a validated, frozen spec out; unknown keys are refused with the nearest valid one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mlflow_flywheel.pipelines.errors import BadInput, nearest

from .spec import FIELD_KEY, FIELD_PREFIX, LOOP_PREFIX, MODES, SPECS, CommonSpec, Spec

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def parse_spec(raw: Mapping[str, Any]) -> Spec:
    """Validate the keys of a deployment; `loop.` keys are looked at by `parse_loop`.

    An empty value means the default. Raises BadInput that names the key, the value and what would fit.
    """
    given = {k: str(v) for k, v in raw.items() if str(v) != "" and not k.startswith(LOOP_PREFIX)}
    kind = SPECS[_mode(given, raw)]
    for key in (key for key in raw if not key.startswith(LOOP_PREFIX)):
        if _field_of(key) not in kind.model_fields:
            raise _unknown_key(key, kind)
    values: dict[str, Any] = {k: v for k, v in given.items() if not k.startswith(FIELD_PREFIX)}
    mapped = {k.removeprefix(FIELD_PREFIX): v for k, v in given.items() if k.startswith(FIELD_PREFIX)}
    try:
        return kind.model_validate(values | {"field": mapped} if mapped else values)
    except ValidationError as error:
        raise BadInput("; ".join(_complaint(e, given) for e in error.errors())) from None


def parse_loop(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return the `loop.` keys as the policy settings they stand for, validated.

    Raises BadInput that names the key, the value and the nearest valid one.
    """
    settings = {k.removeprefix(LOOP_PREFIX): str(v) for k, v in raw.items() if k.startswith(LOOP_PREFIX)}
    if settings:
        from mlflow_flywheel.monitors.policy import PolicySpec

        PolicySpec.parse(settings)
    return settings


def check_name(name: str) -> str:
    """Return the deployment name; raises BadInput when it is no name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(
            f"deployment name {name!r} is not valid: use 1 to 63 lower-case letters, digits, '-', '_' and '.', "
            "beginning with a letter or digit"
        )
    return name


def _mode(given: Mapping[str, str], raw: Mapping[str, Any]) -> str:
    mode = given.get("mode")
    if mode is None:
        hint = nearest("mode", (key for key in raw if key not in _all_keys())).replace(
            "did you mean", "you gave"
        )
        raise BadInput(
            f"the mode is missing{hint}: give one of mode=web, mode=stream or mode=batch (-C mode=web)"
        )
    if mode not in SPECS:
        raise BadInput(f"mode {mode!r} does not exist{nearest(mode, MODES)}; known: {', '.join(MODES)}")
    return mode


def _all_keys() -> set[str]:
    return {name for kind in SPECS.values() for name in kind.model_fields}


def _field_of(key: str) -> str:
    """Return the field of the spec that a key sets, or the key itself: `field.NAME` sets an entry of `field`."""
    if key.startswith(FIELD_PREFIX) and key != FIELD_PREFIX:
        return "field"
    return FIELD_KEY if key == "field" else key


def _shown_names(kind: type[CommonSpec]) -> list[str]:
    return [FIELD_KEY if name == "field" else name for name in kind.model_fields]


def _unknown_key(key: str, kind: type[CommonSpec]) -> BadInput:
    own = kind.model_fields["mode"].default
    others = [mode for mode, spec in SPECS.items() if _field_of(key) in spec.model_fields]
    if others:
        return BadInput(
            f"key {key!r} belongs to mode {' and '.join(others)}, not to mode {own}; leave it out"
        )
    names = _shown_names(kind)
    known = [*names, LOOP_PREFIX + "*"]
    return BadInput(
        f"unknown key {key!r} for mode {own}{nearest(key, names)}; known: {', '.join(known)} "
        "('mlflow deployments help -t flywheel' explains them)"
    )


def _complaint(error: Any, given: Mapping[str, str]) -> str:
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not error["loc"]:
        return str(said)
    key = str(error["loc"][0])
    if key not in given:  # of several keys together
        return f"{key}: {said[0].lower()}{said[1:]}"
    value = "..." if key.endswith("_env") else repr(given[key])  # it may be the secret itself
    return f"{key}={value}: {said[0].lower()}{said[1:]}"

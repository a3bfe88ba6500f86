"""The keys of the specs as the help and the documentation list them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args, get_origin

from .spec import FIELD_KEY, LOOP_PREFIX, SPECS, CommonSpec, Mode


@dataclass(frozen=True)
class Key:
    """One configuration key as the help shows it."""

    name: str
    type: str
    default: str
    help: str


def keys(mode: Mode) -> Iterator[Key]:
    """Yield the keys of a mode, its own first."""
    kind = SPECS[mode]
    common = CommonSpec.model_fields.keys()
    for name in sorted(kind.model_fields, key=lambda name: (name != "mode", name in common)):
        field = kind.model_fields[name]
        default = "required" if name == "mode" else _shown(field.default)
        yield Key(
            FIELD_KEY if name == "field" else name,
            _type_name(field.annotation),
            default,
            field.description or "",
        )


def loop_keys() -> Iterator[Key]:
    """Yield the policy shortcuts."""
    from mlflow_flywheel.monitors.policy import PolicySpec

    defaults = PolicySpec.parse({}).model_dump(mode="json")
    for name, field in PolicySpec.model_fields.items():
        yield Key(
            LOOP_PREFIX + name, _type_name(field.annotation), _shown(defaults[name]), field.description or ""
        )


def _shown(default: Any) -> str:
    if default is None or default == {}:
        return ""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    names = {str: "text", int: "number", float: "number", timedelta: "duration", bool: "true | false"}
    options = [a for a in get_args(annotation) if a is not type(None)] or [annotation]
    bare = get_args(options[0])[0] if get_origin(options[0]) is Annotated else options[0]
    return names.get(bare, "text")

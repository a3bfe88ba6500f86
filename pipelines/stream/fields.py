"""Where in a message each value is: dotted paths, for events that are shaped otherwise than the model's features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mlflow_flywheel.pipelines.errors import BadInput, nearest

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.schema import FeatureSchema

REQUEST_ID: Final = "client_request_id"
EVENT_TIME: Final = "event_time"
ABSENT: Final = object()
_DOT = re.compile(r"(?<!\\)\.")
_NUMBER = re.compile(r"-?\d{1,9}")


def steps_of(path: str) -> tuple[str, ...]:
    """Split a path such as `weather.readings.0.temp` at its dots; `\\.` is a dot in a name.

    Raises ValueError when a step is empty.
    """
    steps = tuple(step.replace("\\.", ".") for step in _DOT.split(path))
    if not all(steps):
        raise ValueError(
            f"{path!r} is no path: give names (and numbers of list entries) with a dot between each two"
        )
    return steps


def look_up(body: Any, steps: Sequence[str]) -> Any:
    """Return what is at a path of a message, `ABSENT` when nothing is; a number counts in a list, from 0 or from -1."""
    for step in steps:
        if isinstance(body, dict):
            body = body.get(step, ABSENT)
        elif isinstance(body, list) and _NUMBER.fullmatch(step):
            index = int(step)
            body = body[index] if -len(body) <= index < len(body) else ABSENT
        else:
            return ABSENT
    return body


def check_fields(names: Iterable[str], schema: FeatureSchema) -> None:
    """Raise BadInput for the first of these names that is no feature (nor id or time), with the nearest that is."""
    known = (*schema.names, REQUEST_ID, EVENT_TIME)
    for name in names:
        if name not in known:
            raise BadInput(
                f"field.{name} is no feature of the model{nearest(name, known)}; name one of: {', '.join(known)}"
            )

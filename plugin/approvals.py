"""What a person decides about versions: promote, reject, roll back. The page and the command line ask here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlflow_flywheel.pipelines.errors import BadInput, NotFound

from .champion import (
    CHALLENGER,
    PARENT_TAG,
    Registry,
    move,
    note_move,
    settle,
    version_before,
    waiting_for_approval,
)
from .record_types import ActionRecord
from .records import Records
from .release import GATE_TAG


def promote(
    records: Records,
    registry: Registry,
    model: str,
    version: str | None,
    requested_by: str,
    as_of: datetime,
    *,
    reason: str = "",
    force: bool = False,
) -> ActionRecord:
    """Make a version the champion: the one that waits for approval, or any other; return the recorded action.

    Raises NotFound when nothing waits or the version does not exist, BadInput for the champion itself, and for a
    version that the gate refused unless `force`.
    """
    if version is None:
        version = str((waiting_for_approval(records, model).result or {})["version"])
    tags = registry.tags(model, version)
    if registry.champion(model) == version:
        raise BadInput(f"version {version} of {model!r} is the champion already")
    gate = _gate(tags)
    if gate is not None and not gate.get("promote") and not force:
        raise BadInput(
            f"version {version} of {model!r} was refused by the gate ({gate.get('reason')}); --force promotes it all "
            "the same"
        )
    evidence = {"requested_by": requested_by, "gate": gate, "gate_parent": tags.get(PARENT_TAG)}
    why = reason or f"asked for by {requested_by}"
    return move(records, registry, "promote", model, version, why, evidence, as_of)


def reject(
    records: Records, registry: Registry, model: str, version: str | None, requested_by: str
) -> ActionRecord:
    """Let a challenger that waits for approval wait no more; return its retraining. Raises NotFound."""
    action = waiting_for_approval(records, model, version)
    registry.drop(model, CHALLENGER, str((action.result or {})["version"]))
    return settle(records, action, "rejected", requested_by)


def rollback(
    records: Records,
    registry: Registry,
    model: str,
    requested_by: str,
    as_of: datetime,
    *,
    to: str | None = None,
    reason: str = "",
    expected: str | None = None,
) -> ActionRecord:
    """Go back to the version that was champion before, or to a named one; return the recorded action.

    `expected` is the champion that the person saw: a second click finds another one, and does nothing. Raises BadInput
    then, and for the champion itself; NotFound when nobody knows what was before.
    """
    in_force = note_move(records, model, as_of, lambda: registry.champion(model))
    if expected is not None and expected != in_force:
        raise BadInput(
            f"version {in_force} is champion of {model!r} by now, not {expected}: nothing was done"
        )
    target = to or version_before(records, registry, model, in_force)
    if target == in_force:
        raise BadInput(f"version {target} of {model!r} is the champion already; name another one")
    try:
        registry.tags(model, target)
    except NotFound as error:
        raise NotFound(f"{error.message}; name a version that exists: --to VERSION") from None
    why = reason or f"asked for by {requested_by}"
    return move(records, registry, "rollback", model, target, why, {"requested_by": requested_by}, as_of)


def _gate(tags: Mapping[str, str]) -> dict[str, Any] | None:
    return json.loads(tags[GATE_TAG]) if tags.get(GATE_TAG) else None

"""A model's policy is changed in one way, wherever that was asked for, and who changed what is an action of the model."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.times import utc_now

from .event_clock import event_now
from .home import Home
from .policy_file import changes
from .record_types import NewAction
from .records import Records

KIND = "policy"


def change_policy(
    home: Home,
    records: Records,
    model: str,
    policy: PolicySpec,
    requested_by: str,
    seen: str | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Put a policy in force and record what that changes; return it, each setting with both values.

    `seen` is the fingerprint of the policy that the person looked at. Raises BadInput, and changes nothing, when
    another one is in force by now.
    """
    raw = records.policy(model)
    before = present_policy(raw)
    if seen is not None and seen != fingerprint(before):
        raise BadInput(f"the policy of {model!r} was changed by somebody else meanwhile: look at it again")
    changed = changes(before, policy)
    if not changed:
        return {}
    told = {name: {"before": old, "after": new} for name, (old, new) in changed.items()}
    action = NewAction(
        KIND,
        f"{in_words(changed)}, by {requested_by}",
        {"requested_by": requested_by, "changes": told},
        key=f"{KIND}:{model}:{utc_now().isoformat()}",
    )
    as_of = event_now(home.tables, model, policy)
    if not records.replace_policy(model, raw, policy.model_dump(mode="json"), action, as_of):
        raise BadInput(f"the policy of {model!r} was changed by somebody else just now: look at it again")
    return changed


def present_policy(raw: Mapping[str, Any]) -> PolicySpec:
    """Return what is in force, which is the defaults when what was written once fits no more."""
    try:
        return PolicySpec.parse(raw)
    except BadInput:
        return PolicySpec.parse({})


def fingerprint(policy: PolicySpec) -> str:
    """Return a few characters that differ between policies."""
    return sha256(policy.model_dump_json().encode()).hexdigest()[:16]


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Return changes on one line."""
    return "; ".join(f"{name}: {text_of(old)} → {text_of(new)}" for name, (old, new) in changed.items())


def text_of(value: Any) -> str:
    """Return the value of a setting as people read it."""
    shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return shown or "none"

"""What a policy remembers between decisions, as the records keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from mlflow_flywheel.monitors.decisions import PolicyState
from mlflow_flywheel.pipelines.errors import BadInput


def policy_memory(model: str, state: Mapping[str, Any]) -> PolicyState:
    """Read the memory of a model's policy. Raises BadInput for one that another version of this package wrote."""
    try:
        return PolicyState.model_validate(state)
    except ValidationError as error:
        complaints = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadInput(
            f"what the policy of {model!r} remembers does not fit this version ({complaints}); remove its row from the "
            f"record database, DELETE FROM flywheel_policy_state WHERE model = {_quoted(model)}, and it begins anew: "
            "alarms that last are told again, and retrainings so far no longer count for cooldown and budget"
        ) from None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

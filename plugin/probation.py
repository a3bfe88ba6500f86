"""A promoted version on probation: what it does on its own labelled rows decides whether it stays.

Every promotion is watched, whoever made it: the gate's own, a person's, an alias set by hand. A version to which one
went back is not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from mlflow_flywheel.monitors.decisions import Probation
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.probation import (
    Comparison,
    compare,
    confidence_of,
    judge,
    longer,
    slower,
)
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.registry import download_model, resolve_model

from .champion import CHAMPION, PARENT_TAG
from .home import Home
from .kept_out import kept_out
from .record_types import ActionRecord
from .records import Records
from .release import GATE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """One look at a version on probation: `kind` is what follows, `state` is what to remember of it."""

    kind: Literal["goes_on", "passed", "unjudged", "worse"]
    promotion: ActionRecord
    state: Probation
    reason: str = ""
    evidence: dict[str, Any] | None = None

    @property
    def before(self) -> str:
        """The version that was in force before."""
        return str(self.promotion.evidence["before"])


@dataclass(frozen=True)
class _Case:
    """What a look needs: the version, the promotion, and where its rows are."""

    home: Home
    records: Records
    client: MlflowClient
    policy: PolicySpec
    table: InferenceTable
    promotion: ActionRecord
    load: Callable[[], Scorer]
    as_of: datetime

    @property
    def ends(self) -> datetime:
        return self.promotion.as_of + self.policy.probation

    def rows(self, version: str, start: datetime, end: datetime, **more: Any) -> pa.Table:
        """Read what a version answered as champion."""
        return self.table.read(
            start=start, end=end, version=version, variant=CHAMPION, known_before=self.as_of, **more
        )


def watch(
    home: Home,
    records: Records,
    client: MlflowClient,
    policy: PolicySpec,
    table: InferenceTable,
    version: str,
    load: Callable[[], Scorer],
    seen: Probation | None,
    as_of: datetime,
) -> Watch | None:
    """Look at the version in force if it is on probation; None when it is not, or cannot be loaded now.

    `load` loads the version, `seen` is what the policy remembers of earlier looks.
    """
    moves = records.moves(table.model_name, limit=1)
    if not moves or policy.probation <= timedelta(0):
        return None
    (promotion,) = moves
    if promotion.kind != "promote" or promotion.status != "done" or promotion.evidence["after"] != version:
        return None
    if records.actions(table.model_name, limit=1, key=_end_key(promotion)):
        return None
    state = seen if seen is not None and seen.promotion == promotion.id else Probation(promotion=promotion.id)
    case = _Case(home, records, client, policy, table, promotion, load, as_of)
    try:
        return _look(case, version, state)
    except FlywheelError as error:
        _log.warning("version %s of %s cannot be looked at: %s", version, table.model_name, error.message)
        return None


def end_action_key(watched: Watch) -> str:
    """Return the key under which the end of a probation is recorded, once."""
    return _end_key(watched.promotion)


def _look(case: _Case, version: str, state: Probation) -> Watch:
    slow = _slower(case, version)
    if slow is not None:
        return Watch("worse", case.promotion, state, f"its predictions are slow: {slow}", {"latency": slow})
    began = case.promotion.as_of
    labelled = case.rows(version, began, min(case.as_of, case.ends), labelled=True)
    found = judge(
        case.policy,
        version,
        began,
        case.as_of,
        labelled.num_rows,
        state,
        lambda look: _compared(case, labelled, look),
    )
    return Watch(found.kind, case.promotion, found.state, found.reason, found.evidence)


def _compared(case: _Case, labelled: pa.Table, state: Probation) -> Comparison | None:
    before = str(case.promotion.evidence["before"])
    tags = case.client.get_model_version(case.table.model_name, str(case.promotion.evidence["after"])).tags
    judged = GATE_TAG in tags and tags.get(PARENT_TAG) == before
    gate = json.loads(tags[GATE_TAG]) if judged else {}
    return compare(
        labelled,
        _comparable(case, before),
        case.load(),
        known=gate.get("champion") or {},
        margin=case.policy.loss_margin,
        confidence=confidence_of(state.looks, case.policy.confidence),
        seed=state.looks,
    )


def _comparable(case: _Case, version: str) -> Scorer | None:
    """Load the version before; None when what was logged is not all that it would have been asked."""
    try:
        uri = f"models:/{case.table.model_name}/{version}"
        resolved = resolve_model(uri, case.home.tracking_uri)
        old = load_scorer(download_model(resolved, case.home.models, case.home.tracking_uri))
    except FlywheelError:
        return None
    logged = set(case.load().schema.names) - set(kept_out(case.records, case.table.model_name))
    return old if set(old.schema.names) <= logged else None


def _slower(case: _Case, version: str) -> str | None:
    """Say how much slower the version is than the one before; None when it is not, or only the machine is."""
    ratio, least = case.policy.probation_latency, case.policy.min_rows
    if ratio <= 0:
        return None
    began, before = case.promotion.as_of, str(case.promotion.evidence["before"])
    span = case.as_of - began
    if span <= timedelta(0):
        return None
    timed = {"columns": ["deployment", "execution_duration_us"], "order_by": None}
    said = slower(
        case.rows(before, began - span, began, **timed),
        case.rows(version, began, case.as_of, **timed),
        least,
        ratio,
    )
    old = _comparable(case, before) if said is not None else None
    if said is None or old is None:
        return None
    again = longer(case.rows(version, began, case.as_of), old, case.load())
    return f"{said}; {again:.1f} times the processor time for the same rows" if again > ratio else None


def _end_key(promotion: ActionRecord) -> str:
    return f"probation:{promotion.id}"

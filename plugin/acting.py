"""What follows from the verdicts of one turn: a rollback, or what the policy decides; recorded once.

A decision, the work that it queues and the policy's memory are committed together, or not at all: a turn that was
killed is simply made again, and of two turns at the same time one finds that the other has decided.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.monitors.decisions import BY_POLICY, Decision, PolicyState, decide
from mlflow_flywheel.pipelines.errors import FlywheelError, Unavailable

from .champion import CHALLENGER, CHAMPION, Registry, move, note_move
from .policy_memory import policy_memory
from .probation import Watch, end_action_key, watch
from .record_types import NewAction, Pause
from .release import AS_OF_TAG
from .trial_period import TrialEnd, trial_end
from .turn import Turn

_log = logging.getLogger(__name__)
_MOST_TRIES = 5


@dataclass(frozen=True)
class Occasion:
    """A turn, and the MLflow run that holds what was seen in it."""

    turn: Turn
    run_id: str


def act(occasion: Occasion) -> dict[str, Any]:
    """Decide and record what follows; return `action`, `reason`, `action_id` and `retrain_task`.

    A rollback, and the end of a trial, say who is `champion` now.
    """
    for _ in range(_MOST_TRIES):
        result = _act(occasion)
        if result is not None:
            return result
    raise Unavailable(f"the policy of {occasion.turn.model!r} is decided about elsewhere again and again")


def _act(occasion: Occasion) -> dict[str, Any] | None:
    """Act once; None when somebody else decided meanwhile."""
    records, model, look = occasion.turn.records, occasion.turn.model, occasion.turn.look
    memory = records.policy_state(model)
    state = policy_memory(model, memory)
    registry = Registry(occasion.turn.client)
    champion = note_move(records, model, occasion.turn.as_of, lambda: registry.champion(model), state.version)
    if champion != look.version:
        said = f"version {champion} became champion while {look.version} was looked at"
        return {"action": "none", "reason": said, "action_id": None, "retrain_task": None}
    paused = records.paused(model)
    watched = watch(
        occasion.turn.home,
        records,
        occasion.turn.client,
        look.policy,
        occasion.turn.table,
        look.version,
        look.load,
        state.probation,
        occasion.turn.as_of,
    )
    if watched is not None and watched.kind == "worse" and paused is None:
        return _roll_back(occasion, watched)
    tried = _trial_end(occasion) if paused is None else None
    if tried is not None and tried.kind == "promote":
        return _take_over(occasion, tried)
    new_labels = _new_labels(occasion, _trained_at(occasion, state))
    decision, after = decide(
        look.policy,
        state,
        occasion.turn.verdicts,
        new_labels,
        occasion.turn.as_of,
        version=look.version,
        paused=str(paused or ""),
    )
    told = actions_of(decision, model, occasion.turn.as_of, _seen(occasion))
    actions = [*_of_probation(watched, paused, occasion), *told]
    if watched is not None and watched.kind != "worse":  # what was seen while paused is seen again afterwards
        after = after.model_copy(update={"probation": watched.state})
    found = records.commit_decision(
        model, memory, after.model_dump(mode="json"), actions, occasion.turn.as_of
    )
    if found is None:
        return None
    _log.info("%s as of %s: %s: %s", model, occasion.turn.as_of, decision.action, decision.reason)
    action_id, task_id = found[told[0].key] if told else (None, None)
    return {
        "action": decision.action,
        "reason": decision.reason,
        "action_id": action_id,
        "retrain_task": task_id,
    }


def _roll_back(occasion: Occasion, watched: Watch) -> dict[str, Any]:
    """Go back to the version before: at any hour, since it undoes what the loop allowed."""
    reason = f"version {occasion.turn.look.version} on probation: {watched.reason}"
    evidence = {**(watched.evidence or {}), **_seen(occasion), "requested_by": BY_POLICY}
    return _moved(occasion, "rollback", watched.before, reason, evidence)


def _trial_end(occasion: Occasion) -> TrialEnd | None:
    """Judge a trial that is over, and record it unless the challenger is to take over; None when there is none."""
    try:
        ended = trial_end(occasion.turn)
    except FlywheelError as error:
        _log.warning("the trial of a version of %s cannot be judged: %s", occasion.turn.model, error.message)
        return None
    if ended is not None and ended.kind != "promote":
        turn, outcome = occasion.turn, ended.outcome
        turn.records.update_action(ended.action.id, outcome["status"], outcome)
        seen = {**_seen(occasion), "trial": dict(ended.evidence), "requested_by": BY_POLICY}
        key = f"alert:trial:{ended.action.id}"
        turn.records.add_action(turn.model, "alert", ended.reason, seen, turn.as_of, key, "done")
    if ended is not None and ended.kind == "refuse":
        Registry(occasion.turn.client).drop(occasion.turn.model, CHALLENGER, ended.version)
    return ended


def _take_over(occasion: Occasion, tried: TrialEnd) -> dict[str, Any]:
    """Make a challenger that was tried the champion."""
    evidence = {"trial": dict(tried.evidence), **_seen(occasion), "requested_by": BY_POLICY}
    return _moved(occasion, "promote", tried.version, tried.reason, evidence)


def _moved(
    occasion: Occasion,
    kind: Literal["promote", "rollback"],
    version: str,
    reason: str,
    evidence: Mapping[str, Any],
) -> dict[str, Any]:
    """Make a version the champion and say so."""
    turn = occasion.turn
    action = move(
        turn.records, Registry(turn.client), kind, turn.model, version, reason, evidence, turn.as_of
    )
    return {
        "action": kind,
        "reason": reason,
        "action_id": action.id,
        "retrain_task": None,
        "champion": version,
    }


def _of_probation(watched: Watch | None, paused: Pause | None, occasion: Occasion) -> Iterator[NewAction]:
    if watched is None or watched.kind == "goes_on":
        return
    evidence = {**(watched.evidence or {}), **_seen(occasion), "requested_by": BY_POLICY}
    if watched.kind == "worse":
        reason = f"version {occasion.turn.look.version} on probation: {watched.reason} (no rollback: the loop is paused {paused})"
        yield NewAction("alert", reason, evidence, f"alert:{end_action_key(watched)}")
        return
    reason = f"probation of version {occasion.turn.look.version}: {watched.reason}"
    yield NewAction("probation", reason, evidence, end_action_key(watched), watched.kind)


def actions_of(decision: Decision, model: str, as_of: datetime, seen: Mapping[str, Any]) -> list[NewAction]:
    """Return the actions of a decision, the main one first; `seen` is what it rests on beside the verdicts."""
    found = []
    for one in (decision, *decision.also):
        if one.action == "none":
            continue
        retrain = one.action == "retrain"
        found.append(
            NewAction(
                kind=one.action,
                reason=one.reason,
                evidence={**one.evidence, **seen},
                key=f"{one.action}:{model}:{as_of.isoformat()}",
                status="queued" if retrain else "done",
                task="retrain" if retrain else None,
            )
        )
    return found


def _seen(occasion: Occasion) -> dict[str, Any]:
    looked = occasion.turn.look.window
    return {
        "version": occasion.turn.look.version,
        "window": {"start": looked.start.isoformat(), "end": looked.end.isoformat()},
        "rows": occasion.turn.look.rows.num_rows,
        "monitor_run_id": occasion.run_id,
        "table_versions": occasion.turn.table.versions(),
    }


def _trained_at(occasion: Occasion, state: PolicyState) -> datetime | None:
    """Return when labels were last trained on, by the policy's own account or the version in force's lineage."""
    tags = occasion.turn.client.get_model_version(occasion.turn.model, occasion.turn.look.version).tags
    return state.newest_training(datetime.fromisoformat(tags[AS_OF_TAG]) if AS_OF_TAG in tags else None)


def _new_labels(occasion: Occasion, trained_at: datetime | None) -> int:
    """Count labels that a training as of now could use and that were not true yet at the last one."""
    found = occasion.turn.table.read(
        start=occasion.turn.as_of - occasion.turn.look.policy.training_span,
        end=occasion.turn.as_of,
        variant=CHAMPION,
        labelled=True,
        known_before=occasion.turn.as_of,
        columns=["label_time"],
        order_by=None,
    )["label_time"]
    return count_new(found, trained_at)


def count_new(label_times: pa.ChunkedArray, trained_at: datetime | None) -> int:
    """Count labels that were not true yet at a training; all of them when there was none."""
    if trained_at is None:
        return len(label_times)
    return int(pc.sum(pc.greater_equal(label_times, pa.scalar(trained_at, label_times.type))).as_py() or 0)

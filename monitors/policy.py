"""Verdicts in, at most one action out: the rules of the loop as pure functions.

The default is to do nothing. Retraining needs a reason that was asked for, evidence that lasted, enough new labels, no
cooldown in force and an attempt left in the budget; everything that was considered is in the decision's evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.times import as_utc

from .all import NAMES
from .floors import Floor, parse_floor
from .verdicts import Verdict
from .windows import Duration, format_duration

Reason = Literal["performance", "labels", "drift", "schedule"]
Action = Literal["none", "alert", "retrain"]
_BREACH_MONITORS: tuple[Reason, ...] = ("performance", "drift")
_ALL = "all"


def _read_list(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _read_bound(value: object) -> object:
    return None if value == "" else value


class PolicySpec(Frozen):
    """What is watched, how closely, and what may be done about it: one per registered model.

    Every field is also a deployment key, `-C loop.<field>=<value>`; durations are written "30d" or "12h".
    """

    monitor_schedule: str = Field(
        "0 * * * *", description="when monitors run: a cron line of five fields, UTC"
    )
    monitors: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        (_ALL,),
        description=f"which monitors run: {_ALL}, some of {', '.join(NAMES)}, or all but some, such as "
        f'"-{NAMES[0]}"',
    )
    window: Duration = Field(timedelta(days=30), description="length of the event-time window they look at")
    min_rows: int = Field(200, ge=2, description="fewest rows (labelled, for performance) for a verdict")
    drift_share: float = Field(0.3, gt=0, le=1, description="share of drifted features that raises an alarm")
    drift_effect: float = Field(
        0.1, ge=0, description="smallest relevant change of a feature, in its reference deviations"
    )
    prediction_effect: float = Field(
        0.25,
        ge=0,
        description="change of the predictions, in reference deviations, that alone raises an alarm",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="how sure performance and drift alarms must be")
    loss_margin: float = Field(
        0.02,
        ge=0,
        description="tolerated loss of skill against the reference (classifiers: share of the base rate's "
        "entropy; regressors: share of the reference's mean absolute error)",
    )
    ranking_margin: float = Field(
        0.02, ge=0, le=0.5, description="tolerated loss of AUC against the reference"
    )
    broken_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="share of broken values (lost, infinite, far out of range, unknown categories), beyond what the "
        "reference has of them, that raises an alarm of quality",
    )
    latency_margin: float = Field(
        0.5,
        ge=0,
        description="tolerated slow-down of a deployment against the window before; 0.5 is half as much again",
    )
    max_latency_ms: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_read_bound)] = Field(
        None, description="longest time in the model, per row, that 99 of 100 rows may take; empty: no bound"
    )
    max_age: Annotated[Duration | None, BeforeValidator(_read_bound)] = Field(
        None,
        description="greatest age of the newest event that was answered; empty: no bound, and only batch input that "
        "waits for longer than two runs of its schedule raises an alarm of freshness",
    )
    stale_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="share of the newest batch answers that would be different now that raises an alarm of relevance",
    )
    answer_tolerance: float = Field(
        0.1,
        ge=0,
        description="how far an answer may move and still count as the same: a probability by this, a number by so many "
        "deviations of the reference's predictions",
    )
    floor: Annotated[tuple[Floor, ...], BeforeValidator(parse_floor)] = Field(
        (),
        validate_default=True,
        description='bounds that hold for whichever model serves, such as "auc>=0.6,log_loss<=0.7"; a model that is '
        "surely worse than a constant answer raises an alarm in any case",
    )
    retrain_on: Annotated[tuple[Reason, ...], BeforeValidator(_read_list)] = Field(
        ("performance", "labels"),
        description=f"what may start a retraining, of {', '.join(get_args(Reason))}; empty: nothing does",
    )
    min_labels: int = Field(
        500, ge=1, description="fewest new labels since the last training for any retraining"
    )
    new_labels: int = Field(
        10_000, ge=1, description="new labels since the last training that suffice (labels)"
    )
    retrain_every: Duration = Field(timedelta(days=30), description="time between trainings (schedule)")
    consecutive: int = Field(
        2, ge=1, description="alarms in a row before a monitor's alarm starts a retraining"
    )
    cooldown: Duration = Field(
        timedelta(days=7), description="no retraining within this time of the last one"
    )
    budget: int = Field(4, ge=0, description="most retrainings within the budget period")
    budget_period: Duration = Field(timedelta(days=30), description="period that the budget is for")
    training_window: Duration = Field(timedelta(days=90), description="span of labelled rows to train on")
    max_rows: int = Field(1_000_000, ge=100, description="most rows to train on; the newest are kept")
    holdout_share: float = Field(
        0.2, gt=0, lt=1, description="newest share of the rows held out for the gate"
    )
    holdout_rows: int = Field(20_000, ge=50, description="most rows held out")
    gate_margin: float = Field(0.0, ge=0, description="least mean gain of the challenger's loss at the gate")
    gate_confidence: float = Field(0.95, gt=0.5, lt=1, description="how sure the gate must be of no harm")
    approval: Literal["auto", "manual"] = Field("auto", description="who moves the alias after a passed gate")
    report: Literal["always", "on_change", "never"] = Field(
        "always", description="when to draw the drift report: always, when the drift verdict changed, never"
    )

    @field_validator("monitor_schedule")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f'{value!r} is not a cron line of five fields, such as "0 * * * *" (every hour)')
        return value

    @field_validator("monitors")
    @classmethod
    def _known_monitors(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            bare = name.removeprefix("-")
            if bare not in NAMES and name != _ALL:
                raise ValueError(
                    f"there is no monitor {bare!r}{nearest(bare, NAMES)}; known: {', '.join(NAMES)}, or {_ALL}"
                )
        return value

    @field_validator("window", "retrain_every", "budget_period", "training_window", "max_age")
    @classmethod
    def _positive(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError(f'{format_duration(value)!r} must be longer than nothing, such as "30d"')
        return value

    @property
    def watched_by(self) -> tuple[str, ...]:
        """The names of the monitors that run, also of those that came after the policy was written."""
        left_out = {name.removeprefix("-") for name in self.monitors if name.startswith("-")}
        named = {name for name in self.monitors if not name.startswith("-")}
        every = _ALL in named or (left_out and not named)
        return tuple(name for name in NAMES if (every or name in named) and name not in left_out)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> PolicySpec:
        """Read settings as they were written, strings included.

        Raises BadInput that names the setting, its value and the nearest known one or what would fit.
        """
        for key in raw:
            if key not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise BadInput(
                    f"unknown loop setting {key!r}{nearest(key, cls.model_fields)}; known: {known}"
                )
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            complaints = (
                f"{'.'.join(map(str, e['loc'][:1]))}={e['input']!r}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise BadInput(f"loop settings do not fit: {'; '.join(complaints)}") from None

    def changed(self, raw: Mapping[str, Any]) -> PolicySpec:
        """Return this policy with the given settings replaced; the others keep their values."""
        return self.parse({**self.model_dump(mode="json"), **raw})


class PolicyState(Frozen):
    """What the policy remembers between two decisions; JSON round trip by `model_dump(mode="json")`."""

    started_at: datetime | None = Field(None, description="`as_of` of the first decision")
    decided_at: datetime | None = Field(None, description="`as_of` of the newest decision")
    breaches: dict[str, int] = Field(default_factory=dict, description="alarms in a row, per monitor")
    in_alarm: tuple[str, ...] = Field((), description="monitors whose present alarm was already told")
    attempts: tuple[datetime, ...] = Field((), description="`as_of` of the retrainings, oldest first")
    trained_at: datetime | None = Field(
        None, description="`as_of` of the newest one: labels since then are new"
    )

    @field_validator("started_at", "decided_at", "trained_at")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else as_utc(value)


@dataclass(frozen=True)
class Decision:
    """What to do now, why (one sentence), and what it rests on (JSON-ready)."""

    action: Action
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


def decide(
    spec: PolicySpec, state: PolicyState, verdicts: Sequence[Verdict], new_labels: int, as_of: datetime
) -> tuple[Decision, PolicyState]:
    """Decide what to do about the verdicts of one monitor execution.

    `new_labels` counts labels that became known since `state.trained_at` (None: all of them). Deciding again for the same or an earlier
    `as_of` changes nothing, so a repeated execution cannot count an alarm twice. An `unknown` verdict neither adds to
    nor ends a row of alarms: no evidence is not good news. A retraining counts against cooldown and budget when it is
    decided, whatever becomes of it.
    """
    as_of = as_utc(as_of)
    if state.decided_at is not None and as_of <= state.decided_at:
        return Decision("none", f"already decided for {state.decided_at:%Y-%m-%d %H:%M}"), state
    breaches, alarms = _count(state, verdicts)
    attempts = tuple(a for a in state.attempts if as_of - a < max(spec.budget_period, spec.cooldown))
    wanted = _reasons(spec, state, verdicts, breaches, new_labels, as_of)
    obstacle = _obstacle(spec, attempts, new_labels, as_of)
    evidence = {
        "as_of": as_of.isoformat(),
        "verdicts": {
            v.monitor: {"status": v.status, "summary": v.summary, "metrics": v.metrics} for v in verdicts
        },
        "breaches": breaches,
        "new_labels": new_labels,
        "attempts": [a.isoformat() for a in attempts],
        "conditions": list(wanted),
    }
    after = PolicyState(
        started_at=state.started_at or as_of,
        decided_at=as_of,
        breaches=breaches,
        in_alarm=alarms,
        attempts=attempts,
        trained_at=state.trained_at,
    )
    if wanted and obstacle is None:
        reason = "; ".join(wanted.values())
        fresh = after.model_copy(
            update={
                "attempts": (*attempts, as_of),
                "trained_at": as_of,
                "breaches": dict.fromkeys(breaches, 0),
            }
        )
        return Decision("retrain", reason, evidence), fresh
    told = [v for v in verdicts if v.status == "alarm" and v.monitor not in state.in_alarm]
    blocked = f" (no retraining: {obstacle})" if wanted and obstacle else ""
    if told:
        return Decision("alert", "; ".join(v.summary for v in told) + blocked, evidence), after
    if blocked:
        return Decision("none", f"{'; '.join(wanted.values())}{blocked}", evidence), after
    return Decision("none", "nothing calls for action", evidence), after


def _count(state: PolicyState, verdicts: Sequence[Verdict]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Count alarms in a row; a monitor that is not heard any more (switched off, nothing to ask) starts anew."""
    heard = {verdict.monitor for verdict in verdicts}
    breaches = {monitor: n for monitor, n in state.breaches.items() if monitor in heard}
    alarms = heard & set(state.in_alarm)
    for verdict in verdicts:
        if verdict.status == "alarm":
            breaches[verdict.monitor] = breaches.get(verdict.monitor, 0) + 1
            alarms.add(verdict.monitor)
        elif verdict.status != "unknown":
            breaches[verdict.monitor] = 0
            alarms.discard(verdict.monitor)
    return breaches, tuple(sorted(alarms))


def _reasons(
    spec: PolicySpec,
    state: PolicyState,
    verdicts: Sequence[Verdict],
    breaches: Mapping[str, int],
    new_labels: int,
    as_of: datetime,
) -> dict[str, str]:
    reasons = {}
    for verdict in verdicts:
        in_a_row = breaches.get(verdict.monitor, 0)
        asked_for = verdict.monitor in _BREACH_MONITORS and verdict.monitor in spec.retrain_on
        if asked_for and verdict.status == "alarm" and in_a_row >= spec.consecutive:
            reasons[verdict.monitor] = f"{verdict.monitor}: {verdict.summary} ({in_a_row} in a row)"
    if "labels" in spec.retrain_on and new_labels >= spec.new_labels:
        reasons["labels"] = (
            f"labels: {new_labels:,} new labels since the last training ({spec.new_labels:,} suffice)"
        )
    since = state.trained_at or state.started_at or as_of
    if "schedule" in spec.retrain_on and as_of - since >= spec.retrain_every:
        reasons["schedule"] = f"schedule: {format_duration(as_of - since)} since the last training"
    return reasons


def _obstacle(spec: PolicySpec, attempts: Sequence[datetime], new_labels: int, as_of: datetime) -> str | None:
    if attempts and as_of - attempts[-1] < spec.cooldown:
        return f"cooling down until {attempts[-1] + spec.cooldown:%Y-%m-%d %H:%M}"
    spent = sum(as_of - a < spec.budget_period for a in attempts)
    if spent >= spec.budget:
        return f"{spent} of {spec.budget} attempts spent in {format_duration(spec.budget_period)}"
    if new_labels < spec.min_labels:
        return f"{new_labels:,} new labels, fewer than {spec.min_labels:,}"
    return None

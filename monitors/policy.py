"""What is watched, how closely, and what may be done about it: the settings of a policy, one per registered model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.errors import BadInput, nearest

from .all import NAMES
from .floors import Floor, parse_floor
from .quiet_hours import QuietHours, parse_quiet_hours
from .slicing import Slices, parse_slices
from .windows import Duration, format_duration

LABELS, SCHEDULE = "labels", "schedule"
_REASONS = (*NAMES, LABELS, SCHEDULE)
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
        "0 * * * *", description="when monitors run: a cron line of five fields, in the time zone"
    )
    timezone: str = Field(
        "UTC", description="time zone of monitor_schedule and quiet_hours, such as Europe/Berlin"
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
    slices: Annotated[tuple[Slices, ...], BeforeValidator(parse_slices)] = Field(
        (),
        validate_default=True,
        description='parts of the rows that are judged by themselves: columns and comparisons, such as "carrier, '
        'distance>1000, carrier=UA & origin!=JFK"; at most 50, the rarer categories of a column together',
    )
    slice_alarm: bool = Field(
        False, description="whether a slice that is surely worse raises an alarm, not only a warning"
    )
    retrain_on: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        ("performance",),
        description=f"what may start a retraining: {LABELS}, {SCHEDULE}, or a monitor whose alarm does, of "
        f"{', '.join(NAMES)}; empty: nothing does",
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
    episode_attempts: int = Field(
        3,
        ge=1,
        description="most retrainings that one lasting alarm starts; the gate is stricter with each of them",
    )
    cooldown: Duration = Field(
        timedelta(days=7), description="no retraining within this time of the last one"
    )
    budget: int = Field(4, ge=0, description="most retrainings within the budget period")
    budget_period: Duration = Field(timedelta(days=30), description="period that the budget is for")
    quiet_hours: Annotated[tuple[QuietHours, ...], BeforeValidator(parse_quiet_hours)] = Field(
        (),
        validate_default=True,
        description='hours of the day, such as "22:00-06:00", in which no retraining is started and nobody is alerted',
    )
    training_window: Duration = Field(timedelta(days=90), description="span of labelled rows to train on")
    max_rows: int = Field(1_000_000, ge=100, description="most rows to train on; the newest are kept")
    holdout_share: float = Field(
        0.2, gt=0, lt=1, description="newest share of the rows held out for the gate"
    )
    holdout_rows: int = Field(20_000, ge=50, description="most rows held out")
    gate_margin: float = Field(0.0, ge=0, description="least mean gain of the challenger's loss at the gate")
    gate_confidence: float = Field(0.95, gt=0.5, lt=1, description="how sure the gate must be of no harm")
    gate_slices: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        (), description="features by whose values no slice of the held-out rows may surely get worse"
    )
    gate_max_latency_ratio: float = Field(
        0.0, ge=0, description="most times as long as the champion that a challenger may take; 0: any"
    )
    gate_max_size_ratio: float = Field(
        0.0, ge=0, description="most times as large as the champion that a challenger may be; 0: any"
    )
    retrain_timeout: Duration = Field(
        timedelta(hours=1), description="longest time that a retraining's run may take; then it is killed"
    )
    retrain_memory_gb: float = Field(
        0.0, ge=0, description="most memory that its processes may take together; then it is killed; 0: any"
    )
    approval: Literal["auto", "manual"] = Field("auto", description="who moves the alias after a passed gate")
    probation: Duration = Field(
        timedelta(days=7),
        description="how long a promoted version is compared with the one before it on its own labelled rows, and "
        "rolled back when it is surely worse by more than loss_margin; 0d: not at all",
    )
    probation_latency: float = Field(
        3.0,
        ge=0,
        description="roll back a version on probation whose predictions take this many times as long; 0: do not look",
    )
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

    @field_validator("retrain_on")
    @classmethod
    def _known_reasons(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in _REASONS:
                raise ValueError(
                    f"{name!r} is no reason to retrain{nearest(name, _REASONS)}; known: {', '.join(_REASONS)}"
                )
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"there is no time zone {value!r}; give one such as Europe/Berlin") from None
        return value

    @field_validator(
        "window", "retrain_every", "budget_period", "training_window", "retrain_timeout", "max_age"
    )
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

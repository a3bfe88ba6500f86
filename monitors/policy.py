"""What is watched, how closely, and what may be done about it: the settings of a policy, one per registered model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from mlflow_flywheel.pipelines.config import ClassBalance, Frozen, RowsKept
from mlflow_flywheel.pipelines.errors import BadInput, nearest
from mlflow_flywheel.pipelines.own_code import EnvironmentManager, is_function

from .all import NAMES
from .floors import Floor, parse_floor
from .quiet_hours import QuietHours, parse_quiet_hours
from .slicing import Slices, parse_slices
from .training_settings import NamedWindow, check_code, check_name, check_parameters, parse_windows
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
    training_windows: Annotated[tuple[NamedWindow, ...], BeforeValidator(parse_windows)] = Field(
        (),
        validate_default=True,
        description='windows to choose from, such as "30d,90d,all" (all: training_window and the reference): each is '
        "tried on the newest training rows, in the order of time, and the best one is trained on; empty: no choice, all "
        "of training_window",
    )
    recency_half_life: Annotated[Duration | None, BeforeValidator(_read_bound)] = Field(
        None,
        description="a training row counts half as much for each such time that it is older than the newest; empty: all "
        "count alike",
    )
    class_balance: ClassBalance = Field(
        "none",
        description="rare classes count more (weights), or frequent ones are drawn from (downsample); either shifts the "
        "probabilities towards the rare classes",
    )
    class_ratio: float = Field(
        1.0, ge=1, description="most rows of a class for each row of the rarest (downsample)"
    )
    max_rows: int = Field(1_000_000, ge=100, description="most rows to train on")
    rows_kept: RowsKept = Field(
        "newest",
        description="which rows when there are more than max_rows: the newest, or random ones of the whole window, drawn "
        "with training_seed",
    )
    training_seed: int = Field(
        0, ge=0, description="seed of what is drawn, and of estimators whose random_state was left open"
    )
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
    retrain_with: str = Field(
        "",
        description="whose code trains: empty: the champion's estimator is refitted; else an MLflow project (an absolute "
        "folder, a git or zip URI), or module:function",
    )
    retrain_entry_point: str = Field(
        "retrain", description="entry point of the project, or a .py or .sh file in it"
    )
    retrain_version: str = Field(
        "", description="git commit or branch of the project; empty: its default branch"
    )
    retrain_environment: EnvironmentManager = Field(
        "local",
        description="where the project runs: local (where mlflow-flywheel is installed), or an environment made from its "
        "python_env.yaml by virtualenv (needs pyenv) or uv",
    )
    retrain_parameters: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        (), description='further parameters of the project or function, such as "epochs=20,depth=3"'
    )
    retrain_timeout: Duration = Field(
        timedelta(hours=1), description="longest time that a retraining's run may take; then it is killed"
    )
    retrain_memory_gb: float = Field(
        0.0, ge=0, description="most memory that its processes may take together; then it is killed; 0: any"
    )
    approval: Literal["auto", "manual"] = Field("auto", description="who moves the alias after a passed gate")
    trial: Duration = Field(
        timedelta(0),
        description="how long a challenger that passed the gate is tried first, by the deployments that have it as shadow or "
        "canary, before approval=auto makes it champion; 0d: not at all",
    )
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
    probation_errors: float = Field(
        0.01,
        ge=0,
        le=1,
        description="roll back a version on probation whose model surely fails more requests, messages or rows than "
        "the one before it, by more than this share of them; 1: do not look",
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

    _code = field_validator("retrain_with")(check_code)
    _names = field_validator("retrain_entry_point", "retrain_version")(check_name)
    _parameters = field_validator("retrain_parameters")(check_parameters)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"there is no time zone {value!r}; give one such as Europe/Berlin") from None
        return value

    @field_validator(
        "window",
        "retrain_every",
        "budget_period",
        "training_window",
        "retrain_timeout",
        "max_age",
        "recency_half_life",
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

    @property
    def training_span(self) -> timedelta:
        """How far back any training may look."""
        named = (window.length for window in self.training_windows if window.length is not None)
        return max((self.training_window, *named))

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
            policy = cls.model_validate(dict(raw))
        except ValidationError as error:
            complaints = (
                f"{'.'.join(map(str, e['loc'][:1]))}={e['input']!r}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise BadInput(f"loop settings do not fit: {'; '.join(complaints)}") from None
        policy._check_together()
        return policy

    def _check_together(self) -> None:
        if self.retrain_with and self.training_windows:
            raise BadInput(
                "loop settings do not fit: training_windows is for the refit of the champion's estimator, and "
                f"retrain_with={self.retrain_with!r} trains otherwise; choose the window there, or empty one of the two"
            )
        if is_function(self.retrain_with) and (self.retrain_environment != "local" or self.retrain_version):
            raise BadInput(
                f"loop settings do not fit: {self.retrain_with!r} is imported where mlflow-flywheel is installed; "
                "retrain_environment and retrain_version are for MLflow projects"
            )

    def changed(self, raw: Mapping[str, Any]) -> PolicySpec:
        """Return this policy with the given settings replaced; the others keep their values."""
        return self.parse({**self.model_dump(mode="json"), **raw})

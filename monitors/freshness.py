"""Are the answers still about now?

Three ages per deployment. That of the newest event that was answered, by whatever version, must not exceed the policy's
`max_age`; without one it is not judged: events may be rare, or old by nature. Batch files that no run has scored must
not wait for longer than two runs of the schedule take to come (`max_age` where there is no schedule), and the last run
that succeeded, with or without new input, must not be longer ago: runs that fail, or a daemon that was down, show there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_flywheel.pipelines.errors import FlywheelError

from .look import Deployed, Look, Monitor
from .verdicts import Status, Verdict
from .windows import Window, format_duration

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.batch.waiting import InputState

MONITOR = "freshness"
_RUNS = 2
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Age:
    """How old the newest answer of a deployment is, and its input.

    `limit` is for the event, `patience` for the input; None: not judged. `seen` is how far back was looked.
    """

    deployment: Deployed
    as_of: datetime
    limit: timedelta | None
    patience: timedelta | None
    seen: timedelta
    newest: datetime | None
    inputs: InputState | None
    trouble: str = ""

    @property
    def of_event(self) -> timedelta | None:
        return None if self.newest is None else self.as_of - self.newest

    @property
    def of_input(self) -> timedelta | None:
        """The age of the newest input, scored or not."""
        return self.as_of - self.inputs.newest if self.inputs is not None and self.inputs.newest else None

    @property
    def of_waiting(self) -> timedelta | None:
        """How long the oldest input has waited that no run has scored."""
        since = self.inputs.waiting_since if self.inputs is not None else None
        return self.as_of - since if since else None

    @property
    def event_status(self) -> Status | None:
        """`unknown` while a deployment is too young to have answered anything; None: not judged."""
        if self.limit is None:
            return None
        if self.of_event is not None:
            return "alarm" if self.of_event > self.limit else "ok"
        since = self.deployment.since
        return "alarm" if since is not None and self.as_of - since > self.limit else "unknown"

    @property
    def input_status(self) -> Status | None:
        """`unknown` while the input cannot be looked at; None: not judged."""
        if self.patience is None or self.inputs is None or self.inputs.waiting is None:
            return "unknown" if self.trouble else None
        return "alarm" if self.of_waiting is not None and self.of_waiting > self.patience else "ok"

    @property
    def of_success(self) -> timedelta | None:
        """How long no run has succeeded, since the deployment was made at most; None for a time before that."""
        runs = self.deployment.runs
        since = None if runs is None else runs.succeeded or self.deployment.since
        return None if since is None or since > self.as_of else self.as_of - since

    @property
    def run_status(self) -> Status | None:
        """None: not judged, as of a deployment that runs when somebody asks, unless the last time failed."""
        runs, age = self.deployment.runs, self.of_success
        if runs is None or age is None or self.patience is None:
            return None
        if self.deployment.every is None and runs.failure is None:
            return None
        return "alarm" if age > self.patience else "ok"

    @property
    def status(self) -> Status:
        """The most severe of all."""
        found = {self.event_status, self.input_status, self.run_status}
        return "alarm" if "alarm" in found else "unknown" if "unknown" in found else "ok"

    def __str__(self) -> str:
        """Say what makes the status, and how old the newest input is."""
        parts = []
        if self.event_status == self.status:
            parts.append(self._event_words())
        if self.input_status == self.status:
            parts.append(self._input_words())
        if self.run_status == self.status:
            parts.append(self._run_words())
        if self.of_input is not None and self.of_waiting is None:
            parts.append(f"newest input {_told(self.of_input)} old")
        return f"{self.deployment.name}: {', '.join(parts)}"

    def _event_words(self) -> str:
        most = f"at most {format_duration(self.limit)}" if self.limit is not None else ""
        if self.of_event is None:
            return f"no event answered in {format_duration(self.seen)} ({most})"
        return f"newest event answered is {_told(self.of_event)} old ({most})"

    def _input_words(self) -> str:
        if self.inputs is None:
            return f"its input cannot be looked at: {self.trouble}"
        if self.of_waiting is None or self.patience is None:
            return "no input waits"
        n = self.inputs.waiting
        files = "1 input file waits" if n == 1 else f"{n:,} input files wait, the oldest"
        return f"{files} for {_told(self.of_waiting)} (at most {format_duration(self.patience)})"

    def _run_words(self) -> str:
        runs, limit = self.deployment.runs, self.patience
        if runs is None or limit is None or self.of_success is None or self.run_status == "ok":
            return "its runs succeed"
        failure = f"; the last one failed: {_line(runs.failure)}" if runs.failure is not None else ""
        return (
            f"no run has succeeded for {_told(self.of_success)} (at most {format_duration(limit)}){failure}"
        )


class FreshnessMonitor(Monitor):
    """See the module."""

    name = MONITOR
    series = (("event_age_hours", "event_age_hours"), ("waiting_hours", "input_waiting_hours"))

    def look(self, look: Look) -> Verdict | None:
        ages = list(_ages(look))
        if not ages:
            return None
        statuses = {age.status for age in ages}
        status: Status = "alarm" if "alarm" in statuses else "ok" if "ok" in statuses else "unknown"
        worst = [age for age in ages if age.status == status]
        rows = [_row(age) for age in ages]
        metrics = {"judged": float(len(ages)), "late": float(sum(age.status == "alarm" for age in ages))}
        for metric in ("event_age_hours", "input_age_hours", "waiting_hours", "run_age_hours"):
            known = [row[metric] for row in rows if row[metric] is not None]
            metrics |= {metric: max(known)} if known else {}
        return Verdict(MONITOR, status, "; ".join(map(str, worst)), look.window, metrics, rows)


def _ages(look: Look) -> Iterator[Age]:
    limit, known = look.policy.max_age, _newest_of(look.rows)
    for deployment in look.deployments:
        patience = limit if deployment.every is None else _RUNS * deployment.every
        if limit is None and patience is None:
            continue
        seen, newest = look.window.length, known.get(deployment.name)
        if limit is not None and (newest is None or look.as_of - newest > limit):
            # another version may have answered since, or before
            seen = max(seen, limit)
            span = Window(look.as_of - seen, look.as_of)
            rows = look.read(span, deployment=deployment.name, columns=["deployment", "event_time"])
            newest = _newest_of(rows).get(deployment.name)
        inputs, trouble = _inputs(deployment, look.as_of)
        age = Age(deployment, look.as_of, limit, patience, seen, newest, inputs, trouble)
        if (age.event_status, age.input_status, age.run_status) != (None, None, None):
            yield age


def _newest_of(rows: pa.Table) -> dict[str, datetime]:
    found = rows.group_by("deployment").aggregate([("event_time", "max")])
    newest = found["event_time_max"].cast(pa.timestamp("us", tz="UTC"))
    kept = pc.is_valid(newest)
    return dict(
        zip(found["deployment"].filter(kept).to_pylist(), newest.filter(kept).to_pylist(), strict=True)
    )


def _inputs(deployment: Deployed, as_of: datetime) -> tuple[InputState | None, str]:
    """Look at a deployment's input; a store that is away makes no answer stale."""
    if deployment.inputs is None:
        return None, ""
    try:
        return deployment.inputs(as_of), ""
    except (FlywheelError, OSError) as error:
        return None, _line(str(error)) or type(error).__name__


def _row(age: Age) -> dict[str, Any]:
    def hours(value: timedelta | None) -> float | None:
        return None if value is None else value / _HOUR

    return {
        "deployment": age.deployment.name,
        "mode": age.deployment.mode,
        "status": age.status,
        "max_age_hours": hours(age.limit),
        "patience_hours": hours(age.patience) if age.inputs is not None else None,
        "newest_event": age.newest.isoformat() if age.newest else None,
        "event_age_hours": hours(age.of_event),
        "input_age_hours": hours(age.of_input),
        "waiting_files": age.inputs.waiting if age.inputs is not None else None,
        "waiting_hours": hours(age.of_waiting),
        "trouble": age.trouble or None,
        "run_age_hours": hours(age.of_success),
        "failure": age.deployment.runs.failure if age.deployment.runs else None,
    }


def _line(text: str | None) -> str:
    """Return the first line of what an error says."""
    return next(iter((text or "").splitlines()), "")


def _told(age: timedelta) -> str:
    """Return an age as precise as it is worth: days and hours, hours and minutes, or minutes and seconds."""
    unit = timedelta(hours=1) if age >= timedelta(days=1) else timedelta(minutes=1)
    return format_duration(age - age % unit if age >= timedelta(hours=1) else age)

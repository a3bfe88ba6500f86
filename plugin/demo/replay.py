"""The year again, day by day: flights are asked about, land, and are labelled; at boundaries the loop has its turn.

The clock is the flights' own. Nothing is asked before its day and no label is handed in before its flight has landed;
while the loop works, time stands still, so that a promotion takes effect at the moment that it was decided for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from mlflow_flywheel.pipelines.backlog import waiting_bytes
from mlflow_flywheel.pipelines.errors import FlywheelError, Unavailable
from mlflow_flywheel.pipelines.inference_table import InferenceTable, TableCounts
from mlflow_flywheel.plugin.context import Context

from .clock import SimulatedDay, days_of, landing_after
from .doors import Doors
from .flights import DAY, EVENT_TIME, LABEL_TIME, Flights, midnight
from .model import MODEL_NAME

_TABLE_SECONDS = 120.0
_MONITOR_SECONDS = 600.0
_RETRAIN_SECONDS = 1800.0
_ROLLOVER_SECONDS = 300.0


@dataclass(frozen=True)
class Retraining:
    """One retraining, as it ended; `gate` is None when it did not come that far."""

    as_of: datetime
    run_id: str | None
    reason: str
    gate: Mapping[str, Any] | None
    promoted: bool
    version: str | None
    status: str
    said: str


@dataclass
class Position:
    """Where the replay is, for whoever looks on; `verdicts` and `reason` are those of the loop's last turn."""

    day: date
    asked: dict[str, int] = field(default_factory=dict)
    labelled: int = 0
    version: str = "1"
    verdicts: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    doing: str = ""


class Watcher(Protocol):
    """Who looks on."""

    def moved(self, position: Position) -> None:
        """Called when time or what is being done moves on."""

    def looked(self, position: Position) -> None:
        """Called after the monitors have looked and the policy has decided."""

    def retrained(self, done: Retraining) -> None:
        """Called after a retraining, before a promoted version is waited for."""


class Replay:
    """Replays flights through the doors and lets the loop act every `every` days."""

    def __init__(
        self, context: Context, doors: Doors, flights: Flights, every: int, watcher: Watcher
    ) -> None:
        self._context = context
        self._doors = doors
        self._flights = flights
        self._every = every
        self._watcher = watcher
        self._table = InferenceTable.open(context.home.tables, MODEL_NAME)
        self.position = Position(flights.frame[DAY].iloc[0].date())
        self.retrainings: list[Retraining] = []

    def run(self) -> TableCounts:
        """Replay everything, and return what is in the table at the end, when the last label has come."""
        today: SimulatedDay | None = None
        for today in days_of(self._flights):
            if today.number > 1 and (today.number - 1) % self._every == 0:
                self._let_loop_act(midnight(today.day))
            self._doors.day(today.day, today.flights, today.landed)
            self._tell(day=today.day)
        if today is not None:
            self._doors.day(today.day, today.flights.iloc[:0], landing_after(self._flights, today.ends))
        return self._settle()

    def _settle(self, span: tuple[datetime, datetime] | None = None) -> TableCounts:
        """Wait until all that was asked and labelled so far is in the table, and return what is there.

        With a `span` of event time only its flights, and their labels of before its end, are waited for: counting a
        fortnight costs a fraction of counting the year.
        """
        self._tell(doing="waiting for the table")
        self._doors.settle()
        rows, labels = self._expected(span)
        start, end = span if span is not None else (None, None)
        deadline, before = time.monotonic() + _TABLE_SECONDS, (-1, -1)
        while True:
            self._wait_for_spool()
            counts = self._table.counts(start=start, end=end)
            found = (counts.rows, counts.labelled)
            if found[0] >= rows and found[1] >= labels:
                self._tell(doing="")
                return counts
            if found != before:
                deadline, before = time.monotonic() + _TABLE_SECONDS, found
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the inference table has {found[0]:,} of {rows:,} answered flights and {found[1]:,} of {labels:,} "
                    "labels, and no more come"
                )
            time.sleep(0.2)

    def _wait_for_spool(self) -> None:
        """Wait until what is in the spool now is committed, which is cheaper to see than to count."""
        deadline = time.monotonic() + _TABLE_SECONDS
        while waiting_bytes(self._context.home.spool) and time.monotonic() < deadline:
            time.sleep(0.05)

    def _expected(self, span: tuple[datetime, datetime] | None) -> tuple[int, int]:
        if span is None:
            return self._doors.asked, self._doors.labelled
        frame = self._flights.frame
        inside = (frame[EVENT_TIME] >= span[0]) & (frame[EVENT_TIME] < span[1])
        return int(inside.sum()), int((inside & (frame[LABEL_TIME] < span[1])).sum())

    def _let_loop_act(self, now: datetime) -> None:
        self._settle((now - timedelta(days=self._every + 1), now))
        self._tell(doing="monitors")
        looked = self._do("monitor", {"as_of": now.isoformat()}, f"demo:monitor:{now.isoformat()}")
        self._tell(verdicts={v["monitor"]: v["status"] for v in looked["verdicts"]}, reason=looked["reason"])
        self._watcher.looked(self.position)
        if looked["action"] == "rollback":
            self._go_over(str(looked["champion"]))
        if looked.get("retrain_task") is None:
            self._tell(doing="")
            return
        self._tell(doing="retraining")
        outcome = self._wait(int(looked["retrain_task"]), "retraining", _RETRAIN_SECONDS)
        made = Retraining(
            as_of=now,
            run_id=outcome.get("run_id"),
            reason=str(looked["reason"]),
            gate=outcome.get("gate"),
            promoted=bool(outcome.get("promoted")),
            version=outcome.get("version"),
            status=str(outcome.get("status")),
            said=str(outcome.get("reason")),
        )
        self.retrainings.append(made)
        self._watcher.retrained(made)
        if made.promoted and made.version is not None:
            self._go_over(str(made.version))
        self._tell(doing="")

    def _go_over(self, version: str) -> None:
        self._tell(doing=f"rolling over to version {version}")
        self._wait_rolled_over(version)
        self._tell(version=version)

    def _do(self, kind: Any, payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        task = self._context.records.enqueue(kind, MODEL_NAME, dict(payload), "demo", key)
        return self._wait(task, str(kind), _MONITOR_SECONDS)

    def _wait(self, task_id: int, what: str, seconds: float) -> Mapping[str, Any]:
        done = self._context.wait_for_task(task_id, seconds)
        if done.status == "failed" or done.result is None:
            raise FlywheelError(f"the {what} of {MODEL_NAME} failed: {done.error}")
        return done.result

    def _wait_rolled_over(self, version: str) -> None:
        deadline = time.monotonic() + _ROLLOVER_SECONDS
        while True:
            lagging = [r for r in self._context.records.deployments() if r.version != version]
            if not lagging:
                return
            if time.monotonic() > deadline:
                said = "; ".join(f"{r.name} is at version {r.version} {r.message}".strip() for r in lagging)
                raise Unavailable(f"not every deployment went over to version {version}: {said}")
            time.sleep(0.05)

    def _tell(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.position, name, value)
        self.position.asked = {door.name: door.asked for door in self._doors.by_origin.values()}
        self.position.labelled = self._doors.labelled
        self._watcher.moved(self.position)

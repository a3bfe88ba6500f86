"""The policy over any history: two daemons that decide, crash and are late, pauses, nights, repeated turns.

What is checked is what the records say in the end, against a reckoning of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy.exc import StatementError

from mlflow_flywheel.monitors.decisions import PolicyState, decide
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import last_window
from mlflow_flywheel.plugin.acting import actions_of
from mlflow_flywheel.plugin.record_types import ActionRecord, NewAction
from mlflow_flywheel.plugin.records import Records

NOON = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
MONITORS = ("drift", "performance")
STATUS = st.sampled_from(["ok", "warn", "alarm", "alarm", "unknown"])
DAEMONS = st.sampled_from(["one", "other"])
SPECS = st.builds(
    PolicySpec,
    consecutive=st.integers(1, 2),
    episode_attempts=st.integers(1, 2),
    cooldown=st.integers(0, 48).map(lambda hours: timedelta(hours=hours)),
    budget=st.integers(0, 3),
    budget_period=st.integers(24, 120).map(lambda hours: timedelta(hours=hours)),
    retrain_on=st.sets(st.sampled_from([*MONITORS, "labels", "schedule"]), min_size=1).map(tuple),
    retrain_every=st.just(timedelta(days=2)),
    new_labels=st.just(2000),
    quiet_hours=st.sampled_from(["", "22:00-06:00"]),
)


@dataclass(frozen=True)
class Moment:
    """What the world was like when somebody decided."""

    as_of: datetime
    statuses: dict[str, str]
    labels: int
    version: str
    paused: bool


@dataclass
class Turn:
    """A daemon between looking and writing down what it decided."""

    moment: Moment
    memory: dict[str, Any]
    actions: list[NewAction]
    after: dict[str, Any]


@dataclass(frozen=True)
class Episode:
    began: datetime
    ended: datetime | None
    moments: list[Moment] = field(default_factory=list)

    def holds(self, action: ActionRecord) -> bool:
        return any(moment.as_of == action.as_of for moment in self.moments)


class PolicyMachine(RuleBasedStateMachine):
    """One model in a database that all examples share."""

    folder = tempfile.TemporaryDirectory(prefix="policy-machine-")
    records = Records(f"sqlite:///{Path(folder.name)}/records.db")
    models = 0

    @initialize(spec=SPECS)
    def begin(self, spec: PolicySpec) -> None:
        PolicyMachine.models += 1
        self.model = f"model-{self.models}"
        self.spec = spec
        self.now = NOON
        self.version = 1
        self.statuses = dict.fromkeys(MONITORS, "ok")
        self.labels = 0
        self.turns: dict[str, Turn] = {}
        self.decided: list[Moment] = []

    @rule(hours=st.sampled_from([1, 3, 7, 12, 30]), statuses=st.tuples(STATUS, STATUS), labels=st.sampled_from([100, 900, 2500]))
    def time_goes_on(self, hours: int, statuses: tuple[str, str], labels: int) -> None:
        self.now += timedelta(hours=hours)
        self.statuses, self.labels = dict(zip(MONITORS, statuses, strict=True)), labels

    @rule()
    def another_version_serves(self) -> None:
        self.version += 1

    @rule()
    def the_switch_is_thrown(self) -> None:
        if self.records.paused(self.model) is None:
            assert self.records.pause(self.model, "ada", "", self.now)
            assert not self.records.pause(self.model, "bob", "", self.now)
        else:
            assert self.records.resume(self.model, "ada", "", self.now)

    @rule(daemon=DAEMONS)
    def decides(self, daemon: str) -> None:
        """A daemon looks, as of now, and makes up its mind; what it had in mind before is lost."""
        paused = self.records.paused(self.model)
        moment = Moment(self.now, dict(self.statuses), self.labels, str(self.version), paused is not None)
        self.turns[daemon] = self._decided(moment)

    @rule(daemon=DAEMONS)
    def writes(self, daemon: str) -> None:
        """It writes down what it decided; one that was late decides again."""
        turn = self.turns.pop(daemon, None)
        for _ in range(2):
            if turn is None or self._committed(turn):
                return
            turn = self._decided(turn.moment)
        raise AssertionError("nobody else decides, and yet it cannot be written down")

    @rule(daemon=DAEMONS)
    def dies_while_writing(self, daemon: str) -> None:
        turn = self.turns.pop(daemon, None)
        if turn is None:
            return
        poison = NewAction("alert", "", {"no JSON": object()}, f"poison:{self.model}")
        try:
            assert self.records.commit_decision(
                self.model, turn.memory, turn.after, [*turn.actions, poison], turn.moment.as_of
            ) is None  # fmt: skip
        except StatementError:
            pass

    def _decided(self, moment: Moment) -> Turn:
        memory = self.records.policy_state(self.model)
        window = last_window(moment.as_of, timedelta(days=1))
        decision, after = decide(
            self.spec,
            PolicyState.model_validate(memory),
            [Verdict(name, status, f"{name} is off", window) for name, status in moment.statuses.items()],  # type: ignore[arg-type]
            moment.labels,
            moment.as_of,
            version=moment.version,
            paused="by ada" if moment.paused else "",
        )
        actions = actions_of(decision, self.model, moment.as_of, {})
        return Turn(moment, memory, actions, after.model_dump(mode="json"))

    def _committed(self, turn: Turn) -> bool:
        found = self.records.commit_decision(
            self.model, turn.memory, turn.after, turn.actions, turn.moment.as_of
        )
        if found is not None and turn.memory != turn.after:
            self.decided.append(turn.moment)
        return found is not None

    @invariant()
    def what_is_recorded_is_within_the_rules(self) -> None:
        if not hasattr(self, "model"):
            return
        found = self.records.actions(self.model, limit=1000, kinds=("retrain", "alert", "alert_end"))
        moments = {moment.as_of: moment for moment in self.decided}
        assert len(moments) == len(self.decided), "two decisions for one moment"
        assert len({(action.kind, action.as_of) for action in found}) == len(found)
        retrained = sorted(a.as_of for a in found if a.kind == "retrain")
        for i, moment in enumerate(retrained):
            assert i == 0 or moment - retrained[i - 1] >= self.spec.cooldown
            within = [m for m in retrained[: i + 1] if moment - m < self.spec.budget_period]
            assert len(within) <= self.spec.budget
            assert not moments[moment].paused and moments[moment].labels >= self.spec.min_labels
        for action in found:
            at_night = action.as_of.hour >= 22 or action.as_of.hour < 6
            assert not (self.spec.quiet_hours and at_night)
        tasks = self.records.tasks(subject=self.model, limit=1000)
        queued = sorted(task.payload["action_id"] for task in tasks)
        assert queued == sorted(a.id for a in found if a.kind == "retrain")
        for name in MONITORS:
            for episode in self._episodes(name):
                self._check(name, episode, found)

    def _check(self, name: str, episode: Episode, found: list[ActionRecord]) -> None:
        inside = [action for action in found if episode.holds(action)]
        started = [a for a in inside if a.kind == "retrain" and name in a.evidence["conditions"]]
        for version in {moment.version for moment in episode.moments}:
            own = [a for a in started if self._version_at(a.as_of) == version]
            assert len(own) <= self.spec.episode_attempts
        alerts = [a for a in inside if a.kind == "alert" and f"{name} is off" in a.reason]
        assert len(alerts) <= 1
        assert not (alerts and started) or alerts[0].as_of < min(a.as_of for a in started)
        ends = [a for a in found if a.kind == "alert_end" and f"{name}: its alarm of {episode.began:%Y-%m-%d %H:%M}" in a.reason]
        assert len(ends) <= (1 if alerts or started else 0)

    def _version_at(self, as_of: datetime) -> str:
        return next(moment.version for moment in self.decided if moment.as_of == as_of)

    def _episodes(self, name: str) -> Iterator[Episode]:
        """Yield each lasting alarm of a monitor, by what was decided about."""
        inside: list[Moment] = []
        for moment in self.decided:
            status = moment.statuses[name]
            if status == "alarm" or (inside and status == "unknown"):
                inside.append(moment)
            elif inside and status != "unknown":
                yield Episode(inside[0].as_of, moment.as_of, inside)
                inside = []
        if inside:
            yield Episode(inside[0].as_of, None, inside)


PolicyMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestPolicyMachine = PolicyMachine.TestCase

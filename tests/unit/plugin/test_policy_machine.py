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

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
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
STATUS = st.sampled_from(["alarm", "alarm", "alarm", "alarm", "alarm", "unknown", "warn", "ok"])
World = tuple[int, tuple[str, str], int]
WORLD = st.tuples(
    st.sampled_from([0, 1, 5, 12, 24]), st.tuples(STATUS, STATUS), st.sampled_from([900, 2500, 100])
)
DAEMONS = st.sampled_from(["one", "other"])
SPECS = st.builds(
    PolicySpec,
    consecutive=st.sampled_from([1, 1, 2]),
    episode_attempts=st.integers(1, 2),
    cooldown=st.sampled_from([0, 6, 30]).map(lambda hours: timedelta(hours=hours)),
    budget=st.integers(0, 4),
    budget_period=st.sampled_from([24, 96]).map(lambda hours: timedelta(hours=hours)),
    retrain_on=st.sampled_from([MONITORS, MONITORS, ("performance",), ("labels",), ("drift", "schedule")]),
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
        self.turns: dict[str, Turn] = {}
        self.decided: list[Moment] = []

    @rule(daemon=DAEMONS, worlds=st.lists(WORLD, min_size=2, max_size=6))
    def some_turns(self, daemon: str, worlds: list[World]) -> None:
        """Time goes on; a daemon looks, decides and writes that down, again and again."""
        for world in worlds:
            self.looks(daemon, world)
            self.writes(daemon)

    @rule(daemon=DAEMONS, world=WORLD)
    def looks(self, daemon: str, world: World) -> None:
        """Time goes on; a daemon looks and makes up its mind. What it had in mind before is lost."""
        hours, statuses, labels = world
        self.now += timedelta(hours=hours)
        paused = self.records.paused(self.model) is not None
        by_monitor = dict(zip(MONITORS, statuses, strict=True))
        moment = Moment(self.now, by_monitor, labels, str(self.version), paused)
        self.turns[daemon] = self._decided(moment)

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

    def teardown(self) -> None:
        """Whatever happened: what is recorded is within the rules."""
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
        ends = [
            a
            for a in found
            if a.kind == "alert_end" and f"{name}: its alarm of {episode.began:%Y-%m-%d %H:%M}" in a.reason
        ]
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


PolicyMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, phases=[Phase.generate])
TestPolicyMachine = PolicyMachine.TestCase

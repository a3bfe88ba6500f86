"""What may be done at the end of a window: nothing, retraining always, retraining on drift, and our loop.

Ours is the product's judgement turn by turn, in the order of `plugin.acting`: the monitors, the look at a version on
probation, the policy's decision with its memory; then the gate with its count of attempts, as in `plugin.gating`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pyarrow.compute as pc
from loop_world import World

from mlflow_flywheel.monitors.all import ask, monitors
from mlflow_flywheel.monitors.decisions import PolicyState, Probation, decide
from mlflow_flywheel.monitors.drift import DriftSpec, drift
from mlflow_flywheel.monitors.probation import Comparison, Finding, compare, confidence_of, judge
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL
from mlflow_flywheel.pipelines.training_rows import MIN_ROWS
from mlflow_flywheel.plugin.acting import count_new
from mlflow_flywheel.plugin.gating import weigh

Turn = Callable[[World], None]


def never() -> Turn:
    """Leave the first model alone."""
    return lambda world: None


def always() -> Turn:
    """Retrain at the end of each window on all there is, and promote whatever comes of it."""
    return _retrain_and_promote


def on_drift() -> Turn:
    """Do so when the drift monitor raises an alarm."""

    def turn(world: World) -> None:
        look = world.look()
        # as the monitor does it, apart from telling since when a column has drifted
        verdict = drift(look.rows, look.reference, look.window, DriftSpec.of(look.policy))
        if verdict.status == "alarm":
            _retrain_and_promote(world)

    return turn


def _retrain_and_promote(world: World) -> None:
    rows = world.labelled()
    if rows.num_rows < MIN_ROWS:
        return
    model, served = world.fit(rows)
    world.move("promote", world.add(model, served, rows).number)


class Ours:
    """Our loop, and what its records would hold."""

    def __init__(self) -> None:
        self.state = PolicyState()
        self.said: list[str] = []
        self._refused: list[tuple[str, datetime]] = []
        self._ended: set[int] = set()

    def __call__(self, world: World) -> None:
        """Have a turn."""
        look = world.look()
        verdicts = ask(monitors(world.policy.watched_by), look)
        watched = self._watch(world)
        if watched is not None and watched.kind == "worse":
            self._say(world, f"rollback: {watched.reason}")
            world.move("rollback", world.moves[-1].before)
            return
        trained = self.state.newest_training(world.in_force.as_of)
        new = count_new(world.label_times(), trained)
        decision, self.state = decide(
            world.policy, self.state, verdicts, new, world.as_of, version=world.champion
        )
        if watched is not None:
            self.state = self.state.model_copy(update={"probation": watched.state})
            if watched.kind != "goes_on":
                self._ended.add(len(world.moves))
        if decision.action != "none":
            self._say(world, f"{decision.action}: {decision.reason}")
        if decision.action == "retrain":
            self._challenge(world)

    def _watch(self, world: World) -> Finding | None:
        number = len(world.moves)
        if not world.moves or world.moves[-1].kind != "promote" or number in self._ended:
            return None
        promotion, seen = world.moves[-1], self.state.probation
        if seen is None or seen.promotion != number:
            seen = Probation(promotion=number)
        ends = min(world.as_of, promotion.as_of + world.policy.probation)
        rows = world.read(Window(promotion.as_of, ends), version=world.champion)
        rows = rows.filter(pc.is_valid(rows[LABEL]))

        def compared(state: Probation) -> Comparison | None:
            return compare(
                rows,
                world.versions[promotion.before].served,
                world.in_force.served,
                known={},
                margin=world.policy.loss_margin,
                confidence=confidence_of(state.looks, world.policy.confidence),
                seed=state.looks,
            )

        return judge(
            world.policy, world.champion, promotion.as_of, world.as_of, rows.num_rows, seen, compared
        )

    def _challenge(self, world: World) -> None:
        """Retrain, ask the gate, and promote what passes."""
        train, holdout = world.training_set()
        if min(train.num_rows, holdout.num_rows) < MIN_ROWS:
            self._say(world, f"failed: {train.num_rows} rows to train on, {holdout.num_rows} to hold out")
            return
        cut = holdout[EVENT_TIME][0].as_py()
        model, served = world.fit(train, cut)
        challenger = world.add(model, served, holdout, cut)
        earlier = sum(
            self.state.same_evidence(moment, world.policy.retrain_on, cut)
            for parent, moment in self._refused
            if parent == world.champion
        )
        gate = weigh(world.policy, world.in_force.served, challenger.scorer, holdout, attempt=1 + earlier)
        self._say(world, gate.reason)
        if gate.promote:
            world.move("promote", challenger.number)
        else:
            self._refused.append((world.champion, world.as_of))

    def _say(self, world: World, text: str) -> None:
        self.said.append(f"window {world.window}, version {world.champion}: {text}")


STRATEGIES: dict[str, Callable[[], Turn]] = {
    "never": never,
    "always": always,
    "on_drift": on_drift,
    "ours": Ours,
}

"""What every live adjustment promises, whatever it adjusts: identity, bounds, the way back, and a state that survives."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from typing import Any

import numpy as np
import orjson
import pytest
from support.prequential import Stream, classification, new_state, regression, three_classes

from mlflow_flywheel.pipelines.adjust.outputs import logarithms
from mlflow_flywheel.pipelines.adjust.rows import Answered, Floats, Label
from mlflow_flywheel.pipelines.adjust.state import AdjustmentState
from mlflow_flywheel.pipelines.config import AdjustKind

SINCE = datetime(2026, 1, 1, tzinfo=timezone.utc)
WINDOW, WAITING = 150, 400
ROWS = 600
Maker = Callable[[str, int, int], Stream]


@cache
def stream_of(make: Maker) -> Stream:
    return make("outdated", 0, ROWS)


class Player:
    """An adjustment of one kind, and rows and labels to give to it."""

    def __init__(self, kind: AdjustKind, make: Maker) -> None:
        self.kind, self.stream = kind, stream_of(make)
        self.state = self.fresh()
        self.state.begin_anew("e1", SINCE)

    def fresh(self) -> AdjustmentState:
        return new_state(self.kind, self.stream.scorer, window=WINDOW, waiting=WAITING)

    def answer(self, start: int, n: int, state: AdjustmentState | None = None) -> Floats:
        """Let rows be answered by number; return what was proposed."""
        state = state or self.state
        here = slice(start, start + n)
        features = self.stream.features.slice(start, n)
        kept = list(zip(*self.stream.scorer.schema.to_lists(features), strict=True))
        proposals = state.proposed(self.stream.raw[here], features)
        state.answered(
            [
                Answered(
                    start + i,
                    f"p{start + i}",
                    f"c{start + i}",
                    tuple(raw),
                    tuple(proposal),
                    state.id,
                    kept[i],
                )
                for i, (raw, proposal) in enumerate(
                    zip(self.stream.raw[here].tolist(), proposals.tolist(), strict=True)
                )
            ]
        )
        return proposals

    def labels(self, start: int, n: int) -> list[Label]:
        """Return the labels of rows, half of them by the caller's own id."""
        rows = range(start, start + n)
        truths = self.stream.labels
        return [
            Label(f"p{i}", None, truths[i], i) if i % 2 else Label(None, f"c{i}", truths[i], i) for i in rows
        ]

    def learn(self, start: int, n: int) -> None:
        """Answer rows and label them, in batches."""
        for at in range(start, start + n, 50):
            self.answer(at, 50)
            self.state.labelled(self.labels(at, 50))

    def later(self) -> slice:
        return slice(ROWS - 50, ROWS)

    def proposed_later(self, state: AdjustmentState | None = None) -> Floats:
        features = self.stream.features.slice(ROWS - 50, 50)
        return (state or self.state).proposed(self.stream.raw[self.later()], features)


FITTED_AGAIN: list[tuple[AdjustKind, Maker]] = [
    ("bias", regression),
    ("recalibrate", classification),
    ("recalibrate", three_classes),
]
FITTED_FURTHER: list[tuple[AdjustKind, Maker]] = [
    ("partial_fit", make) for make in (regression, classification, three_classes)
]


def named(param: tuple[AdjustKind, Maker]) -> str:
    return f"{param[0]}-{param[1].__name__}"


@pytest.fixture(params=FITTED_AGAIN + FITTED_FURTHER, ids=named)
def player(request: pytest.FixtureRequest) -> Player:
    return Player(*request.param)


def test_without_labels_the_models_own_predictions_are_answered(player: Player) -> None:
    raw = player.stream.raw
    assert np.array_equal(player.answer(0, 50), raw[:50])
    assert player.state.id == f"{player.kind}:e1:0:off"
    status = player.state.status()
    assert (status.active, status.labels, status.waiting, status.gain, status.limit) == (
        False,
        0,
        50,
        None,
        None,
    )


def test_labels_that_are_worth_it_change_what_is_answered_and_the_way_back_is_short(player: Player) -> None:
    player.learn(0, 550)
    raw = player.stream.raw[player.later()]
    assert player.state.trust.open, player.state.status()
    assert not np.allclose(player.proposed_later(), raw, atol=0.01)
    status = player.state.status()
    assert status.gain is not None and status.gain > 0
    assert (status.labels, status.rows, status.id) == (550, WINDOW, player.state.id)
    before = player.state.memory.find("p549")
    assert before is not None and before.answer != before.raw

    player.state.begin_anew("e2", SINCE)
    assert np.array_equal(player.proposed_later(), raw)
    assert player.state.id == f"{player.kind}:e2:0:off"
    player.learn(0, 550)
    assert player.state.trust.open  # and it learns again


def test_whatever_the_labels_say_no_prediction_moves_beyond_the_limit(player: Player) -> None:
    player.learn(0, 300)
    classes = player.stream.raw.shape[1]
    wrong: Any = 1e300 if classes == 1 else player.stream.labels[0]
    player.answer(300, 50)
    player.state.labelled([Label(f"p{i}", None, wrong, 0) for i in range(300, 310)])
    for start in (350, 400, 450):
        player.answer(start, 50)
        player.state.labelled([Label(f"p{i}", None, wrong, 0) for i in range(start, start + 50)])
    raw, limit = player.stream.raw[player.later()], player.state.status().limit
    assert limit is not None
    proposals = player.proposed_later()
    assert np.isfinite(proposals).all()
    if classes == 1:
        moved = np.abs(proposals - raw)
    else:
        assert limit == 2.0
        assert np.allclose(proposals.sum(axis=1), 1)
        shifted = logarithms(proposals) - logarithms(raw)
        moved = np.ptp(shifted, axis=1)
    assert moved.max() <= limit * (1 + 1e-9)


@pytest.mark.parametrize("player", FITTED_AGAIN[:1], ids=named, indirect=True)
def test_one_absurd_label_moves_next_to_nothing(player: Player) -> None:
    player.learn(0, 300)
    before = player.proposed_later()
    player.answer(300, 50)
    player.state.labelled([*player.labels(301, 49), Label("p300", None, 1e12, 0)])
    assert np.abs(player.proposed_later() - before).max() < 0.3


def test_labels_that_the_model_does_not_know_teach_nothing(player: Player) -> None:
    player.answer(0, 50)
    player.state.labelled(
        [Label("p1", None, "nonsense", 0), Label(None, "c2", "?", 0), Label("who", None, 1.0, 0)]
    )
    status = player.state.status()
    assert (status.labels, status.unusable, status.unknown, status.waiting) == (0, 2, 1, 48)
    assert player.state.id == f"{player.kind}:e1:0:off"


def test_a_repeated_label_changes_nothing_and_order_within_a_batch_does_not_matter(player: Player) -> None:
    other = player.fresh()
    other.begin_anew("e1", SINCE)
    for start in (0, 50, 100):
        player.answer(start, 50)
        player.answer(start, 50, other)
        labels = player.labels(start, 50)
        player.state.labelled(labels)
        player.state.labelled(labels)
        random.Random(start).shuffle(labels)
        other.labelled([*labels, labels[3], *labels[10:20]])
        player.state.labelled(player.labels(max(0, start - 20), 40))
    assert other.id == player.state.id
    assert np.array_equal(player.proposed_later(other), player.proposed_later())
    assert other.status() == player.state.status()


@pytest.mark.parametrize("player", FITTED_AGAIN, ids=named, indirect=True)
def test_of_two_labels_of_a_row_the_later_counts(player: Player) -> None:
    other = player.fresh()
    other.begin_anew("e1", SINCE)
    for state in (player.state, other):
        player.answer(0, 100, state)
    truths = player.stream.labels
    right = [Label(f"p{i}", None, truths[i], 5) for i in range(100)]
    player.state.labelled([label._replace(value=truths[(i + 1) % 100]) for i, label in enumerate(right)])
    player.state.labelled([label._replace(time=6) for label in right])
    player.state.labelled([label._replace(value=truths[0], time=4) for label in right])  # these come too late
    other.labelled(right)
    assert player.state.method.parameters() == other.method.parameters()


def test_the_state_comes_back_from_what_it_wrote_down(player: Player) -> None:
    player.learn(0, 300)
    player.answer(300, 50)
    player.state.labelled([Label(None, "c-early", player.stream.labels[0], 7)])
    other = player.fresh()
    for entry in player.state.dump():
        other.replay(orjson.loads(orjson.dumps(entry)))

    def same() -> None:
        assert other.id == player.state.id
        assert np.array_equal(player.proposed_later(other), player.proposed_later())
        assert other.status() == player.state.status()
        assert other.memory.waiting == player.state.memory.waiting
        assert other.memory.labelled == player.state.memory.labelled

    same()
    for state in (player.state, other):
        state.labelled(player.labels(300, 50))
        player.answer(350, 50, state)
        state.labelled(player.labels(360, 20))
    same()


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(player: Player) -> None:
    player.answer(0, 550)
    memory = player.state.memory
    assert memory.unlabelled == WAITING
    assert memory.find("p149") is None and memory.find("p150") is not None
    player.state.labelled(player.labels(0, 550))
    assert (memory.unlabelled, len(memory.labelled)) == (0, WINDOW)
    assert len(memory.early) == 150
    assert player.state.status().unknown == 150
    assert set(memory._by_client) == {f"c{i}" for i in range(400, 550)}

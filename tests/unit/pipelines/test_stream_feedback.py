"""Labels from a topic: logged, then learnt from, and only then acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import orjson
from support.messages import received

from mlflow_flywheel.pipelines.adjust.rows import Label
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.stream.dead_letters import Refused
from mlflow_flywheel.pipelines.stream.feedback_inbox import FeedbackInbox
from mlflow_flywheel.pipelines.stream.patience import Patience
from mlflow_flywheel.pipelines.stream.stats import StatsKeeper
from mlflow_flywheel.pipelines.stream.wire import Received


class Surroundings:
    """Log, adjustment, dead letters and topic in one; the adjustment cannot write its journal the first time."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.learnt: list[Label] = []
        self.refused: list[str] = []

    def submit(self, rows: Sequence[object]) -> int:
        self.diary.append(f"log {len(rows)}")
        return len(rows)

    def learn(self, labels: Sequence[Label]) -> None:
        self.diary.append("learn")
        if self.diary.count("learn") == 1:
            raise Unavailable("the disk is full")
        self.learnt += labels

    def send(self, letters: Sequence[Refused]) -> None:
        self.refused += [letter.reason for letter in letters]

    def acknowledge(self, messages: list[Received]) -> None:
        self.diary.append(f"acknowledge {len(messages)}")


def test_what_can_be_read_is_learnt_from_before_it_is_acknowledged(tmp_path: Path) -> None:
    around, stats = Surroundings(), StatsKeeper(tmp_path / "stats.json")
    stop = threading.Event()
    inbox = FeedbackInbox(
        around,  # type: ignore[arg-type]
        "double",
        1000,
        inbox=around,  # type: ignore[arg-type]
        dead_letters=around,  # type: ignore[arg-type]
        patience=Patience(stop, stats),
        stats=stats,
        stop=stop,
        learn=around.learn,
    )
    bodies = [
        {"prediction_id": "p", "client_request_id": "c", "label": True},
        {"label": 1},
        {"client_request_id": "d", "label": 2},
    ]
    messages = [received(orjson.dumps(body), entry=i, event_ms=1000 * i + 5) for i, body in enumerate(bodies)]
    inbox.handle(messages)
    stats.close()
    assert around.diary == ["log 2", "learn", "learn", "acknowledge 3"]
    assert around.learnt == [Label("p", None, 1.0, 5_000), Label(None, "d", 2.0, 2_005_000)]
    assert around.refused == [
        "give prediction_id or client_request_id, so that the label finds its prediction"
    ]

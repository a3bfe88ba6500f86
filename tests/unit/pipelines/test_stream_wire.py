"""Batches that keep no order of keys are noticed."""

from __future__ import annotations

import pytest

from mlflow_flywheel.pipelines.stream.wire import Position, Received, batch_of_several_keys


def message(key: str, entry: int, index: int, topic: str = "t") -> Received:
    return Received(b"", {}, key, 0, 0, Position(topic, 7, entry, -1, index), handle=None)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [message("a", 1, 0), message("a", 1, 1), message("b", 2, 0)],
        [message("a", 1, -1), message("b", 1, -1)],
        [message("a", 1, 0, "t-partition-0"), message("b", 1, 0, "t-partition-1")],
    ],
)
def test_one_key_in_each_batch_is_fine(messages: list[Received]) -> None:
    assert batch_of_several_keys(messages) is None


def test_the_first_message_of_another_key_is_named() -> None:
    messages = [message("a", 1, 0), message("a", 2, 0), message("b", 2, 1), message("c", 2, 2)]
    assert batch_of_several_keys(messages) == messages[2].position

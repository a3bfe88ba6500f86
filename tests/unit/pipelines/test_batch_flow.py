"""Work that overlaps: order, bounds, errors, and what happens to the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from mlflow_flywheel.pipelines.batch.answering import Answered
from mlflow_flywheel.pipelines.batch.flow import Ahead, Stage, mapped
from mlflow_flywheel.pipelines.batch.writing import NoPieces, PieceByPiece


class Counted:
    """Yields numbers, and knows how many were taken."""

    def __init__(self, n: int, fails_at: int | None = None) -> None:
        self.taken = 0
        self._n = n
        self._fails_at = fails_at

    def __iter__(self) -> Iterator[int]:
        for i in range(self._n):
            if i == self._fails_at:
                raise ValueError("unreadable")
            self.taken += 1
            yield i


def test_items_keep_their_order_whatever_ends_first() -> None:
    turns = [threading.Event() for _ in range(3)]
    turns[2].set()

    def work(i: int) -> int:
        if i < 3:
            assert turns[i].wait(30)  # 2 ends first, then 1, then 0
            turns[i - 1].set()
        return i * i

    assert list(mapped(range(20), work, 3)) == [i * i for i in range(20)]


def test_only_so_many_items_are_under_way() -> None:
    source = Counted(100)
    results = mapped(Ahead(source, 2, lambda _: 1, 1), lambda i: i, 3)
    for done in range(1, 50):
        next(results)
        assert source.taken <= done + 3 + 1 + 2 + 1
    results.close()
    assert source.taken < 60


def test_before_the_first_is_asked_for_as_much_is_read_as_there_is_room_for() -> None:
    source, full = Counted(100), threading.Event()

    def size(i: int) -> int:
        if i == 9:
            full.set()
        return 10

    items = Ahead(source, 2, size, 95)
    assert full.wait(30)
    items.close()
    assert source.taken == 10
    assert list(Ahead(range(50), 2, lambda _: 1, 1000)) == list(range(50))


def test_what_came_before_an_error_is_given_and_then_the_error() -> None:
    given: list[int] = []
    with pytest.raises(ValueError, match="unreadable"):
        given.extend(Ahead(Counted(9, fails_at=5), 3, lambda _: 1, 1))
    assert given == [0, 1, 2, 3, 4]

    def work(i: int) -> int:
        if i == 4:
            raise KeyError(i)
        return i

    given.clear()
    with pytest.raises(KeyError):
        given.extend(mapped(range(100), work, 4))
    assert given == [0, 1, 2, 3]


def test_a_stage_does_things_in_order_and_tells_of_failures() -> None:
    stage, done = Stage("test"), []
    for i in range(10):
        stage.do(done.append, i)
    stage.settle()
    assert done == list(range(10))
    failed, later = stage.do(lambda: 1 / 0), stage.do(done.append, 10)
    with pytest.raises(ZeroDivisionError):
        stage.settle()
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert isinstance(later.exception(), ZeroDivisionError)
    assert done == list(range(10)), "nothing is done after a failure"
    stage.close()


def test_a_closed_stage_drops_what_has_not_begun() -> None:
    stage, done = Stage("test"), []
    running, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        assert go_on.wait(30)

    stage.do(slow)
    waiting = stage.do(done.append, 1)
    assert running.wait(30)
    closing = threading.Thread(target=stage.close)
    closing.start()
    while not waiting.cancelled():
        pass
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert done == []


class Recording:
    """A sink, or a log, that only says what it was told."""

    settled = -1

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def write(self, rows: pa.Table) -> None:
        self._told.append("write")

    def flush(self) -> None:
        self._told.append("flush")

    def end_piece(self) -> None:
        self._told.append("end")

    def finish(self) -> str:
        return "here"

    def close(self) -> None:
        return None


def test_each_piece_is_on_the_disk_before_it_is_visible() -> None:
    told: list[str] = []
    writer = PieceByPiece(NoPieces(), Recording(told), chunks_per_piece=2)
    for _ in range(3):
        writer.write(Answered(1, pa.table({"a": [1]}), None, ()))
    assert writer.settle() == 2
    writer.close()
    assert told == ["write", "write", "flush", "end", "write", "flush", "end"]

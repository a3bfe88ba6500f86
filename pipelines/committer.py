"""From the spool to the inference table, exactly once, over crashes at any point.

One commit moves all sealed segments of a table. The order is what makes it safe:

    1. leave out segments that the table says it has (their Delta transaction), rows whose stream position is known
    2. commit the rest, with (slot's stream id, newest segment number) as Delta transactions
    3. save the positions that are now in the table
    4. unlink the segments

A crash after 2 leaves committed segments behind: the next run reads their positions, saves them, unlinks. Two
committers on one host take turns by a lock; the Delta transactions also hold when the lock does not (another host).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from .errors import FlywheelError
from .ids import stream_position
from .inference_table import InferenceTable
from .positions import Positions
from .spool import (
    FEEDBACK,
    PREDICTIONS,
    load_schema,
    model_spool,
    read_segment,
    sealed_segments,
    spooled_models,
)
from .spool_rows import Line, line_length, lines_to_table

_log = logging.getLogger(__name__)
_FIRST_REST = 0.5
_LONGEST_REST = 30.0
_COMMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class CommitReport:
    """What one round moved; `duplicates` are redelivered stream rows that were left out.

    `waiting` says of models whose table is away why their rows wait in the spool.
    """

    rows: int = 0
    feedback_rows: int = 0
    segments: int = 0
    duplicates: int = 0
    waiting: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: CommitReport) -> CommitReport:
        return CommitReport(
            self.rows + other.rows,
            self.feedback_rows + other.feedback_rows,
            self.segments + other.segments,
            self.duplicates + other.duplicates,
            {**self.waiting, **other.waiting},
        )


class _Rest(NamedTuple):
    """Until when (monotonic) a model is left alone after `why`, and for how many seconds that is."""

    why: str
    seconds: float
    until: float


class Committer:
    """Moves every model's sealed segments into its inference table."""

    def __init__(self, spool_root: str | Path, tables: str) -> None:
        self._root = Path(spool_root)
        self._tables = str(tables)
        self._ensured: dict[str, bytes] = {}
        self._resting: dict[str, _Rest] = {}

    def commit_once(self) -> CommitReport:
        """Do one round over all models; the trouble of one does not stop the others.

        A model whose table is away is tried again after a pause, a longer one each time.
        """
        report = CommitReport()
        for model_name in spooled_models(self._root):
            rest = self._resting.get(model_name)
            if rest is not None and time.monotonic() < rest.until:
                report += CommitReport(waiting={model_name: rest.why})
                continue
            try:
                report += self.commit_model(model_name)
                self._resting.pop(model_name, None)
            except (FlywheelError, OSError) as error:
                report += CommitReport(waiting={model_name: self._let_rest(model_name, str(error), rest)})
        return report

    def _let_rest(self, model_name: str, why: str, before: _Rest | None) -> str:
        if before is None or before.why != why:
            _log.warning("commit of %s: %s; trying again", model_name, why)
        seconds = _FIRST_REST if before is None else min(2 * before.seconds, _LONGEST_REST)
        self._resting[model_name] = _Rest(why, seconds, time.monotonic() + seconds)
        return why

    def commit_model(self, model_name: str) -> CommitReport:
        """Do one round for one model."""
        folder = model_spool(self._root, model_name)
        report = CommitReport()
        with _only_one(folder) as mine:
            if not mine:
                return report
            table = self._table(model_name, folder)
            if table is None:
                return report
            report += self._commit_predictions(table, folder)
            return report + self._commit_feedback(table, folder / FEEDBACK)

    def _table(self, model_name: str, folder: Path) -> InferenceTable | None:
        """Return the table, made to fit the newest schema that a worker left; None while there is none."""
        table = InferenceTable.open(self._tables, model_name)
        try:
            text = (folder / "schema.json").read_bytes()
        except FileNotFoundError:
            return table if table.exists else None
        if self._ensured.get(model_name) != text:
            found = load_schema(self._root, model_name)
            assert found is not None
            table.ensure(*found)
            self._ensured[model_name] = text
        return table

    def _commit_predictions(self, table: InferenceTable, folder: Path) -> CommitReport:
        batch = _Segments.collect(folder / PREDICTIONS, table.predictions)
        if not batch.paths:
            return CommitReport()
        positions = Positions.load(folder / "positions.json")
        duplicates = 0
        for line in batch.committed_lines():
            _new_rows(line, positions)
        lines: list[Line] = []
        for line in batch.new_lines():
            fresh = _new_rows(line, positions)
            duplicates += line_length(line) - len(fresh)
            lines.append((line, fresh))
        rows = lines_to_table(lines, table.predictions.schema(), folder / PREDICTIONS)
        if rows is not None:
            table.append_predictions(rows, batch.transactions)
        positions.save(folder / "positions.json")
        batch.unlink()
        return CommitReport(_count(rows), segments=len(batch.paths), duplicates=duplicates)

    def _commit_feedback(self, table: InferenceTable, folder: Path) -> CommitReport:
        batch = _Segments.collect(folder, table.feedback)
        if not batch.paths:
            return CommitReport()
        lines: list[Line] = [(line, range(line_length(line))) for line in batch.new_lines()]
        rows = lines_to_table(lines, table.feedback.schema(), folder)
        if rows is not None:
            table.append_feedback(rows, batch.transactions)
        batch.unlink()
        return CommitReport(feedback_rows=_count(rows), segments=len(batch.paths))


@dataclass(frozen=True)
class _Segments:
    """The segments of one commit: those that the table has already, and new ones up to a bounded size."""

    committed: list[Path]
    new: list[Path]
    transactions: dict[str, int]

    @property
    def paths(self) -> list[Path]:
        return self.committed + self.new

    @classmethod
    def collect(cls, folder: Path, log: Any) -> _Segments:
        found = sealed_segments(folder) if folder.exists() else {}
        if not found:
            return cls([], [], {})
        have = log.committed(list(found))
        committed: list[Path] = []
        new: list[Path] = []
        transactions: dict[str, int] = {}
        size = 0
        for stream, segments in found.items():
            _find_by_name(segments, have[stream])
            for number, path in sorted(segments.items()):
                if number <= have[stream]:
                    committed.append(path)
                elif size < _COMMIT_BYTES:
                    new.append(path)
                    transactions[stream] = number
                    size += path.stat().st_size
        return cls(committed, new, transactions)

    def committed_lines(self) -> Iterator[Any]:
        for path in self.committed:
            yield from _lines(path)

    def new_lines(self) -> Iterator[Any]:
        for path in self.new:
            yield from _lines(path)

    def unlink(self) -> None:
        os.sync()  # what was committed must be on disk before its only other copy goes
        for path in self.paths:
            path.unlink(missing_ok=True)


def _lines(path: Path) -> Iterator[Any]:
    """Yield a segment's lines; one that a failing disk garbled is kept aside and said, the rest goes on."""
    try:
        yield from list(read_segment(path))
    except orjson.JSONDecodeError:
        aside = path.with_suffix(".damaged")
        aside.write_bytes(path.read_bytes())
        _log.error(
            "segment %s is damaged; a copy is kept at %s, its readable lines are committed", path, aside
        )
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue


def _count(rows: pa.Table | None) -> int:
    return 0 if rows is None else int(rows.num_rows)


def _find_by_name(segments: dict[int, Path], have: int) -> None:
    """Add segments that the listing missed: committing a later one would make the table believe it has them."""
    folder = next(iter(segments.values())).parent
    for number in range(have + 1, min(segments)):
        path = folder / f"{number}.seg"
        if path.exists():
            segments[number] = path


def _new_rows(line: Any, positions: Positions) -> range | list[int]:
    """Return which rows of a line are not in the table yet, and remember them as being there."""
    ids = line["c"]["prediction_id"]
    if line["k"].get("mode") != "stream":
        return range(len(ids))
    places = [stream_position(prediction_id) for prediction_id in ids]
    deployment = line["k"]["deployment"]
    return [
        i
        for i, place in enumerate(places)
        if place is None or positions.add((f"{deployment}|{place[0]}", *place[1:]))
    ]


@contextmanager
def _only_one(folder: Path) -> Iterator[bool]:
    """Hold the folder's commit lock, or say that another process does."""
    fd = os.open(folder / "commit.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)

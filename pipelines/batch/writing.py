"""Answered chunks on their way to the inference table and to the output, which are written at the same time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pyarrow as pa

from .answering import Answered
from .flow import Stage
from .outputs import Sink

if TYPE_CHECKING:
    from .delta_output import Pieces


class PieceByPiece:
    """Hands a file's answers to the table's and the output's writers, which work at the same time.

    A piece is committed to the table before it becomes visible in the output.
    """

    def __init__(self, logged: Pieces | NoPieces, sink: Sink, chunks_per_piece: int) -> None:
        self._logged = logged
        self._sink = sink
        self._chunks_per_piece = chunks_per_piece
        self._logging, self._writing = Stage("batch-log"), Stage("batch-write")
        self._chunks = self._pieces = 0

    def write(self, answer: Answered) -> None:
        if answer.logged is not None:
            self._logging.do(self._logged.write, answer.logged)
        if answer.answers is not None:
            self._writing.do(self._sink.write, answer.answers)
        self._chunks += 1
        if self._chunks % self._chunks_per_piece == 0:
            self._end_piece()

    def settle(self) -> int:
        """Return how many pieces there were when all are committed."""
        if self._chunks % self._chunks_per_piece:
            self._end_piece()
        self._logging.settle()
        self._writing.settle()
        return self._pieces

    def close(self) -> None:
        self._logging.close()
        self._writing.close()

    def _end_piece(self) -> None:
        committed = self._logging.do(self._logged.end_piece)
        self._writing.do(self._sink.flush)
        self._writing.do(_after, committed, self._sink.end_piece)
        self._pieces += 1


class NoPieces:
    """What keeps nothing, for log=none."""

    settled = sys.maxsize

    def write(self, rows: pa.Table) -> None:
        return None

    def end_piece(self) -> None:
        return None

    def close(self) -> None:
        return None


def _after(earlier: Future[None], work: Callable[[], None]) -> None:
    earlier.result()
    work()

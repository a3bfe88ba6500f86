"""What every protocol of the web mode asks for: rows in, an answer out that is logged by then."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from .parsing import Rows


@dataclass(frozen=True)
class Answer:
    """What a caller is told of its rows, in their order; `version` gave it, to what was `asked` then."""

    predictions: list[Any]
    prediction_ids: list[str]
    version: str = ""
    asked: datetime | None = None


class Service(Protocol):
    """Scores rows, from many threads at once."""

    def submit(self, rows: Rows) -> Future[Answer]:
        """Queue rows to be checked, scored and logged; never waits.

        The future has their answer when they are in the log, or BadInput when they do not fit the model, ModelError when
        it raises, Unavailable when they cannot be logged, TimedOut when it takes too long.
        """

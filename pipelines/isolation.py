"""Scoring a batch in which some rows make the model raise: the others are answered as if these had not been there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ModelError
from .scoring import Request, ScoredBatch

_PROBES = 32


@dataclass(frozen=True)
class Part:
    """A piece of a request that was scored (and logged) whole; `start` is its first row's place in the request."""

    start: int
    scored: ScoredBatch


def score_isolating(
    score: Callable[[Request], ScoredBatch], request: Request, patience: int | None = None
) -> tuple[list[Part], dict[int, str]]:
    """Score a request, halving what fails until the rows that fail stand alone.

    Returns the scored parts in order and the model's words for each row that it refuses: k bad rows among n cost about
    k log n extra predictions, and if all are bad 2 n. With `patience` it raises ModelError, after about twice that many
    predictions, when the model refuses so many rows from the first on and a sample of the others, of which
    `score` must keep nothing. Errors other than ModelError go through.
    """
    parts: list[Part] = []
    refused: dict[int, str] = {}
    waiting = [(0, request)]
    while waiting:
        start, piece = waiting.pop()
        try:
            parts.append(Part(start, score(piece)))
        except ModelError as error:
            n = len(piece.prediction_ids)
            if n > 1:
                half = n // 2
                waiting += [(start + half, piece.take(range(half, n))), (start, piece.take(range(half)))]
                continue
            refused[start] = error.message
            if len(refused) == patience and not parts and _refuses(score, request, start + 1):
                raise ModelError(
                    f"the model answered none of {patience:,} rows, asked one by one, nor any of a sample of those after "
                    f"them: that is no matter of single rows to be set aside; mend the model or the input. It says: "
                    f"{error.message}"
                ) from error
    return parts, refused


def _refuses(score: Callable[[Request], ScoredBatch], request: Request, start: int) -> bool:
    """Tell whether the model refuses some rows from the rest of a request, asked for one by one."""
    end = len(request.prediction_ids)
    for at in range(end - 1, start - 1, -max(1, (end - start) // _PROBES)):
        try:
            score(request.take([at]))
        except ModelError:
            continue
        return False
    return True

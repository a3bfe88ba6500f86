"""Scoring a batch in which some rows make the model raise: the others are answered as if these had not been there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ModelError
from .scoring import Request, ScoredBatch


@dataclass(frozen=True)
class Part:
    """A piece of a request that was scored (and logged) whole; `start` is its first row's place in the request."""

    start: int
    scored: ScoredBatch


def score_isolating(
    score: Callable[[Request], ScoredBatch], request: Request
) -> tuple[list[Part], dict[int, str]]:
    """Score a request, halving what fails until the rows that fail stand alone.

    Returns the scored parts in order and the model's words for each row that it refuses: k bad rows among n cost about
    k log n extra predictions. Errors other than ModelError go through.
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
            if n == 1:
                refused[start] = error.message
            else:
                half = n // 2
                waiting += [(start + half, piece.take(range(half, n))), (start, piece.take(range(half)))]
    return parts, refused

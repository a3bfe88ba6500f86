"""What an adjustment learns from: answers that were given, and the labels that came for them.

A row's prediction is a tuple of numbers: one for a regressor, the probability of each class for a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
OFF = "off"  # ends the id under which the model's own predictions are answered


class Answered(NamedTuple):
    """One row as it was answered; `number` grows from answer to answer.

    `raw` is what the model said, `proposal` what the adjustment made of it: that was answered, unless the adjustment's
    id ends with `off`. `features` are kept only where something learns from them.
    """

    number: int
    prediction_id: str
    client_request_id: str | None
    raw: tuple[float, ...]
    proposal: tuple[float, ...]
    adjustment: str
    features: tuple[Any, ...] | None = None

    @property
    def answer(self) -> tuple[float, ...]:
        """Return what was answered."""
        return self.raw if self.adjustment.endswith(OFF) else self.proposal


class Label(NamedTuple):
    """One label as it came: it names a prediction, or else the caller's own request. `time` is microseconds since 1970."""

    prediction_id: str | None
    client_request_id: str | None
    value: float | str
    time: int


class Labelled(NamedTuple):
    """An answered row and its label: a number, or the place of a class among the classes."""

    row: Answered
    truth: float
    time: int


@dataclass(frozen=True)
class Sample:
    """Labelled rows in the order of their answers: n x k predictions of two kinds, and n truths."""

    raw: Floats
    proposals: Floats
    truths: Floats

    @classmethod
    def of(cls, rows: Sequence[Labelled], epoch: str) -> Sample:
        """Gather rows; what was proposed in another epoch does not count: the model's own stands in its place."""
        ordered = sorted(rows, key=lambda labelled: labelled.row.number)
        return cls(
            np.array([each.row.raw for each in ordered], np.float64),
            np.array(
                [
                    each.row.proposal if each.row.adjustment.startswith(epoch) else each.row.raw
                    for each in ordered
                ],
                np.float64,
            ),
            np.array([each.truth for each in ordered], np.float64),
        )

    def __len__(self) -> int:
        return len(self.truths)

    def newest(self, n: int) -> Sample:
        """Return the last n answers."""
        return Sample(self.raw[-n:], self.proposals[-n:], self.truths[-n:])

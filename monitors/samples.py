"""A column of a sample in the form in which it is compared: ascending numbers, or counts by category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .dependence import Likeness

Kind = Literal["number", "category", "moment"]
Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# A reference of up to this many rows is kept exactly; of more values or categories, that many are kept.
MOST_POINTS = 20_000


@dataclass(frozen=True)
class Numbers:
    """Finite numbers: ascending values, and how many rows are at or below each (None: one row per value).

    When there were too many to keep, `exact` is False and the values are borders of groups of equally many rows. The
    standard deviation is that of all rows; only what `thinned` returns, which a sample is compared with, has it.
    """

    values: Values
    below: Counts | None = None
    deviation: float = float("nan")
    exact: bool = True

    @property
    def rows(self) -> int:
        if self.below is None:
            return len(self.values)
        return int(self.below[-1]) if len(self.below) else 0

    def at_or_below(self, points: Values) -> Counts:
        """Count the rows at or below each point."""
        return self._counted(np.searchsorted(self.values, points, side="right"))

    def under(self, points: Values) -> Counts:
        """Count the rows below each point."""
        return self._counted(np.searchsorted(self.values, points, side="left"))

    def _counted(self, places: npt.NDArray[np.int64]) -> Counts:
        return places if self.below is None else np.concatenate([[0], self.below])[places]

    def quantiles(self, shares: Values) -> Values:
        """Return the values below which these shares of the rows are; shares within [0, 1)."""
        places = (shares * self.rows).astype(np.int64)
        if self.below is not None:
            places = np.searchsorted(self.below, places, side="right")
        return self.values[np.minimum(places, len(self.values) - 1)]

    def thinned(self, most: int = MOST_POINTS) -> Numbers:
        """Return distinct values and their deviation; of more than `most`, the borders of that many groups of rows."""
        if not len(self.values):
            return Numbers(self.values, np.empty(0, dtype=np.int64))
        last = np.append(np.flatnonzero(np.diff(self.values)), len(self.values) - 1)
        exact = len(last) <= most
        if not exact:
            ends = np.searchsorted(last, np.arange(1, most + 1) * len(self.values) // most - 1)
            last = np.unique(last[ends])
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = float(self.values.std())
        return Numbers(self.values[last], last + 1, deviation, exact)


@dataclass(frozen=True)
class Categories:
    """Counts by category; `other` rows are in categories too rare to be kept."""

    names: tuple[str, ...]
    counts: Counts
    other: int = 0

    def beside(self, current: Categories) -> tuple[tuple[str, ...], Counts, Counts]:
        """Return the joint names, this side's counts and the other side's; what is rare comes last, without a name."""
        place = {name: i for i, name in enumerate(self.names)}
        for name in current.names:
            place.setdefault(name, len(place))
        both = np.zeros((2, len(place) + 1), dtype=np.int64)
        both[0, : len(self.names)], both[0, -1] = self.counts, self.other
        both[1, [place[name] for name in current.names]] = current.counts
        both[1, -1] = current.other
        return tuple(place), both[0], both[1]


@dataclass(frozen=True)
class Location:
    """The mean and variance of the scores of numbers, and how alike days are in them.

    A number's score is that of its cell: the normal score of the cell's place among the reference's numbers. So a column
    of any shape, heavy tails and all, is looked at as if it were normal.
    """

    scores: tuple[float, ...]
    value: float
    variance: float
    alike: Likeness | None = None


@dataclass(frozen=True)
class Column:
    """What is kept of a column. What is null, NaN or infinite is missing."""

    kind: Kind
    type: str
    rows: int
    missing: int
    infinite: int = 0
    numbers: Numbers | None = None
    categories: Categories | None = None
    # Categories that are numbers are read as numbers in the window too.
    numeric: bool = False
    borders: tuple[float, ...] = ()
    cells: tuple[str, ...] = ()
    alike: Likeness | None = None
    missing_alike: Likeness | None = None
    location: Location | None = None

    @property
    def present(self) -> int:
        return self.rows - self.missing

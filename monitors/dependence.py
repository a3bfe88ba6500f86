"""How much rows of one stretch of time are alike: a thousand flights of one rainy day are not a thousand opinions on rain.

Tests that take every row for independent cry wolf on events in time. Here the variance of shares is measured between
days (and between them and the days after, since weather lasts), and compared with what
independent rows would show: the design effect (Kish 1965). Rows divided by it are the rows that a test may count, for
categories the correction of Rao and Scott (1981).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Codes = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]

# From fewer days nothing is learnt about how days differ.
FEWEST_DAYS = 10
_DAY = 86_400_000_000
_CHUNK = 1 << 15
_MOST_DAYS = 5_000
# How far an estimate from a month of dependent days may be off, relative to itself, one standard error.
_RELATIVE_ERROR = 0.45
_MOST_LASTING = 0.8


@dataclass(frozen=True)
class Days:
    """The day of each row, in UTC, counted from the first one on; days without rows count too."""

    codes: Codes
    span: int

    def only(self, kept: npt.NDArray[np.bool_]) -> Days:
        """Return the days of some of the rows."""
        return Days(self.codes[kept], self.span)


@dataclass(frozen=True)
class Likeness:
    """How alike the rows of a day are in one respect.

    `days` have rows, and `size` is the number of rows in the day of an average row. `effect` is the design effect (NaN:
    too few days to tell), `freedom` the degrees of freedom of its estimate (infinite where rows count as independent),
    and `error` the standard error that it would have if they were. `steps` is the design effect of what differs from
    one day to the next alone, which leaves out whatever lasts, be it weather or a change of the data.
    """

    days: int
    size: float
    effect: float = math.nan
    freedom: float = math.inf
    steps: float = math.nan
    steps_freedom: float = math.inf
    error: float = math.nan

    @property
    def known(self) -> bool:
        return math.isfinite(self.effect)

    def correlation(self, effect: float) -> float:
        """Return by how much two rows of a day agree more than rows of any days, by a design effect."""
        return max(0.0, effect - 1) / max(1.0, self.size - 1)

    @property
    def most_correlation(self) -> float:
        """Return the largest correlation that the estimate leaves room for."""
        return self.correlation(1 + (self.effect - 1) * (1 + 2 * _RELATIVE_ERROR) + 2 * self.error)

    def effect_of(self, correlation: float) -> float:
        """Return the design effect of a correlation in these days."""
        return 1 + max(0.0, self.size - 1) * min(1.0, correlation)


def chunks(rows: int) -> Iterator[slice]:
    """Yield slices that stay in a processor's cache with all that is computed of them."""
    return (slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK))


def days_of(table: pa.Table, column: str) -> Days | None:
    """Return the days of a table's rows, or None when their times are not known or span too many years."""
    if column not in table.column_names or table.num_rows == 0 or table[column].null_count:
        return None
    micros = pc.cast(table[column], pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    codes = micros // _DAY
    codes -= codes.min()
    span = int(codes.max()) + 1
    return Days(codes, span) if span <= _MOST_DAYS else None


def counts_by_day(days: Days, cells: npt.NDArray[np.integer[Any]], width: int) -> Counts:
    """Count the rows of each day in each cell (0 to `width` - 1), as days x cells."""
    table = np.zeros(days.span * width, dtype=np.int64)
    for chunk in chunks(len(cells)):
        table += np.bincount(days.codes[chunk] * width + cells[chunk], minlength=len(table))
    return table.reshape(days.span, width)


def likeness(table: Counts, *, ordered: bool) -> Likeness:
    """Measure how alike the rows of a day are in their cell, from the counts by day and cell.

    With `ordered` cells the shares at or below each cell are looked at, else the share of each cell.
    """
    sizes = table.sum(axis=1).astype(np.float64)
    n = float(sizes.sum())
    shares = (table.cumsum(axis=1)[:, :-1] if ordered else table).astype(np.float64)
    p = shares.sum(axis=0) / max(n, 1.0)
    expected = float((p * (1 - p)).sum()) * n
    off = shares - sizes[:, None] * p
    return _likeness(off, sizes, expected, math.sqrt(_noise(p, ordered)) if expected > 0 else math.nan)


def likeness_of_mean(days: Days, values: npt.NDArray[np.float64]) -> Likeness:
    """Measure how alike the rows of a day are in a number, for tests of its mean."""
    sizes = np.bincount(days.codes, minlength=days.span).astype(np.float64)
    centred = values - values.mean() if len(values) else values
    off = np.bincount(days.codes, weights=centred, minlength=days.span).astype(np.float64)[:, None]
    return _likeness(off, sizes, float((centred**2).sum()), math.sqrt(2))


def likeness_of_scores(table: Counts, scores: npt.NDArray[np.float64]) -> Likeness:
    """Measure how alike the rows of a day are in a number that each cell has, from the counts by day and cell."""
    sizes = table.sum(axis=1).astype(np.float64)
    rows = table.sum(axis=0)
    centred = scores - float(rows @ scores) / max(1.0, float(sizes.sum()))
    return _likeness((table @ centred)[:, None], sizes, float(rows @ centred**2), math.sqrt(2))


def _likeness(
    off: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], expected: float, noise: float
) -> Likeness:
    """Judge what each day's sums are off by, in each respect (days x respects).

    `expected` is the sum of their squares if rows were independent, and `noise` its relative deviation over one day.
    """
    n, days = float(sizes.sum()), int((sizes > 0).sum())
    size = float((sizes**2).sum() / n) if n else 0.0
    if days < FEWEST_DAYS or expected <= 0:
        return Likeness(days, size)
    own = float((off**2).sum())
    of_days = days / (days - 1) * own / expected
    lasts = _lasts(off, own - expected * (days - 1) / days, days)
    spell = (1 + lasts) / (1 - lasts)
    present = off[sizes > 0]
    of_steps = days / (days - 1) * float((np.diff(present, axis=0) ** 2).sum()) / 2 / expected
    error = noise / math.sqrt(days - 1)
    sure, sure_of_steps = _sureness(of_days, error), _sureness(of_steps, error * math.sqrt(1.5))
    return Likeness(
        days,
        size,
        effect=1 + sure * max(0.0, of_days - 1) * spell,
        freedom=(days - 1) * (1 - lasts**2) / (3 + lasts**2) / sure if sure else math.inf,
        steps=1 + sure_of_steps * max(0.0, of_steps - 1),
        steps_freedom=(days - 1) / 1.5 / sure_of_steps if sure_of_steps else math.inf,
        error=error,
    )


def _lasts(off: npt.NDArray[np.float64], of_days: float, days: int) -> float:
    """Return how much of what rows of a day have in common is left on the next day (an autocorrelation, 0 to 0.8).

    That a month shows it too small (Kendall 1954) is made up for.
    """
    if of_days <= 0:
        return 0.0
    found = days / (days - 1) * float((off[:-1] * off[1:]).sum()) / of_days
    return min(_MOST_LASTING, max(0.0, found + (1 + 3 * found) / days))


def _sureness(effect: float, error: float) -> float:
    """Return how far a design effect is to be believed: within its own noise, not at all.

    So independent rows lose no power to the estimate, and rows that clearly depend on each other are taken as they are.
    """
    return min(1.0, max(0.0, (effect - 1) / error - 1))


@dataclass(frozen=True)
class Worth:
    """How many independent rows two samples are worth, and the degrees of freedom with which that is known."""

    reference: float
    current: float
    freedom: float = math.inf

    @property
    def both(self) -> float:
        """Return the rows of one sample that differs from the truth as much as these two do from each other."""
        return self.reference * self.current / (self.reference + self.current)


def worth(reference: tuple[int, Likeness | None], current: tuple[int, Likeness | None]) -> Worth:
    """Return what two samples, each with its rows and how alike they are, are worth.

    What changes inside of the window must not pass for its usual noise: its own estimate counts up to what the reference
    leaves room for. Where the reference has too few days to tell, it counts without what lasts from day to day, for both.
    """
    (rows, old), (rows_now, now) = reference, current
    effects, freedoms = (1.0, 1.0), (math.inf, math.inf)
    if old is not None and old.known:
        effects, freedoms = (old.effect, 1.0), (old.freedom, math.inf)
        if now is not None:
            most = now.effect_of(old.most_correlation)
            expected = now.effect_of(old.correlation(old.effect))
            effects = (old.effect, min(now.effect, most) if now.known else expected)
            freedoms = (old.freedom, now.freedom if now.known else old.freedom)
    elif now is not None and now.known:
        usual = old.effect_of(now.correlation(now.steps)) if old is not None else 1.0
        effects, freedoms = (usual, now.steps), (now.steps_freedom, now.steps_freedom)
    if not rows or not rows_now:
        return Worth(rows, rows_now)
    variances = (effects[0] / rows, effects[1] / rows_now)
    doubt = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    # Satterthwaite (1946)
    return Worth(1 / variances[0], 1 / variances[1], sum(variances) ** 2 / doubt if doubt else math.inf)


def _noise(p: npt.NDArray[np.float64], ordered: bool) -> float:
    """Return the relative variance of a day's squared deviations, summed over the shares `p`, of independent rows."""
    covariance = (np.minimum.outer(p, p) if ordered else np.diag(p)) - np.outer(p, p)
    return float(2 * (covariance**2).sum() / np.trace(covariance) ** 2)

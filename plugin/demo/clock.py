"""The simulated clock: which flights leave on a day, and whose outcome is known by its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from .flights import DAY, LABEL_TIME, Flights, midnight

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SimulatedDay:
    """One local day: `flights` scheduled for it, `landed` between its midnights, and `ends`, the second of them."""

    day: date
    number: int
    flights: pd.DataFrame
    landed: pd.DataFrame
    ends: datetime


def days_of(flights: Flights) -> Iterator[SimulatedDay]:
    """Yield the days in order, from 1; every flight is in one of them, every label in at most one.

    Labels that come after the last day are left for `landing_after`.
    """
    frame = flights.frame
    landings = _landings(frame)
    down = 0
    for number, (day, rows) in enumerate(_runs(frame[DAY]), start=1):
        ends = midnight(day + timedelta(days=1))
        until = int(landings[LABEL_TIME].searchsorted(ends, side="left"))
        yield SimulatedDay(day, number, frame.iloc[rows], landings.iloc[down:until], ends)
        down = until


def landing_after(flights: Flights, moment: datetime) -> pd.DataFrame:
    """Return the flights whose outcome is not known before that moment, but some time."""
    landings = _landings(flights.frame)
    return landings.iloc[int(landings[LABEL_TIME].searchsorted(moment, side="left")) :]


def _landings(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame[LABEL_TIME].notna()].sort_values(LABEL_TIME, kind="stable")


def _runs(days: pd.Series) -> Iterator[tuple[date, slice]]:
    """Yield each day with its rows; the column is sorted."""
    values = days.to_numpy()
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield days.iloc[start].date(), slice(int(start), int(end))

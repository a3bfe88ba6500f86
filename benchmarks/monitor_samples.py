"""Samples for the monitor's benchmark: numbers and categories of many shapes, some of them shifted, with or without days."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.monitors.windows import Window

START = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAYS = 28
LASTS = 0.6
WINDOW = Window(START, START + timedelta(days=DAYS))
SHIFTED_SHARE = 0.3
# Shares of the categories: a flag, a handful, a few dozen of very unlike size.
_SHARES = [np.array([0.7, 0.3]), np.ones(5) / 5, (w := 1.0 / np.arange(1, 31)) / w.sum()]


def shifted(columns: int) -> set[str]:
    """Return the names of the columns that are shifted: as many numbers as categories."""
    return {name_of(i) for i in range(round(SHIFTED_SHARE * columns))}


def name_of(place: int) -> str:
    return f"{'xc'[place % 2]}{place}"


def features(
    rng: np.random.Generator, rows: int, columns: int, shift: float = 0.0, day_effects: float = 0.0
) -> dict[str, pa.Array]:
    """Return as many numbers as categories. Behind each is a standard normal; in 30% of them its mean is shifted.

    With `day_effects` it has that share of its variance in common with the rows of the same one of 28 days, and what
    the days have in common lasts: it correlates by 0.6 from day to day.
    """
    moved = shifted(columns) if shift else set()
    return {
        name: _column(rng, rows, place, shift if name in moved else 0.0, day_effects)
        for place, name in ((place, name_of(place)) for place in range(columns))
    }


def _column(rng: np.random.Generator, rows: int, place: int, shift: float, day_effects: float) -> pa.Array:
    hidden = rng.standard_normal(rows)
    if day_effects:
        of_day = _lasting(rng)[np.arange(rows) * DAYS // rows]
        hidden = np.sqrt(1 - day_effects) * hidden + np.sqrt(day_effects) * of_day
    hidden += shift
    if place % 2 == 0:
        kind = place // 2 % 4
        values = (hidden, np.exp(hidden), np.round(5 * hidden), hidden)[kind]
        return pa.array(values, mask=rng.random(rows) < 0.05 if kind == 3 else None)
    shares = _SHARES[place // 2 % len(_SHARES)]
    borders = _normal_quantiles(np.cumsum(shares)[:-1])
    codes = np.searchsorted(borders, hidden).astype(np.int8)
    names = pa.array([f"v{i}" for i in range(len(shares))])
    return pa.DictionaryArray.from_arrays(pa.array(codes), names).cast(pa.string())


def _lasting(rng: np.random.Generator) -> Any:
    """Return 28 standard normal numbers, each correlated with the one before."""
    found = rng.standard_normal(DAYS)
    for day in range(1, DAYS):
        found[day] = LASTS * found[day - 1] + np.sqrt(1 - LASTS**2) * found[day]
    return found


def _normal_quantiles(shares: Any) -> Any:
    from scipy.special import ndtri

    return ndtri(shares)


def reference_of(columns: Mapping[str, Any], days: bool = True) -> Reference:
    """Return a reference; its days are those before the window."""
    table = pa.table(dict(columns))
    moments = times(table.num_rows, START - WINDOW.length)
    return Reference(table.append_column("flywheel.event_time", moments) if days else table)


def window_of(columns: Mapping[str, Any], days: bool = True) -> pa.Table:
    """Return a window of the inference table."""
    table = pa.table({FEATURE_PREFIX + name: values for name, values in columns.items()})
    return table.append_column("event_time", times(table.num_rows, START)) if days else table


def times(rows: int, start: datetime) -> pa.Array:
    """Return moments evenly over 28 days."""
    micros = int(start.timestamp() * 1e6) + np.arange(rows) * (DAYS * 86_400_000_000) // max(1, rows)
    return pa.array(micros, pa.timestamp("us", tz="UTC"))

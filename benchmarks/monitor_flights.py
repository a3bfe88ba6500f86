"""Months of real flights within one season: what the drift monitor says with rows as independent, and by day."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.training_files import EVENT_TIME as REFERENCE_TIME
from mlflow_flywheel.plugin.demo.flights import EVENT_TIME, FEATURES, load_flights

_ROWS = 20_000
# Twelve weeks within a season; odd and even weeks of them, reference and window in turn, have the same season.
_SEASONS = {"winter": 1, "spring": 85, "summer": 152, "autumn": 244}
_WEEKS = 12
_NEIGHBOURS = ((1, 2), (2, 3), (4, 5), (6, 7), (7, 8), (9, 10), (11, 12))


def months_of_flights(cache: Path) -> dict[str, Any]:
    """Return the share of comparisons with an alarm, and of columns that drifted, before and after counting days."""
    frame = load_flights(cache).frame
    day = frame["day"].dt.dayofyear
    pairs: dict[str, list[tuple[Any, Any]]] = {"weeks of one season": [], "months of one season": []}
    for first in _SEASONS.values():
        season = frame[(day >= first) & (day < first + 7 * _WEEKS)]
        odd = (season["day"].dt.dayofyear - first) // 7 % 2 == 1
        pairs["weeks of one season"] += [(season[odd], season[~odd]), (season[~odd], season[odd])]
    month = frame["day"].dt.month
    for before, after in _NEIGHBOURS:
        pairs["months of one season"].append((frame[month == before], frame[month == after]))
    pairs["January against July"] = [(frame[month == 1], frame[month == 7])]
    return {
        name: {
            way: _summed([_compared(old, new, days) for old, new in both])
            for way, days in (("rows_as_independent", False), ("by_day", True))
        }
        for name, both in pairs.items()
    }


def _compared(old: Any, new: Any, days: bool) -> Verdict:
    old = old.sample(min(_ROWS, len(old)), random_state=0).sort_values(EVENT_TIME)
    known = pa.Table.from_pandas(old[list(FEATURES)], preserve_index=False)
    rows = pa.Table.from_pandas(new[list(FEATURES)], preserve_index=False)
    rows = rows.rename_columns([FEATURE_PREFIX + name for name in FEATURES])
    if days:
        known = known.append_column(REFERENCE_TIME, pa.array(old[EVENT_TIME]))
        rows = rows.append_column("event_time", pa.array(new[EVENT_TIME]))
    start = datetime(2013, 1, 1, tzinfo=timezone.utc)
    return drift(rows, Reference(known), Window(start, start + timedelta(days=365)))


def _summed(verdicts: list[Verdict]) -> dict[str, Any]:
    tested = sum(v.metrics["tested_columns"] for v in verdicts)
    return {
        "comparisons": len(verdicts),
        "alarm": sum(v.status == "alarm" for v in verdicts) / len(verdicts),
        "warn_or_alarm": sum(v.status != "ok" for v in verdicts) / len(verdicts),
        "drifted_columns": sum(v.metrics["drifted_columns"] for v in verdicts) / tested,
        "detected_columns": sum(v.metrics["detected_columns"] for v in verdicts) / tested,
        "drifted": sorted({row["column"] for v in verdicts for row in v.evidence if row["drifted"]}),
    }

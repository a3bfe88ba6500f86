"""How often the monitors cry wolf: on data without drift, with rows of a day alike, and with drift too small to matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from monitor_power import plainly
from monitor_samples import WINDOW, features, reference_of, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.multivariate import multivariate
from mlflow_flywheel.monitors.verdicts import Verdict

Row = dict[str, Any]
REFERENCE_ROWS = 5_000
# Rows of the window, columns, and no-drift runs of each; the largest first, so that no core waits for another at the end.
FALSE_ALARM_RUNS = {
    1_000_000: {5: 60, 20: 20, 100: 2},
    10_000: {5: 300, 20: 200, 100: 40},
    1_000: {5: 600, 20: 300, 100: 100},
    200: {5: 600, 20: 300, 100: 100},
}
# Shifts of 30% of the columns, on as many rows in the reference as in the window.
TRIVIAL = (0.01, 0.1)
TRIVIAL_ROWS, TRIVIAL_COLUMNS, TRIVIAL_RUNS = 1_000_000, 10, 8
# Share of the variance that rows of a day have in common.
DAY_EFFECTS = (0.0, 0.003, 0.03, 0.3)
DAY_RUNS = 60
# Rows, columns, and the correlation of two of these in the reference and in the window.
TOGETHER = (
    (200, 5, 0.0, 0.0),
    (1_000, 20, 0.0, 0.0),
    (10_000, 20, 0.0, 0.0),
    (1_000, 20, 0.0, 0.5),
    (1_000, 20, 0.8, 0.0),
    (10_000, 20, 0.0, 0.25),
)


def false_alarms(rows: int, columns: int, runs: int) -> Row:
    """Return the share of no-drift runs with an alarm, with an alarm or warning, and with any detected column."""
    rng = np.random.default_rng([rows, columns])
    reference_rows = 20_000 if rows > 10_000 else REFERENCE_ROWS
    verdicts = [
        drift(
            window_of(features(rng, rows, columns)),
            reference_of(features(rng, reference_rows, columns)),
            WINDOW,
        )
        for _ in range(runs)
    ]
    return {"rows": rows, "columns": columns, **_rates(verdicts)}


def by_rows(cells: Sequence[Row]) -> list[Row]:
    """Join the cells of all numbers of columns into a row for each number of rows, the fewest first."""
    joined = []
    for rows in sorted({cell["rows"] for cell in cells}):
        own = [cell for cell in cells if cell["rows"] == rows]
        runs = sum(cell["runs"] for cell in own)
        shares = {
            name: sum(cell[name] * cell["runs"] for cell in own) / runs
            for name in ("alarm", "warn_or_alarm", "tests_alone")
        }
        joined.append({"rows": rows, "runs": runs, **shares, "by_columns": own})
    return joined


def trivial(shift: float, runs: int) -> Row:
    """Return what a shift of 30% of the columns is called where there are so many rows that no shift stays hidden."""
    rng = np.random.default_rng(int(shift * 1000))
    verdicts, plain = [], []
    for _ in range(runs):
        old = features(rng, TRIVIAL_ROWS, TRIVIAL_COLUMNS)
        new = features(rng, TRIVIAL_ROWS, TRIVIAL_COLUMNS, shift)
        verdicts.append(drift(window_of(new), reference_of(old), WINDOW))
        plain.append(plainly(old, new))
    return {
        "rows": TRIVIAL_ROWS,
        "shift": shift,
        **_rates(verdicts),
        "bh_ks_chi2": _share(plain),
    }


def days_alike(effect: float, runs: int) -> Row:
    """Return false alarms where rows of a day are alike, with and without the times of the rows."""
    rng = np.random.default_rng(int(effect * 1000))
    found: dict[str, list[Verdict]] = {"rows_as_independent": [], "by_day": []}
    for _ in range(runs):
        new, old = (features(rng, 5_000, 20, day_effects=effect) for _ in range(2))
        for name, days in (("rows_as_independent", False), ("by_day", True)):
            found[name].append(drift(window_of(new, days), reference_of(old, days), WINDOW))
    return {"day_effects": effect} | {name: _rates(verdicts) for name, verdicts in found.items()}


def together(rows: int, columns: int, before: float, now: float, runs: int) -> Row:
    """Return the multivariate monitor's false alarms, or what it finds of a correlation that changed."""
    rng = np.random.default_rng([rows, columns, int(100 * before), int(100 * now)])
    verdicts = [
        multivariate(
            window_of(_correlated(rng, rows, columns, now)),
            reference_of(_correlated(rng, REFERENCE_ROWS, columns, before)),
            WINDOW,
        )
        for _ in range(runs)
    ]
    return {
        "rows": rows,
        "columns": columns,
        "correlation": [before, now],
        "runs": len(verdicts),
        "detected": _share(v.metrics["detected"] for v in verdicts),
        "warn_or_alarm": _share(v.status != "ok" for v in verdicts),
    }


def _correlated(rng: np.random.Generator, rows: int, columns: int, correlation: float) -> dict[str, Any]:
    found = {f"x{i}": rng.standard_normal(rows) for i in range(columns)}
    found["x1"] = correlation * found["x0"] + np.sqrt(1 - correlation**2) * found["x1"]
    return found


def _rates(verdicts: Sequence[Verdict]) -> Row:
    return {
        "runs": len(verdicts),
        "alarm": _share(v.status == "alarm" for v in verdicts),
        "warn_or_alarm": _share(v.status != "ok" for v in verdicts),
        "tests_alone": _share(any(row["detected"] for row in v.evidence) for v in verdicts),
    }


def _share(flags: Iterable[Any]) -> float:
    return float(np.mean([bool(flag) for flag in flags]))

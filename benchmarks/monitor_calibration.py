"""How often the drift monitor cries wolf, and what it finds: against Benjamini-Hochberg over plain tests, and Evidently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from monitor_samples import SHIFTED_SHARE, WINDOW, features, reference_of, shifted, window_of
from scipy import stats

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.multivariate import multivariate
from mlflow_flywheel.monitors.statistics import benjamini_hochberg
from mlflow_flywheel.monitors.verdicts import Verdict

Table = list[dict[str, Any]]
ALPHA = 0.05
REFERENCE_ROWS = 5_000
# Rows of the window, columns, and no-drift runs of each.
FALSE_ALARM_RUNS = {
    200: {5: 500, 20: 200, 100: 60},
    1_000: {5: 500, 20: 200, 100: 60},
    10_000: {5: 300, 20: 200, 100: 40},
    1_000_000: {5: 60, 20: 20, 100: 2},
}
SHIFTS = (0.1, 0.25, 0.5)
POWER_ROWS = (200, 1_000, 10_000)
POWER_RUNS, POWER_COLUMNS = 25, 20
# Share of the variance that rows of a day have in common.
DAY_EFFECTS = (0.0, 0.003, 0.03, 0.3)
DAY_RUNS = 60


def false_alarms(runs: Callable[[int], int]) -> Table:
    """Return, by rows of the window, the share of no-drift runs with an alarm, a warning, and any detected column."""
    table = []
    for rows, by_columns in FALSE_ALARM_RUNS.items():
        verdicts, cells = [], []
        for columns, count in by_columns.items():
            rng = np.random.default_rng([rows, columns])
            reference_rows = 20_000 if rows > 10_000 else REFERENCE_ROWS
            own = [
                drift(
                    window_of(features(rng, rows, columns)),
                    reference_of(features(rng, reference_rows, columns)),
                    WINDOW,
                )
                for _ in range(runs(count))
            ]
            cells.append({"columns": columns, **_rates(own)})
            verdicts += own
        table.append({"rows": rows, **_rates(verdicts), "by_columns": cells})
    return table


def _rates(verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "runs": len(verdicts),
        "alarm": _share(v.status == "alarm" for v in verdicts),
        "warn_or_alarm": _share(v.status != "ok" for v in verdicts),
        "tests_alone": _share(any(row["detected"] for row in v.evidence) for v in verdicts),
    }


def _share(flags: Any) -> float:
    return float(np.mean([bool(flag) for flag in flags]))


def days_alike(runs: Callable[[int], int]) -> Table:
    """Return false alarms where rows of a day are alike, with and without the times of the rows."""
    table = []
    for effect in DAY_EFFECTS:
        rng = np.random.default_rng(int(effect * 1000))
        found: dict[str, list[Verdict]] = {"rows_as_independent": [], "by_day": []}
        for _ in range(runs(DAY_RUNS)):
            new, old = (features(rng, 5_000, 20, day_effects=effect) for _ in range(2))
            for name, days in (("rows_as_independent", False), ("by_day", True)):
                found[name].append(drift(window_of(new, days), reference_of(old, days), WINDOW))
        table.append({"day_effects": effect} | {name: _rates(v) for name, v in found.items()})
    return table


def together(runs: Callable[[int], int]) -> Table:
    """Return the multivariate monitor's false alarms, and what it finds of a correlation that changed."""
    table = []
    for rows, columns, before, now in (
        (200, 5, 0.0, 0.0),
        (1_000, 20, 0.0, 0.0),
        (10_000, 20, 0.0, 0.0),
        (1_000, 20, 0.0, 0.5),
        (1_000, 20, 0.8, 0.0),
        (10_000, 20, 0.0, 0.25),
    ):
        rng = np.random.default_rng([rows, columns])
        verdicts = [
            multivariate(
                window_of(_correlated(rng, rows, columns, now)),
                reference_of(_correlated(rng, REFERENCE_ROWS, columns, before)),
                WINDOW,
            )
            for _ in range(runs(100 if before == now else 20))
        ]
        table.append(
            {
                "rows": rows,
                "columns": columns,
                "correlation": [before, now],
                "runs": len(verdicts),
                "detected": _share(v.metrics["detected"] for v in verdicts),
                "warn_or_alarm": _share(v.status != "ok" for v in verdicts),
            }
        )
    return table


def _correlated(rng: np.random.Generator, rows: int, columns: int, correlation: float) -> dict[str, Any]:
    found = {f"x{i}": rng.standard_normal(rows) for i in range(columns)}
    found["x1"] = correlation * found["x0"] + np.sqrt(1 - correlation**2) * found["x1"]
    return found


def power(runs: Callable[[int], int], nannyml: Callable[[Any], Any] | None) -> Table:
    """Return the share of shifted columns that each way finds, and of the others that it takes for shifted."""
    moved = shifted(POWER_COLUMNS)
    table = []
    for rows in POWER_ROWS:
        for shift in SHIFTS:
            rng = np.random.default_rng([rows, int(shift * 100)])
            samples, found = [], []
            for _ in range(runs(POWER_RUNS)):
                old = features(rng, REFERENCE_ROWS, POWER_COLUMNS)
                new = features(rng, rows, POWER_COLUMNS, shift)
                found.append(_found(old, new))
                samples.append((old, new))
            ways = {name: [one[name] for one in found] for name in found[0]}
            if nannyml is not None:
                ways["nannyml"] = nannyml(samples)
            row: dict[str, Any] = {"rows": rows, "shift": shift, "runs": len(found)}
            for name, flagged in ways.items():
                row[name] = {
                    "found": float(np.mean([len(one & moved) for one in flagged]) / len(moved)),
                    "wrongly": float(
                        np.mean([len(one - moved) for one in flagged]) / (POWER_COLUMNS - len(moved))
                    ),
                }
            evidently = [len(one) / POWER_COLUMNS for one in ways["evidently"]]
            row["evidently_dataset_drift"] = _share(share >= 0.5 for share in evidently)
            row["our_alarm"] = _share(len(one) / POWER_COLUMNS >= SHIFTED_SHARE for one in ways["drifted"])
            table.append(row)
    return table


def _found(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the columns that each way calls changed in one pair of samples."""
    verdict = drift(window_of(new), reference_of(old), WINDOW)
    frames = [
        pd.DataFrame({name: values.to_pandas() for name, values in side.items()}) for side in (old, new)
    ]
    plain = np.array([_plain_p(*(frame[name].dropna() for frame in frames)) for name in old])
    adjusted = benjamini_hochberg(plain)
    return {
        "detected": {row["column"] for row in verdict.evidence if row["detected"]},
        "drifted": {row["column"] for row in verdict.evidence if row["drifted"]},
        "bh_ks_chi2": {name for name, p in zip(old, adjusted, strict=True) if p <= ALPHA},
        "evidently": {name for name in old if _evidently_says(*(frame[name] for frame in frames))},
    }


def _plain_p(old: Any, new: Any) -> float:
    if pd.api.types.is_numeric_dtype(old):
        return float(stats.ks_2samp(old, new, method="asymp").pvalue)
    counts = [side.value_counts() for side in (old, new)]
    table = pd.concat(counts, axis=1).fillna(0).to_numpy()
    return float(stats.chi2_contingency(table, correction=False).pvalue)


def _evidently_says(old: Any, new: Any) -> bool:
    """Return what the test says that Evidently's preset takes for such a column, without drawing it."""
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    kind = ColumnType.Numerical if pd.api.types.is_numeric_dtype(old) else ColumnType.Categorical
    old, new = old.dropna(), new.dropna()
    return bool(get_stattest(old, new, kind, None)(old, new, kind, None).drifted)

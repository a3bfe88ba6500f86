"""What the drift monitor finds, against Benjamini-Hochberg over plain tests, Evidently's defaults and NannyML's."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from monitor_samples import SHIFTED_SHARE, WINDOW, features, reference_of, shifted, window_of
from scipy import stats

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.statistics import benjamini_hochberg

Row = dict[str, Any]
Columns = Mapping[str, pa.Array]
ALPHA = 0.05
SHIFTS = (0.1, 0.25, 0.5)
ROWS = (10_000, 1_000, 200)
REFERENCE_ROWS, COLUMNS, RUNS = 5_000, 20, 60
MOST_OF_NANNYML = 15


def power(rows: int, shift: float, runs: int) -> Row:
    """Return the share of shifted columns that each way finds, of the others that it takes for shifted, and of runs
    in which it says anything.
    """
    found = [_found(old, new) for old, new in _samples(rows, shift, runs)]
    ways = {name: [one[name] for one in found] for name in found[0]}
    row: Row = {"rows": rows, "shift": shift, "runs": len(found)}
    row |= {name: rates(flagged) for name, flagged in ways.items()}
    row["evidently_dataset_drift"] = _share(len(one) >= 0.5 * COLUMNS for one in ways["evidently"])
    row["our_alarm"] = _share(len(one) >= SHIFTED_SHARE * COLUMNS for one in ways["drifted"])
    return row


def nannyml(python: str, runs: int) -> dict[tuple[int, float], Row]:
    """Return the same of NannyML's defaults, which another environment's Python has, on the first of the same samples."""
    cells = [(rows, shift) for rows in ROWS for shift in SHIFTS]
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
        owners = []
        for cell in cells:
            for both in _samples(*cell, min(runs, MOST_OF_NANNYML)):
                for name, columns in zip(("old", "new"), both, strict=True):
                    pq.write_table(pa.table(dict(columns)), f"{folder}/{len(owners)}-{name}.parquet")
                owners.append(cell)
        script = Path(__file__).with_name("monitor_nannyml.py")
        said = subprocess.run([python, str(script), folder], capture_output=True, text=True, check=True)
    flagged = [set(names) for names in json.loads(said.stdout.splitlines()[-1])]
    return {
        cell: rates([one for one, owner in zip(flagged, owners, strict=True) if owner == cell])
        for cell in cells
    }


def plainly(old: Columns, new: Columns) -> set[str]:
    """Return the columns that Kolmogorov-Smirnov and chi-squared tests with Benjamini-Hochberg call changed."""
    p_values = np.array([_plain_p(*(_series(side[name]).dropna() for side in (old, new))) for name in old])
    adjusted = benjamini_hochberg(p_values)
    return {name for name, p in zip(old, adjusted, strict=True) if p <= ALPHA}


def rates(flagged: Sequence[set[str]]) -> Row:
    """Return the shares of a way that has flagged these columns in these runs."""
    moved = shifted(COLUMNS)
    return {
        "found": float(np.mean([len(one & moved) for one in flagged]) / len(moved)),
        "wrongly": float(np.mean([len(one - moved) for one in flagged]) / (COLUMNS - len(moved))),
        "runs": _share(flagged),
    }


def _samples(rows: int, shift: float, runs: int) -> Iterator[tuple[Columns, Columns]]:
    """Yield references and windows, the same ones for everybody."""
    rng = np.random.default_rng([rows, int(shift * 100)])
    for _ in range(runs):
        yield features(rng, REFERENCE_ROWS, COLUMNS), features(rng, rows, COLUMNS, shift)


def _found(old: Columns, new: Columns) -> dict[str, set[str]]:
    """Return the columns that each way calls changed in one pair of samples."""
    verdict = drift(window_of(new), reference_of(old), WINDOW)
    return {
        "detected": {row["column"] for row in verdict.evidence if row["detected"]},
        "drifted": {row["column"] for row in verdict.evidence if row["drifted"]},
        "bh_ks_chi2": plainly(old, new),
        "evidently": {name for name in old if _evidently_says(_series(old[name]), _series(new[name]))},
    }


def _series(values: pa.Array) -> Any:
    return values.to_pandas()


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


def _share(flags: Iterable[Any]) -> float:
    return float(np.mean([bool(flag) for flag in flags]))

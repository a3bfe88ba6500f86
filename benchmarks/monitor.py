"""The drift monitor: does it cry wolf, what does it find, and what does it cost, against plain tests and Evidently.

Calibration and power are counted over seeded samples; CPU time is taken in processes of their own, imports and a first
small run apart on both sides. `--quick` takes a twentieth of the runs and a tenth of the rows, for a smoke run.

NannyML is compared too when BENCH_NANNYML is the Python of an environment that has it (it does not go together with the
newest pandas, so not in ours): python3 -m venv nml && nml/bin/pip install nannyml "pandas<3" "numpy<2.3".
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from monitor_calibration import days_alike, false_alarms, power, together
from monitor_flights import months_of_flights
from monitor_samples import WINDOW, features, reference_of, window_of
from report import publish
from rich.console import Console
from rich.table import Table

GOALS = {
    "report_vs_evidently_1m": ">= 20",
    "check_vs_evidently_1m": "",
    "false_alarm_rate_max": "<= 0.07",
    "tests_alone_rate_max": "<= 0.07",
    "power_vs_bh": ">= 1",
    "power_vs_bh_min": ">= 0.95",
    "cpu_1m_vs_100k": "<= 10",
    "peak_memory_gb_1m": "<= 1",
}
_MOST_OF_NANNYML = 15
QUICK = "--quick" in sys.argv
ROWS, COLUMNS = (100_000 if QUICK else 1_000_000), 20
ROUNDS = 1 if QUICK else 3
NANNYML = os.environ.get("BENCH_NANNYML")


def runs(count: int) -> int:
    """Return how many runs to make where so many are meant."""
    return max(2, count // 20) if QUICK else count


def ours(rows: int, reference_rows: int) -> dict[str, float]:
    """Check a window and draw its report; return CPU seconds of each step and the peak memory."""
    from mlflow_flywheel.monitors.drift import drift
    from mlflow_flywheel.monitors.evidently import drift_report
    from mlflow_flywheel.monitors.overview import overview

    def look(rows: int, reference_rows: int) -> dict[str, float]:
        rng = np.random.default_rng(rows)
        reference = reference_of(features(rng, reference_rows, COLUMNS))
        window = window_of(features(rng, rows, COLUMNS, 0.5))
        marks = [time.process_time()]
        assert reference.profile.columns
        marks.append(time.process_time())
        verdict = drift(window, reference, WINDOW)
        marks.append(time.process_time())
        html = drift_report(window, reference, verdict)
        marks.append(time.process_time())
        page = overview("bench", "1", [verdict], window, reference)
        marks.append(time.process_time())
        assert len(html) > 1_000_000 and verdict.status != "ok" and "<svg" in page
        return dict(zip(("profile", "check", "report", "overview"), np.diff(marks).tolist(), strict=True))

    look(1_000, 1_000)
    found = look(rows, reference_rows)
    return found | {"total": found["check"] + found["report"] + found["overview"], "peak_gb": _peak_gb()}


def evidently(rows: int, reference_rows: int) -> dict[str, float]:
    """Run Evidently's preset on the same frames; return the CPU seconds of the run alone and the peak memory."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    def look(rows: int, reference_rows: int) -> float:
        rng = np.random.default_rng(rows)
        old = pa.table(features(rng, reference_rows, COLUMNS)).to_pandas()
        new = pa.table(features(rng, rows, COLUMNS, 0.5)).to_pandas()
        definition = DataDefinition(
            numerical_columns=[name for name in old if name.startswith("x")],
            categorical_columns=[name for name in old if name.startswith("c")],
            text_columns=[],
            datetime_columns=[],
            unknown_columns=[],
            list_columns=[],
        )
        started = time.process_time()
        current, reference = (Dataset.from_pandas(frame, data_definition=definition) for frame in (new, old))
        Report([DataDriftPreset()]).run(current, reference)
        return time.process_time() - started

    look(1_000, 1_000)
    return {"preset": look(rows, reference_rows), "peak_gb": _peak_gb()}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def apart(work: Callable[..., dict[str, float]], *arguments: int) -> dict[str, float]:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def speeds() -> dict[str, Any]:
    """Measure both sides on the same frames, and ours by size."""
    mine = [apart(ours, ROWS, ROWS) for _ in range(ROUNDS)]
    theirs = apart(evidently, ROWS, ROWS)
    sizes = {size: apart(ours, size, 20_000) for size in (ROWS // 10, ROWS // 3, ROWS, 2 * ROWS)}
    middle = {step: median(one[step] for one in mine) for step in mine[0]}
    return {
        "rows": ROWS,
        "columns": COLUMNS,
        "ours": middle,
        "rounds": mine,
        "evidently": theirs,
        "by_rows": sizes,
    }


def nannyml_says(samples: list[tuple[Any, Any]]) -> list[set[str]]:
    """Return the columns that NannyML's defaults call drifted, for each pair of samples."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
        for place, both in enumerate(samples[:_MOST_OF_NANNYML]):
            for name, columns in zip(("old", "new"), both, strict=True):
                pq.write_table(pa.table(columns), f"{folder}/{place}-{name}.parquet")
        script = Path(__file__).with_name("monitor_nannyml.py")
        said = subprocess.run([str(NANNYML), str(script), folder], capture_output=True, text=True, check=True)
        return [set(names) for names in json.loads(said.stdout.splitlines()[-1])]


def show(title: str, table: list[dict[str, Any]]) -> None:
    """Print rows of plain values."""
    keys = [key for key, value in table[0].items() if not isinstance(value, list)]
    printed = Table(*keys, title=title)
    for row in table:
        printed.add_row(*(_cell(row[key]) for key in keys))
    Console(width=180).print(printed)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in value.values())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def counts() -> dict[str, Any]:
    """Count false alarms and what is found, and print the tables."""
    started = time.process_time()
    calm = false_alarms(runs)
    show("no drift: share of runs", calm)
    found = power(runs, nannyml_says if NANNYML else None)
    show("30% of the columns shifted: share of these found, share of the others taken for shifted", found)
    days = days_alike(runs)
    show("no drift, but rows of a day alike: runs, alarm, warn or alarm, tests alone", days)
    pairs = together(runs)
    show("multivariate", pairs)
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
        flights = months_of_flights(Path(folder) / "flights.parquet")
    for name, both in flights.items():
        print(name, json.dumps(both, indent=1))
    return {
        "cpu_seconds": time.process_time() - started,
        "false_alarms": calm,
        "power": found,
        "nannyml": "compared" if NANNYML else "not installed beside",
        "days_alike": days,
        "multivariate": pairs,
        "flights": flights,
    }


def ratios_of(counted: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Return what is held against the goals."""
    theirs, mine, by_rows = fast["evidently"]["preset"], fast["ours"], fast["by_rows"]
    calm = counted["false_alarms"]
    found = [(row["detected"]["found"], row["bh_ks_chi2"]["found"]) for row in counted["power"]]
    return {
        "report_vs_evidently_1m": theirs / mine["total"],
        "check_vs_evidently_1m": theirs / mine["check"],
        "false_alarm_rate_max": max(row["warn_or_alarm"] for row in calm),
        "tests_alone_rate_max": max(row["tests_alone"] for row in calm),
        "power_vs_bh": sum(ours for ours, _ in found) / sum(plain for _, plain in found),
        "power_vs_bh_min": min(ours / plain if plain else 1.0 for ours, plain in found),
        "cpu_1m_vs_100k": by_rows[ROWS]["check"] / by_rows[ROWS // 10]["check"],
        "peak_memory_gb_1m": mine["peak_gb"],
    }


def main() -> None:
    """Measure everything, print the tables and publish the ratios."""
    counted, fast = counts(), speeds()
    print(json.dumps(fast, indent=1))
    ratios = ratios_of(counted, fast)
    if QUICK:
        print(json.dumps(ratios, indent=1), "a smoke run: nothing is published", sep="\n")
        return
    packages = ["evidently", "numpy", "scipy", "pandas", "pyarrow"]
    print(f"written to {publish('monitor', ratios, GOALS, {**counted, 'speed': fast}, packages)}")


if __name__ == "__main__":
    main()

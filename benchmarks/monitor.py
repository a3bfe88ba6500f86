"""The drift monitor: does it cry wolf, what does it find, and what does it cost, against plain tests and Evidently.

Calibration and power are counted over seeded samples, on all cores; CPU time is taken afterwards, one process at a time.
Some seven minutes of two cores. `--quick` takes a twentieth of the runs and a tenth of the rows, for a smoke run.

NannyML is compared too when BENCH_NANNYML is the Python of an environment that has it (it does not go together with the
newest pandas, so not in ours): python3 -m venv nml && nml/bin/pip install nannyml statsmodels "pandas<3" "numpy<2.3".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import monitor_calibration as calibration
import monitor_power as power
from monitor_flights import months_of_flights
from monitor_speed import speeds
from report import publish
from rich.console import Console
from rich.table import Table

GOALS = {
    "report_vs_evidently_1m": ">= 20",
    "check_vs_evidently_1m": "",
    "false_alarm_rate_max": "<= 0.07",
    "tests_alone_rate_max": "<= 0.07",
    "trivial_shift_1m": "<= 0.07",
    "power_vs_bh": ">= 1",
    "power_vs_bh_min": ">= 1",
    "verdicts_vs_bh_min": "",
    "drifted_vs_bh_min": "",
    "cpu_1m_vs_100k": "<= 10",
    "peak_memory_gb_1m": "<= 1",
}
QUICK = "--quick" in sys.argv
ROWS, ROUNDS = (100_000, 1) if QUICK else (1_000_000, 3)
NANNYML = os.environ.get("BENCH_NANNYML")


def runs(count: int) -> int:
    """Return how many runs to make where so many are meant."""
    return max(2, count // 20) if QUICK else count


def counts() -> dict[str, Any]:
    """Count false alarms and what is found, on all cores, and print the tables."""
    started = time.monotonic()
    # One thread each: the processes have the cores already.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with (
        tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder,
        ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool,
    ):

        def each(work: Callable[..., Any], *cells: tuple[Any, ...]) -> list[Future[Any]]:
            return [pool.submit(work, *cell) for cell in cells]

        trivial = each(
            calibration.trivial, *((shift, runs(calibration.TRIVIAL_RUNS)) for shift in calibration.TRIVIAL)
        )
        others = each(power.nannyml, (NANNYML, runs(power.RUNS))) if NANNYML else []
        flights = each(months_of_flights, (Path(folder) / "flights.parquet",))
        calm = each(
            calibration.false_alarms,
            *(
                (rows, columns, runs(count))
                for rows, by_columns in calibration.FALSE_ALARM_RUNS.items()
                for columns, count in by_columns.items()
            ),
        )
        found = each(
            power.power, *((rows, shift, runs(power.RUNS)) for rows in power.ROWS for shift in power.SHIFTS)
        )
        days = each(
            calibration.days_alike,
            *((effect, runs(calibration.DAY_RUNS)) for effect in calibration.DAY_EFFECTS),
        )
        pairs = each(
            calibration.together,
            *((*cell, runs(100 if cell[2] == cell[3] else 20)) for cell in calibration.TOGETHER),
        )
        counted = {
            "false_alarms": calibration.by_rows([one.result() for one in calm]),
            "trivial": [one.result() for one in trivial],
            "power": sorted((one.result() for one in found), key=lambda row: (row["rows"], row["shift"])),
            "nannyml": "compared" if NANNYML else "not installed beside",
            "days_alike": [one.result() for one in days],
            "multivariate": [one.result() for one in pairs],
            "flights": flights[0].result(),
        }
        for row in counted["power"] if others else ():
            row["nannyml"] = others[0].result()[row["rows"], row["shift"]]
    for title, name in TITLES.items():
        show(title, counted[name])
    print(json.dumps(counted["flights"], indent=1))
    return {"seconds": time.monotonic() - started, **counted}


TITLES = {
    "no drift: share of runs": "false_alarms",
    "30% of the columns shifted, a million rows on both sides: share of runs": "trivial",
    "30% of the columns shifted: share of these found, of the others taken for shifted, of runs": "power",
    "no drift, but rows of a day alike: runs, alarm, warn or alarm, tests alone": "days_alike",
    "multivariate": "multivariate",
}


def show(title: str, table: list[dict[str, Any]]) -> None:
    """Print rows of plain values."""
    keys = [key for key, value in table[0].items() if key != "by_columns"]
    printed = Table(*keys, title=title)
    for row in table:
        printed.add_row(*(_cell(row[key]) for key in keys))
    Console(width=180).print(printed)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(map(_cell, value.values()))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def ratios_of(counted: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """Return what is held against the goals."""
    theirs, mine, by_rows = fast["evidently"]["preset"], fast["ours"], fast["by_rows"]
    calm, found = counted["false_alarms"], counted["power"]

    def least(way: str, share: str) -> float:
        pairs = [(row[way][share], row["bh_ks_chi2"][share]) for row in found]
        return min(ours / plain if plain else 1.0 for ours, plain in pairs)

    return {
        "report_vs_evidently_1m": theirs / mine["total"],
        "check_vs_evidently_1m": theirs / mine["check"],
        "false_alarm_rate_max": max(row["warn_or_alarm"] for row in calm),
        "tests_alone_rate_max": max(row["tests_alone"] for row in calm),
        "trivial_shift_1m": counted["trivial"][0]["warn_or_alarm"],
        "power_vs_bh": sum(row["detected"]["found"] for row in found)
        / sum(row["bh_ks_chi2"]["found"] for row in found),
        "power_vs_bh_min": least("detected", "found"),
        "verdicts_vs_bh_min": least("drifted", "runs"),
        "drifted_vs_bh_min": least("drifted", "found"),
        "cpu_1m_vs_100k": by_rows[ROWS]["check"] / by_rows[ROWS // 10]["check"],
        "peak_memory_gb_1m": mine["peak_gb"],
    }


def main() -> None:
    """Measure everything, print the tables and publish the ratios."""
    counted, fast = counts(), speeds(ROWS, ROUNDS)
    print(json.dumps(fast, indent=1))
    ratios = ratios_of(counted, fast)
    if QUICK:
        print(json.dumps(ratios, indent=1), "a smoke run: nothing is published", sep="\n")
        return
    packages = ["evidently", "numpy", "scipy", "pandas", "pyarrow"]
    print(f"written to {publish('monitor', ratios, GOALS, {**counted, 'speed': fast}, packages)}")


if __name__ == "__main__":
    main()

"""Does the loop retrain when that helps, and only then? Streams of known truth, and a real year of flights.

`--simulations` plays the simulated streams over many seeds, in process: the product's own monitors, policy, gate and
probation judge, only their carriers (MLflow, SQL, Delta) are memory. `--flights` plays the year by the same means with
every strategy, and then by `flywheel demo`, whole: three deployments, the daemon, MLflow. Without either, both. The
other sides are the first model that nobody touches, retraining always, and retraining on drift. No time is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import loop_flights
import loop_simulations
from report import RESULTS, publish
from rich.console import Console
from rich.table import Table

GOALS = {
    "flights_auc_gain": ">= 0.03",
    "flights_worst_month": ">= -0.005",
    **loop_simulations.GOALS,
}


@click.command()
@click.option("--simulations", is_flag=True, help="play the simulated streams only")
@click.option("--flights", is_flag=True, help="play the year of flights only")
def main(simulations: bool, flights: bool) -> None:
    """Play what was asked for and publish it, beside what an earlier run found of the other part."""
    ratios, details = _known()
    if simulations or not flights:
        table = loop_simulations.simulations()
        loop_simulations.show(table, f"{loop_simulations.SEEDS} seeds")
        ratios |= loop_simulations.ratios(table)
        details["simulations"] = table
    if flights or not simulations:
        found = loop_flights.play_year()
        details["flights"] = {
            "weeks": loop_flights.table(found),
            "months": loop_flights.months(found),
            "ours": list(found["ours"].said),
        }
        loop_simulations.show({"flights": details["flights"]["weeks"]}, "a year of flights, by weeks")
        _show_months(details["flights"]["months"])
        details["demo"] = _demo()
        gains = [m["flywheel"]["auc"] - m["static"]["auc"] for m in details["demo"]["months"]]
        ratios |= {"flights_auc_gain": sum(gains) / len(gains), "flights_worst_month": min(gains)}
    path = publish("loop", ratios, GOALS, details, ["mlflow", "scikit-learn", "numpy", "deltalake"])
    print(f"written to {path}")


def _known() -> tuple[dict[str, float], dict[str, Any]]:
    """Return what the last run found: one part may be played alone."""
    file = RESULTS / "loop.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    return {k: v for k, v in known.get("ratios", {}).items() if k in GOALS}, known.get("details", {})


def _demo() -> dict[str, Any]:
    """Run the demo over February to December and return its summary."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
        summary_file = Path(folder) / "summary.json"
        flywheel = Path(sys.executable).with_name("flywheel")
        command = [str(flywheel), "demo", "--exit", "--home", f"{folder}/home", "--json", str(summary_file)]
        subprocess.run(command, check=True)
        summary: dict[str, Any] = json.loads(summary_file.read_text())
    del summary["links"]  # nothing answers there any more
    return summary


def _show_months(months: list[dict[str, float]]) -> None:
    shown = Table("month", *(name for name in months[0] if name != "month"), title="area under the curve")
    for month in months:
        shown.add_row(str(int(month["month"])), *(f"{v:.4f}" for k, v in month.items() if k != "month"))
    Console().print(shown)


if __name__ == "__main__":
    main()

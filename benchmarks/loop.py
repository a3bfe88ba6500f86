"""What the loop gains on real flights: `flywheel demo` against the January model, month by month.

Both sides are scored on the same flights in the same run. The limit is no number: it is the model that nobody touched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import publish

GOALS = {"flights_auc_gain": ">= 0.03", "flights_worst_month": ">= -0.005"}


def main() -> None:
    """Run the demo over February to December and publish the differences of AUC."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
        summary_file = Path(folder) / "summary.json"
        flywheel = Path(sys.executable).with_name("flywheel")
        command = [str(flywheel), "demo", "--exit", "--home", f"{folder}/home", "--json", str(summary_file)]
        subprocess.run(command, check=True)
        summary = json.loads(summary_file.read_text())
    gains = {month["month"]: month["flywheel"]["auc"] - month["static"]["auc"] for month in summary["months"]}
    ratios = {
        "flights_auc_gain": sum(gains.values()) / len(gains),
        "flights_worst_month": min(gains.values()),
    }
    path = publish("loop", ratios, GOALS, summary, ["mlflow", "scikit-learn", "evidently", "deltalake"])
    print(f"written to {path}")


if __name__ == "__main__":
    main()

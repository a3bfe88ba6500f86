"""A year of real flights, tested again: the model of January against one of January to June, by the command.

The year is logged by one batch job of the January model, its labels come as one file, and `flywheel backtest` scores
it with both versions, by the week and by about the month. The second time every flight was asked several times over
by other events, to see whether memory grows with the rows. For a quick run: BENCH_COPIES=2.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import commands
import mlflow
import pandas as pd
from report import machine, write
from rich.console import Console
from rich.table import Table

from mlflow_flywheel.pipelines.batch import run_batch
from mlflow_flywheel.pipelines.batch.inputs import find_inputs
from mlflow_flywheel.pipelines.config import BatchConfig
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.labels import take_label_file
from mlflow_flywheel.pipelines.registry import download_model, resolve_model
from mlflow_flywheel.plugin.demo.flights import (
    EVENT_TIME,
    FEATURES,
    KEY,
    LABEL,
    LABEL_TIME,
    Flights,
    load_flights,
    midnight,
)
from mlflow_flywheel.plugin.demo.model import MODEL_NAME, fit_january, log_january
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.registration import register

COPIES = int(os.environ.get("BENCH_COPIES", "3"))
SPAN = ("2013-02-01", "2014-01-01")
_METRICS = ("auc", "log_loss")


def register_two(year: Flights, tracking_uri: str) -> None:
    """Register the model of January and that of January to June, with what they were trained on."""
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(f"flywheel/{MODEL_NAME}")
    for last in (1, 6):
        end = midnight(date(2013, last + 1, 1))
        fitted = fit_january(year.of_months(1, last).known_at(end))
        with mlflow.start_run():
            info = log_january(fitted)
        window = (midnight(date(2013, 1, 1)), end)
        register(info, MODEL_NAME, fitted.reference, LABEL, timestamp=EVENT_TIME, training_window=window)


def fill(folder: Path, home: Home, year: Flights, copies: int) -> int:
    """Log the year `copies` times, as different events, and give the labels; return the number of rows."""
    frame = pd.concat(
        [year.frame.assign(**{KEY: year.frame[KEY] + f"/{copy}"}) for copy in range(copies)],
        ignore_index=True,
    ).sort_values(EVENT_TIME, kind="stable")
    frame[[KEY, EVENT_TIME, *FEATURES]].to_parquet(folder / "flights.parquet", index=False)
    known = frame.loc[frame[LABEL].notna(), [KEY, LABEL, LABEL_TIME]]
    known.columns = ["client_request_id", "label", "label_time"]
    known.to_csv(folder / "labels.csv", index=False)
    model = resolve_model(f"models:/{MODEL_NAME}/1", home.tracking_uri)
    job = BatchConfig(
        deployment="late-batch",
        model=download_model(model, home.models, home.tracking_uri),
        tables=home.tables,
        state_dir=str(folder / "state"),
        job_id=f"year-{copies}",
        input=str(folder / "flights.parquet"),
        output=str(folder / "answers.parquet"),
        id_column=KEY,
        timestamp_column=EVENT_TIME,
        passthrough=(KEY,),
    )
    rows = run_batch(job).rows_out
    (labels,) = find_inputs(str(folder / "labels.csv"))
    take_label_file(
        InferenceTable.open(home.tables, MODEL_NAME), labels, home.label_folder(MODEL_NAME), skip=True
    )
    return rows


def backtest(home: Home, every: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Run the command; return what it says, and its wall and CPU seconds and peak memory in MiB."""
    command = ["flywheel", "backtest", f"models:/{MODEL_NAME}/2", "--against", f"models:/{MODEL_NAME}/1"]
    command += ["--from", SPAN[0], "--to", SPAN[1], "--every", every, "--home", str(home.path), "--json"]
    said, cost = commands.run(command)
    return json.loads(said), asdict(cost)


def periods_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table of a result: what each version did in each period, and the paired difference."""
    return [
        {
            "from": period["window"]["start"][:10],
            "rows": period["events"],
            "labels": period["labelled"],
            "state": period["state"],
            **{
                f"{metric}_v{version}": side["metrics"][metric]["value"]
                for version, side in zip(result["versions"], period["sides"], strict=True)
                for metric in _METRICS
            },
            **{f"{metric}_difference": period["difference"][metric] for metric in _METRICS},
        }
        for period in result["periods"]
    ]


def show(title: str, periods: list[dict[str, Any]]) -> None:
    """Print a table of periods."""
    table = Table(
        "from", "labels", "AUC v2", "AUC v1", "difference", "log loss v2", "v1", "note", title=title
    )
    for period in periods:
        change = period["auc_difference"]
        table.add_row(
            period["from"],
            f"{period['labels']:,}",
            *(f"{period[name]:.3f}" for name in ("auc_v2", "auc_v1")),
            f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})",
            *(f"{period[name]:.4f}" for name in ("log_loss_v2", "log_loss_v1")),
            "" if period["state"] == "ok" else period["state"],
        )
    Console(width=150).print(table)


def main() -> None:
    """Log the year once and several times over, back-test it, and publish the tables and what they cost."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    year = load_flights()
    content = machine(["mlflow", "scikit-learn", "duckdb", "deltalake", "pyarrow"])
    for copies in (1, COPIES):
        with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
            folder = Path(name)
            home = Home(folder / "home").create()
            home.bind(f"sqlite:///{folder}/mlflow.db")
            os.environ["MLFLOW_TRACKING_URI"] = str(home.tracking_uri)
            os.chdir(folder)
            register_two(year, str(home.tracking_uri))
            rows = fill(folder, home, year, copies)
            weekly, cost = backtest(home, "1w")
            part: dict[str, Any] = {"rows": rows, "weekly": {**cost, "periods": periods_of(weekly)}}
            if copies == 1:
                monthly, cost = backtest(home, "30d")
                part["monthly"] = {**cost, "periods": periods_of(monthly)}
                part["overall"] = {"conclusion": monthly["conclusion"], "training": monthly["leak"]}
                show("weeks", part["weekly"]["periods"])
                show("months of 30 days", part["monthly"]["periods"])
                Console().print(part["overall"])
            else:
                del part["weekly"]["periods"]
            content["year" if copies == 1 else f"year_times_{copies}"] = part
            Console().print({"rows": rows, **{k: v for k, v in part["weekly"].items() if k != "periods"}})
    print(f"written to {write('backtest', content)}")


if __name__ == "__main__":
    main()

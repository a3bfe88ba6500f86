"""A home whose records tell four months of one model: what the page is looked at with."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.schema import TIMESTAMP, Feature, FeatureSchema
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.runners.base import deployment_process
from mlflow_flywheel.plugin.usage_records import Reading

MODEL = "flight-late"
START = datetime(2013, 2, 1, tzinfo=timezone.utc)
MONTH = timedelta(days=30)
# The events are of 2013; they were answered, and cost something, in the last two days.
ANSWERED = timedelta(days=2)


def fill(home: Home, run_id: str | None = None) -> Records:
    """Fill a home that was bound to an MLflow server; `run_id` stands for every monitor's run."""
    records = Records(home.database_url)
    modes = {"web": "late-web", "stream": "late-stream", "batch": "late-nightly"}
    topics = {"input_topic": "flights", "output_topic": "lateness"}
    configs = {"web": {}, "stream": topics, "batch": {"input": "flights/", "schedule": "0 2 * * *"}}
    began = utc_now() - ANSWERED
    for mode, name in modes.items():
        with _at(began):
            records.add_deployment(
                name, model_uri=f"models:/{MODEL}@champion", model_name=MODEL, mode=mode,
                config={"mode": mode, **configs[mode]}, flavor="sklearn",
            )  # fmt: skip
        url = {"web": "http://127.0.0.1:5001", "stream": "pulsar://127.0.0.1:6650/flights"}.get(mode)
        records.update_deployment(name, status="ready", version="2", url=url)
    records.set_policy(MODEL, {"monitor_schedule": "0 2 * * *", "new_labels": 20000, "approval": "manual"})
    _verdicts(records, run_id)
    _actions(records, run_id)
    _usage(records, began)
    _table(home.tables, list(modes.values()), began)
    return records


@contextmanager
def _at(moment: datetime) -> Iterator[None]:
    """Let the records take a moment for now."""
    with patch("mlflow_flywheel.plugin.records.utc_now", return_value=moment):
        yield


def _usage(records: Records, began: datetime) -> None:
    """Let web and stream deployment work for two days, with more to do by day, and the batch run each night."""
    for mode, memory, busy in (("web", 410, 24.0), ("stream", 260, 15.0)):
        deployment, used = records.deployment(f"late-{mode}"), 0.0
        for hour in range(0, 48, 4):
            used += 6 + busy * (1 + math.sin(hour / 24 * math.tau))
            at = began + timedelta(hours=hour + 4)
            reading = Reading("1:1", began, at, used, memory * 1_000_000)
            records.add_reading(deployment_process(deployment.name), deployment.created, reading)
    for night, rows in ((10, 120), (34, 180)):
        with _at(began + timedelta(hours=night)):
            task = records.enqueue("batch_run", "late-nightly", {}, "schedule")
            assert records.claim(["batch_run"], "w") is not None
            records.finish(task, {"rows_out": rows, "cpu_seconds": 6.0 + rows / 60})


def _verdicts(records: Records, run_id: str | None) -> None:
    chance = random.Random(3)
    for day in range(0, 120, 2):
        end = START + timedelta(days=day)
        window = (end - MONTH, end)
        drifted = 0.1 + 0.45 * math.sin(day / 26) ** 2 + chance.uniform(-0.05, 0.05)
        status = "alarm" if drifted > 0.42 else "warn" if drifted > 0.3 else "ok"
        text = f"{round(12 * drifted)} of 12 features drifted: temp (effect 0.62), month (0.48), dewp (0.31)"
        both = {"overview": True, "version": "1" if day <= 64 else "2"}
        drift: dict[str, Any] = {"text": text, "metrics": {"share": drifted}, "report": True, **both}
        records.add_verdict(MODEL, "drift", *window, status, drift, run_id)
        if day < 6:
            few = {
                "summary": "96 of 8,012 rows have a label, fewer than 200: too few to judge",
                "metrics": {},
            }
            records.add_verdict(MODEL, "performance", *window, "unknown", few, run_id)
            continue
        auc = 0.71 - 0.05 * min(day, 60) / 60 + (0.055 if day > 64 else 0) + chance.uniform(-0.004, 0.004)
        status = "alarm" if auc < 0.675 else "warn" if auc < 0.69 else "ok"
        performance: dict[str, Any] = {
            "text": f"auc {auc:.3f} (reference 0.706), log_loss 0.482 (reference 0.471) on 18,204 labelled rows",
            "metrics": {
                "auc": auc,
                "auc_low": auc - 0.011,
                "auc_high": auc + 0.011,
                "label_coverage": 0.9,
                "label_delay_hours": 3.2,
                "label_arrival_hours": 26.5,
            },
            "reference": {"auc": 0.706 if day <= 64 else 0.711},
            **both,
        }
        records.add_verdict(MODEL, "performance", *window, status, performance, run_id)
    for monitor, (status, text) in _OTHERS.items():
        records.add_verdict(MODEL, monitor, *window, status, {"text": text, "metrics": {}, **both}, run_id)


_OTHERS = {
    "estimation": ("ok", "auc is probably 0.712 (0.701 to 0.722; reference 0.711) on 20,240 rows"),
    "quality": (
        "ok",
        "12 features are whole; the worst, wind_gust, is missing in 0.4% more rows than before",
    ),
    "latency": ("ok", "late-web 0.21 ms (p99 0.38), late-stream 0.19 ms (p99 0.31)"),
    "freshness": ("ok", "no input waits; the newest event of each deployment is minutes old"),
}


def gate(promote: bool) -> dict[str, Any]:
    return {
        "promote": promote, "reason": "", "metric": "log_loss", "rows": 11730, "blocks": 14,
        "champion": {"log_loss": 0.5012, "auc": 0.668}, "challenger": {"log_loss": 0.4731, "auc": 0.711},
        "difference": 0.0281 if promote else 0.0009, "low": 0.0174 if promote else -0.0042, "high": 0.0392,
    }  # fmt: skip


def _actions(records: Records, run_id: str | None) -> None:
    story = [
        (34, "alert", "drift: 6 of 12 features drifted: temp (effect 0.62), month (0.48)", "done", None),
        (
            52,
            "retrain",
            "performance: auc 0.668 (reference 0.706), skill lost 0.031 (2 in a row)",
            "refused",
            "2",
        ),
        (
            64,
            "retrain",
            "performance: auc 0.661 (reference 0.706), skill lost 0.044 (3 in a row)",
            "promoted",
            "2",
        ),
        (96, "retrain", "labels: 20,000 new labels since the last training (20,000 suffice)", "failed", None),
        (
            118,
            "retrain",
            "labels: 24,116 new labels since the last training (20,000 suffice)",
            "waiting",
            "3",
        ),
    ]
    for day, kind, reason, status, version in story:
        as_of = START + timedelta(days=day)
        looked = {"start": (as_of - MONTH).isoformat(), "end": as_of.isoformat()}
        number = records.add_action(MODEL, kind, reason, {"window": looked}, as_of, key=f"{kind}-{day}")
        result: dict[str, Any] | None = None
        if kind == "retrain":
            why = "the retraining run was killed after 3600 s; the champion serves on"
            result = {"status": status, "version": version, "promoted": status == "promoted", "reason": why}
            result["gate"] = gate(status != "refused") if version else None
        records.update_action(number, status, result, run_id if kind == "retrain" else None)


def _table(tables: str, deployments: list[str], began: datetime, rows: int = 900) -> None:
    table = InferenceTable.open(tables, MODEL)
    table.ensure(FeatureSchema([Feature("temp", "double")]), "double")
    times = [START + timedelta(hours=2 * i) for i in range(rows)]
    ids = [f"p-{i}" for i in range(rows)]
    predictions = pa.table(
        {
            "prediction_id": ids,
            "event_time": pa.array(times, TIMESTAMP),
            "request_time": pa.array([began + i * ANSWERED / rows for i in range(rows)], TIMESTAMP),
            "deployment": [deployments[i % 3] for i in range(rows)],
            "model_version": ["1" if i < rows // 2 else "2" for i in range(rows)],
            "prediction": [0.0] * rows,
            "feature.temp": [20.0] * rows,
        }
    )
    table.append_predictions(predictions, {"fill": 0})
    labelled = rows * 9 // 10
    labels = pa.table(
        {
            "prediction_id": ids[:labelled],
            "label": [0.0] * labelled,
            "label_time": pa.array(times[:labelled], TIMESTAMP),
            "received_time": pa.array(times[:labelled], TIMESTAMP),
        }
    )
    table.append_feedback(labels, {"fill": 0})


def make(path: Path, tracking_uri: str, run_id: str | None = None) -> Home:
    """Make, bind and fill a home."""
    home = Home(path)
    home.bind(tracking_uri)
    fill(home, run_id)
    return home

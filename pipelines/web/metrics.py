"""What a web deployment counts, for Prometheus.

Every worker process writes its counts to files in one folder, and whichever worker is asked adds them up.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.backlog import Backlog
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.prometheus import Family, shared_counters, shared_exposition, shared_samples

_REQUESTS, _CHALLENGED = "flywheel_web_requests_total", "flywheel_web_challenger_requests_total"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FAILED = (500, 504)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def metrics_folder(status_file: str) -> Path:
    """Return where the workers of the deployment with this status file keep their counts."""
    status = Path(status_file)
    return status.with_name(f"{status.stem}.metrics")


def start_anew(status_file: str) -> None:
    """Forget the counts of an earlier master; counters of Prometheus may start again at any time."""
    shutil.rmtree(metrics_folder(status_file), ignore_errors=True)


def answers_by_version(status_file: str) -> dict[str, tuple[int, int]]:
    """Return how many requests each version answered, and how many its model failed, since the master began.

    A failure is an error of the model's own (500), or no answer in time (504). What did not fit, was too much at a time, or
    could not be logged is in neither.
    """
    found: dict[str, tuple[int, int]] = {}
    for labels, value in shared_samples(metrics_folder(status_file), _REQUESTS):
        answered, failed = found.get(labels["model_version"], (0, 0))
        status = int(labels["status"])
        found[labels["model_version"]] = (
            answered + (int(value) if status < 300 else 0),
            failed + (int(value) if status in _FAILED else 0),
        )
    return found


def answers_of_challenger(status_file: str) -> tuple[int, int]:
    """Return how many requests a challenger answered unheard, and how many it failed, since the master began.

    Those that a canary answered are among the answers of its version.
    """
    counts = {"shadowed": 0, "failed": 0}
    for labels, value in shared_samples(metrics_folder(status_file), _CHALLENGED):
        if labels["outcome"] in counts:
            counts[labels["outcome"]] += int(value)
    return counts["shadowed"], counts["failed"]


class WebMetrics:
    """The counters of one worker process; make one before anything else imports prometheus_client."""

    def __init__(self, status_file: str, deployment: str, model_name: str, model_version: str) -> None:
        self._folder = metrics_folder(status_file)
        prometheus = shared_counters(self._folder)
        self._labels = {
            "deployment": deployment,
            "model_name": model_name,
            "model_version": model_version,
        }
        names = list(self._labels)
        options: dict[str, Any] = {"registry": prometheus.CollectorRegistry()}
        self._requests: Any = prometheus.Counter(
            _REQUESTS, "Scoring requests answered", [*names, "status"], **options
        )
        self._rows: Any = prometheus.Counter("flywheel_web_rows_total", "Rows scored", names, **options)
        self._seconds: Any = prometheus.Histogram(
            "flywheel_web_request_seconds",
            "Time to answer a scoring request",
            names,
            buckets=_SECONDS,
            **options,
        )
        self._batches: Any = prometheus.Histogram(
            "flywheel_web_batch_rows", "Rows that were scored together", names, buckets=_BATCH_ROWS, **options
        ).labels(**self._labels)
        self._waiting: Any = prometheus.Gauge(
            "flywheel_web_waiting_requests",
            "Requests that waited when the last batch was taken",
            names,
            multiprocess_mode="livesum",
            **options,
        ).labels(**self._labels)
        self._models: Any = prometheus.Gauge(
            "flywheel_web_model_info",
            "The versions that answer or are tried",
            [*names, "model_id", "variant"],
            multiprocess_mode="livemax",
            **options,
        )
        self._challenged: Any = prometheus.Counter(
            _CHALLENGED,
            "Requests that the challenger answered, shadowed, failed or dropped",
            [*names, "outcome"],
            **options,
        )
        self._counters: dict[tuple[str, int], tuple[Any, Any, Any]] = {}

    def serves(self, model: ModelRef, variant: str) -> None:
        """Say which version this worker has, as what."""
        labels = {**self._labels, "model_version": model.version, "model_id": model.model_id or ""}
        self._models.labels(**labels, variant=variant).set(1)

    def challenged(self, outcome: str) -> None:
        """Count a request by what became of it at the challenger: answered, shadowed, failed, dropped."""
        self._challenged.labels(**self._labels, outcome=outcome).inc()

    def joined(self, rows: int, waiting: int) -> None:
        """Count a batch of joined requests by its rows, and say how many requests still wait."""
        self._batches.observe(rows)
        self._waiting.set(waiting)

    def answered(self, seconds: float, status: int, rows: int = 0, version: str = "") -> None:
        """Count a request that is over: how long it took, its status, and the rows it had answers for.

        `version` is the one that gave them, where it may be another than the worker's own.
        """
        took, requests, scored = self._counters_of(version or self._labels["model_version"], status)
        took.observe(seconds)
        requests.inc()
        scored.inc(rows)

    def _counters_of(self, version: str, status: int) -> tuple[Any, Any, Any]:
        """Return what counts requests of a status; looking it up by its labels would cost as much as counting."""
        found = self._counters.get((version, status))
        if found is None:
            labels = {**self._labels, "model_version": version}
            found = self._counters[version, status] = (
                self._seconds.labels(**labels),
                self._requests.labels(**labels, status=str(status)),
                self._rows.labels(**labels),
            )
        return found

    def text(self, backlog: Backlog) -> bytes:
        """Return the counts of all workers, and the state of their spool, in Prometheus's text format."""
        families = [
            Family("flywheel_spool_bytes", "gauge", "Logged and not in the inference table yet"),
            Family("flywheel_spool_lag_seconds", "gauge", "How long the oldest of it has been waiting"),
            Family("flywheel_rows_lost", "gauge", "Answered rows that the table would not take"),
        ]
        values = (backlog.waiting_bytes, backlog.lag_seconds, backlog.rows_set_aside)
        for family, value in zip(families, values, strict=True):
            family.add({"model_name": self._labels["model_name"]}, value)
        return shared_exposition(self._folder, families)

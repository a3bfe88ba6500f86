"""What a web deployment counts, for Prometheus: the only import of prometheus_client.

Every worker process writes its counts to files in one folder, and whichever worker is asked adds them up. The folder
is named to the library by an environment variable that it reads when it is imported, so `prepare` comes first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_folder(status_file: str) -> Path:
    """Return where the workers of the deployment with this status file keep their counts."""
    status = Path(status_file)
    return status.with_name(f"{status.stem}.metrics")


def start_anew(status_file: str) -> None:
    """Forget the counts of an earlier master; counters of Prometheus may start again at any time."""
    shutil.rmtree(metrics_folder(status_file), ignore_errors=True)


class WebMetrics:
    """The counters of one worker process; make one before anything else imports prometheus_client."""

    def __init__(self, status_file: str, deployment: str, model_name: str, model_version: str) -> None:
        folder = metrics_folder(status_file)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[_FOLDER] = str(folder)
        import prometheus_client as prometheus

        self._labels = {
            "deployment": deployment,
            "model_name": model_name,
            "model_version": model_version,
        }
        names = list(self._labels)
        registry = prometheus.CollectorRegistry()
        self._requests: Any = prometheus.Counter(
            "flywheel_web_requests_total", "Scoring requests answered", [*names, "status"], registry=registry
        )
        self._rows: Any = prometheus.Counter(
            "flywheel_web_rows_total", "Rows scored", names, registry=registry
        ).labels(**self._labels)
        self._seconds: Any = prometheus.Histogram(
            "flywheel_web_request_seconds",
            "Time to answer a scoring request",
            names,
            registry=registry,
            buckets=_SECONDS,
        ).labels(**self._labels)
        self._batches: Any = prometheus.Histogram(
            "flywheel_web_batch_rows",
            "Rows that were scored together",
            names,
            registry=registry,
            buckets=_BATCH_ROWS,
        ).labels(**self._labels)
        self._challenged: Any = prometheus.Counter(
            "flywheel_web_challenger_requests_total",
            "Requests that the challenger answered, shadowed, failed or dropped",
            [*names, "outcome"],
            registry=registry,
        )
        self._requests_with: dict[int, Any] = {}

    def challenged(self, outcome: str) -> None:
        """Count a request by what became of it at the challenger: answered, shadowed, failed, dropped."""
        self._challenged.labels(**self._labels, outcome=outcome).inc()

    def joined(self, rows: int) -> None:
        """Count a batch of joined requests by its rows."""
        self._batches.observe(rows)

    def answered(self, seconds: float, status: int, rows: int) -> None:
        """Count a request that is over: how long it took, its status, and the rows it had answers for."""
        self._seconds.observe(seconds)
        self._with_status(status).inc()
        self._rows.inc(rows)

    def _with_status(self, status: int) -> Any:
        """Return the counter of a status; looking it up by its labels would cost as much as counting."""
        found = self._requests_with.get(status)
        if found is None:
            found = self._requests_with[status] = self._requests.labels(**self._labels, status=str(status))
        return found

    def text(self) -> bytes:
        """Return the counts of all workers in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return bytes(generate_latest(registry))

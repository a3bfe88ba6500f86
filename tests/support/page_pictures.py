"""What the pictures for the docs show beyond what the page's tests need: deployments that run, and real reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.overview import overview
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.generation_status import GenerationStatus, Serving
from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.runners.base import ProcessSpec, deployment_process
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

from .page_home import MODEL, MONTH, START
from .windows_of import reference_of, two_classes, window_of

_STAYS = (sys.executable, "-c", "import signal; signal.pause()")


@contextmanager
def at_work(home: Home) -> Iterator[None]:
    """Keep a process for each served deployment of the home, so that the page shows them as they usually are."""
    runner = SupervisorRunner(home)
    try:
        for name in ("late-web", "late-stream"):
            kept = deployment_process(name)
            runner.start(ProcessSpec(kept, _STAYS, home.log_file(kept), stop_seconds=1))
            (process,) = runner.status(kept)
            assert process.pid is not None
            serving = Serving(digest="", version="2", pids=(process.pid,), since=utc_now())
            status = GenerationStatus(serving=serving, pid=process.pid, updated=utc_now())
            file = home.status_file(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(status.model_dump_json())
        yield
    finally:
        runner.down()


def real_reports() -> dict[str, str]:
    """Return the reports of a monitor run about flights, with a winter that was warmer than the reference's."""
    from mlflow_flywheel.monitors.evidently import drift_report

    end = START + timedelta(days=34)
    window = Window(end - MONTH, end)
    (old, old_own), (new, new_own) = _flights(4000, 1, 0.0), _flights(4000, 2, 1.0)
    reference, rows = reference_of(old, **old_own), window_of(new, **new_own)
    verdict = drift(rows, reference, window)
    return {
        "reports/drift.html": drift_report(rows, reference, verdict),
        "reports/overview.html": overview(MODEL, "1", [verdict], rows, reference),
    }


def _flights(n: int, seed: int, warmer: float) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    score = rng.beta(2, 5 - warmer, n)
    features = {
        "temp": rng.normal(36 + 9 * warmer, 10, n),
        "dewp": rng.normal(24 + 7 * warmer, 11, n),
        "wind_speed": rng.gamma(3, 3.4 + 1.2 * warmer, n),
        "visib": 10 - rng.exponential(0.8, n),
        "distance": rng.choice([719.0, 944.0, 1076.0, 1400.0, 2475.0], n),
        "hour": rng.integers(5, 23, n).astype(float),
        "carrier": rng.choice(["UA", "B6", "EV", "DL", "AA"], n, p=[0.26, 0.22, 0.2, 0.18, 0.14]),
        "origin": rng.choice(["EWR", "JFK", "LGA"], n),
    }
    return features, {"prediction": pa.array((score > 0.5) * 1.0), "prediction_proba": two_classes(score)}

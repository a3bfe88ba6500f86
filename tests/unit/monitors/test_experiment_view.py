from __future__ import annotations

import json
import zlib
from base64 import b64decode

from mlflow_flywheel.monitors.experiment_view import VIEW_TAG, saved_view, wants_view
from mlflow_flywheel.monitors.performance import PerformanceMonitor

# MLflow refuses a longer value of an experiment's tag
LONGEST_TAG = 5000


def test_the_saved_view_is_one_that_mlflow_reads_and_every_chart_has_its_section() -> None:
    assert VIEW_TAG.startswith("mlflow.sharedViewState.") and len(saved_view()) < LONGEST_TAG
    view = json.loads(saved_view())
    assert isinstance(view["name"], str) and isinstance(view["createdAt"], int)
    packed = view["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(b64decode(packed)))
    sections = {section["uuid"] for section in state["compareRunSections"]}
    charts = state["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == sections
    drawn = [chart["metricKey"] for chart in charts]
    assert len(set(drawn)) == len(drawn)
    assert {"drift_share", "rows", "scoring_p99_ms", "cost_per_1k_predictions"} <= {*drawn}
    assert {"auc", "log_loss", "accuracy", "mae"} <= {*drawn} & {
        name for _, name in PerformanceMonitor.series
    }


def test_a_view_that_a_person_changed_stays_theirs() -> None:
    ours = json.loads(saved_view())
    assert wants_view(None) and wants_view(json.dumps(ours | {"state": "{}"}))
    assert not wants_view(saved_view())
    assert not wants_view(json.dumps(ours | {"state": "{}", "updatedAt": 1_790_000_000_000}))

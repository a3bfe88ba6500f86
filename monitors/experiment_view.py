"""A view of a model's experiment for MLflow's own interface: the series of every deployment over event time.

MLflow keeps saved views as tags of the experiment and lists them under "Views". Without ours its charts are of whichever
runs began last, and over steps; with it they are of the deployments alone, over time.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

VIEW = "flywheel"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_NAME = "Deployments over time"
# MLflow writes the time when somebody changes a view.
_NEVER = 0
# Those that no deployment has are not shown.
_SECTIONS = {
    "Drift and quality": {
        "drift_share": "Drift share",
        "broken_share": "Broken values, share",
    },
    "Performance": {
        "auc": "AUC",
        "log_loss": "Log loss",
        "accuracy": "Accuracy",
        "mae": "Mean absolute error",
        "estimated_auc": "AUC, estimated",
        "labelled_share": "Labelled share",
    },
    "Volume and latency": {
        "rows": "Rows in the window",
        "batch/rows_out": "Rows of a batch run",
        "messages_per_second": "Stream, messages per second",
        "lag_seconds": "Stream, lag in seconds",
        "scoring_p50_ms": "Scoring, median, ms per row",
        "scoring_p99_ms": "Scoring, p99, ms per row",
        "latency_p50_ms": "Stream, median, ms",
        "latency_p99_ms": "Stream, p99, ms",
    },
    "Cost": {
        "cost_per_1k_predictions": "Cost of 1,000 predictions",
        "cost_per_hour": "Cost per hour",
        "batch/cost": "Cost of a batch run",
        "batch/seconds": "Seconds of a batch run",
        "cpu_cores": "Cores in use",
        "memory_gb": "Memory, GB",
    },
}


def wants_view(present: str | None) -> bool:
    """Tell whether the view must be written: there is none, or an older one of ours. What a person changed is theirs."""
    return present is None or (present != saved_view() and json.loads(present).get("updatedAt") == _NEVER)


def saved_view() -> str:
    """Return the value of the tag. Its times are fixed, so that it is the same whoever writes it."""
    state = {
        "searchFilter": "tags.`flywheel.kind` = 'deployment'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "globalLineChartConfig": {"xAxisKey": "time", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "compareRunCharts": list(_charts()),
        "compareRunSections": [
            {
                "uuid": name,
                "name": name,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for name in _SECTIONS
        ],
    }
    packed = b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": _NAME, "createdAt": _NEVER, "updatedAt": _NEVER, "state": f"deflate;{packed}"})


def _charts() -> Iterator[dict[str, Any]]:
    for section, metrics in _SECTIONS.items():
        for metric, name in metrics.items():
            yield {
                "type": "LINE",
                "uuid": metric,
                "metricSectionId": section,
                "isGenerated": False,
                "deleted": False,
                "displayName": name,
                "metricKey": metric,
                "selectedMetricKeys": [metric],
                "runsCountToCompare": 10,
                "lineSmoothness": 0,
                "scaleType": "linear",
                "xAxisScaleType": "linear",
                "range": {},
                "xAxisKey": "time",
                "selectedXAxisMetricKey": "",
                "yAxisKey": "metric",
                "yAxisExpressions": [],
                "ignoreOutliers": False,
                "useGlobalXaxisKey": True,
                "useGlobalLineSmoothing": True,
            }

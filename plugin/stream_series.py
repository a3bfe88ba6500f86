"""How stream deployments do over time, as metric series of their runs in MLflow."""

from __future__ import annotations

from mlflow_flywheel.pipelines.stream.stats import read_stats
from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .series import add_points


class StreamSeries:
    """Adds a point to each deployment's series when it is called: lag, messages per second, p50 and p99 of the latency.

    A deployment that has nothing to do gets one point that says so, and then none until it works again.
    """

    def __init__(self) -> None:
        self._busy: set[str] = set()

    def log(self, context: Context) -> None:
        """Look at every stream deployment now. Raises Unavailable when MLflow is away."""
        for deployment in context.records.deployments(mode="stream"):
            stats, now = read_stats(context.home.status_file(deployment.name)), utc_now()
            series = {} if stats is None else stats.present(now)
            busy = bool(series.get("messages_per_second") or series.get("lag_seconds"))
            if series and (busy or deployment.name in self._busy):
                from mlflow import MlflowClient

                add_points(MlflowClient(context.home.tracking_uri), context.records, deployment, series, now)
            (self._busy.add if busy else self._busy.discard)(deployment.name)

"""What a home does, in Prometheus's text format; the daemon serves it.

Web deployments have metrics of their own, where they answer; here are streams, verdicts, and what everything costs.

Workers count into files (`pipelines/stream/stats.py`), so the figures outlive them, and one scrape shows all.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_flywheel.pipelines.adjust.status import AdjustmentStatus
from mlflow_flywheel.pipelines.backlog import waiting_bytes
from mlflow_flywheel.pipelines.generation_status import read_status
from mlflow_flywheel.pipelines.prometheus import Family, exposition
from mlflow_flywheel.pipelines.stream.latency import cumulative
from mlflow_flywheel.pipelines.stream.stats import StreamStats, read_stats
from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .home import Home
from .home_metrics import answer_metrics, usage_metrics, verdict_metrics
from .record_types import DeploymentRecord

_TOTAL = "_total"


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        def counter(name: str, help: str) -> Family:
            return Family(f"flywheel_stream_{name}", "counter", help)

        def gauge(name: str, help: str) -> Family:
            return Family(f"flywheel_{name}", "gauge", help)

        self.messages = counter("messages", "Messages taken from the input topic and done with")
        self.rows = counter("rows", "Messages answered")
        self.skipped = counter("skipped_messages", "Messages from before the start time, passed over")
        self.letters = counter("dead_letters", "Messages sent to the dead-letter topic, by refusal")
        self.labels = counter("labels", "Labels taken from the feedback topic")
        self.latency = Family(
            "flywheel_stream_latency_seconds",
            "histogram",
            "Time from publishing an event to its stored answer",
        )
        self.lag = gauge("stream_lag_seconds", "Age of the oldest message in hand, 0 when none waits")
        self.workers = gauge("stream_workers", "Worker processes that consume")
        self.info = gauge("stream_info", "The model version that answers")
        self.adjusted = gauge("stream_adjustment_active", "Whether a live adjustment changes predictions now")
        self.gain = gauge(
            "stream_adjustment_gain", "Share of the model's loss that adjusted answers have saved lately"
        )
        self.losses = gauge(
            "stream_adjustment_loss",
            "Mean loss over the newest labels: of the model unadjusted, of what was proposed, of what was answered",
        )
        self.lessons = gauge(
            "stream_adjustment_labels", "Labels that the adjustment has learnt from since it began"
        )
        self.spool = gauge("spool_bytes", "Logged predictions and labels that no commit has taken yet")

    def add(self, home: Home, deployment: DeploymentRecord) -> None:
        labels = {"deployment": deployment.name, "model_name": deployment.model_name}
        status = read_status(home.status_file(deployment.name))
        serving = status.serving if status is not None and status.master_alive else None
        self.workers.add(labels, len(serving.pids) if serving is not None else 0)
        version = {"model_version": deployment.version, "model_id": deployment.model_id or ""}
        self.info.add({**labels, **version}, 1)
        stats = read_stats(home.status_file(deployment.name))
        if stats is not None:
            self._add_stats(labels, stats)

    def _add_stats(self, labels: Mapping[str, str], stats: StreamStats) -> None:
        self.messages.add(labels, stats.messages, _TOTAL)
        self.rows.add(labels, stats.rows, _TOTAL)
        self.skipped.add(labels, stats.skipped, _TOTAL)
        self.labels.add(labels, stats.feedback, _TOTAL)
        for refusal, count in sorted(stats.dead_letters_by.items()):
            self.letters.add({**labels, "refusal": refusal}, count, _TOTAL)
        for bound, count in cumulative(stats.latency):
            self.latency.add({**labels, "le": f"{bound:g}"}, count, "_bucket")
        self.latency.add({**labels, "le": "+Inf"}, sum(stats.latency), "_bucket")
        self.latency.add(labels, stats.latency_sum_ms / 1000, "_sum")
        self.latency.add(labels, sum(stats.latency), "_count")
        lag = stats.lag_seconds(utc_now())
        if lag is not None:
            self.lag.add(labels, lag)
        if stats.adjustment is not None:
            self._add_adjustment({**labels, "method": stats.adjustment.method}, stats.adjustment)

    def _add_adjustment(self, labels: Mapping[str, str], adjustment: AdjustmentStatus) -> None:
        self.adjusted.add(labels, adjustment.active)
        self.lessons.add(labels, adjustment.labels)
        if adjustment.gain is not None:
            self.gain.add(labels, adjustment.gain)
        for whose, loss in adjustment.losses().items():
            self.losses.add({**labels, "of": whose}, loss)

    def all(self) -> list[Family]:
        return list(vars(self).values())


def metrics_of(context: Context) -> bytes:
    """Return the metrics of a home in Prometheus's text format."""
    families = _Families()
    for deployment in context.records.deployments(mode="stream"):
        families.add(context.home, deployment)
    families.spool.add({}, waiting_bytes(context.home.spool))
    more = (verdict_metrics, usage_metrics, answer_metrics)
    return exposition([*families.all(), *(family for found in more for family in found(context))])

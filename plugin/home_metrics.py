"""What monitors say, what processes use and how often models fail, as metrics for Prometheus and its Alertmanager."""

from __future__ import annotations

from mlflow_flywheel.monitors.all import NAMES
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.prometheus import Family

from .context import Context
from .prices import Prices
from .record_types import VerdictRecord
from .runners.base import deployment_process

_TOTAL = "_total"
# A model has that many verdicts at most in which the newest of each monitor is found.
_LOOKED_AT = 200
_SLICES = "slices"


def verdict_metrics(context: Context) -> list[Family]:
    """Return the newest verdict of every monitor of every deployed model: whether it is an alarm, and of when."""
    alarm = Family("flywheel_alarm", "gauge", "1 where a monitor's newest verdict is an alarm")
    warning = Family("flywheel_warning", "gauge", "1 where a monitor's newest verdict is a warning")
    window = Family(
        "flywheel_verdict_window_end_seconds", "gauge", "End of the window of the newest verdict, unix time"
    )
    for model in sorted({deployment.model_name for deployment in context.records.deployments()}):
        asked = _asked(context, model)
        for verdict in _newest(context.records.verdicts(model, limit=_LOOKED_AT)):
            if verdict.monitor not in asked:
                continue
            labels = {"model_name": model, "monitor": verdict.monitor}
            alarm.add(labels, float(verdict.verdict == "alarm"))
            warning.add(labels, float(verdict.verdict == "warn"))
            window.add(labels, verdict.window_end.timestamp())
    return [alarm, warning, window]


def usage_metrics(context: Context) -> list[Family]:
    """Return what each served deployment has used since it was made, and what that costs."""
    cpu = Family("flywheel_cpu_seconds", "counter", "Processor time of a deployment's processes")
    memory = Family(
        "flywheel_memory_gigabyte_seconds", "counter", "Memory of a deployment's processes over time"
    )
    cost = Family(
        "flywheel_cost", "counter", "What processor time and memory cost, by the prices of this home"
    )
    prices, used = Prices.of(), context.records.used()
    for deployment in context.records.deployments():
        usage = used.get((deployment_process(deployment.name), deployment.created))
        if usage is None:
            continue
        labels = {"deployment": deployment.name, "mode": deployment.mode, "model_name": deployment.model_name}
        cpu.add(labels, usage.cpu_seconds, _TOTAL)
        memory.add(labels, usage.gb_seconds, _TOTAL)
        cost.add(labels, prices.cost(usage.cpu_seconds, usage.gb_seconds), _TOTAL)
    return [cpu, memory, cost]


def _asked(context: Context, model: str) -> set[str]:
    """Return the monitors that a model's policy has at work: what another one said last is true no longer."""
    try:
        policy = PolicySpec.parse(context.records.policy(model))
    except BadInput:  # whoever acts by it says so; a scrape goes on
        return set(NAMES)
    return set(policy.watched_by) - (set() if policy.slices else {_SLICES})


def answer_metrics(context: Context) -> list[Family]:
    """Return how many answers each version gave in each deployment since it was made, and how many it failed to give."""
    answered = Family("flywheel_answers", "counter", "Requests, messages and rows that were answered")
    failed = Family(
        "flywheel_failed_answers",
        "counter",
        "Requests, messages and rows that have no answer as the model failed",
    )
    for deployment in context.records.deployments():
        labels = {"deployment": deployment.name, "mode": deployment.mode, "model_name": deployment.model_name}
        for version, tally in sorted(context.records.answers_of(deployment.name, deployment.created).items()):
            answered.add({**labels, "model_version": version}, tally.answered, _TOTAL)
            failed.add({**labels, "model_version": version}, tally.failed, _TOTAL)
    return [answered, failed]


def _newest(verdicts: list[VerdictRecord]) -> list[VerdictRecord]:
    """Return the first of each monitor: the records give the newest first."""
    found: dict[str, VerdictRecord] = {}
    for verdict in verdicts:
        found.setdefault(verdict.monitor, verdict)
    return [found[monitor] for monitor in sorted(found)]

"""What each deployment of a home cost in a span: what was measured of its processes and runs, times the prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlflow_flywheel.pipelines.inference_table import InferenceTable, Traffic
from mlflow_flywheel.pipelines.times import EPOCH

from .context import Context
from .prices import Prices
from .record_types import DeploymentRecord
from .runners.base import DAEMON, deployment_process
from .spec_reading import parse_spec
from .usage_records import SLOT, Usage

_MOST_RUNS = 100_000


@dataclass(frozen=True)
class BatchRunUsage:
    """What one batch run took."""

    rows: int
    cpu_seconds: float
    ended: datetime = EPOCH


@dataclass(frozen=True)
class DeploymentCost:
    """What a deployment used and answered; `rows` is None where nothing counts them (log=none)."""

    deployment: str
    model: str
    mode: str
    usage: Usage
    rows: float | None
    cost: float
    runs: tuple[BatchRunUsage, ...] = ()
    seconds_per_row: float | None = None
    """The model's own time, where rows are logged."""

    @property
    def per_1k(self) -> float | None:
        """The cost of a thousand predictions; None when there was none."""
        return self.cost / self.rows * 1000 if self.rows else None

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {
            "deployment": self.deployment,
            "model": self.model,
            "mode": self.mode,
            "cpu_seconds": self.usage.cpu_seconds,
            "gb_hours": self.usage.gb_seconds / 3600,
            "up_hours": self.usage.up_seconds / 3600,
            "predictions": self.rows,
            "cost": self.cost,
            "cost_per_1k": self.per_1k,
        }


@dataclass(frozen=True)
class SharedCost:
    """What a process that serves all deployments used: the daemon, a broker."""

    process: str
    usage: Usage
    cost: float


@dataclass(frozen=True)
class CostReport:
    """What a home cost in [start, end)."""

    start: datetime
    end: datetime
    prices: Prices
    deployments: tuple[DeploymentCost, ...]
    shared: tuple[SharedCost, ...]


def cost_report(
    context: Context, start: datetime, end: datetime, model: str | None = None, prices: Prices | None = None
) -> CostReport:
    """Add up what was used in a span, of all deployments that there are or of one model's.

    Served deployments are measured as processes, in slots of ten minutes that begin in the span; batch deployments by
    the processor time of the runs that ended in it. The daemon's account is without these runs.
    """
    return cost_reports(context, start, end, max(end - start, SLOT), model, prices)[0]


def cost_reports(
    context: Context,
    start: datetime,
    end: datetime,
    step: timedelta,
    model: str | None = None,
    prices: Prices | None = None,
) -> list[CostReport]:
    """Return such a report for each step of a span, in order of time; the last step may be shorter."""
    prices = prices or Prices.of()
    deployments = context.records.deployments(model_name=model)
    runs = _batch_runs(context, start, end)
    tables = {d.model_name: InferenceTable.open(context.home.tables, d.model_name) for d in deployments}
    traffic = {name: table.traffic_by(start, end, step) for name, table in tables.items() if table.exists}
    reports = []
    for place in range(max(1, math.ceil((end - start) / step))):
        begin, until = start + place * step, min(end, start + (place + 1) * step)
        usage = context.records.usage(begin, until)
        ended = {name: [run for run in each if begin <= run.ended < until] for name, each in runs.items()}
        rows = {name: by_step.get(begin, {}) for name, by_step in traffic.items()}
        costs = [
            _deployment_cost(d, usage, ended.get(d.name, ()), rows.get(d.model_name, {}).get(d.name), prices)
            for d in deployments
        ]
        in_daemon = sum(run.cpu_seconds for each in ended.values() for run in each)
        shared = [] if model is not None else _shared(usage, in_daemon, prices)
        reports.append(CostReport(begin, until, prices, tuple(costs), tuple(shared)))
    return reports


def shared_costs(context: Context, start: datetime, end: datetime) -> list[SharedCost]:
    """Return what serves all deployments alone, without a look at any inference table."""
    in_daemon = sum(run.cpu_seconds for each in _batch_runs(context, start, end).values() for run in each)
    return _shared(context.records.usage(start, end), in_daemon, Prices.of())


def _deployment_cost(
    deployment: DeploymentRecord,
    usage: dict[tuple[str, datetime], Usage],
    runs: Sequence[BatchRunUsage],
    traffic: Traffic | None,
    prices: Prices,
) -> DeploymentCost:
    spec = parse_spec(deployment.config)
    if deployment.mode == "batch":
        used = Usage(cpu_seconds=sum(run.cpu_seconds for run in runs))
        rows: float | None = float(sum(run.rows for run in runs))
    else:
        used = usage.get((deployment_process(deployment.name), deployment.created), Usage())
        rows = None if spec.log == "none" else traffic.rows if traffic is not None else 0.0
    cost = prices.cost(used.cpu_seconds, used.gb_seconds)
    return DeploymentCost(
        deployment.name,
        deployment.model_name,
        deployment.mode,
        used,
        rows,
        cost,
        tuple(runs),
        traffic.seconds_per_row if traffic is not None else None,
    )


def _shared(usage: dict[tuple[str, datetime], Usage], in_daemon: float, prices: Prices) -> list[SharedCost]:
    found = []
    for (process, _), used in sorted(usage.items()):
        if process.startswith(deployment_process("")):
            continue
        if process == DAEMON:
            used = Usage(max(0.0, used.cpu_seconds - in_daemon), used.gb_seconds, used.up_seconds)
        found.append(SharedCost(process, used, prices.cost(used.cpu_seconds, used.gb_seconds)))
    return found


def _batch_runs(context: Context, start: datetime, end: datetime) -> dict[str, tuple[BatchRunUsage, ...]]:
    found: dict[str, list[BatchRunUsage]] = {}
    for task in context.records.tasks(kind="batch_run", status="done", limit=_MOST_RUNS):
        result = task.result or {}
        if task.finished is None or not start <= task.finished < end or "cpu_seconds" not in result:
            continue
        run = BatchRunUsage(int(result.get("rows_out", 0)), float(result["cpu_seconds"]), task.finished)
        found.setdefault(task.subject, []).append(run)
    return {deployment: tuple(runs) for deployment, runs in found.items()}

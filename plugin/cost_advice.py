"""Which mode would serve a model's measured traffic for least: arithmetic on what each mode was measured to take.

A served mode (web, stream) costs by being there, memory and idle processor time all day, and by the row; a batch by the
run and by the row, and its answers are as old as its runs are apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from .cost import BatchRunUsage, CostReport, DeploymentCost
from .prices import Prices, money
from .usage_records import Usage

_DAY = 86_400.0
SERVED = ("web", "stream")
MODES = (*SERVED, "batch")
# Fewer slots of ten minutes cannot tell idling from answering.
_LEAST_SLOTS = 3


@dataclass(frozen=True)
class Demand:
    """What a model is asked for: rows per day, and how old an answer may be."""

    rows_per_day: float
    max_age: timedelta


@dataclass(frozen=True)
class Rates:
    """What one deployment of a mode takes: GB all day, core seconds a day when idle, per run and per row.

    `basis` says in words where the numbers come from.
    """

    mode: str
    basis: str
    gigabytes: float = 0.0
    idle_cpu_per_day: float = 0.0
    cpu_per_run: float = 0.0
    cpu_per_row: float = 0.0


@dataclass(frozen=True)
class Offer:
    """What a mode would cost a day for a demand, with the sum written out."""

    mode: str
    cost_per_day: float
    cost_per_1k: float | None
    arithmetic: str
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return dict(vars(self))

    def shown(self) -> tuple[str, str, str, str, str]:
        """Return it as people read it: the mode, its cost a day and per 1,000, the sum, where its numbers are from."""
        per_1k = money(self.cost_per_1k or 0.0)
        return self.mode, money(self.cost_per_day), per_1k, self.arithmetic, self.basis


def offers(rates: Sequence[Rates], demand: Demand, prices: Prices) -> list[Offer]:
    """Return what each mode would cost, the cheapest first."""
    return sorted((_offer(each, demand, prices) for each in rates), key=lambda offer: offer.cost_per_day)


def _offer(rates: Rates, demand: Demand, prices: Prices) -> Offer:
    rows = demand.rows_per_day
    runs = math.ceil(_DAY / demand.max_age.total_seconds()) if rates.mode == "batch" else 0
    cpu = rates.idle_cpu_per_day + runs * rates.cpu_per_run + rows * rates.cpu_per_row
    gb_hours = rates.gigabytes * 24
    cost = prices.cost(cpu, gb_hours * 3600)
    per_row = f"{rows:,.0f} rows x {_time(rates.cpu_per_row)}"
    first = (
        f"{runs:,} runs x {rates.cpu_per_run:.2f} s"
        if rates.mode == "batch"
        else f"{rates.idle_cpu_per_day:,.0f} s idle"
    )
    words = f"({first} + {per_row}) = {cpu:,.0f} CPU s x {prices.cpu_hour:g}/h"
    if rates.gigabytes:
        words += f", + {rates.gigabytes:.2f} GB x 24 h x {prices.gb_hour:g}/h"
    return Offer(rates.mode, cost, cost / rows * 1000 if rows else None, words, rates.basis)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def served_rates(cost: DeploymentCost, slots: Sequence[Usage]) -> Rates | None:
    """Return what a served deployment takes, or None when it was never measured.

    `slots` are its usage by ten minutes. The quietest of them is taken as idling; what is above that was for the rows.
    Of too few slots all is taken as for the rows.
    """
    up = cost.usage.up_seconds
    if up <= 0:
        return None
    full = [slot.cpu_seconds / slot.up_seconds for slot in slots if slot.up_seconds > 60]
    idle = min(full) if len(full) >= _LEAST_SLOTS else 0.0
    rows = cost.rows or 0.0
    per_row = max(0.0, cost.usage.cpu_seconds - idle * up) / rows if rows else 0.0
    basis = f"measured: {cost.deployment}, {up / 3600:,.1f} h, {rows:,.0f} rows"
    return Rates(cost.mode, basis, cost.usage.gb_seconds / up, idle * _DAY, 0.0, per_row)


def batch_rates(cost: DeploymentCost) -> Rates | None:
    """Return what runs of a batch deployment take, or None when it had none.

    A line through (rows, core seconds) of the runs, neither part of it negative; of runs that are all of one size,
    everything is taken as for the rows, which is right for runs of that size.
    """
    if not cost.runs:
        return None
    per_run, per_row = _line(cost.runs)
    basis = f"measured: {cost.deployment}, {len(cost.runs):,} runs, {cost.rows or 0:,.0f} rows"
    return Rates("batch", basis, 0.0, 0.0, per_run, per_row)


def _line(runs: Sequence[BatchRunUsage]) -> tuple[float, float]:
    rows = np.array([run.rows for run in runs], dtype=np.float64)
    seconds = np.array([run.cpu_seconds for run in runs])
    if np.ptp(rows) == 0:
        return (0.0, float(seconds.mean() / rows[0])) if rows[0] else (float(seconds.mean()), 0.0)
    slope = max(0.0, float(np.cov(rows, seconds, ddof=0)[0, 1] / rows.var()))
    start = float(seconds.mean() - slope * rows.mean())
    if start >= 0:
        return start, slope
    return 0.0, float(rows @ seconds / (rows @ rows))


def estimated_rates(mode: str, known: Sequence[Rates], model_seconds: float | None) -> Rates | None:
    """Return what a mode that was never measured would take at least, or None when nothing is known.

    A served mode is taken to hold and idle as the other one does, and a row to take what it does there; from runs
    alone nothing follows about memory. A batch is taken to need the model's own time for a row.
    """
    other = next((rates for rates in known if rates.mode in SERVED and rates.mode != mode), None)
    if mode in SERVED and other is not None:
        basis = f"estimated: as {other.mode} ({other.basis})"
        return Rates(mode, basis, other.gigabytes, other.idle_cpu_per_day, 0.0, other.cpu_per_row)
    if mode == "batch" and model_seconds is not None:
        return Rates(
            mode,
            "estimated: the model's own time for a row, starting it not counted",
            cpu_per_row=model_seconds,
        )
    return None


def rows_per_day(report: CostReport, model: str) -> float:
    """Return the measured traffic of a model, over all of its deployments."""
    days = (report.end - report.start).total_seconds() / _DAY
    rows = sum(cost.rows or 0.0 for cost in report.deployments if cost.model == model)
    return rows / days if days > 0 else 0.0

"""What the cost panel of a model shows: the figures of `flywheel cost` as text, and as series for the chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from mlflow_flywheel.monitors.windows import format_duration
from mlflow_flywheel.plugin.cost import CostReport, DeploymentCost, SharedCost
from mlflow_flywheel.plugin.cost_advice import SERVED
from mlflow_flywheel.plugin.cost_view import Advice
from mlflow_flywheel.plugin.prices import money

from .words import moment

_NOTHING = "–"
# What the chart can show: its name, the unit, and the value of a step; None leaves the step out.
_MEASURES: Sequence[tuple[str, str, Callable[[DeploymentCost], float | None]]] = (
    ("Cost", "", lambda cost: cost.cost),
    ("Per 1,000 predictions", "", lambda cost: cost.per_1k),
    ("Predictions", "", lambda cost: cost.rows),
    ("CPU", "s", lambda cost: cost.usage.cpu_seconds),
    ("Memory", "GB h", lambda cost: cost.usage.gb_seconds / 3600),
)


@dataclass(frozen=True)
class CostLine:
    """One deployment's row of the table."""

    name: str
    mode: str
    up: str
    cpu: str
    memory: str
    predictions: str
    cost: str
    per_1k: str


def lines(report: CostReport) -> list[CostLine]:
    """Return the table, and under several deployments their sum."""
    rows = [_line(cost) for cost in report.deployments]
    if len(rows) > 1:
        total = sum(cost.cost for cost in report.deployments)
        answered = sum(cost.rows or 0.0 for cost in report.deployments)
        cpu = sum(cost.usage.cpu_seconds for cost in report.deployments)
        memory = sum(cost.usage.gb_seconds for cost in report.deployments) / 3600
        each = money(total / answered * 1000) if answered else _NOTHING
        rows.append(
            CostLine(
                "All", "", "", f"{cpu:,.1f} s", f"{memory:,.2f} GB h", f"{answered:,.0f}", money(total), each
            )
        )
    return rows


def _line(cost: DeploymentCost) -> CostLine:
    served = cost.mode in SERVED
    return CostLine(
        cost.deployment,
        cost.mode,
        _hours(cost.usage.up_seconds)
        if served
        else f"{len(cost.runs):,} run{'' if len(cost.runs) == 1 else 's'}",
        f"{cost.usage.cpu_seconds:,.1f} s",
        f"{cost.usage.gb_seconds / 3600:,.2f} GB h" if served else _NOTHING,
        "not logged" if cost.rows is None else f"{cost.rows:,.0f}",
        money(cost.cost),
        _NOTHING if cost.per_1k is None else money(cost.per_1k),
    )


def span(report: CostReport) -> str:
    """Return what the figures are about, and the prices."""
    prices = report.prices
    return (
        f"{moment(report.start)} to {moment(report.end)}; "
        f"{prices.cpu_hour:g} per core hour, {prices.gb_hour:g} per GB hour"
    )


def advice_words(advice: Advice) -> str:
    """Return the advice in one sentence."""
    demand = advice.demand
    if not demand.rows_per_day or not advice.offers:
        return "No predictions were measured, so nothing can be said of other modes."
    best = advice.offers[0]
    need = (
        f"{demand.rows_per_day:,.0f} predictions a day, answers at most {format_duration(demand.max_age)} old"
    )
    return f"For {need}, {best.mode} costs least: {money(best.cost_per_day)} a day."


def advice_rows(advice: Advice) -> list[tuple[str, str, str, str, str]]:
    """Return each mode with its cost a day and per 1,000, the sum, and where its numbers are from."""
    if not advice.demand.rows_per_day:
        return []
    unknown = "a deployment of this mode would measure it"
    return [offer.shown() for offer in advice.offers] + [
        (mode, "not known", "", "", unknown) for mode in advice.unknown
    ]


def shared_words(shared: Sequence[SharedCost]) -> str:
    """Return what serves all deployments, with what it costs."""
    told = (f"{each.process} {each.usage.cpu_seconds:,.1f} CPU s, {money(each.cost)}" for each in shared)
    return "; ".join(told)


def chart(reports: Sequence[CostReport]) -> str:
    """Return the steps as JSON for the chart, empty when there are too few to draw."""
    if len(reports) < 2:
        return ""
    step = reports[0].end - reports[0].start
    form = "%d %b" if step >= timedelta(days=1) else "%d %b %H:%M"
    names = [(cost.deployment, cost.mode) for cost in reports[0].deployments]
    measures = [
        {
            "name": name,
            "unit": unit,
            "sum": name != "Per 1,000 predictions",
            "series": [
                {"name": of, "mode": mode, "values": [value(report.deployments[i]) for report in reports]}
                for i, (of, mode) in enumerate(names)
            ],
        }
        for name, unit, value in _MEASURES
    ]
    labels = [report.start.strftime(form).lstrip("0") for report in reports]
    return json.dumps({"step": format_duration(step), "labels": labels, "measures": measures})


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:,.1f} days"

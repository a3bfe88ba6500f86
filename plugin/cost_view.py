"""What deployments cost and which mode would cost least: the same view for the command and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.times import utc_now

from .context import Context
from .cost import CostReport, DeploymentCost, cost_report, cost_reports
from .cost_advice import (
    MODES,
    SERVED,
    Demand,
    Offer,
    Rates,
    batch_rates,
    estimated_rates,
    offers,
    rows_per_day,
    served_rates,
)
from .runners.base import deployment_process
from .usage_records import SLOT, slot_of

SINCE = timedelta(days=7)
_MAX_AGE = timedelta(days=1)
# A chart has no more steps than these, so that a bar is wide enough to be pointed at.
_MOST_STEPS = 60
_STEPS = (SLOT, *(timedelta(hours=hours) for hours in (1, 3, 6, 12, 24, 168)))


@dataclass(frozen=True)
class Advice:
    """What each mode would cost for a demand, the cheapest first, and the modes of which nothing is known."""

    demand: Demand
    offers: Sequence[Offer]
    unknown: Sequence[str]


@dataclass(frozen=True)
class CostView:
    """What was measured in a span, and what follows from it for each model."""

    report: CostReport
    advice: Mapping[str, Advice]

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        report = self.report
        return {
            "start": report.start.isoformat(),
            "end": report.end.isoformat(),
            "prices": {"cpu_hour": report.prices.cpu_hour, "gb_hour": report.prices.gb_hour},
            "deployments": [each.to_json() for each in report.deployments],
            "shared": [
                {"process": each.process, "cpu_seconds": each.usage.cpu_seconds, "cost": each.cost}
                for each in report.shared
            ],
            "advice": {
                model: {
                    "rows_per_day": advice.demand.rows_per_day,
                    "max_age_seconds": advice.demand.max_age.total_seconds(),
                    "offers": [offer.to_json() for offer in advice.offers],
                    "unknown": list(advice.unknown),
                }
                for model, advice in self.advice.items()
            },
        }


def cost_view(
    context: Context, model: str | None = None, since: timedelta = SINCE, max_age: timedelta | None = None
) -> CostView:
    """Look at the last `since` of all deployments, or of one model's.

    Answers may be `max_age` old; unless it is given, each model's policy says so (`max_age`), or they may be a day old.
    """
    report = cost_report(context, *_span(context, model, since), model)
    models = sorted({each.model for each in report.deployments})
    return CostView(
        report,
        {each: _advice(context, report, each, max_age or _needed_age(context, each)) for each in models},
    )


def cost_over_time(context: Context, model: str, since: timedelta = SINCE) -> list[CostReport]:
    """Return the same span of one model in steps, for a chart."""
    start, end = _span(context, model, since)
    step = next((step for step in _STEPS if (end - start) / step <= _MOST_STEPS), _STEPS[-1])
    return cost_reports(context, start, end, step, model)


def _span(context: Context, model: str | None, since: timedelta) -> tuple[datetime, datetime]:
    """Return the span, from the slot on in which measuring began: costs per day are of the days that were."""
    end = utc_now()
    created = [record.created for record in context.records.deployments(model_name=model)]
    return slot_of(max(end - since, min(created, default=end - since))), end


def _needed_age(context: Context, model: str) -> timedelta:
    try:
        return PolicySpec.parse(context.records.policy(model)).max_age or _MAX_AGE
    except BadInput:  # a policy that fits no more is shown as such elsewhere
        return _MAX_AGE


def _advice(context: Context, report: CostReport, model: str, max_age: timedelta) -> Advice:
    own = [each for each in report.deployments if each.model == model]
    known = [rates for each in own if (rates := _rates(context, report, each)) is not None]
    model_seconds = next((each.seconds_per_row for each in own if each.seconds_per_row is not None), None)
    best: dict[str, Rates] = {}
    for rates in known:
        best.setdefault(rates.mode, rates)
    for mode in MODES:
        estimate = estimated_rates(mode, known, model_seconds) if mode not in best else None
        if estimate is not None:
            best[mode] = estimate
    demand = Demand(rows_per_day(report, model), max_age)
    found = offers(list(best.values()), demand, report.prices)
    return Advice(demand, found, [mode for mode in MODES if mode not in best])


def _rates(context: Context, report: CostReport, each: DeploymentCost) -> Rates | None:
    if each.mode not in SERVED:
        return batch_rates(each)
    deployed = context.records.deployment(each.deployment).created
    process = deployment_process(each.deployment)
    return served_rates(each, context.records.usage_slots(process, deployed, report.start, report.end))

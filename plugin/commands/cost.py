"""cost: what the deployments of a home cost, and which mode would cost least."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import click

from mlflow_flywheel.pipelines.times import utc_now
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.cost import CostReport, DeploymentCost, cost_report
from mlflow_flywheel.plugin.cost_advice import (
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
from mlflow_flywheel.plugin.runners.base import deployment_process
from mlflow_flywheel.plugin.usage_records import slot_of

from .common import command, find_model, print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option(
    "--since", default="7d", show_default=True, metavar="TIME", help="how far to look back: 12h, 30d"
)
@click.option(
    "--max-age",
    default="1d",
    show_default=True,
    metavar="TIME",
    help="how old an answer may be, for the advice",
)
@command
def cost(context: Context, as_json: bool, name: str | None, since: str, max_age: str) -> None:
    """Show what deployments cost; of one model (or a deployment's model) also which mode would cost least.

    Processor time and memory are measured on the processes; prices are FLYWHEEL_PRICE_CPU_HOUR and
    FLYWHEEL_PRICE_GB_HOUR.
    """
    from mlflow_flywheel.monitors.windows import parse_duration

    model = find_model(context, name) if name is not None else None
    demanded_age, now = parse_duration(max_age), utc_now()
    report = cost_report(context, _start(context, model, now - parse_duration(since)), now, model)
    models = sorted({each.model for each in report.deployments})
    advice = {each: _advice(context, report, each, demanded_age) for each in models}
    if as_json:
        print_json(_json(report, advice, demanded_age))
        return
    _print_costs(report)
    for each in models:
        _print_advice(each, *advice[each], demanded_age)


def _start(context: Context, model: str | None, start: datetime) -> datetime:
    """Return the slot in which measuring began, if that was later: costs per day are of the days that were."""
    created = [record.created for record in context.records.deployments(model_name=model)]
    return slot_of(max(start, min(created, default=start)))


def _advice(
    context: Context, report: CostReport, model: str, max_age: timedelta
) -> tuple[Demand, list[Offer], list[str]]:
    """Return the demand, what each mode would cost, and the modes of which nothing is known."""
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
    return demand, offers(list(best.values()), demand, report.prices), [m for m in MODES if m not in best]


def _rates(context: Context, report: CostReport, each: DeploymentCost) -> Rates | None:
    if each.mode not in SERVED:
        return batch_rates(each)
    deployed = context.records.deployment(each.deployment).created
    process = deployment_process(each.deployment)
    return served_rates(each, context.records.usage_slots(process, deployed, report.start, report.end))


def _print_costs(report: CostReport) -> None:
    rows: list[tuple[str | None, ...]] = [
        (
            each.deployment,
            each.mode,
            f"{each.usage.up_seconds / 3600:,.1f}" if each.mode in SERVED else None,
            f"{each.usage.cpu_seconds:,.1f}",
            f"{each.usage.gb_seconds / 3600:,.2f}" if each.mode in SERVED else None,
            "not logged" if each.rows is None else f"{each.rows:,.0f}",
            _money(each.cost),
            None if each.per_1k is None else _money(each.per_1k),
        )
        for each in report.deployments
    ]
    rows += [
        (f"({each.process})", None, f"{each.usage.up_seconds / 3600:,.1f}", f"{each.usage.cpu_seconds:,.1f}",
         f"{each.usage.gb_seconds / 3600:,.2f}", None, _money(each.cost), None)
        for each in report.shared
    ]  # fmt: skip
    span = f"{report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M} UTC"
    prices = f"{report.prices.cpu_hour:g} per core hour, {report.prices.gb_hour:g} per GB hour"
    columns = ["deployment", "mode", "hours", "CPU s", "GB h", "predictions", "cost", "per 1,000"]
    print_table(f"Cost, {span}; {prices}", columns, rows)


def _print_advice(
    model: str, demand: Demand, found: Sequence[Offer], unknown: Sequence[str], age: timedelta
) -> None:
    from mlflow_flywheel.monitors.windows import format_duration

    if not demand.rows_per_day or not found:
        click.echo(f"{model}: no predictions were measured, so nothing can be said of other modes")
        return
    title = f"{model}: {demand.rows_per_day:,.0f} rows a day, answers at most {format_duration(age)} old"
    rows = [
        (
            offer.mode,
            _money(offer.cost_per_day),
            _money(offer.cost_per_1k or 0.0),
            offer.arithmetic,
            offer.basis,
        )
        for offer in found
    ]
    print_table(title, ["mode", "a day", "per 1,000", "how", "from"], rows)
    for mode in unknown:
        click.echo(f"{mode}: not known; a deployment of that mode would measure it")
    click.echo(f"cheapest for this: {found[0].mode}")


def _money(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.3g}"


def _json(
    report: CostReport, advice: dict[str, tuple[Demand, list[Offer], list[str]]], age: timedelta
) -> dict[str, Any]:
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
                "rows_per_day": demand.rows_per_day,
                "max_age_seconds": age.total_seconds(),
                "offers": [offer.to_json() for offer in found],
                "unknown": unknown,
            }
            for model, (demand, found, unknown) in advice.items()
        },
    }

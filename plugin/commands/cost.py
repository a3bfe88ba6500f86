"""cost: what the deployments of a home cost, and which mode would cost least."""

from __future__ import annotations

import click

from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.cost import CostReport
from mlflow_flywheel.plugin.cost_advice import SERVED
from mlflow_flywheel.plugin.cost_view import Advice, cost_view
from mlflow_flywheel.plugin.prices import money

from .common import command, find_model, print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option(
    "--since", default="7d", show_default=True, metavar="TIME", help="how far to look back: 12h, 30d"
)
@click.option(
    "--max-age",
    metavar="TIME",
    help="how old an answer may be, for the advice  [default: the policy's max_age, or 1d]",
)
@command
def cost(context: Context, as_json: bool, name: str | None, since: str, max_age: str | None) -> None:
    """Show what deployments cost; of one model (or a deployment's model) also which mode would cost least.

    Processor time and memory are measured on the processes; prices are FLYWHEEL_PRICE_CPU_HOUR and
    FLYWHEEL_PRICE_GB_HOUR.
    """
    from mlflow_flywheel.monitors.windows import parse_duration

    model = find_model(context, name) if name is not None else None
    age = parse_duration(max_age) if max_age is not None else None
    view = cost_view(context, model, parse_duration(since), age)
    if as_json:
        print_json(view.to_json())
        return
    _print_costs(view.report)
    for each, advice in view.advice.items():
        _print_advice(each, advice)


def _print_costs(report: CostReport) -> None:
    rows: list[tuple[str | None, ...]] = [
        (
            each.deployment,
            each.mode,
            f"{each.usage.up_seconds / 3600:,.1f}" if each.mode in SERVED else None,
            f"{each.usage.cpu_seconds:,.1f}",
            f"{each.usage.gb_seconds / 3600:,.2f}" if each.mode in SERVED else None,
            "not logged" if each.rows is None else f"{each.rows:,.0f}",
            money(each.cost),
            None if each.per_1k is None else money(each.per_1k),
        )
        for each in report.deployments
    ]
    rows += [
        (f"({each.process})", None, f"{each.usage.up_seconds / 3600:,.1f}", f"{each.usage.cpu_seconds:,.1f}",
         f"{each.usage.gb_seconds / 3600:,.2f}", None, money(each.cost), None)
        for each in report.shared
    ]  # fmt: skip
    span = f"{report.start:%Y-%m-%d %H:%M} to {report.end:%Y-%m-%d %H:%M} UTC"
    prices = f"{report.prices.cpu_hour:g} per core hour, {report.prices.gb_hour:g} per GB hour"
    columns = ["deployment", "mode", "hours", "CPU s", "GB h", "predictions", "cost", "per 1,000"]
    print_table(f"Cost, {span}; {prices}", columns, rows)


def _print_advice(model: str, advice: Advice) -> None:
    from mlflow_flywheel.monitors.windows import format_duration

    demand = advice.demand
    if not demand.rows_per_day or not advice.offers:
        click.echo(f"{model}: no predictions were measured, so nothing can be said of other modes")
        return
    title = f"{model}: {demand.rows_per_day:,.0f} rows a day, answers at most {format_duration(demand.max_age)} old"
    rows = [offer.shown() for offer in advice.offers]
    print_table(title, ["mode", "a day", "per 1,000", "how", "from"], rows)
    for mode in advice.unknown:
        click.echo(f"{mode}: not known; a deployment of that mode would measure it")
    click.echo(f"cheapest for this: {advice.offers[0].mode}")

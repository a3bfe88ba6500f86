"""broker: the Pulsar brokers that a home keeps."""

from __future__ import annotations

from dataclasses import asdict

import click

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.stream.apache_broker import LEAST_MEMORY_MB
from mlflow_flywheel.plugin import brokers
from mlflow_flywheel.plugin.apache_broker import MEMORY_MB, ensure_apache
from mlflow_flywheel.plugin.brokers import BrokerKind
from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, print_table, waiting

_apache = click.option(
    "--apache",
    is_flag=True,
    help="the real Apache Pulsar instead of the embedded broker (Java 17, 'make pulsar')",
)


@click.group()
def broker() -> None:
    """The Pulsar broker of the home: the embedded one, or a real Apache Pulsar."""


@broker.command("start")
@_apache
@click.option(
    "--memory",
    type=click.IntRange(min=LEAST_MEMORY_MB),
    metavar="MB",
    help=f"Apache Pulsar's heap, and as much again for its buffers; kept  [default: {MEMORY_MB}]",
)
@command
def broker_start(context: Context, as_json: bool, apache: bool, memory: int | None) -> None:
    """Keep a broker running; new stream deployments without broker= use Apache Pulsar while it is kept."""
    if memory is not None and not apache:
        raise BadInput("--memory is for Apache Pulsar; give --apache too")
    with waiting("starting Apache Pulsar" if apache else "starting the embedded broker"):
        url = ensure_apache(context, memory).url if apache else brokers.ensure(context, "embedded")
    kind: BrokerKind = "apache" if apache else "embedded"
    default = brokers.default_kind(context)
    if as_json:
        print_json({"kind": kind, "url": url, "new_deployments_use": default})
        return
    click.echo(f"{_title(kind)} is ready at {url}")
    click.echo(f"new stream deployments without broker= use {brokers.TITLES[default]}")
    others = brokers.deployments_on(context, "embedded" if apache else "apache")
    if others:
        other = brokers.TITLES["embedded" if apache else "apache"]
        click.echo(f"{', '.join(others)}: on {other} as before, with what is stored there")


@broker.command("stop")
@_apache
@command
def broker_stop(context: Context, as_json: bool, apache: bool) -> None:
    """Stop a broker that no deployment uses, and keep it no longer; what is stored on it stays."""
    kind: BrokerKind = "apache" if apache else "embedded"
    with waiting(f"stopping {brokers.TITLES[kind]}"):
        brokers.stop(context, kind)
    default = brokers.default_kind(context)
    if as_json:
        print_json({"stopped": kind, "new_deployments_use": default})
        return
    click.echo(
        f"{_title(kind)} is stopped; new stream deployments without broker= use {brokers.TITLES[default]}"
    )


@broker.command("status")
@_apache
@command
def broker_status(context: Context, as_json: bool, apache: bool) -> None:
    """Show the brokers that the home keeps, whether they work, and who uses them."""
    views = [view for view in brokers.views(context) if view.kind == "apache" or not apache]
    default = brokers.default_kind(context)
    if as_json:
        print_json({"brokers": [asdict(view) for view in views], "new_deployments_use": default})
        return
    if views:
        columns = ["broker", "url", "state", "healthy", "pid", "memory (MB)", "deployments"]
        rows = [
            [
                view.kind,
                view.url,
                view.state,
                "yes" if view.healthy else "no",
                view.pid,
                view.memory_mb,
                ", ".join(view.deployments),
            ]
            for view in views
        ]
        print_table("Brokers", columns, rows)
    click.echo(f"new stream deployments without broker= use {brokers.TITLES[default]}")


def _title(kind: BrokerKind) -> str:
    title = brokers.TITLES[kind]
    return title[0].upper() + title[1:]

"""alerts: who is told what the loop does."""

from __future__ import annotations

from typing import Any

import click

from mlflow_flywheel.plugin.alert_places import Place, add_place, places, remove_place
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.messenger import send, shown

from .common import command, print_json, print_table, waiting


@click.group()
def alerts() -> None:
    """Who is told of alarms and their end, of retrainings and what waits for approval."""


@alerts.command("add")
@click.argument("url")
@command
def alerts_add(context: Context, as_json: bool, url: str) -> None:
    """Tell URL from now on: mailto://..., slack://..., json://host/path or another service of Apprise.

    It is kept in a private file of the home and never shown in full. Quote it: such URLs hold characters of the shell.
    """
    place = add_place(context.home, url)
    _show(place, as_json, f"told from now on: {shown(url)}; 'flywheel alerts test' sends a message")


@alerts.command("list")
@command
def alerts_list(context: Context, as_json: bool) -> None:
    """List who is told."""
    known = places(context.home)
    if as_json:
        print_json([_view(place) for place in known])
    elif not known:
        click.echo("nobody is told; 'flywheel alerts add URL' changes that")
    else:
        rows = [(n, shown(place.url), f"{place.added:%Y-%m-%d %H:%M}") for n, place in enumerate(known, 1)]
        print_table("Told of what the loop does", ["number", "where", "since"], rows)


@alerts.command("remove")
@click.argument("number", type=int)
@command
def alerts_remove(context: Context, as_json: bool, number: int) -> None:
    """Tell the place of this NUMBER no more."""
    place = remove_place(context.home, number)
    _show(place, as_json, f"told no more: {shown(place.url)}")


@alerts.command("test")
@command
def alerts_test(context: Context, as_json: bool) -> None:
    """Send a message to everyone who is told."""
    known = places(context.home)
    for place in known:
        with waiting(f"telling {shown(place.url)}"):
            send(place.url, "flywheel: a test", f"This is what alarms of {context.home.path} will look like.")
    if as_json:
        print_json([_view(place) for place in known])
    else:
        click.echo(f"told: {', '.join(shown(place.url) for place in known) or 'nobody'}")


def _show(place: Place, as_json: bool, text: str) -> None:
    if as_json:
        print_json(_view(place))
    else:
        click.echo(text)


def _view(place: Place) -> dict[str, Any]:
    return {"where": shown(place.url), "since": place.since}

"""webhook: MLflow tells the daemon of every alias that is set, instead of being asked."""

from __future__ import annotations

import click

from mlflow_flywheel.plugin.context import Context

from .common import command, print_json, waiting


@click.group()
def webhook() -> None:
    """Let MLflow tell the daemon when an alias is set, so that a rollout begins at once."""


@webhook.command("create")
@click.option("--url", metavar="URL", help="where MLflow reaches the daemon, by a proxy  [default: loopback]")
@command
def webhook_create(context: Context, as_json: bool, url: str | None) -> None:
    """Make a signed webhook at the MLflow server, and prove that its deliveries arrive."""
    from mlflow_flywheel.plugin.webhooks import NEEDS_KEY, create_webhook

    with waiting("asking MLflow for a delivery"):
        made = create_webhook(context, url)
    if as_json:
        print_json({"id": made.id, "url": made.url, "since": made.since})
        return
    click.echo(f"MLflow tells {made.url} of aliases; its first delivery has arrived")
    click.echo(f"{NEEDS_KEY}; 'flywheel webhook status' tries the way again")


@webhook.command("status")
@command
def webhook_status(context: Context, as_json: bool) -> None:
    """Show the webhook, what the daemon heard by it, and whether a delivery arrives now."""
    from mlflow_flywheel.plugin.webhooks import webhook_state

    with waiting("asking MLflow for a delivery"):
        state = webhook_state(context)
    if state is None:
        said = "no webhook: the daemon looks every second where aliases point; 'flywheel webhook create' makes one"
        print_json(None) if as_json else click.echo(said)
        return
    made, trial = state.webhook, state.trial
    if as_json:
        print_json(
            {
                "id": made.id,
                "url": made.url,
                "since": made.since,
                "at_mlflow": state.at_mlflow,
                "arrives": trial.arrived,
                "why_not": trial.why or None,
                "daemon": state.daemon,
            }
        )
        return
    click.echo(f"webhook {made.id} to {made.url} since {made.since[:16]}, at MLflow: {state.at_mlflow}")
    heard, refused = state.daemon.get("heard", 0), state.daemon.get("refused", 0)
    click.echo(f"heard {heard}, refused {refused} since the daemon began")
    if state.daemon.get("last_refusal"):
        click.echo(f"refused last: {state.daemon['last_refusal']}")
    click.echo("a delivery arrives" if trial.arrived else f"no delivery arrives: {trial.why}")


@webhook.command("delete")
@command
def webhook_delete(context: Context, as_json: bool) -> None:
    """Remove the webhook; the daemon looks every second all the same."""
    from mlflow_flywheel.plugin.webhooks import delete_webhook

    gone = delete_webhook(context)
    if as_json:
        print_json({"id": gone.id, "url": gone.url})
    else:
        click.echo(f"the webhook to {gone.url} is gone; the daemon looks every second where aliases point")

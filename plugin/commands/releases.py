"""promote, reject, rollback, pause, resume: what a person decides about versions, and about the loop itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.record_types import ActionRecord, DeploymentRecord

from .common import command, find_model, print_json, requested_by

if TYPE_CHECKING:
    from mlflow_flywheel.plugin.champion import Registry


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@click.option("--reason", default="", help="why; it is recorded")
@click.option("--force", is_flag=True, help="also a version that the gate refused")
@command
def promote(
    context: Context, as_json: bool, model: str, version: str | None, reason: str, force: bool
) -> None:
    """Make VERSION the champion; without it the one that waits for approval."""
    from mlflow_flywheel.plugin import approvals

    model = find_model(context, model)
    action = approvals.promote(
        context.records,
        _registry(context),
        model,
        version,
        requested_by(),
        _now(context, model),
        reason=reason,
        force=force,
    )
    _say(context, as_json, model, action)


@click.command()
@click.argument("model")
@click.argument("version", required=False)
@command
def reject(context: Context, as_json: bool, model: str, version: str | None) -> None:
    """Reject the version that waits for approval; the champion stays."""
    from mlflow_flywheel.plugin import approvals

    model = find_model(context, model)
    action = approvals.reject(context.records, _registry(context), model, version, requested_by())
    rejected = str((action.result or {}).get("version"))
    if as_json:
        print_json({"model": model, "version": rejected, "action": action.id, "status": action.status})
    else:
        click.echo(f"version {rejected} of {model} is rejected; the champion stays")


@click.command()
@click.argument("model")
@click.option("--to", metavar="VERSION", help="this version  [default: the one that was champion before]")
@click.option("--reason", default="", help="why; it is recorded")
@command
def rollback(context: Context, as_json: bool, model: str, to: str | None, reason: str) -> None:
    """Go back to the version that was champion before. No gate promotes the one that was left again."""
    from mlflow_flywheel.plugin import approvals

    model = find_model(context, model)
    registry, now = _registry(context), _now(context, model)
    action = approvals.rollback(context.records, registry, model, requested_by(), now, to=to, reason=reason)
    _say(context, as_json, model, action)


@click.command()
@click.argument("model")
@click.option("--reason", default="", help="why; it is recorded")
@command
def pause(context: Context, as_json: bool, model: str, reason: str) -> None:
    """Let the loop start nothing: no retraining, no promotion, no rollback. Monitors go on."""
    model = find_model(context, model)
    changed = context.records.pause(model, requested_by(), reason, _now(context, model))
    paused = context.records.paused(model)
    if as_json:
        print_json({"model": model, "paused": True, "changed": changed})
    else:
        click.echo(f"the loop of {model} is paused {paused}; 'flywheel resume {model}' lets it go on")


@click.command()
@click.argument("model")
@click.option("--reason", default="", help="why; it is recorded")
@command
def resume(context: Context, as_json: bool, model: str, reason: str) -> None:
    """Let a paused loop go on."""
    model = find_model(context, model)
    changed = context.records.resume(model, requested_by(), reason, _now(context, model))
    if as_json:
        print_json({"model": model, "paused": False, "changed": changed})
    else:
        click.echo(f"the loop of {model} {'goes on' if changed else 'was not paused'}")


def _say(context: Context, as_json: bool, model: str, action: ActionRecord) -> None:
    """Say what became champion, and which deployments follow and which do not."""
    from mlflow_flywheel.plugin.rollout import follows_alias

    before, after = str(action.evidence["before"]), str(action.evidence["after"])
    deployments = context.records.deployments(model_name=model)
    following = [d for d in deployments if follows_alias(d)]
    pinned = [d for d in deployments if not follows_alias(d) and d.version != after]
    if following:
        context.ensure_daemon()
    if as_json:
        names = {"following": _names(following), "pinned": _names(pinned)}
        said = {"kind": action.kind, "status": action.status, "reason": action.reason}
        print_json({"model": model, "before": before, "after": after, "action": action.id, **said, **names})
        return
    if action.status != "done":
        click.echo(f"nothing was done: {(action.result or {}).get('reason', action.status)}")
        return
    click.echo(f"version {after} of {model} is champion now, version {before} was")
    if following:
        click.echo(f"{', '.join(_names(following))}: over within seconds, batch from its next run")
    for deployment in pinned:
        click.echo(
            f"{deployment.name} stays at version {deployment.version}: it names {deployment.model_uri}, not an alias"
        )


def _names(deployments: Sequence[DeploymentRecord]) -> list[str]:
    return [deployment.name for deployment in deployments]


def _registry(context: Context) -> Registry:
    from mlflow import MlflowClient

    from mlflow_flywheel.plugin.champion import Registry

    return Registry(MlflowClient(context.tracking_uri))


def _now(context: Context, model: str) -> datetime:
    from mlflow_flywheel.monitors.policy import PolicySpec
    from mlflow_flywheel.plugin.event_clock import event_now

    return event_now(context.home.tables, model, PolicySpec.parse(context.records.policy(model)))

"""monitor, retrain, loop: what a person does about a deployed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlflow_flywheel.pipelines.errors import BadInput, ModelError
from mlflow_flywheel.plugin.context import Context

from .common import command, do_task, find_model, print_json, print_table, requested_by, time_of


@click.command()
@click.argument("name")
@click.option("--as-of", metavar="ISO", help="look as if it were this time  [default: now]")
@command
def monitor(context: Context, as_json: bool, name: str, as_of: str | None) -> None:
    """Run the monitors of a model (or of a deployment's model) now."""
    model = find_model(context, name)
    task = do_task(context, "monitor", model, _as_of(as_of), f"monitoring {model}")
    result = dict(task.result or {})
    if as_json:
        print_json(result)
        return
    verdicts = result.get("verdicts", [])
    print_table(
        f"{model} version {result.get('version')}, {result.get('rows', 0):,} rows",
        ["monitor", "verdict", "summary"],
        [(v["monitor"], v["status"], v["summary"]) for v in verdicts],
    )
    click.echo(f"action: {result.get('action')} ({result.get('reason')})")
    if result.get("run_id"):
        click.echo(f"MLflow run: {result['run_id']}")


@click.command()
@click.argument("name")
@click.option("--reason", default="asked for on the command line", help="why; it is recorded")
@click.option("--as-of", metavar="ISO", help="use what was known at this time  [default: now]")
@command
def retrain(context: Context, as_json: bool, name: str, reason: str, as_of: str | None) -> None:
    """Retrain a model now; the challenger is promoted only if the gate lets it pass."""
    model = find_model(context, name)
    payload = {"reason": reason, **_as_of(as_of)}
    task = do_task(context, "retrain", model, payload, f"retraining {model}")
    result = dict(task.result or {})
    if as_json:
        print_json(result)
    if result.get("status") == "failed":
        raise ModelError(str(result.get("reason")))
    if as_json:
        return
    rows = [(key, value) for key, value in result.items() if not isinstance(value, dict | list)]
    print_table(f"Retraining of {model}", ["", ""], rows)


@click.group()
def loop() -> None:
    """The policy of a model: what is watched, and what may be done about it."""


@loop.command("show")
@click.argument("model")
@click.option("--yaml", "as_yaml", is_flag=True, help="print a file for 'flywheel loop apply'")
@command
def loop_show(context: Context, as_json: bool, model: str, as_yaml: bool) -> None:
    """Show the policy in force."""
    model = find_model(context, model)
    if as_yaml:
        from mlflow_flywheel.monitors.policy import PolicySpec
        from mlflow_flywheel.plugin.policy_file import write_policy

        click.echo(write_policy(model, PolicySpec.parse(context.records.policy(model))), nl=False)
        return
    _show_policy(context, model, as_json)


@loop.command("apply")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="only show what would change")
@command
def loop_apply(context: Context, as_json: bool, file: Path, dry_run: bool) -> None:
    """Make the policy in FILE (YAML) the one in force, and show what that changes.

    FILE is the whole policy: a setting that it does not name gets its default. 'flywheel loop show MODEL --yaml' writes
    such a file.
    """
    from mlflow_flywheel.monitors.policy import PolicySpec
    from mlflow_flywheel.plugin.policy_changes import change_policy
    from mlflow_flywheel.plugin.policy_file import changes, read_policy_file

    given = read_policy_file(file)
    model = find_model(context, given.model)
    if dry_run:
        changed = changes(PolicySpec.parse(context.records.policy(model)), given.policy)
    else:
        changed = change_policy(context.home, context.records, model, given.policy, requested_by())
    if as_json:
        told = {name: {"before": before, "after": after} for name, (before, after) in changed.items()}
        print_json({"model": model, "changes": told, "applied": not dry_run})
        return
    if not changed:
        click.echo(f"the policy of {model} is as {file} says: nothing changes")
        return
    rows = [(name, _text(before), _text(after)) for name, (before, after) in changed.items()]
    print_table(f"Policy of {model}", ["setting", "before", "after"], rows)
    click.echo("nothing was changed: this was a dry run" if dry_run else "in force from the next look on")


@loop.command("set")
@click.argument("model")
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@command
def loop_set(context: Context, as_json: bool, model: str, settings: tuple[str, ...]) -> None:
    """Change settings of the policy; the others keep their values."""
    from mlflow_flywheel.monitors.policy import PolicySpec
    from mlflow_flywheel.plugin.policy_changes import change_policy

    model = find_model(context, model)
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise BadInput(f"setting {setting!r} has no value; write it as {key}=value")
        changes[key] = value
    policy = PolicySpec.parse(context.records.policy(model)).changed(changes)
    change_policy(context.home, context.records, model, policy, requested_by())
    _show_policy(context, model, as_json)


def _show_policy(context: Context, model: str, as_json: bool) -> None:
    from mlflow_flywheel.monitors.policy import PolicySpec

    policy = PolicySpec.parse(context.records.policy(model))
    values = policy.model_dump(mode="json")
    if as_json:
        print_json({"model": model, "policy": values})
        return
    rows = [(key, _text(value), PolicySpec.model_fields[key].description) for key, value in values.items()]
    print_table(f"Policy of {model}", ["setting", "value", "meaning"], rows)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _as_of(text: str | None) -> dict[str, str]:
    return {} if text is None else {"as_of": time_of("--as-of", text).isoformat()}

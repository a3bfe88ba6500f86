"""`flywheel`: the command line, with each command imported only when it is used."""

from __future__ import annotations

import importlib

import click

_PACKAGE = "mlflow_flywheel.plugin"
_COMMANDS = {
    "up": "commands.processes:up",
    "down": "commands.processes:down",
    "status": "commands.processes:status",
    "logs": "commands.processes:logs",
    "broker": "commands.brokers:broker",
    "feedback": "commands.feedback:feedback",
    "monitor": "commands.models:monitor",
    "retrain": "commands.models:retrain",
    "promote": "commands.releases:promote",
    "reject": "commands.releases:reject",
    "rollback": "commands.releases:rollback",
    "pause": "commands.releases:pause",
    "resume": "commands.releases:resume",
    "backtest": "commands.backtest:backtest",
    "reproduce": "commands.reproduce:reproduce",
    "batch": "commands.batches:batch",
    "loop": "commands.models:loop",
    "scale": "commands.streams:scale",
    "replay": "commands.streams:replay",
    "dlq": "commands.streams:dlq",
    "adjust": "commands.adjust:adjust",
    "cost": "commands.cost:cost",
    "doctor": "commands.doctor:doctor",
    "alerts": "commands.alerts:alerts",
    "webhook": "commands.webhooks:webhook",
    "demo": "demo.command:demo",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a day with them goes."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown one."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for one that does not exist."""
        from mlflow_flywheel.pipelines.errors import nearest

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"there is no command {args[0]!r}{nearest(args[0], _COMMANDS)}; known: {', '.join(_COMMANDS)}",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-flywheel")
def main() -> None:
    """The feedback loop for self-hosted MLflow.

    Deployments are made with 'mlflow deployments create -t flywheel ...'; this looks after them.
    """

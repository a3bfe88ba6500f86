"""A retraining that is somebody's own function: it is imported and called in the MLflow run of the environment.

Entry point of `MLproject`, a fresh process each time. The function gets, by name, what it takes of what is given; it
must take `training_set`, the path of a Parquet file, and log a model in the active run.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from .errors import BadInput, FlywheelError, NotFound, nearest


def find_function(function: str) -> Callable[..., Any]:
    """Import `module:function`; raises NotFound when there is none, BadInput when it cannot be called."""
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise NotFound(
            f"{function!r} cannot be imported: {error}; install it beside mlflow-flywheel, where the daemon runs"
        ) from error
    if found is None:
        raise NotFound(
            f"module {module!r} has no {name!r}{nearest(name, dir(importlib.import_module(module)))}"
        )
    if not callable(found):
        raise BadInput(f"{function!r} is a {type(found).__name__}, no function that could be called")
    return found  # type: ignore[no-any-return]


def taken_by(
    function: Callable[..., Any], given: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """Return the arguments for a function: of `given` those that it takes, and all of `own`, its user's parameters.

    Raises BadInput when it does not take `training_set`, or one of `own`.
    """
    parameters = inspect.signature(function).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in ("training_set", *own):
        if not everything and name not in parameters:
            raise BadInput(
                f"function {function.__name__!r} takes no parameter {name!r}{nearest(name, parameters)}; it takes: "
                f"{', '.join(parameters) or 'none'}"
            )
    return {name: value for name, value in given.items() if everything or name in parameters} | dict(own)


@click.command()
@click.option("--function", required=True, help="module:function")
@click.option(
    "--given", required=True, help="JSON: what every function may take, and the user's own parameters"
)
def main(function: str, given: str) -> None:
    """Call FUNCTION with what it takes, in the MLflow run of the environment."""
    import mlflow

    arguments = json.loads(given)
    try:
        found = find_function(function)
        taken = taken_by(found, arguments["given"], arguments["own"])
        with mlflow.start_run():
            found(**taken)
    except FlywheelError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    main()

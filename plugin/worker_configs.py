"""What the workers of deployments are told: the configurations that are in the home."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_flywheel.pipelines.config import C, load_config
from mlflow_flywheel.pipelines.errors import NotFound

from .context import Context
from .spec import Mode


def worker_configs(context: Context, mode: Mode, kind: type[C]) -> Iterator[tuple[str, C]]:
    """Yield the deployments of a mode whose files are in the home, also those that are stopped now."""
    for record in context.records.deployments(mode=mode):
        try:
            yield record.name, load_config(kind, context.home.config_file(record.name))
        except NotFound:
            continue  # being made or deleted right now

"""A back-fill of a stream deployment, as a process of its own: models are loaded in none of ours."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime
from typing import Any

from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import ModelError

from .context import Context
from .runners.base import process_environment, python_module

_MODULE = "mlflow_flywheel.pipelines.stream.backfill"


def backfill(context: Context, config: StreamConfig, start: datetime, end: datetime) -> dict[str, Any]:
    """Score again what was published from `start` to before `end`, and return the counts of what became of it.

    Raises ModelError with the job's own words when it fails.
    """
    command = python_module(
        _MODULE,
        *("--config", str(context.home.config_file(config.deployment))),
        *("--tables", context.home.tables),
        *("--start", start.isoformat()),
        *("--end", end.isoformat()),
    )
    environment = {**os.environ, **process_environment(context.home.tracking_uri, context.home.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ModelError(f"the replay of {config.deployment!r} failed: {said}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result

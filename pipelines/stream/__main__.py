"""`python -m mlflow_flywheel.pipelines.stream --config FILE`: the master process of a stream deployment.

It keeps one generation of workers consuming. On SIGHUP it prepares the next; the old workers finish their batch and
close their consumers before the new ones subscribe, so no two versions are on the subscription at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.generations import Generations
from mlflow_flywheel.pipelines.worker_process import Generation

from .settings import load_stream_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the master; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlflow_flywheel.pipelines.stream")
    parser.add_argument(
        "--config", type=Path, required=True, help="configuration file (StreamConfig as JSON)"
    )
    config_path = parser.parse_args(arguments).config
    try:
        config = load_stream_config(config_path)
        return Generations(
            config_path, load_stream_config, _command, handover="exclusive", url=config.broker
        ).run()
    except FlywheelError as error:
        print(error.message, file=sys.stderr)
        return 1


def _command(generation: Generation, worker: int) -> list[str]:
    module = "mlflow_flywheel.pipelines.stream.worker"
    return [sys.executable, "-m", module, "--config", str(generation.config_path), "--worker", str(worker)]


if __name__ == "__main__":
    sys.exit(main())

"""A master over scripted workers: `python scripted_master.py CONFIG overlap|exclusive DRAIN_SECONDS PREPARE_SECONDS`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from mlflow_flywheel.pipelines.config import WebConfig, load_config
from mlflow_flywheel.pipelines.generations import Generations
from mlflow_flywheel.pipelines.worker_process import Generation


def command(generation: Generation, index: int) -> list[str]:
    worker = Path(__file__).with_name("scripted_worker.py")
    return [sys.executable, str(worker), str(generation.config_path)]


master = Generations(
    Path(sys.argv[1]),
    read=partial(load_config, WebConfig),
    command=command,
    handover=sys.argv[2],  # type: ignore[arg-type]
    drain_seconds=float(sys.argv[3]),
    prepare_seconds=float(sys.argv[4]),
)
sys.exit(master.run())

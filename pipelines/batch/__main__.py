"""Run one batch job: `python -m mlflow_flywheel.pipelines.batch --config FILE` prints its result as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path

from mlflow_flywheel.pipelines.config import BatchConfig, load_config
from mlflow_flywheel.pipelines.errors import FlywheelError

from .job import run_batch
from .outcome import BatchProgress

_OBJECTS_BETWEEN_LOOKS = 100_000
"""Libraries are many objects that stay: after every 700, as by default, the garbage collector looks for nothing."""


def main() -> int:
    """Run the job; exit 1 with one line on stderr when it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m mlflow_flywheel.pipelines.batch", description=run_batch.__doc__
    )
    parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="JSON file of a BatchConfig"
    )
    arguments = parser.parse_args()
    gc.set_threshold(_OBJECTS_BETWEEN_LOOKS)
    try:
        result = run_batch(
            load_config(BatchConfig, arguments.config), progress=_Line() if sys.stderr.isatty() else None
        )
    except FlywheelError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    finally:
        gc.freeze()  # or Python looks through all of the model's libraries once more before it ends
    print(json.dumps(asdict(result), indent=2))
    return 0


class _Line:
    """Progress on one line of the terminal."""

    def __call__(self, progress: BatchProgress) -> None:
        rate = progress.rows / max(progress.seconds, 1e-9)
        end = "\n" if progress.files_done == progress.files else ""
        text = f"{progress.rows:,} rows, {progress.files_done}/{progress.files} files, {rate:,.0f} rows/s"
        print(f"\r\x1b[K{text}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Run one batch job again and again, each time killed after a random while, then let it finish.

`python -m support.killed_batch CONFIG SEED KILLS` forks each attempt from a process that has imported everything and
used nothing, so that an attempt costs no start-up. Prints how many attempts really died.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from mlflow_flywheel.pipelines.batch import delta_output, run_batch  # noqa: F401 (an attempt imports it otherwise)
from mlflow_flywheel.pipelines.config import BatchConfig, load_config

from .batches import sum_scorer


def main(path: Path, seed: int, kills: int) -> int:
    config = load_config(BatchConfig, path)
    rehearsal = {
        "state_dir": f"{config.state_dir}-0",
        "tables": f"{config.tables}-0",
        "output": f"{config.output}-0",
    }
    whole = attempt(config.model_copy(update=rehearsal), None)
    assert whole is not None, "the job fails even when nobody kills it"
    chance = random.Random(seed)
    died = sum(attempt(config, chance.uniform(0, whole * 0.45)) is None for _ in range(kills))
    print(died)
    return 0 if attempt(config, None) is not None else 1


def attempt(config: BatchConfig, kill_after: float | None) -> float | None:
    """Run the job in a child; return its seconds, or None when it did not end well."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run_batch(config, sum_scorer())
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    if kill_after is not None:
        threading.Event().wait(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return time.monotonic() - started if status == 0 else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))

"""What a command costs: its seconds, and its peak memory.

On Linux a process begins with the peak memory of the one that it was forked from, and a benchmark that has made its
data is larger than many a command. So a small process stands between, which measures what it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.run(sys.argv[2:]).returncode
seconds, usage = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
cost = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}
open(sys.argv[1], "w").write(json.dumps(cost))
sys.exit(status)
"""


@dataclass(frozen=True)
class Cost:
    """What a command and all that it started took; the peak is that of the largest process."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def run(command: Sequence[str]) -> tuple[str, Cost]:
    """Run a command; return what it printed, and its cost. Raises RuntimeError, with its words, when it fails.

    Commands of this Python's environment are found first.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.NamedTemporaryFile("r") as costs:
        done = subprocess.run(
            [sys.executable, "-c", _LAUNCHER, costs.name, *command],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
        return done.stdout, Cost(**json.load(costs))

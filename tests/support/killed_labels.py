"""Look into the label folders of a home, as the daemon does, and die by SIGKILL at a chosen point.

`python -m support.killed_labels HOME reading | committed`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.batch.state import Journal
from mlflow_flywheel.pipelines.commits import GrowingCommit
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.label_folders import FolderWatch


def dies(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(work: Callable[..., Any]) -> Callable[..., None]:
    return lambda *arguments: dies(work(*arguments))


def main(home: Path, point: str) -> None:
    if point == "reading":
        GrowingCommit.write = dies_after(GrowingCommit.write)  # type: ignore[method-assign]
    else:
        Journal.append = dies  # type: ignore[method-assign]
    watch = FolderWatch(Home(home))
    while True:
        watch.look()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

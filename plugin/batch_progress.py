"""A batch run as it goes: scored in the warm process, which writes how far it is and what it has to say.

Each run has a folder in the home until MLflow has its log.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_flywheel.pipelines.config import BatchConfig, ModelRef
from mlflow_flywheel.pipelines.errors import FlywheelError, ModelError
from mlflow_flywheel.pipelines.model import Scorer

from .home import Home

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.batch import BatchProgress

_log = logging.getLogger(__name__)
_TELL_SECONDS = 0.5


@dataclass(frozen=True)
class RunProgress:
    """How far a run is; seconds are those of all its starts, to within the last half second of one that was killed."""

    rows: int = 0
    files_done: int = 0
    files: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows_per_second: float = 0.0
    model_failed: bool = False
    """Whether it ended as the model raised."""


@dataclass(frozen=True)
class RunFolder:
    """Where one run writes while it works."""

    path: Path

    @classmethod
    def of(cls, home: Home, deployment: str, job_id: str) -> RunFolder:
        return cls(home.batch / deployment / "runs" / job_id)

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def _progress(self) -> Path:
        return self.path / "progress.json"

    def read(self) -> RunProgress | None:
        """Return how far the run is; None when nothing is known."""
        try:
            return RunProgress(**json.loads(self._progress.read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def save(self, progress: RunProgress) -> None:
        """Write how far the run is, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self._progress.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(progress)))
        temporary.replace(self._progress)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def score_batch(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Run a batch job; its model stays loaded for the next one."""
    from mlflow_flywheel.pipelines.batch import run_batch

    config = BatchConfig.model_validate(raw)
    return asdict(run_batch(config, _scorer(config.model)))


def score_run(raw: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Run the batch job of a deployment's run, and keep its progress and its log in the run's folder."""
    from mlflow_flywheel.pipelines.batch import run_batch

    config, place = BatchConfig.model_validate(raw), RunFolder(Path(folder))
    meter = _Meter(place)
    with _logging_to(place.log):
        try:
            result = run_batch(config, _scorer(config.model), meter)
        except FlywheelError as error:
            _log.error("%s", error.message)
            meter.model_failed = isinstance(error, ModelError)
            raise
        except Exception:
            _log.exception("the run failed")
            raise
        finally:
            meter.save()
        _log.info("%d rows answered in %.1f s", result.rows_out, meter.progress.seconds)
    spent = {"seconds": meter.progress.seconds, "cpu_seconds": meter.progress.cpu_seconds}
    return {**asdict(result), **spent}


class _Meter:
    """Writes progress down now and then, with the time and the CPU time of this start and of those before it."""

    def __init__(self, place: RunFolder) -> None:
        self._place = place
        self._before = place.read() or RunProgress()
        self._started, self._cpu = time.monotonic(), time.process_time()
        self._told = 0.0
        self.progress = self._before
        self.model_failed = False

    def __call__(self, now: BatchProgress) -> None:
        rate = now.rows / max(now.seconds, 1e-9)
        self.progress = RunProgress(now.rows, now.files_done, now.files, rows_per_second=rate)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.save()

    def save(self) -> None:
        self._told = time.monotonic()
        seconds = self._before.seconds + self._told - self._started
        cpu_seconds = self._before.cpu_seconds + time.process_time() - self._cpu
        told = {**asdict(self.progress), "seconds": seconds, "cpu_seconds": cpu_seconds}
        told["model_failed"] = self.model_failed
        self.progress = RunProgress(**told)
        self._place.save(self.progress)


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Write what is logged meanwhile to a file too; a run that goes on adds to what it wrote before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("mlflow_flywheel")
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


@lru_cache(maxsize=2)
def _scorer(ref: ModelRef) -> Scorer:
    from mlflow_flywheel.pipelines.model import load_scorer

    return load_scorer(ref)

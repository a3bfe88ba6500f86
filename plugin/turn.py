"""One turn of the loop for one model: what was looked at, what was said, and where both are remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.look import Look
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.pipelines.inference_table import InferenceTable

from .home import Home
from .records import Records

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Turn:
    """What was looked at, and what the monitors said of it."""

    home: Home
    records: Records
    client: MlflowClient
    table: InferenceTable
    look: Look
    verdicts: Sequence[Verdict]

    @property
    def model(self) -> str:
        return self.look.model

    @property
    def as_of(self) -> datetime:
        return self.look.as_of

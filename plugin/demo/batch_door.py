"""LaGuardia's door: files in a folder, scored by a run every night."""

from __future__ import annotations

from collections import deque
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_flywheel.pipelines.batch.inputs import find_inputs
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.labels import take_label_file
from mlflow_flywheel.plugin.context import Context

from .doors import ANSWER_SECONDS, COLUMNS, labels_of
from .model import MODEL_NAME

if TYPE_CHECKING:
    import pandas as pd

# A night's run may go on while the next day begins.
_NIGHTS_BEHIND = 2


class BatchDoor:
    """One Parquet file per day, scored by a run every night; labels come as a file too."""

    def __init__(self, name: str, context: Context, inbox: Path, landed: Path) -> None:
        self.name = name
        self.asked = self.labelled = 0
        self._answered = 0
        self._context = context
        self._inbox = inbox
        self._landed = landed
        self._nights: deque[int] = deque()
        landed.mkdir(parents=True, exist_ok=True)

    @property
    def answered(self) -> int:
        return self._answered

    def ask(self, day: date, flights: pd.DataFrame) -> None:
        unfinished = self._inbox / f".{day}.unfinished"
        flights[list(COLUMNS)].to_parquet(unfinished, index=False)
        unfinished.replace(self._inbox / f"{day}.parquet")
        self.asked += len(flights)
        self._nights.append(
            self._context.records.enqueue("batch_run", self.name, {}, "demo", f"demo:night:{day}")
        )
        while len(self._nights) > _NIGHTS_BEHIND:
            self._finish_night()

    def label(self, day: date, flights: pd.DataFrame) -> None:
        import pandas as pd

        file = self._landed / f"{day}.csv"
        pd.DataFrame(list(labels_of(flights))).to_csv(file, index=False)
        table = InferenceTable.open(self._context.home.tables, MODEL_NAME)
        (found,) = find_inputs(str(file))
        self.labelled += take_label_file(table, found, self._context.home.label_folder(MODEL_NAME)).accepted

    def settle(self) -> None:
        while self._nights:
            self._finish_night()
        if self.answered != self.asked:
            raise FlywheelError(f"{self.name} answered {self.answered} of {self.asked} flights")

    def _finish_night(self) -> None:
        done = self._context.wait_for_task(self._nights.popleft(), ANSWER_SECONDS)
        if done.status == "failed" or done.result is None:
            raise FlywheelError(f"the nightly run of {self.name} failed: {done.error}")
        self._answered += int(done.result["rows_out"])

    def close(self) -> None:
        pass  # nothing was opened

"""A training set's recipe, and the folder that holds what was made by it.

Apart from how it is built, because a retraining process reads it and should not have to load a table engine.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from .config import ClassBalance, Frozen, RowsKept
from .errors import BadInput, NotFound
from .own_code import ProjectSpec
from .training_files import EVENT_TIME, LABEL, read_rows

TRAIN_FILE = "train.parquet"
HOLDOUT_FILE = "holdout.parquet"
LINEAGE_FILE = "lineage.json"


class TrainingSetSpec(Frozen):
    """Everything that decides which rows are in a training set and what they count; times are UTC."""

    model: str = Field(description="registered model name")
    parent_version: str = Field(description="version in force, whose estimator is refitted")
    start: datetime = Field(description="first event time of the training window")
    as_of: datetime = Field(description="end of the window; labels count when they were true before it")
    known_at: datetime = Field(description="labels count when they were received before it")
    max_rows: int = Field(1_000_000, ge=1, description="most rows to train on")
    rows_kept: RowsKept = Field("newest", description="which ones, when there are more")
    half_life: timedelta | None = Field(None, description="a row so much older than the newest counts half")
    class_balance: ClassBalance = "none"
    class_ratio: float = Field(1.0, ge=1, description="most rows of a class for each row of the rarest")
    windows: dict[str, timedelta | None] = Field(
        default_factory=dict, description="windows to choose from by name; None: all of the rows"
    )
    holdout_share: float = Field(0.2, gt=0, lt=1)
    holdout_rows: int = Field(20_000, ge=1, description="most rows held out")
    holdout_not_before: datetime | None = Field(
        None, description="hold nothing out that the parent was trained on: its own hold-out's start"
    )
    seed: int = 0
    base: str | None = Field(None, description="URI of the reference sample that training starts from")
    table_versions: dict[str, int] | None = Field(None, description="Delta versions that were read")


class Lineage(TrainingSetSpec):
    """A training set's recipe and result: enough to build it again and to prove that it is the same."""

    holdout_start: datetime
    features: tuple[str, ...]
    base_rows: int
    train_rows: int
    holdout_rows_found: int
    train_hash: str
    holdout_hash: str
    project: ProjectSpec | None = Field(None, description="who trains; None: our own project")
    chosen_window: str | None = Field(None, description="which of the windows the model was fitted to")
    environment: dict[str, str] = Field(default_factory=dict, description="versions of what trained")

    @classmethod
    def load(cls, path: Path) -> Lineage:
        """Read `lineage.json`; raises NotFound or BadInput."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"lineage file {str(path)!r} does not exist") from None
        except ValueError as error:
            raise BadInput(f"lineage file {str(path)!r} is not valid: {error}") from None

    def spec(self) -> TrainingSetSpec:
        """Return the recipe alone."""
        return TrainingSetSpec.model_validate(
            {name: getattr(self, name) for name in TrainingSetSpec.model_fields}
        )


class TrainingSet:
    """A built training set: a folder with `train.parquet`, `holdout.parquet` and `lineage.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lineage = Lineage.load(folder / LINEAGE_FILE)

    def train(self) -> pa.Table:
        """Return features by name, `label`, event time and prediction id, oldest first."""
        return read_rows(self.folder / TRAIN_FILE, needs=(LABEL,))

    def holdout(self) -> pa.Table:
        """Return the held-out rows, in the columns of the training rows."""
        return read_rows(self.folder / HOLDOUT_FILE, needs=(LABEL, EVENT_TIME))

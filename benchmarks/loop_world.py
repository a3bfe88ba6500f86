"""The loop's carriers in memory: what was answered, which versions there are, which one is in force.

In the product these are Delta tables, MLflow's registry and SQL. Nothing here judges: what is looked at, decided, held
out, asked at the gate and on probation is the product's own code, called by the strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loop_streams import Batch, Floats, Stream

from mlflow_flywheel.monitors.look import Look
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.monitors.windows import Window, last_window
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.lineage import TrainingSetSpec
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.reference_file import make_reference
from mlflow_flywheel.pipelines.schema import TIMESTAMP, FeatureSchema
from mlflow_flywheel.pipelines.scores import PROBABILITY_FLOOR, Scores, kind_of, score
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL, PREDICTION, PREDICTION_PROBA
from mlflow_flywheel.pipelines.training_rows import since
from mlflow_flywheel.pipelines.training_set import split_by_time
from mlflow_flywheel.pipelines.window_search import choose_window

MODEL = "simulated"
# A promotion is harmful when the true mean log loss rises by more than this.
HARM = 0.005


@dataclass(frozen=True)
class Version:
    """A version: its model, what it is compared with, and where it comes from.

    `served` is what answers once it is in force: the same, unless something goes wrong between the gate and there.
    """

    number: str
    scorer: Scorer
    served: Scorer
    reference: Reference
    as_of: datetime | None = None
    holdout_start: datetime | None = None


@dataclass(frozen=True)
class Move:
    """Another version came into force at the end of a window; `harm` is by how much the true loss rose."""

    window: int
    as_of: datetime
    kind: str
    before: str
    after: str
    harm: float


@dataclass
class World:
    """One stream, answered by one strategy."""

    stream: Stream
    policy: PolicySpec
    versions: dict[str, Version] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    retrained: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    said: list[Floats] = field(default_factory=list)
    window: int = -1
    _answered: list[tuple[str, Window, pa.Table]] = field(default_factory=list)

    def __post_init__(self) -> None:
        scorer = scorer_of(self.stream.first, self.stream.schema, "1")
        reference = make_reference(scorer, dated(self.stream.reference))
        self.versions["1"] = Version("1", scorer, scorer, Reference(reference))
        self.champion = "1"

    @property
    def as_of(self) -> datetime:
        return self.stream.ends[self.window]

    @property
    def in_force(self) -> Version:
        return self.versions[self.champion]

    def next_window(self) -> None:
        """Let the version in force answer the next window."""
        self.window += 1
        batch, names = self.stream.batches[self.window], self.stream.schema.names
        said = self.in_force.served.predict(self.stream.schema.from_table(batch.rows))
        assert said.proba is not None
        late = said.proba.flatten().to_numpy().reshape(-1, 2)[:, 1]
        self.said.append(late)
        self.losses.append(float(expected_loss(late, batch.chance).mean()))
        rows = batch.rows.rename_columns(
            [FEATURE_PREFIX + n if n in names else n for n in batch.rows.column_names]
        )
        n = rows.num_rows
        for name, value in {"model_version": self.champion, "deployment": "service"}.items():
            rows = rows.append_column(name, pa.repeat(value, n))
        rows = rows.append_column(PREDICTION, said.values).append_column(PREDICTION_PROBA, said.proba)
        start = self.stream.ends[self.window - 1] if self.window else rows["event_time"][0].as_py()
        self._answered.append((self.champion, Window(start, self.as_of), rows))

    def read(
        self,
        window: Window,
        *,
        deployment: str | None = None,
        requests: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        version: str | None = None,
    ) -> pa.Table:
        """Read what champions answered; see `monitors.look.Reader`. Labels count when they were true by now."""
        parts = [
            rows
            for by, span, rows in self._answered
            if span.end > window.start and span.start < window.end and version in (None, by)
        ]
        rows = pa.concat_tables(parts or [self._answered[-1][2].slice(0, 0)])
        start, end = (pa.scalar(moment, TIMESTAMP) for moment in (window.start, window.end))
        rows = rows.filter(
            pc.and_(pc.greater_equal(rows["event_time"], start), pc.less(rows["event_time"], end))
        )
        known = pc.fill_null(pc.less(rows["label_time"], pa.scalar(self.as_of, TIMESTAMP)), False)
        for name in (LABEL, "label_time"):
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(
                place, name, pc.if_else(known, rows[name], pa.scalar(None, rows[name].type))
            )
        return rows if columns is None else rows.select(list(columns))

    def look(self) -> Look:
        """Look at the window that ends now."""
        window = last_window(self.as_of, self.policy.window)
        return Look(
            model=MODEL,
            version=self.champion,
            window=window,
            rows=self.read(window, version=self.champion),
            reference=self.in_force.reference,
            policy=self.policy,
            read=self.read,
            load=lambda: self.in_force.served,
        )

    def labelled(self) -> pa.Table:
        """Return the labelled rows of the training window, and the reference's, as a training set has them."""
        rows = self._history
        start, now = (
            pa.scalar(moment, TIMESTAMP) for moment in (self.as_of - self.policy.training_window, self.as_of)
        )
        inside = pc.and_(pc.greater_equal(rows[EVENT_TIME], start), pc.less(rows[EVENT_TIME], now))
        rows = rows.filter(pc.and_(inside, pc.less(rows["label_time"], now)))
        return rows.slice(max(0, rows.num_rows - self.policy.max_rows))

    def label_times(self) -> pa.ChunkedArray:
        """Return when the labels of the training window's logged rows were true."""
        rows = self.labelled()
        return rows.filter(self._logged(rows))["label_time"]

    def training_set(self) -> tuple[pa.Table, pa.Table]:
        """Return training rows and the frozen hold-out: the split of the product, with the reference before it."""
        rows = self.labelled()
        logged = self._logged(rows)
        policy = self.policy
        spec = TrainingSetSpec(
            model=MODEL,
            parent_version=self.champion,
            start=self.as_of - policy.training_window,
            as_of=self.as_of,
            known_at=self.as_of,
            max_rows=policy.max_rows,
            holdout_share=policy.holdout_share,
            holdout_rows=policy.holdout_rows,
            holdout_not_before=self.in_force.holdout_start,
        )
        train, holdout = split_by_time(rows.filter(logged), spec)
        return pa.concat_tables([rows.filter(pc.invert(logged)), train]), holdout

    def fit(self, rows: pa.Table, until: datetime | None = None) -> tuple[Any, Any]:
        """Retrain on these rows; return the model and what will be served of it.

        With a moment `until` which they reach, the policy's windows are tried in the order of time, as in
        `pipelines.retrain`.
        """
        windows = {window.name: window.length for window in self.policy.training_windows}
        if until is not None and windows:
            choice = choose_window(rows, windows, until, self._attempt)
            rows = since(rows, windows[choice.name], until)
        made = self._fitted(rows)
        self.retrained.append(self.window)
        return made

    def _fitted(self, rows: pa.Table) -> tuple[Any, Any]:
        data = self.stream.schema.to_frame(self.stream.schema.from_table(rows))
        return self.stream.fit(data, rows[LABEL].to_numpy(), len(self.retrained))

    def _attempt(self, rows: pa.Table, later: pa.Table) -> Scores:
        scorer = scorer_of(self._fitted(rows)[0], self.stream.schema, "")
        said = scorer.predict(self.stream.schema.from_table(later))
        return score(said, scorer.classes, later[LABEL].combine_chunks(), kind_of(scorer))

    def add(
        self, model: Any, served: Any, sample: pa.Table, holdout_start: datetime | None = None
    ) -> Version:
        """Register a version; `sample` are the labelled rows that it is compared with from now on."""
        number = str(len(self.versions) + 1)
        scorer = scorer_of(model, self.stream.schema, number)
        answers = scorer if served is model else scorer_of(served, self.stream.schema, number)
        reference = Reference(make_reference(scorer, sample))
        made = Version(number, scorer, answers, reference, self.as_of, holdout_start)
        self.versions[number] = made
        return made

    def move(self, kind: str, after: str) -> None:
        """Put another version in force, and find out what that does in truth."""
        fresh = self.stream.fresh(self.window)
        before, now = (
            self.stream.chances([self.versions[v].served.raw_model], fresh.rows)[0]
            for v in (self.champion, after)
        )
        harm = float((expected_loss(now, fresh.chance) - expected_loss(before, fresh.chance)).mean())
        self.moves.append(Move(self.window, self.as_of, kind, self.champion, after, harm))
        self.champion = after

    def _logged(self, rows: pa.Table) -> pa.ChunkedArray:
        """Tell the rows that were answered here from those of the reference, which are older."""
        first = self.stream.batches[0].rows["event_time"][0]
        return pc.greater_equal(rows[EVENT_TIME], first)

    @cached_property
    def _history(self) -> pa.Table:
        """Every row that will ever be there, with its label: what is read of it counts by time."""
        batches = (Batch(self.stream.reference, np.empty(0)), *self.stream.batches)
        return dated(pa.concat_tables([batch.rows for batch in batches]))


def dated(rows: pa.Table) -> pa.Table:
    """Return rows as training files have them."""
    rows = rows.filter(pc.is_valid(rows[LABEL]))
    return rows.rename_columns([EVENT_TIME if name == "event_time" else name for name in rows.column_names])


def expected_loss(said: Floats, chance: Floats) -> Floats:
    """Return each row's log loss as it is on average over the labels that the row may get."""
    said = np.clip(said, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -(chance * np.log(said) + (1 - chance) * np.log1p(-said))


def scorer_of(model: Any, schema: FeatureSchema, number: str) -> Scorer:
    """Return a scorer around a fitted classifier, without a file behind it."""

    def call(frame: Any, params: object) -> tuple[Any, Any]:
        proba = model.predict_proba(frame)
        return model.classes_[proba.argmax(axis=1)], proba

    classes = tuple(f"{name:g}" for name in model.classes_)
    return Scorer(ModelRef(name=MODEL, version=number, path=""), schema, call, classes, None, "double", model)

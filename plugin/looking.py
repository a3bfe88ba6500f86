"""What the monitors of a model look at, gathered from the home: rows, reference, deployments, the version itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from mlflow_flywheel.monitors.look import Deployed, Look, Runs
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reference import load_reference
from mlflow_flywheel.monitors.schedule import longest_gap
from mlflow_flywheel.monitors.windows import Window, last_window
from mlflow_flywheel.pipelines.config import ModelRef
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.model import Scorer, load_scorer
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model

from .batch_jobs import BatchRequest
from .champion import CHAMPION
from .home import Home
from .kept_out import kept_out, without
from .record_types import DeploymentRecord, Task
from .records import Records
from .spec import BatchSpec
from .spec_reading import parse_spec

if TYPE_CHECKING:
    from mlflow_flywheel.pipelines.batch.waiting import InputState


def look_at(
    home: Home,
    records: Records,
    table: InferenceTable,
    champion: ResolvedModel,
    policy: PolicySpec,
    as_of: datetime,
) -> Look:
    """Return a look at the window that ends at `as_of`; only its rows and the reference are read now."""
    window = last_window(as_of, policy.window)
    left_out = kept_out(records, champion.name)
    rows, reference = without(
        table.read(
            start=window.start,
            end=window.end,
            version=champion.version,
            variant=CHAMPION,
            known_before=window.end,
        ),
        load_reference(champion.name, champion.version, home.tracking_uri),
        left_out,
    )
    return Look(
        model=champion.name,
        version=champion.version,
        window=window,
        rows=rows,
        reference=reference,
        policy=policy,
        read=partial(_read, table, left_out, as_of),
        load=partial(_load, home, champion),
        deployments=tuple(_deployed(home, records, champion.name, as_of)),
    )


def _read(
    table: InferenceTable,
    left_out: dict[str, str],
    known_before: datetime,
    window: Window,
    *,
    deployment: str | None = None,
    requests: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    rows = table.read(
        start=window.start,
        end=window.end,
        deployment=deployment,
        variant=CHAMPION,
        requests=requests,
        columns=columns,
        known_before=known_before,
        **({} if columns is None else {"order_by": None}),
    )
    return without(rows, None, left_out)[0]


def _load(home: Home, champion: ResolvedModel) -> Scorer:
    return _scorer(download_model(champion, home.models, home.tracking_uri))


@lru_cache(maxsize=1)
def _scorer(ref: ModelRef) -> Scorer:
    """Load a version once per process: the loop's child looks at the same one hour after hour."""
    return load_scorer(ref)


def _deployed(home: Home, records: Records, model: str, as_of: datetime) -> Iterator[Deployed]:
    for record in records.deployments(model_name=model):
        spec = parse_spec(record.config)
        if spec.variant != CHAMPION or spec.log == "none":
            continue
        every, inputs, runs = None, None, None
        if isinstance(spec, BatchSpec):
            if spec.schedule is not None:
                every = longest_gap(spec.schedule, spec.timezone, record.created)
            if spec.input is not None:
                inputs = partial(_input_state, spec, spec.input, home.batch_state(record.name))
            runs = runs_of(records, record, as_of)
        yield Deployed(record.name, record.mode, record.created, every, inputs, runs)


def _input_state(spec: BatchSpec, source: str, state_dir: Path, as_of: datetime) -> InputState:
    from mlflow_flywheel.pipelines.batch.waiting import input_state

    return input_state(source, state_dir, as_of, spec.watermark, is_query=spec.query is not None)


def runs_of(records: Records, record: DeploymentRecord, as_of: datetime) -> Runs:
    """Return how the newest runs over a deployment's own input ended, of those that had by a moment."""

    def newest(status: Literal["done", "failed"]) -> Task | None:
        own = BatchRequest().payload()
        for task in records.tasks(kind="batch_run", subject=record.name, status=status):
            ended = task.finished is not None and task.finished <= as_of
            if ended and task.payload == own and task.created >= record.created:
                return task
        return None

    done, failed = newest("done"), newest("failed")
    is_failed = failed is not None and (done is None or failed.id > done.id)
    return Runs(None if done is None else done.finished, failed.error if failed and is_failed else None)

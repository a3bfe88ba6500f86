"""From model URIs to a back-test in MLflow: which versions, when they were trained, what was logged, and the run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_flywheel.monitors.backtest import Backtest, BacktestSpec, backtest, cut
from mlflow_flywheel.monitors.backtest_run import BACKTEST_ARTIFACT, log_backtest
from mlflow_flywheel.monitors.reporting import run_link
from mlflow_flywheel.pipelines.backtest import Candidate
from mlflow_flywheel.pipelines.errors import BadInput, FlywheelError, NotFound
from mlflow_flywheel.pipelines.inference_table import InferenceTable
from mlflow_flywheel.pipelines.lineage import Lineage
from mlflow_flywheel.pipelines.model import load_scorer
from mlflow_flywheel.pipelines.registry import ResolvedModel, download_model, model_signature, resolve_model
from mlflow_flywheel.pipelines.schema import FeatureSchema
from mlflow_flywheel.pipelines.times import parse_time
from mlflow_flywheel.pipelines.training_window import (
    TRAINING_END_TAG,
    TRAINING_START_TAG,
    TrainingWindow,
)

from .context import Context
from .retraining import LINEAGE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class BacktestRequest:
    """What is asked for; a start or end that is not given is that of the logged rows."""

    uri: str
    against: str | None
    start: datetime | None
    end: datetime | None
    every: timedelta
    min_rows: int


@dataclass(frozen=True)
class BacktestRun:
    """A back-test and where it is in MLflow."""

    result: Backtest
    experiment: str
    run_id: str

    def link(self, tracking_uri: str) -> str:
        """Return the run's address in MLflow's pages, or its id where there are no pages."""
        if not tracking_uri.startswith(("http://", "https://")):
            return f"MLflow run {self.run_id}, artifact {BACKTEST_ARTIFACT}"
        return f"{tracking_uri.rstrip('/')}/{run_link(self.experiment, self.run_id, report=False)}"


def run_backtest(
    context: Context,
    request: BacktestRequest,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> BacktestRun:
    """Back-test one registered version, alone or against another of the same model, and log it.

    The run holds the result. Raises NotFound for versions that do not exist, BadInput for versions of two models, a
    version against itself, a model without logged rows, or a span without rows or labels.
    """
    from mlflow import MlflowClient

    resolved = [resolve_model(uri, context.tracking_uri) for uri in (request.uri, request.against) if uri]
    for one in resolved:
        if not one.version:
            raise BadInput(
                f"{one.uri!r} is no registered version; register it, then back-test models:/NAME/VERSION"
            )
    if len({one.name for one in resolved}) > 1:
        raise BadInput(
            f"--against {request.against!r} is a version of model {resolved[1].name!r}, but {request.uri!r} is one of "
            f"{resolved[0].name!r}: only versions of one model have answered the same events"
        )
    if len({one.version for one in resolved}) < len(resolved):
        raise BadInput(
            f"--against {request.against!r} is version {resolved[0].version} too, the very one that is tested, and would "
            "differ in nothing; name another version, or leave --against out"
        )
    client = MlflowClient(context.tracking_uri)
    table = InferenceTable.open(context.home.tables, resolved[0].name)
    spec = _spec(table, request)
    table = table.pinned()
    versions = table.versions()
    candidates = [
        Candidate(
            one.version,
            load_scorer(download_model(one, context.home.models, context.tracking_uri)),
            training_window(client, one),
        )
        for one in resolved
    ]
    result = backtest(table, candidates, spec, _logged_features(context, table.model_name), progress)
    ids = tuple(one.model_id for one in resolved)
    experiment, run_id = log_backtest(client, result, model_ids=ids, table_versions=versions)
    return BacktestRun(result, experiment, run_id)


def training_window(client: MlflowClient, version: ResolvedModel) -> TrainingWindow:
    """Find when the rows happened that a version was trained on.

    A retraining wrote its lineage; for others the version's tags `flywheel.training_start` and `flywheel.training_end`
    say it. Raises BadInput for tags that hold no times.
    """
    tags = client.get_model_version(version.name, version.version).tags
    if tags.get(TRAINING_END_TAG):
        start, end = (_tagged(version, tags, tag) for tag in (TRAINING_START_TAG, TRAINING_END_TAG))
        return TrainingWindow(f"tags of version {version.version}", start, end)
    if tags.get(LINEAGE_TAG):
        try:
            return TrainingWindow.of_lineage(_lineage(client, tags[LINEAGE_TAG]))
        except FlywheelError as error:
            return TrainingWindow(f"its lineage {tags[LINEAGE_TAG]!r} cannot be read ({error.message})")
    return TrainingWindow(
        f"it was registered without a training window (give register() one, or set the tags {TRAINING_START_TAG} and "
        f"{TRAINING_END_TAG} of the version to ISO 8601 times, to have it checked)"
    )


def _tagged(version: ResolvedModel, tags: dict[str, str], tag: str) -> datetime | None:
    if not tags.get(tag):
        return None
    try:
        return parse_time(tags[tag])
    except ValueError:
        raise BadInput(
            f"tag {tag!r} of {version.versioned_uri} is {tags[tag]!r}, which is no time; set it to ISO 8601, such as "
            "2013-02-01T00:00:00Z"
        ) from None


def _lineage(client: MlflowClient, uri: str) -> Lineage:
    import mlflow

    with tempfile.TemporaryDirectory(prefix="flywheel-lineage-") as folder:
        try:
            found = mlflow.artifacts.download_artifacts(
                uri, dst_path=folder, tracking_uri=client.tracking_uri
            )
        except (mlflow.exceptions.MlflowException, OSError) as error:
            raise NotFound(str(error)) from error
        return Lineage.load(Path(found))


def _spec(table: InferenceTable, request: BacktestRequest) -> BacktestSpec:
    if not table.exists:
        raise BadInput(
            f"model {table.model_name!r} has no inference table in this home, so there is nothing to test on; deploy it "
            "with 'mlflow deployments create -t flywheel' first"
        )
    span = table.span()
    if span is None:
        raise BadInput(f"model {table.model_name!r} has no logged rows yet; ask one of its deployments first")
    start = request.start or span[0].replace(hour=0, minute=0, second=0, microsecond=0)
    end = request.end or span[1] + timedelta(microseconds=1)
    spec = BacktestSpec(start, end, request.every, request.min_rows)
    cut(spec)  # before any model is downloaded
    return spec


def _logged_features(context: Context, model: str) -> Callable[[str], frozenset[str] | None]:
    """Return what tells the features that a version takes, None where its signature cannot be read any more."""

    @cache
    def logged(version: str) -> frozenset[str] | None:
        try:
            found = resolve_model(f"models:/{model}/{version}", context.tracking_uri)
            return frozenset(FeatureSchema.from_signature(model_signature(found, context.tracking_uri)).names)
        except FlywheelError:
            return None  # deleted, or without files: the rows themselves must tell

    return logged

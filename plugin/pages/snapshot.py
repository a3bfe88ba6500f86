"""What the page shows, as plain values: read from the records, the inference tables and MLflow's own stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from mlflow.server import handlers

from mlflow_flywheel.monitors.all import NAMES
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import run_link
from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable, TableCounts
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.record_types import ActionRecord, DeploymentRecord, Pause, Task, VerdictRecord
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner
from mlflow_flywheel.plugin.views import deployment_view

_ACTIONS, _REPORTS = 60, 6
_COUNT_AT_MOST_EVERY = 5.0
# The monitors that are drawn over time, and as how many points; of the others the newest turn is shown.
_DRAWN, _POINTS, _NEWEST = ("drift", "performance"), 500, 50


@dataclass(frozen=True)
class DeploymentLine:
    """One deployment as it is right now; `status` is what its processes do, not what was asked for."""

    name: str
    mode: str
    status: str
    version: str
    message: str
    url: str | None
    where: str
    run_id: str | None
    predictions: int

    @classmethod
    def of(cls, context: Context, record: DeploymentRecord, predictions: int) -> DeploymentLine:
        """Look a deployment up, with its processes."""
        view = deployment_view(context, record, predictions)
        if record.mode == "stream":
            where = f"{view['input_topic']} → {view['output_topic']}"
        elif record.mode == "batch":
            where = f"{view['input'] or 'on demand'}{', ' + view['schedule'] if view['schedule'] else ''}"
        else:
            where = (record.url or "").partition("://")[2]
        url = record.url if record.mode == "web" else None
        return cls(
            record.name,
            record.mode,
            view["status"],
            record.version,
            record.message,
            url,
            where,
            record.run_id,
            predictions,
        )

    @property
    def serves(self) -> bool:
        return self.status not in ("failed", "failing", "stopped")


@dataclass(frozen=True)
class ModelView:
    """One registered model: everything that its panel shows."""

    name: str
    deployments: Sequence[DeploymentLine]
    counts: TableCounts | None
    verdicts: Sequence[VerdictRecord]
    actions: Sequence[ActionRecord]
    policy: PolicySpec | None
    policy_settings: Mapping[str, Any]
    policy_error: str | None
    retraining: Task | None
    experiment_id: str | None
    paused: Pause | None = None
    moves: Sequence[ActionRecord] = ()

    @property
    def versions(self) -> list[str]:
        """Return the versions in force, newest first: more than one while a roll-over is under way."""
        found = {deployment.version for deployment in self.deployments if deployment.version}
        return sorted(found, key=lambda version: (len(version), version), reverse=True)

    def newest(self, monitor: str) -> VerdictRecord | None:
        """Return the newest verdict of a monitor."""
        return next((verdict for verdict in self.verdicts if verdict.monitor == monitor), None)

    @property
    def current(self) -> list[VerdictRecord]:
        """Return the newest verdict of each monitor; without those that were switched off or had nothing to say."""
        watching = NAMES if self.policy is None else self.policy.watched_by
        found = [verdict for verdict in map(self.newest, watching) if verdict is not None]
        newest = max((verdict.window_end for verdict in found), default=None)
        return [verdict for verdict in found if verdict.monitor in _DRAWN or verdict.window_end == newest]

    def in_force(self, verdict: VerdictRecord) -> bool:
        """Tell whether the verdict is about a version that serves now, not about one that was replaced since."""
        version = verdict.summary.get("version")
        return not version or not self.versions or str(version) in self.versions

    @property
    def waiting(self) -> ActionRecord | None:
        """Return the newest retraining when its challenger waits for a person."""
        newest = next((action for action in self.actions if action.kind == "retrain"), None)
        if newest is None or newest.status != "waiting":
            return None
        # who sets the alias in MLflow's own interface has approved it too
        return None if (newest.result or {}).get("version") in self.versions else newest

    @property
    def champion(self) -> str | None:
        """Return the champion by our own account; None when no promotion is recorded."""
        return str(self.moves[0].evidence["after"]) if self.moves else None

    @property
    def before(self) -> str | None:
        """Return the version to which one would roll back; None when nobody knows."""
        for move in self.moves:
            if move.kind == "promote" and move.evidence["after"] == self.champion:
                return str(move.evidence["before"])
        return None

    @property
    def reports(self) -> list[VerdictRecord]:
        """Return the newest drift verdicts that have a report."""
        return [v for v in self.verdicts if has_report(v)][:_REPORTS]

    def run_url(self, run_id: str | None, report: bool = False) -> str | None:
        """Return where MLflow shows a run, or its drift report."""
        if run_id is None or self.experiment_id is None:
            return None
        return handlers._add_static_prefix("/") + run_link(self.experiment_id, run_id, report)

    def version_url(self, version: str) -> str:
        return mlflow_url(f"models/{quote(self.name)}/versions/{quote(version)}")


@dataclass(frozen=True)
class Snapshot:
    """One look at a home."""

    home: str
    exists: bool
    taken: datetime
    models: Sequence[ModelView] = ()
    failures: Sequence[Task] = field(default_factory=list)

    @property
    def deployments(self) -> list[DeploymentLine]:
        return [deployment for model in self.models for deployment in model.deployments]


class Source:
    """Reads snapshots of the home that this server process was started for; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Records] = {}
        self._counts: dict[tuple[str, str], _Counted] = {}

    @property
    def home(self) -> Home:
        return Home.default()

    def records(self, home: Home) -> Records:
        """Return the home's records, on connections that are kept."""
        with self._lock:
            url = home.database_url
            if url not in self._records:
                self._records[url] = Records(url)
            return self._records[url]

    def snapshot(self) -> Snapshot:
        """Read everything; a home that nobody made yet is shown as such, and stays unmade."""
        home, now = self.home, datetime.now(timezone.utc)
        if not home.path.is_dir():
            return Snapshot(str(home.path), False, now)
        records = self.records(home)
        deployments, policies = records.deployments(), records.policies()
        names = sorted({*(deployment.model_name for deployment in deployments), *policies})
        views = [
            self._model(
                home, records, name, [d for d in deployments if d.model_name == name], policies.get(name, {})
            )
            for name in names
        ]
        failures = [task for task in records.tasks(status="failed", limit=5) if (now - task.created).days < 1]
        return Snapshot(str(home.path), True, now, views, failures)

    def _model(
        self,
        home: Home,
        records: Records,
        name: str,
        deployments: list[DeploymentRecord],
        settings: Mapping[str, Any],
    ) -> ModelView:
        policy, error = _policy(settings)
        tasks = records.tasks(kind="retrain", subject=name, limit=1)
        counts = self._count(home, name)
        predictions = counts.by_deployment if counts is not None else {}
        context = Context(home, records, SupervisorRunner(home))
        return ModelView(
            name=name,
            deployments=[DeploymentLine.of(context, d, predictions.get(d.name, 0)) for d in deployments],
            counts=counts,
            verdicts=_verdicts(records, name),
            actions=records.actions(name, limit=_ACTIONS),
            policy=policy,
            policy_settings=settings,
            policy_error=error,
            retraining=tasks[0] if tasks and tasks[0].status in ("queued", "running") else None,
            experiment_id=_experiment_id(name),
            paused=records.paused(name),
            moves=records.moves(name),
        )

    def _count(self, home: Home, model: str) -> TableCounts | None:
        """Count the table's rows, seldom enough that counting a large one takes a small share of the time."""
        key = (home.tables, model)
        with self._lock:
            known = self._counts.get(key)
        if known is not None and time.monotonic() < known.until:
            return known.counts
        started = time.monotonic()
        table = InferenceTable.open(home.tables, model)
        try:
            counts = table.counts() if table.exists else None
        except FlywheelError:
            counts = known.counts if known is not None else None  # being made or cleaned just now
        took = time.monotonic() - started
        with self._lock:
            self._counts[key] = _Counted(counts, time.monotonic() + max(_COUNT_AT_MOST_EVERY, 20 * took))
        return counts


@dataclass(frozen=True)
class _Counted:
    counts: TableCounts | None
    until: float


def _verdicts(records: Records, model: str) -> list[VerdictRecord]:
    """Return the newest verdicts first: of the monitors that are drawn, and of all in the last turns."""
    drawn = [v for name in _DRAWN for v in records.verdicts(model, _POINTS, monitor=name)]
    found = {verdict.id: verdict for verdict in (*drawn, *records.verdicts(model, _NEWEST))}
    return [found[number] for number in sorted(found, reverse=True)]


def has_report(verdict: VerdictRecord) -> bool:
    """Tell whether the verdict's run has a drift report; a policy may ask for one only now and then."""
    return verdict.monitor == "drift" and verdict.run_id is not None and bool(verdict.summary.get("report"))


def mlflow_url(path: str) -> str:
    """Return where MLflow's own interface shows something."""
    return handlers._add_static_prefix("/#/") + path


def _policy(settings: Mapping[str, Any]) -> tuple[PolicySpec | None, str | None]:
    try:
        return PolicySpec.parse(settings), None
    except FlywheelError as error:
        return None, error.message


def _experiment_id(model: str) -> str | None:
    store: Any = handlers._get_tracking_store()
    found = store.get_experiment_by_name(f"flywheel/{model}")
    return str(found.experiment_id) if found is not None else None

"""What the page shows, as plain values: models with their deployments, verdicts and actions, and windows of event time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from mlflow.server import handlers

from mlflow_flywheel.monitors.all import NAMES
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.reporting import OVERVIEW_ARTIFACT, artifact_link, charts_link, run_link
from mlflow_flywheel.pipelines.inference_table import TableCounts
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.cost import CostReport, SharedCost
from mlflow_flywheel.plugin.cost_view import CostView
from mlflow_flywheel.plugin.record_types import ActionRecord, DeploymentRecord, Pause, Task, VerdictRecord
from mlflow_flywheel.plugin.views import deployment_view

# The monitors that are drawn over time; of the others the newest turn is shown.
DRAWN = ("drift", "performance")
_SHOWN_WINDOWS = 6
_SEVERITY = ("alarm", "warn", "ok")


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
class Costs:
    """What the deployments of a model cost of late, and step by step; or why that cannot be said."""

    view: CostView | None
    over_time: Sequence[CostReport] = ()
    error: str = ""


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
    costs: Costs | None = None

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
        return [verdict for verdict in found if verdict.monitor in DRAWN or verdict.window_end == newest]

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
    def windows(self) -> list[WindowView]:
        """Return the newest windows that somebody looked at, newest first."""
        return windows(self)[:_SHOWN_WINDOWS]

    def run_url(self, run_id: str | None, report: bool = False) -> str | None:
        """Return where MLflow shows a run, or its drift report."""
        if run_id is None or self.experiment_id is None:
            return None
        return handlers._add_static_prefix("/") + run_link(self.experiment_id, run_id, report)

    def overview_url(self, run_id: str | None) -> str | None:
        """Return where MLflow shows the overview of a monitor run."""
        if run_id is None or self.experiment_id is None:
            return None
        return handlers._add_static_prefix("/") + artifact_link(self.experiment_id, run_id, OVERVIEW_ARTIFACT)

    @property
    def charts_url(self) -> str | None:
        """Return where MLflow draws the series of every deployment."""
        if self.experiment_id is None:
            return None
        return handlers._add_static_prefix("/") + charts_link(self.experiment_id)

    def window_url(self, verdict: VerdictRecord) -> str:
        return window_url(self.name, verdict.window_start, verdict.window_end)

    @property
    def policy_url(self) -> str:
        return page_url("policy", model=self.name)

    def version_url(self, version: str) -> str:
        return mlflow_url(f"models/{quote(self.name)}/versions/{quote(version)}")


@dataclass(frozen=True)
class WindowView:
    """What was said of one window, a verdict of each monitor, and what was done about it."""

    start: datetime
    end: datetime
    verdicts: Sequence[VerdictRecord]
    actions: Sequence[ActionRecord] = ()

    @property
    def status(self) -> str:
        """Return the most severe verdict."""
        said = {verdict.verdict for verdict in self.verdicts}
        return next((status for status in _SEVERITY if status in said), "unknown")

    @property
    def version(self) -> str:
        return next((str(v.summary["version"]) for v in self.verdicts if v.summary.get("version")), "")

    @property
    def run_id(self) -> str | None:
        return next((v.run_id for v in self.verdicts if v.run_id), None)

    @property
    def has_report(self) -> bool:
        return any(has_report(verdict) for verdict in self.verdicts)

    @property
    def has_overview(self) -> bool:
        return any(verdict.summary.get("overview") for verdict in self.verdicts)


@dataclass(frozen=True)
class Snapshot:
    """One look at a home."""

    home: str
    exists: bool
    taken: datetime
    models: Sequence[ModelView] = ()
    failures: Sequence[Task] = field(default_factory=list)
    shared: Sequence[SharedCost] = ()

    @property
    def deployments(self) -> list[DeploymentLine]:
        return [deployment for model in self.models for deployment in model.deployments]


def windows(model: ModelView) -> list[WindowView]:
    """Return every window of a model's known verdicts, newest first, with the newest verdict of each monitor."""
    found: dict[tuple[datetime, datetime], list[VerdictRecord]] = {}
    for verdict in model.verdicts:
        found.setdefault((verdict.window_start, verdict.window_end), []).append(verdict)
    ordered = sorted(found, key=lambda span: span[::-1], reverse=True)
    return [window_of(span, found[span], model.actions) for span in ordered]


def window_of(
    span: tuple[datetime, datetime], verdicts: Sequence[VerdictRecord], actions: Sequence[ActionRecord]
) -> WindowView:
    """Return one window: of its verdicts the newest of each monitor, of the actions those that it led to."""
    newest: dict[str, VerdictRecord] = {}
    for verdict in verdicts:
        newest.setdefault(verdict.monitor, verdict)
    window = {"start": span[0].isoformat(), "end": span[1].isoformat()}
    own = [action for action in actions if action.evidence.get("window") == window]
    return WindowView(*span, _in_order(newest), own)


def _in_order(verdicts: Mapping[str, VerdictRecord]) -> list[VerdictRecord]:
    return [verdicts[name] for name in (*NAMES, *sorted({*verdicts} - {*NAMES})) if name in verdicts]


def has_report(verdict: VerdictRecord) -> bool:
    """Tell whether the verdict's run has a drift report; a policy may ask for one only now and then."""
    return verdict.monitor == "drift" and verdict.run_id is not None and bool(verdict.summary.get("report"))


def mlflow_url(path: str) -> str:
    """Return where MLflow's own interface shows something."""
    return handlers._add_static_prefix("/#/") + path


def page_url(place: str = "", **query: str) -> str:
    """Return where one of our pages is."""
    path: str = handlers._add_static_prefix(f"/flywheel/{place}")
    return f"{path}?{urlencode(query)}" if query else path


def window_url(model: str, start: datetime, end: datetime) -> str:
    """Return where the page of a window is."""
    return page_url("window", model=model, start=_iso(start), end=_iso(end))


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")

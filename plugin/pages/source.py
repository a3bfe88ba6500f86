"""Reads what the pages show: from the records, the inference tables and MLflow's own stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from mlflow.server import handlers

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import FlywheelError, NotFound, nearest
from mlflow_flywheel.pipelines.inference_table import InferenceTable, TableCounts
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.cost import SharedCost, shared_costs
from mlflow_flywheel.plugin.cost_view import SINCE, cost_over_time, cost_view
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.record_types import DeploymentRecord, VerdictRecord
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.runners.supervisor import SupervisorRunner

from .snapshot import DRAWN, Costs, DeploymentLine, ModelView, Snapshot, WindowView, window_of, windows

T = TypeVar("T")
_ACTIONS, _POINTS, _NEWEST = 60, 500, 50
_MOST_OF_A_WINDOW, _MOST_ACTIONS = 100, 1000
_COUNT_SECONDS, _COST_SECONDS = 5.0, 60.0
# What is read anew takes a small share of the time, however large the table.
_SHARE = 20


@dataclass(frozen=True)
class Look:
    """A window of a model, with its neighbours in time."""

    model: ModelView
    window: WindowView
    earlier: WindowView | None
    later: WindowView | None


class Source:
    """Reads snapshots of the home that this server process was started for; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Records] = {}
        self._kept: dict[tuple[str, ...], _Kept] = {}

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
        names = self._names(records)
        views = [self._model(home, records, name) for name in names]
        failures = [task for task in records.tasks(status="failed", limit=5) if (now - task.created).days < 1]
        return Snapshot(str(home.path), True, now, views, failures, self._shared(home, records))

    def model(self, name: str) -> ModelView:
        """Read one model. Raises NotFound that names the nearest."""
        home = self.home
        records = self.records(home) if home.path.is_dir() else None
        known = self._names(records) if records is not None else []
        if records is None or name not in known:
            raise NotFound(
                f"there is no model {name!r} here{nearest(name, known)}; known: {', '.join(known) or 'none'}"
            )
        return self._model(home, records, name)

    def window(self, name: str, start: datetime, end: datetime) -> Look:
        """Return one window with every monitor's verdict. Raises NotFound when nobody looked at it."""
        model, records, span = self.model(name), self.records(self.home), (start, end)
        verdicts = records.verdicts(name, _MOST_OF_A_WINDOW, window=span)
        if not verdicts:
            raise NotFound(f"nobody has looked at {name!r} from {start.isoformat()} to {end.isoformat()}")
        window = window_of(span, verdicts, records.actions(name, limit=_MOST_ACTIONS))
        others = windows(model)
        later = [one for one in others if one.end > end]
        earlier = [one for one in others if one.end < end]
        return Look(model, window, earlier[0] if earlier else None, later[-1] if later else None)

    def _names(self, records: Records) -> list[str]:
        return sorted({*(d.model_name for d in records.deployments()), *records.policies()})

    def _model(self, home: Home, records: Records, name: str) -> ModelView:
        settings = records.policy(name)
        policy, error = _policy(settings)
        tasks = records.tasks(kind="retrain", subject=name, limit=1)
        counts = self._count(home, name)
        predictions = counts.by_deployment if counts is not None else {}
        context = Context(home, records, SupervisorRunner(home))
        deployed = records.deployments(model_name=name)
        return ModelView(
            name=name,
            deployments=[DeploymentLine.of(context, d, predictions.get(d.name, 0)) for d in deployed],
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
            costs=self._costs(context, name, deployed),
        )

    def _count(self, home: Home, model: str) -> TableCounts | None:
        def count() -> TableCounts | None:
            table = InferenceTable.open(home.tables, model)
            return table.counts() if table.exists else None

        # a table is being made or cleaned just now, at worst
        return self._keep(("counts", home.tables, model), count, _COUNT_SECONDS, lambda error: None)

    def _costs(self, context: Context, model: str, deployed: Sequence[DeploymentRecord]) -> Costs | None:
        """Measure as `flywheel cost` does; a deployment that is made anew is looked at anew."""
        if not deployed:
            return None
        names = [f"{d.name} {d.created.isoformat()}" for d in deployed]
        return self._keep(
            ("costs", context.home.tables, model, *names),
            lambda: Costs(cost_view(context, model), cost_over_time(context, model)),
            _COST_SECONDS,
            lambda error: Costs(None, error=error.message),
        )

    def _shared(self, home: Home, records: Records) -> Sequence[SharedCost]:
        context, end = Context(home, records, SupervisorRunner(home)), datetime.now(timezone.utc)
        return self._keep(
            ("shared", str(home.path)),
            lambda: shared_costs(context, end - SINCE, end),
            _COST_SECONDS,
            lambda error: [],
        )

    def _keep(
        self,
        key: tuple[str, ...],
        make: Callable[[], T],
        seconds: float,
        failed: Callable[[FlywheelError], T],
    ) -> T:
        """Return what is remembered, or make it, seldom enough that this takes a small share of the time."""
        with self._lock:
            known = self._kept.get(key)
        if known is not None and time.monotonic() < known.until:
            kept: T = known.value
            return kept
        started = time.monotonic()
        try:
            value = make()
        except FlywheelError as error:
            value = known.value if known is not None else failed(error)
        took = time.monotonic() - started
        with self._lock:
            self._kept[key] = _Kept(value, time.monotonic() + max(seconds, _SHARE * took))
        return value


@dataclass(frozen=True)
class _Kept:
    value: Any
    until: float


def _verdicts(records: Records, model: str) -> list[VerdictRecord]:
    """Return the newest verdicts first: of the monitors that are drawn, and of all in the last turns."""
    drawn = [v for name in DRAWN for v in records.verdicts(model, _POINTS, monitor=name)]
    found = {verdict.id: verdict for verdict in (*drawn, *records.verdicts(model, _NEWEST))}
    return [found[number] for number in sorted(found, reverse=True)]


def _policy(settings: Mapping[str, Any]) -> tuple[PolicySpec | None, str | None]:
    try:
        return PolicySpec.parse(settings), None
    except FlywheelError as error:
        return None, error.message


def _experiment_id(model: str) -> str | None:
    store: Any = handlers._get_tracking_store()
    found = store.get_experiment_by_name(f"flywheel/{model}")
    return str(found.experiment_id) if found is not None else None

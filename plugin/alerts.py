"""People are told what the loop did, or wants of them, once for each action, wherever they asked to be told.

The policy alerts once per episode and once when it ends, so each of its actions is news. An action is told when it is
settled: a retraining with its outcome, not when it is queued. What a place did not take is tried again; a daemon that
dies between sending and remembering tells it twice rather than never.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_flywheel.monitors.reporting import run_link
from mlflow_flywheel.pipelines.errors import FlywheelError

from .alert_places import Place, places
from .context import Context
from .messenger import send
from .record_types import ActionRecord
from .release import TRIAL_UNTIL

_UNSETTLED = ("queued", "started", "running")
_LOOKED_AT = 200
_TITLES = {
    "alert": "alarm",
    "alert_end": "the alarm is over",
    "retrain": "retraining",
    "policy": "the policy was changed",
}
_OUTCOMES = {
    "promoted": "a new champion",
    "waiting": "a challenger waits for approval",
    "refused": "the challenger was refused",
    "failed": "the retraining failed",
}


def tell(context: Context) -> None:
    """Tell every place what it has not been told. Raises the first place's error when the others have been told."""
    known = places(context.home)
    if not known:
        return
    actions = [a for a in context.records.actions(limit=_LOOKED_AT) if a.status not in _UNSETTLED]
    trouble: FlywheelError | None = None
    for place in known:
        try:
            _tell(context, place, actions)
        except FlywheelError as error:
            trouble = trouble or error
    if trouble is not None:
        raise trouble


def _tell(context: Context, place: Place, actions: list[ActionRecord]) -> None:
    told = context.records.told(place.key)
    for action in reversed(actions):
        if action.id not in told and action.updated >= place.added:
            send(place.url, title_of(action), "\n".join(_body(context, action)))
            context.records.remember_told(place.key, action.id)


def title_of(action: ActionRecord) -> str:
    """Return an action in a few words: which model, and what happened."""
    said = _TITLES.get(action.kind, action.kind.replace("_", " "))
    if action.kind == "retrain":
        said = _OUTCOMES.get(action.status, f"{said} {action.status}")
        if action.status == "waiting" and TRIAL_UNTIL in (action.result or {}):
            said = "a challenger is tried first"
    return f"{action.model}: {said}"


def _body(context: Context, action: ActionRecord) -> Iterator[str]:
    result = action.result or {}
    yield action.reason
    if result.get("reason"):
        yield f"outcome: {result['reason']}"
    for monitor, verdict in (action.evidence.get("verdicts") or {}).items():
        yield f"{monitor} {verdict['status']}: {verdict['summary']}"
    window = action.evidence.get("window")
    if window:
        yield f"version {action.evidence.get('version')}, window {window['start']} to {window['end']}"
    run_id = action.run_id or action.evidence.get("monitor_run_id")
    if run_id:
        yield _link(context, str(run_id))


def _link(context: Context, run_id: str) -> str:
    """Return the address of a run where MLflow is a server, else its id."""
    uri = context.home.tracking_uri or ""
    if not uri.startswith(("http://", "https://")):
        return f"MLflow run {run_id}"
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        experiment = MlflowClient(uri).get_run(run_id).info.experiment_id
    except MlflowException:
        return f"MLflow run {run_id} at {uri}"  # it was deleted, or MLflow is away: that keeps nobody from the news
    return f"{uri.rstrip('/')}/{run_link(experiment, run_id, False)}"

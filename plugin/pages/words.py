"""Records in words: what an action came to, what a policy does, how long ago something was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from mlflow_flywheel.monitors.all import NAMES
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.windows import format_duration
from mlflow_flywheel.plugin.record_types import ActionRecord, VerdictRecord
from mlflow_flywheel.plugin.release import TRIAL_UNTIL

_NAMES = {
    "auc": "AUC",
    "log_loss": "log loss",
    "brier": "Brier score",
    "mae": "mean absolute error",
    "r2": "R²",
}
_HEADLINES = ("auc", "accuracy", "f1_macro", "mae", "rmse")


def metric_name(metric: str) -> str:
    """Return a metric's name as people write it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def headline(metrics: Mapping[str, float]) -> str | None:
    """Return the one metric that is drawn: the first of the usual ones that there is."""
    return next((name for name in _HEADLINES if name in metrics), None)


def verdict_text(verdict: VerdictRecord) -> str:
    """Return the sentence that the monitor wrote."""
    return str(verdict.summary.get("text", ""))


def version_of(verdict: VerdictRecord) -> str:
    """Return the version that the verdict is about; empty when it does not say."""
    return str(verdict.summary.get("version") or "")


def metrics_of(verdict: VerdictRecord) -> dict[str, float]:
    """Return the verdict's numbers by name."""
    return dict(verdict.summary.get("metrics") or {})


def numbers(verdicts: Sequence[VerdictRecord]) -> list[tuple[str, str, str]]:
    """Return every number of some verdicts, with monitor and name."""
    return [(v.monitor, name, f"{value:,.4g}") for v in verdicts for name, value in metrics_of(v).items()]


def coverage(performance: VerdictRecord | None) -> str:
    """Return how many rows of the newest window have a label, and how late labels are; empty when nobody knows."""
    found = metrics_of(performance) if performance is not None else {}
    if "label_coverage" not in found:
        return ""
    late = [
        f"{said} after {_hours(found[name])}"
        for name, said in (("label_delay_hours", "true"), ("label_arrival_hours", "here"))
        if name in found
    ]
    return f"{found['label_coverage']:.0%} of the newest window{', ' + ' and '.join(late) + ' (median)' if late else ''}"


def _hours(hours: float) -> str:
    return (
        f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
    )


def outcome(action: ActionRecord) -> str:
    """Return what an action came to, with the gate's numbers where it got that far."""
    result = action.result or {}
    version, gate = result.get("version"), result.get("gate")
    if action.kind in ("promote", "rollback"):
        return _move_words(action)
    if action.kind != "retrain":
        return ""
    if action.status in ("queued", "started", "running"):
        return "Queued" if action.status == "queued" else "Under way"
    if action.status == "failed":
        return f"Failed: {str(result.get('reason', '')).splitlines()[0] if result.get('reason') else 'see its run'}"
    tried = str(result.get(TRIAL_UNTIL, ""))[:16].replace("T", " ")
    heading = {
        "promoted": f"Version {version} promoted",
        "refused": f"Version {version} refused, the champion stays",
        "waiting": f"Version {version} passed and {f'is tried until {tried} UTC' if tried else 'waits for approval'}",
        "rejected": f"Version {version} rejected by a person, the champion stays",
        "cancelled": "Not started: the loop was paused",
    }.get(action.status, action.status)
    return f"{heading}: {gate_words(gate)}" if gate else heading


def _move_words(action: ActionRecord) -> str:
    before, after = action.evidence["before"], action.evidence["after"]
    by = action.evidence.get("requested_by")
    if action.status == "started":
        return f"Version {before} → {after}, under way"
    if action.status != "done":
        return f"Version {before} stayed: {(action.result or {}).get('reason', action.status)}"
    return f"Version {before} → {after}{f', by {by}' if by else ''}"


_KINDS = {"alert_end": "all clear", "rollback": "roll back"}


def kind(action: ActionRecord) -> str:
    """Return what kind of action it is, as people say it."""
    return _KINDS.get(action.kind, action.kind)


def noteworthy(actions: Sequence[ActionRecord]) -> list[ActionRecord]:
    """Leave out promotions that follow from a retraining: its own entry says so."""
    return [a for a in actions if not (a.kind == "promote" and a.evidence.get("run_id"))]


def gate_table(gate: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the metrics of champion and challenger, the one that decides first."""
    champion, challenger = gate.get("champion") or {}, gate.get("challenger") or {}
    names = dict.fromkeys((str(gate.get("metric")), *champion))
    return [
        (metric_name(name), f"{champion[name]:.4f}", f"{challenger[name]:.4f}")
        for name in names
        if champion.get(name) is not None and challenger.get(name) is not None
    ]


def slices(gate: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return each slice of the hold-out with its rows, the gain and its interval; the worst first."""
    found = sorted(gate.get("slices") or [], key=lambda one: one["difference"] or 0.0)
    return [
        (
            str(one["slice"]),
            f"{one['rows']:,}",
            _signed(one["difference"]),
            _interval(one["low"], one["high"]),
        )
        for one in found
    ]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def caveat(action: ActionRecord) -> str:
    """Return what the approver must know beside the gate's numbers: the champion may be another one by now."""
    last = str((action.result or {}).get("reason", "")).rpartition("; ")[2]
    return last if last.startswith("version ") else ""


def gate_words(gate: Mapping[str, Any]) -> str:
    """Return the comparison of champion and challenger in words."""
    metric = str(gate["metric"])
    champion, challenger = gate.get("champion") or {}, gate.get("challenger") or {}
    parts = [
        f"{metric_name(name)} {champion[name]:.4f} → {challenger[name]:.4f}"
        for name in dict.fromkeys((metric, "auc"))
        if champion.get(name) is not None and challenger.get(name) is not None
    ]
    if gate.get("difference") is not None:
        interval = ""
        if gate.get("low") is not None and gate.get("high") is not None:
            interval = f" (interval {gate['low']:+.4f} to {gate['high']:+.4f})"
        parts.append(f"gain {gate['difference']:+.4f}{interval}")
    numbers = f"{', '.join(parts)} " if parts else ""
    attempt = gate.get("attempt") or 1
    again = f", attempt {attempt} on this evidence" if attempt > 1 else ""
    return f"{numbers}on {gate.get('rows', 0):,} held-out rows{again}"


def policy_lines(policy: PolicySpec) -> Iterator[tuple[str, str]]:
    """Yield the rules in force as (name, words)."""
    often = f"{_schedule(policy.monitor_schedule, policy.timezone)}, over {format_duration(policy.window)} of event time"
    left_out = [name for name in NAMES if name not in policy.watched_by]
    yield "Monitors", often + (f"; without {', '.join(left_out)}" if left_out else "")
    reasons = [_reason(reason, policy) for reason in policy.retrain_on]
    yield "Retrains", f"after {' or '.join(reasons)}" if reasons else "never by itself"
    if reasons:
        often = "once" if policy.budget == 1 else f"{policy.budget} times"
        period = format_duration(policy.budget_period)
        yield "At most", f"every {format_duration(policy.cooldown)}, {often} in {period}"
    approval = "by itself" if policy.approval == "auto" else "when a person approves"
    yield "Promotes", f"{approval}, if the gate is {policy.gate_confidence:.0%} sure of no harm"
    if policy.probation:
        yield "Rolls back", f"what proves worse within {format_duration(policy.probation)}"
    if policy.quiet_hours:
        yield "Quiet", f"{', '.join(map(str, policy.quiet_hours))} {policy.timezone}"


def _reason(reason: str, policy: PolicySpec) -> str:
    if reason == "labels":
        return f"{policy.new_labels:,} new labels"
    if reason == "schedule":
        return f"{format_duration(policy.retrain_every)} without one"
    alarms = "alarm" if policy.consecutive == 1 else f"alarms, {policy.consecutive} in a row"
    return f"{'a ' if policy.consecutive == 1 else ''}{reason} {alarms}"


def _schedule(cron: str, zone: str) -> str:
    minute, *rest = cron.split()
    if rest == ["*"] * 4 and minute.isdigit():
        return "hourly" if minute == "0" else f"hourly at :{int(minute):02}"
    if rest[1:] == ["*"] * 3 and minute.isdigit() and rest[0].isdigit():
        return f"daily at {int(rest[0]):02}:{int(minute):02} {zone}"
    return f"at {cron} (cron, {zone})"


def moment(value: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return f"{value.day} {value:%b %Y, %H:%M}"


def day(value: datetime) -> str:
    return f"{value.day} {value:%b %Y}"


def span(start: datetime, end: datetime) -> str:
    """Return a window's ends, without what both have in common."""
    if (start.hour, start.minute, end.hour, end.minute) != (0, 0, 0, 0) and end - start < timedelta(days=3):
        return f"{moment(start)} – {moment(end)}"
    first = f"{start.day} {start:%b}" if start.year == end.year else day(start)
    return f"{first} – {day(end)}"

"""Verdicts in, actions out: the rules of the loop as pure functions.

The default is to do nothing. Retraining needs a reason that was asked for, evidence that lasted, enough new labels, no
cooldown in force and an attempt left in the budget; everything that was considered is in the decision's evidence.

An *episode* is one lasting alarm of one monitor, from its first alarm to the first verdict that is none. It is told
once, and once more when it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, field_validator

from mlflow_flywheel.pipelines.config import Frozen
from mlflow_flywheel.pipelines.times import as_utc

from .policy import LABELS, SCHEDULE, PolicySpec
from .verdicts import Verdict
from .windows import format_duration

Action = Literal["none", "alert", "alert_end", "retrain"]
# Who asked for what was decided here.
BY_POLICY = "policy"
FOLLOW_UP = "follow-up"
# A further retraining for the same change waits until it is known for so many times as long as at the last one.
_GROWTH = 1.25


class Episode(Frozen):
    """One lasting alarm of a monitor.

    `alarms` are those in a row since it began or since the last retraining, `attempts` the retrainings of the version in
    force that it started, `tried` when the last of them was; `over` is when it ended, while nobody could be told of that
    yet.
    """

    began: datetime
    alarms: int = 0
    told: bool = False
    attempts: int = 0
    tried: datetime | None = None
    over: datetime | None = None

    @field_validator("began", "tried", "over")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else as_utc(value)


class Seen(Frozen):
    """How often a question was asked of a promoted version, and how much there was to see the last time."""

    looks: int = 0
    rows: int = 0


class Change(Frozen):
    """What a lasting alarm that started a retraining is taken for: since `began` the world is another one.

    `version` was in force when a retraining answered it first; `tried` is when one did last, with `last` in force.
    """

    began: datetime
    version: str
    tried: datetime
    last: str

    @field_validator("began", "tried")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        return as_utc(value)


class Probation(Frozen):
    """How often a promoted version was looked at, and the labelled rows of the last look; by its promotion's action.

    `failures` and `estimates` are the same for what it failed to answer, and for rows without labels yet.
    """

    promotion: int
    looks: int = 0
    rows: int = 0
    failures: Seen = Seen()
    estimates: Seen = Seen()


class PolicyState(Frozen):
    """What the policy remembers between two decisions; JSON round trip by `model_dump(mode="json")`."""

    started_at: datetime | None = Field(None, description="`as_of` of the first decision")
    decided_at: datetime | None = Field(None, description="`as_of` of the newest decision")
    version: str = Field("", description="version that the newest decision was about")
    episodes: dict[str, Episode] = Field(default_factory=dict, description="lasting alarms, per monitor")
    attempts: tuple[datetime, ...] = Field((), description="`as_of` of the retrainings, oldest first")
    trained_at: datetime | None = Field(
        None, description="`as_of` of the newest one: labels since then are new"
    )

    probation: Probation | None = None
    change: Change | None = None

    @field_validator("started_at", "decided_at", "trained_at")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else as_utc(value)

    def alarmed_since(self, monitors: Iterable[str]) -> datetime | None:
        """Return when the oldest alarm of some monitors that lasts began; None when there is none."""
        began = (self.episodes[m].began for m in monitors if m in self.episodes and not self.episodes[m].over)
        return min(began, default=None)

    def newest_training(self, of_version: datetime | None) -> datetime | None:
        """Return when labels were last trained on: by this account, or for the version in force."""
        known = (moment for moment in (self.trained_at, of_version) if moment is not None)
        return max(known, default=None)

    def same_evidence(self, earlier: datetime, monitors: Iterable[str], holdout_start: datetime) -> bool:
        """Whether what was judged earlier was so on evidence of now.

        That is in the same lasting alarm of one of the monitors, or by a hold-out that overlaps the one of now. An alarm
        of a monitor that may start no retraining does not count: it may last for good.
        """
        began = self.alarmed_since(monitors)
        return earlier > holdout_start or (began is not None and earlier >= began)


@dataclass(frozen=True)
class Decision:
    """What to do now, why (one sentence), and what it rests on (JSON-ready); `also` is what else there is to tell."""

    action: Action
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    also: tuple[Decision, ...] = ()


def decide(
    spec: PolicySpec,
    state: PolicyState,
    verdicts: Sequence[Verdict],
    new_labels: int,
    as_of: datetime,
    *,
    version: str = "",
    paused: str = "",
) -> tuple[Decision, PolicyState]:
    """Decide what to do about the verdicts of one monitor execution.

    `new_labels` counts labels that became known since `state.trained_at` (None: all of them), `version` is the one
    that the verdicts are about, `paused` says why the loop may start nothing. Deciding again for the same or an earlier
    `as_of` changes nothing, so a repeated execution cannot count an alarm twice. An `unknown` verdict neither adds to
    nor ends a row of alarms: no evidence is not good news. A retraining counts against cooldown and budget when it is
    decided, whatever becomes of it.
    """
    as_of = as_utc(as_of)
    if state.decided_at is not None and as_of <= state.decided_at:
        return Decision("none", f"already decided for {state.decided_at:%Y-%m-%d %H:%M}"), state
    quiet = next((str(span) for span in spec.quiet_hours if span.hold(as_of, spec.timezone)), "")
    episodes = _followed(state, verdicts, version, as_of)
    attempts = tuple(a for a in state.attempts if as_of - a < max(spec.budget_period, spec.cooldown))
    change = _lasting(state.change, spec, version, as_of)
    wanted, spent = _reasons(spec, state, verdicts, episodes, change, new_labels, as_of, version)
    obstacle = _obstacle(spec, attempts, new_labels, as_of, quiet, paused)
    evidence = {
        "requested_by": BY_POLICY,
        "as_of": as_of.isoformat(),
        "verdicts": {
            v.monitor: {"status": v.status, "summary": v.summary, "metrics": v.metrics} for v in verdicts
        },
        "breaches": {monitor: episode.alarms for monitor, episode in episodes.items()},
        "episodes": {monitor: episode.model_dump(mode="json") for monitor, episode in episodes.items()},
        "new_labels": new_labels,
        "attempts": [a.isoformat() for a in attempts],
        "conditions": list(wanted),
    }
    after = PolicyState(
        started_at=state.started_at or as_of,
        decided_at=as_of,
        version=version,
        episodes=episodes,
        attempts=attempts,
        trained_at=state.trained_at,
        probation=state.probation,
        change=change,
    )
    found: list[Decision] = []
    if wanted and obstacle is None:
        found.append(Decision("retrain", "; ".join(wanted.values()), evidence))
        after = _retrained(after, wanted, as_of, version)
    why = obstacle if wanted else "; ".join(spent.values())
    blocked = f" (no retraining: {why})" if why and not found else ""
    if not quiet:
        told, after = _told(after, verdicts, blocked)
        found += [Decision(action, reason, evidence) for action, reason in told]
    if not found:
        reasons = "; ".join((wanted or spent).values())
        nothing = f"{reasons}{blocked}" if wanted else reasons or "nothing calls for action"
        return Decision("none", nothing, evidence), after
    return replace(found[0], also=tuple(found[1:])), after


def _followed(
    state: PolicyState, verdicts: Sequence[Verdict], version: str, as_of: datetime
) -> dict[str, Episode]:
    """Return the episodes with these verdicts counted; an alarm about a new version begins to count anew.

    The episode of a monitor that is not heard any more (switched off, nothing to ask) is over.
    """
    episodes = dict(state.episodes)
    if version != state.version:
        fresh = {"alarms": 0, "attempts": 0, "tried": None}
        episodes = {name: episode.model_copy(update=fresh) for name, episode in episodes.items()}
    statuses = {verdict.monitor: verdict.status for verdict in verdicts}
    for name, status in statuses.items():
        if status == "alarm":
            episode = episodes.get(name) or Episode(began=as_of)
            counted = {"alarms": episode.alarms + 1, "over": None}
            episodes[name] = episode.model_copy(update=counted)
    ended = [n for n in episodes if statuses.get(n, "ok") not in ("alarm", "unknown")]
    for name in ended:
        episode = episodes.pop(name)
        if episode.told:
            over = {"alarms": 0, "over": episode.over or as_of}
            episodes[name] = episode.model_copy(update=over)
    return episodes


def _retrained(state: PolicyState, wanted: Mapping[str, str], as_of: datetime, version: str) -> PolicyState:
    episodes = {
        name: episode.model_copy(
            update={
                "alarms": 0,
                "told": episode.told or name in wanted,
                "attempts": episode.attempts + (name in wanted),
                "tried": as_of if name in wanted else episode.tried,
            }
        )
        for name, episode in state.episodes.items()
    }
    began = min((state.episodes[name].began for name in wanted if name in state.episodes), default=None)
    change = state.change
    if began is not None:
        change = Change(began=began, version=version, tried=as_of, last=version)
    elif change is not None:
        change = change.model_copy(update={"tried": as_of, "last": version})
    fresh = {
        "attempts": (*state.attempts, as_of),
        "trained_at": as_of,
        "episodes": episodes,
        "change": change,
    }
    return state.model_copy(update=fresh)


def _known_longer(began: datetime, tried: datetime) -> datetime:
    """Return when clearly more is known of what began than was at the last try."""
    return began + _GROWTH * (tried - began)


def _lasting(change: Change | None, spec: PolicySpec, version: str, as_of: datetime) -> Change | None:
    """Return a change unless it is over: all that is trained on is younger, and the last retraining gained nothing."""
    if change is None:
        return None
    younger = change.tried - change.began >= spec.training_window
    decided = as_of >= _known_longer(change.began, change.tried)  # time enough for a retraining and its gate
    return None if younger and decided and version == change.last else change


def _worth_following(change: Change, version: str, as_of: datetime) -> bool:
    """Whether a promoted version answered a change, and clearly more is known of that by now."""
    return version != change.version and as_of >= _known_longer(change.began, change.tried)


def _told(
    state: PolicyState, verdicts: Sequence[Verdict], blocked: str
) -> tuple[list[tuple[Action, str]], PolicyState]:
    """Return what there is to tell of episodes that began or ended, and the state in which it was told."""
    found: list[tuple[Action, str]] = []
    begun = [v for v in verdicts if v.status == "alarm" and not state.episodes[v.monitor].told]
    if begun:
        found.append(("alert", "; ".join(v.summary for v in begun) + blocked))
    over = {name: episode for name, episode in state.episodes.items() if episode.over is not None}
    if over:
        lasted = (f"{name}: its alarm of {e.began:%Y-%m-%d %H:%M} is over" for name, e in over.items())
        found.append(("alert_end", "; ".join(lasted)))
    now_told = {v.monitor for v in begun}
    episodes = {
        name: episode.model_copy(update={"told": True}) if name in now_told else episode
        for name, episode in state.episodes.items()
        if name not in over
    }
    return found, state.model_copy(update={"episodes": episodes})


def _reasons(
    spec: PolicySpec,
    state: PolicyState,
    verdicts: Sequence[Verdict],
    episodes: Mapping[str, Episode],
    change: Change | None,
    new_labels: int,
    as_of: datetime,
    version: str,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the conditions that are met, in words, and those that would be but have had all their attempts."""
    reasons, spent = {}, {}
    for verdict in verdicts:
        name = verdict.monitor
        if name not in spec.retrain_on or verdict.status != "alarm":
            continue
        episode = episodes[name]
        if episode.attempts >= spec.episode_attempts:
            spent[name] = (
                f"{name}: its alarm since {episode.began:%Y-%m-%d %H:%M} has started {episode.attempts} "
                f"retrainings of this version, as many as one alarm may"
            )
        elif episode.tried is not None and as_of < (again := _known_longer(episode.began, episode.tried)):
            spent[name] = (
                f"{name}: a retraining was tried at {episode.tried:%Y-%m-%d %H:%M}; the next one waits until "
                f"{again:%Y-%m-%d %H:%M}, when clearly more is known of what changed"
            )
        elif episode.alarms >= spec.consecutive:
            reasons[name] = f"{name}: {verdict.summary} ({episode.alarms} in a row)"
    if LABELS in spec.retrain_on and new_labels >= spec.new_labels:
        reasons[LABELS] = (
            f"labels: {new_labels:,} new labels since the last training ({spec.new_labels:,} suffice)"
        )
    by_alarm = any(name not in (LABELS, SCHEDULE) for name in spec.retrain_on)
    if change is not None and by_alarm and _worth_following(change, version, as_of):
        reasons[FOLLOW_UP] = (
            f"follow-up: clearly more is known of what changed with the alarm of {change.began:%Y-%m-%d %H:%M} than at the "
            f"training of {change.tried:%Y-%m-%d %H:%M}"
        )
    since = state.trained_at or state.started_at or as_of
    if SCHEDULE in spec.retrain_on and as_of - since >= spec.retrain_every:
        reasons[SCHEDULE] = f"schedule: {format_duration(as_of - since)} since the last training"
    return reasons, spent


def _obstacle(
    spec: PolicySpec,
    attempts: Sequence[datetime],
    new_labels: int,
    as_of: datetime,
    quiet: str,
    paused: str,
) -> str | None:
    if paused:
        return f"the loop is paused {paused}"
    if quiet:
        return f"quiet hours {quiet} {spec.timezone}"
    if attempts and as_of - attempts[-1] < spec.cooldown:
        return f"cooling down until {attempts[-1] + spec.cooldown:%Y-%m-%d %H:%M}"
    spent = sum(as_of - a < spec.budget_period for a in attempts)
    if spent >= spec.budget:
        return f"{spent} of {spec.budget} attempts spent in {format_duration(spec.budget_period)}"
    if new_labels < spec.min_labels:
        return f"{new_labels:,} new labels, fewer than {spec.min_labels:,}"
    return None

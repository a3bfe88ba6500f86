"""What an adjustment knows and does, as a function of what happened: answers, labels, resets, in their order.

The same entries give the same state, ids and all: that is how it comes back after a crash. Nothing here waits, writes
or knows of threads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from mlflow_flywheel.pipelines.times import EPOCH

from .memory import Memory
from .methods import Method
from .outputs import Outputs
from .rows import OFF, Answered, Floats, Label, Labelled, Sample
from .status import AdjustmentStatus
from .trust import ROWS, Trust

_log = logging.getLogger(__name__)
_CHUNK = 10_000


class AdjustmentState:
    """A method, what it learnt from, and whether it is trusted. Not safe to use from several threads."""

    def __init__(self, method: Method, outputs: Outputs, *, window: int, waiting: int, bound: float) -> None:
        self.method = method
        self.outputs = outputs
        self.memory = Memory(waiting, window)
        self.trust = Trust()
        self._bound = bound
        self._number = 0
        self._limit: float | None = None
        self._begin("", EPOCH)

    @property
    def id(self) -> str:
        """Return what names this state in rows: method, epoch, how many labels have changed it, and what it does."""
        effect = self.method.effect() if self.trust.open else OFF
        return f"{self._prefix}{self._steps}:{effect}"

    def proposed(self, raw: Floats, features: Any) -> Floats:
        """Return what it would answer where the model said `raw`, bounded."""
        if self._limit is None:
            return raw
        try:
            proposals = self.method.propose(raw, features)
        except Exception as error:  # noqa: BLE001 - the user's estimator may trip over it
            _log.warning("the adjustment has no proposal: %s: %s", type(error).__name__, error)
            return raw
        if proposals is raw:
            return raw
        bounded = self.outputs.bounded(raw, proposals, self._limit)
        whole = np.isfinite(raw).all(axis=1, keepdims=True) & np.isfinite(bounded).all(axis=1, keepdims=True)
        return np.where(whole, bounded, raw)

    def numbered(self, rows: int) -> range:
        """Return the numbers of the next answers."""
        return range(self._number, self._number + rows)

    def begin_anew(self, epoch: str, since: datetime) -> None:
        """Forget what was learnt: from now on the model's own predictions are answered. Rows keep their answers."""
        self.memory.start_anew()
        self._begin(epoch, since)

    def answered(self, rows: Sequence[Answered]) -> None:
        """Remember rows that are answered, and learn from labels that came before them."""
        found = [label for row in rows if (label := self.memory.remember(row)) is not None]
        if rows:
            self._number = rows[-1].number + 1
        if found:
            self.labelled(found)

    def labelled(self, labels: Sequence[Label]) -> None:
        """Learn from labels, of rows that are remembered; those that change nothing cost nothing."""
        fresh: list[Labelled] = []
        changes = 0
        for label in labels:
            truth = self.outputs.truth(label.value)
            joined, labelled = self.memory.join(label, truth)
            self._unusable += truth is None and joined == "new"
            changes += labelled is not None
            if labelled is not None and joined == "new":
                fresh.append(labelled)
        if not changes:
            return
        self._labels += len(fresh)
        self._steps += changes
        sample = Sample.of(self.memory.labelled, self._prefix)
        self._limit = self.outputs.limit(sample.truths, self._bound)
        try:
            self.method.learn(sample, sorted(fresh, key=lambda labelled: labelled.row.number))
        except Exception as error:  # noqa: BLE001 - the user's estimator: its trouble must stop neither answers nor labels
            _log.warning(
                "%d labels teach the adjustment nothing: %s: %s", changes, type(error).__name__, error
            )
        self.trust = self.trust.judged(self.outputs.gains(sample.newest(ROWS)))

    def _begin(self, epoch: str, since: datetime) -> None:
        self._epoch, self._since = epoch, since
        self._prefix = f"{self.method.name}:{epoch}:"
        self._steps = self._labels = self._unusable = 0
        self._limit = None
        self.trust = Trust()
        self.method.load(None)

    def dump(self) -> Iterator[Any]:
        """Yield entries, JSON-ready, that bring another state to where this one is."""
        yield {
            "state": {
                "epoch": self._epoch,
                "since": self._since.isoformat(),
                "number": self._number,
                "steps": self._steps,
                "labels": self._labels,
                "unusable": self._unusable,
                "forgotten": self.memory.forgotten_labels,
                "limit": self._limit,
                "trust": list(self.trust),
                "method": self.method.dump(),
                "labelled": [[tuple(each.row), each.truth, each.time] for each in self.memory.labelled],
                "early": [tuple(label) for label in self.memory.early],
            }
        }
        waiting = self.memory.waiting
        for start in range(0, len(waiting), _CHUNK):
            yield rows_entry(waiting[start : start + _CHUNK])

    def replay(self, entry: Any) -> None:
        """Take an entry that `dump`, `rows_entry`, `labels_entry` or `anew_entry` gave."""
        if "rows" in entry:
            self.answered([_row_of(fields) for fields in entry["rows"]])
        elif "labels" in entry:
            self.labelled([Label(*fields) for fields in entry["labels"]])
        elif "anew" in entry:
            self.begin_anew(entry["anew"], datetime.fromisoformat(entry["since"]))
        else:
            self._restore(entry["state"])

    def _restore(self, state: Any) -> None:
        self._begin(state["epoch"], datetime.fromisoformat(state["since"]))
        self._number, self._steps = state["number"], state["steps"]
        self._labels, self._unusable, self._limit = state["labels"], state["unusable"], state["limit"]
        self.memory.forgotten_labels = state["forgotten"]
        self.trust = Trust(*state["trust"])
        self.method.load(state["method"])
        for row, truth, time in state["labelled"]:
            self.memory.restore(Labelled(_row_of(row), truth, time))
        for fields in state["early"]:
            self.memory.restore_early(Label(*fields))

    def status(self) -> AdjustmentStatus:
        """Return how it does."""
        labelled = sorted(self.memory.labelled, key=lambda each: each.row.number)
        recent = labelled[-ROWS:]
        losses: list[float | None] = [None] * 3
        if recent:
            sample = Sample.of(recent, self._prefix)
            answers = np.array([each.row.answer for each in recent], np.float64)
            losses = [
                float(self.outputs.losses(each, sample.truths).mean())
                for each in (sample.raw, sample.proposals, answers)
            ]
        return AdjustmentStatus(
            method=self.method.name,
            id=self.id,
            active=self.trust.open,
            since=self._since,
            labels=self._labels,
            unknown=self.memory.forgotten_labels + len(self.memory.early),
            unusable=self._unusable,
            waiting=self.memory.unlabelled,
            rows=len(labelled),
            parameters=self.method.parameters(),
            limit=self._limit,
            unit=self.outputs.unit,
            loss=self.outputs.loss,
            judged=len(recent),
            unadjusted_loss=losses[0],
            proposed_loss=losses[1],
            answered_loss=losses[2],
            evidence=self.trust.evidence,
        )


def rows_entry(rows: Sequence[Answered]) -> dict[str, Any]:
    """Return what says that rows were answered."""
    return {"rows": [tuple(row) for row in rows]}


def labels_entry(labels: Sequence[Label]) -> dict[str, Any]:
    """Return what says that labels came."""
    return {"labels": [tuple(label) for label in labels]}


def anew_entry(epoch: str, since: datetime) -> dict[str, Any]:
    """Return what says that an epoch began."""
    return {"anew": epoch, "since": since.isoformat()}


def _row_of(fields: Sequence[Any]) -> Answered:
    number, own, client, raw, proposal, adjustment, features = fields
    kept = None if features is None else tuple(features)
    return Answered(number, own, client, tuple(raw), tuple(proposal), adjustment, kept)

"""The rows that an adjustment remembers: answered ones that wait for a label, and the newest labelled ones.

Both are bounded. A label finds its row by prediction_id, or the newest row of a client_request_id; one that finds none
is kept for a while too, as it may come before its row. A label that is repeated changes nothing; of two different ones
the later counts, as in the inference table.
"""

from __future__ import annotations

from typing import Literal

from .rows import Answered, Label, Labelled

EARLY_LABELS = 10_000
Joined = Literal["new", "corrected", "repeated", "unknown"]
_Key = tuple[str, str]


class Memory:
    """At most `waiting` rows without a label, and the newest `labelled` ones with theirs."""

    def __init__(self, waiting: int, labelled: int) -> None:
        self._most_waiting = waiting
        self._most_labelled = labelled
        self._waiting: dict[str, Answered] = {}
        self._labelled: dict[str, Labelled] = {}
        self._by_client: dict[str, str] = {}
        self._early: dict[_Key, Label] = {}
        self.forgotten_labels = 0

    @property
    def waiting(self) -> list[Answered]:
        return list(self._waiting.values())

    @property
    def labelled(self) -> list[Labelled]:
        """The newest labelled rows, in the order in which their labels came."""
        return list(self._labelled.values())

    @property
    def early(self) -> list[Label]:
        """Labels that have found no row yet."""
        return list(self._early.values())

    @property
    def unlabelled(self) -> int:
        """How many rows wait for a label."""
        return len(self._waiting)

    def find(self, prediction_id: str) -> Answered | None:
        """Return a row that is remembered: a message that is delivered again is answered as it was."""
        labelled = self._labelled.get(prediction_id)
        return labelled.row if labelled is not None else self._waiting.get(prediction_id)

    def remember(self, row: Answered) -> Label | None:
        """Keep a row that was answered; returns a label that came before it. The row that waited longest may go."""
        self._waiting[row.prediction_id] = row
        self._name(row)
        keys: list[_Key] = [("prediction", row.prediction_id)]
        if row.client_request_id is not None:
            keys.append(("client", row.client_request_id))
        if len(self._waiting) > self._most_waiting:
            self._forget(self._waiting.pop(next(iter(self._waiting))))
        found = (
            [label for key in keys if (label := self._early.pop(key, None)) is not None]
            if self._early
            else []
        )
        return max(found, key=lambda label: label.time, default=None)

    def join(self, label: Label, truth: float | None) -> tuple[Joined, Labelled | None]:
        """Bring a label to its row; `truth` is what it says, None when that is nothing to learn from.

        Returns the labelled row when it is new or was corrected.
        """
        name = label.prediction_id or self._by_client.get(label.client_request_id or "")
        known = self._labelled.get(name) if name is not None else None
        if known is not None:
            if truth is None or truth == known.truth or label.time < known.time:
                return "repeated", None
            self._labelled[known.row.prediction_id] = corrected = Labelled(known.row, truth, label.time)
            return "corrected", corrected
        row = self._waiting.get(name) if name is not None else None
        if row is None:
            self._keep(label)
            return "unknown", None
        del self._waiting[row.prediction_id]
        if truth is None:
            self._forget(row)
            return "new", None
        fresh = Labelled(row, truth, label.time)
        self.restore(fresh)
        return "new", fresh

    def restore(self, labelled: Labelled) -> None:
        """Put a labelled row behind all others; the first may go."""
        row = labelled.row
        self._labelled[row.prediction_id] = labelled
        self._name(row)
        if len(self._labelled) > self._most_labelled:
            self._forget(self._labelled.pop(next(iter(self._labelled))).row)

    def restore_early(self, label: Label) -> None:
        """Keep a label that has found no row yet."""
        self._keep(label)

    def start_anew(self) -> None:
        """Forget what was learnt from; rows that wait stay, so that one that comes again is answered as it was."""
        for labelled in self.labelled:
            self._forget(labelled.row)
        self._labelled.clear()
        self._early.clear()
        self.forgotten_labels = 0

    def _keep(self, label: Label) -> None:
        key = (
            ("prediction", label.prediction_id)
            if label.prediction_id
            else ("client", label.client_request_id or "")
        )
        known = self._early.get(key)
        if known is not None and known.time > label.time:
            return
        self._early[key] = label
        if len(self._early) > EARLY_LABELS:
            del self._early[next(iter(self._early))]
            self.forgotten_labels += 1

    def _name(self, row: Answered) -> None:
        """Let a client_request_id mean the newest row that has it."""
        client = row.client_request_id
        if client is not None:
            known = self.find(self._by_client.get(client, ""))
            if known is None or known.number <= row.number:
                self._by_client[client] = row.prediction_id

    def _forget(self, row: Answered) -> None:
        client = row.client_request_id
        if client is not None and self._by_client.get(client) == row.prediction_id:
            del self._by_client[client]

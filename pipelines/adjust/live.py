"""An adjustment at work: it stands between a scoring core's predictions and its log, and hears of labels meanwhile.

    1. the model predicts, the adjustment proposes, and what is answered is chosen
    2. the rows are in the journal       a crash after this: a message that comes again is answered the same
    3. the core logs and the door answers, both with the id of the adjustment

Labels are in the journal before they are acknowledged. Safe to use from several threads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.scoring import PredictionLog, Request, ScoredBatch, ScoringCore, values_of
from mlflow_flywheel.pipelines.times import utc_now

from .journal import Journal
from .rows import Answered, Floats, Label
from .state import AdjustmentState, anew_entry, labels_entry, rows_entry
from .status import AdjustmentStatus

_log = logging.getLogger(__name__)


class LiveAdjustment:
    """A state and its journal; close it at the end.

    Raises Unavailable, here and in its methods, when the journal cannot be written; nothing has changed then.
    """

    def __init__(self, state: AdjustmentState, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._lock = threading.Lock()
        if not self._replayed():
            state.begin_anew(_new_epoch(), utc_now())
        journal.begin(state.dump())

    def answer(self, scored: ScoredBatch) -> ScoredBatch:
        """Return what is to be answered in place of what the model said, and remember it."""
        outputs = self._state.outputs
        raw = outputs.matrix(scored.predictions)
        with self._lock:
            state = self._state
            proposals = state.proposed(raw, scored.request.features)
            answers = proposals if state.trust.open else raw
            adjustments = [state.id] * len(raw)
            again = {
                i: row for i, name in enumerate(scored.prediction_ids) if (row := state.memory.find(name))
            }
            if again:
                answers = answers.copy()
                for i, row in again.items():
                    answers[i], adjustments[i] = row.answer, row.adjustment
            predictions = scored.predictions
            if answers is not raw:
                predictions = outputs.written(predictions, raw, answers)
            rows = self._rows(scored, raw, proposals, again)
            if rows:
                self._journal.append(rows_entry(rows))
                state.answered(rows)
                self._keep_short()
        return replace(scored, predictions=predictions, adjustments=adjustments)

    def learn(self, labels: Sequence[Label]) -> None:
        """Learn from labels that came; the next answer knows of them."""
        if labels:
            with self._lock:
                self._journal.append(labels_entry(labels))
                self._state.labelled(labels)
                self._keep_short()

    def reset(self) -> None:
        """Forget what was learnt: the next answer is the model's own."""
        with self._lock:
            epoch, since = _new_epoch(), utc_now()
            self._journal.append(anew_entry(epoch, since))
            self._state.begin_anew(epoch, since)

    def status(self) -> AdjustmentStatus:
        """Return how it does."""
        with self._lock:
            return self._state.status()

    def close(self) -> None:
        with self._lock:
            self._journal.close()

    def _replayed(self) -> bool:
        """Bring the state to where the journal says it was; False when that says nothing that can be read."""
        known = False
        try:
            for entry in self._journal.read():
                self._state.replay(entry)
                known = True
        except Exception as error:  # noqa: BLE001 - another release wrote it, or its estimator
            _log.warning(
                "the adjustment begins anew, its journal cannot be read: %s: %s", type(error).__name__, error
            )
            return False
        return known

    def _rows(
        self, scored: ScoredBatch, raw: Floats, proposals: Floats, again: Mapping[int, Answered]
    ) -> list[Answered]:
        """Return the rows to remember: those that are new, and that a label could say something about."""
        state, request = self._state, scored.request
        clients = request.client_request_ids
        names = [None] * len(raw) if clients is None else values_of(clients)
        features: Sequence[Any] = [None] * len(raw)
        if state.method.needs_features:
            features = list(zip(*scored.schema.to_lists(request.features), strict=True))
        adjustment = state.id
        fresh = [i for i in np.flatnonzero(np.isfinite(raw).all(axis=1)).tolist() if i not in again]
        said = list(map(tuple, raw.tolist()))
        proposed = said if proposals is raw else list(map(tuple, proposals.tolist()))
        ids = scored.prediction_ids
        return [
            Answered(number, ids[i], names[i], said[i], proposed[i], adjustment, features[i])
            for number, i in zip(state.numbered(len(fresh)), fresh, strict=True)
        ]

    def _keep_short(self) -> None:
        if self._journal.is_long:
            self._journal.begin(self._state.dump())


class AdjustedCore(ScoringCore):
    """A scoring core whose predictions go through a live adjustment before they are logged and answered."""

    def __init__(
        self,
        scorer: Scorer,
        adjustment: LiveAdjustment,
        *,
        deployment: str,
        mode: str,
        log: PredictionLog,
        variant: str = "champion",
    ) -> None:
        super().__init__(scorer, deployment=deployment, mode=mode, log=log, variant=variant)
        self._adjustment = adjustment

    def predict(self, request: Request, params: Mapping[str, Any] | None = None) -> ScoredBatch:
        """Predict and adjust the rows; whoever answers them must `log` them before.

        Raises ModelError when the model raises, Unavailable when what is answered cannot be remembered.
        """
        return self._adjustment.answer(super().predict(request, params))


def _new_epoch() -> str:
    return os.urandom(3).hex()

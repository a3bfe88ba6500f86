"""What every protocol of the web mode asks for: rows in, an answer out that is logged by then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlflow_flywheel.pipelines.ids import new_prediction_ids
from mlflow_flywheel.pipelines.scoring import Request, ScoringCore

from .parsing import Rows


@dataclass(frozen=True)
class Answer:
    """What a caller is told of its rows, in their order."""

    predictions: list[Any]
    prediction_ids: list[str]


class Service:
    """Scores rows of one model version. Safe to call from several threads."""

    def __init__(self, core: ScoringCore) -> None:
        self._core = core
        self._schema = core.scorer.schema

    def score(self, rows: Rows) -> Answer:
        """Check, score and log rows.

        Raises BadInput when they do not fit the model, ModelError when it raises, Unavailable when they cannot be
        logged.
        """
        ids = new_prediction_ids(rows.count)
        asked = Request(rows.features(self._schema), ids, rows.client_request_ids, rows.event_times)
        scored = self._core.score(asked, rows.params)
        return Answer(scored.predictions.native, ids)

"""How an adjustment does, for people, for Prometheus and for MLflow."""

from __future__ import annotations

from datetime import datetime

from mlflow_flywheel.pipelines.config import Frozen


class AdjustmentStatus(Frozen):
    """What a worker says of its adjustment.

    `id` is what rows carry that are answered now, `active` whether it changes them, `since` when it began (with its
    version, or when it was reset). Of the labels that came, `labels` were learnt from, `unknown` name no row that is
    remembered, `unusable` are no value or class that the model knows. `rows` labelled ones are learnt from now, and
    `waiting` ones have no label yet. Losses are the means over the newest `judged` labelled rows: of what the model
    said, of what the adjustment proposed, and of what was answered; `evidence` is by how many standard errors the
    proposals were better. `limit` is how far a prediction may be moved, in `unit`.
    """

    method: str
    id: str
    active: bool
    since: datetime
    labels: int
    unknown: int
    unusable: int
    waiting: int
    rows: int
    parameters: dict[str, float]
    limit: float | None
    unit: str
    loss: str
    judged: int
    unadjusted_loss: float | None
    proposed_loss: float | None
    answered_loss: float | None
    evidence: float

    @property
    def gain(self) -> float | None:
        """Return the share of the model's loss that the answers have saved lately; negative when they cost more."""
        if self.unadjusted_loss is None or self.answered_loss is None or self.unadjusted_loss == 0:
            return None
        return 1 - self.answered_loss / self.unadjusted_loss

    def losses(self) -> dict[str, float]:
        """Return the mean losses by whose they are, as far as they are known."""
        said = {
            "unadjusted": self.unadjusted_loss,
            "proposed": self.proposed_loss,
            "answered": self.answered_loss,
        }
        return {whose: loss for whose, loss in said.items() if loss is not None}

    def series(self) -> dict[str, float]:
        """Return what goes on over time, as the series in MLflow are called."""
        said = {"adjustment_active": float(self.active)}
        if self.gain is not None:
            said["adjustment_gain"] = self.gain
        return said | {f"adjustment_{whose}_loss": loss for whose, loss in self.losses().items()}

"""Bounds on performance that hold for whichever model serves: "auc>=0.6,log_loss<=0.7"."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import model_serializer

from mlflow_flywheel.pipelines.config import Frozen

METRICS = ("log_loss", "brier", "auc", "accuracy", "f1", "f1_macro", "skill", "mae", "rmse", "r2")
_BOUND = re.compile(r"(\w+)\s*(>=|<=)\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)")


class Floor(Frozen):
    """One bound: the metric must be at least (>=) or at most (<=) the limit."""

    metric: str
    sense: Literal[">=", "<="]
    limit: float

    @model_serializer
    def _text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.metric}>={self.limit:g}" if self.sense == ">=" else f"{self.metric}<={self.limit:g}"

    def broken_by(self, value: float) -> bool:
        """Whether the value is on the wrong side."""
        return value < self.limit if self.sense == ">=" else value > self.limit


def parse_floor(value: object) -> object:
    """Read bounds from a comma-separated string, or a list of such strings. Raises ValueError for pydantic."""
    if isinstance(value, str):
        return tuple(_bound(part.strip()) for part in value.split(",") if part.strip())
    if isinstance(value, (list, tuple)):
        return tuple(_bound(part) if isinstance(part, str) else part for part in value)
    return value


def _bound(text: str) -> Floor:
    match = _BOUND.fullmatch(text)
    if match is None:
        raise ValueError(
            f'{text!r} is not a bound; write a metric, >= or <=, and a number, such as "auc>=0.6"'
        )
    metric, sense, limit = match.groups()
    if metric not in METRICS:
        raise ValueError(
            f"{metric!r} is not a metric of the performance monitor; known: {', '.join(METRICS)}"
        )
    return Floor(metric=metric, sense=">=" if sense == ">=" else "<=", limit=float(limit))

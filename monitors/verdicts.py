"""A monitor's answer about a window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from mlflow_flywheel.pipelines.times import as_utc

from .windows import Window

Status = Literal["ok", "warn", "alarm", "unknown"]
_SEVERITY = {"unknown": 0, "ok": 1, "warn": 2, "alarm": 3}
assert set(_SEVERITY) == set(get_args(Status))


@dataclass(frozen=True)
class Verdict:
    """What one monitor says about one window, with the numbers it rests on.

    `summary` is one sentence for people, `metrics` are finite numbers for charts (keys are MLflow metric names),
    `evidence` is a table of flat rows. `unknown` means too little data to say anything: never "all is well".
    """

    monitor: str
    status: Status
    summary: str
    window: Window
    metrics: dict[str, float] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        finite = {name: float(value) for name, value in self.metrics.items() if math.isfinite(value)}
        object.__setattr__(self, "metrics", finite)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON-ready values; `Verdict.from_dict` reads it back."""
        return {
            "monitor": self.monitor,
            "status": self.status,
            "summary": self.summary,
            "window": {"start": self.window.start.isoformat(), "end": self.window.end.isoformat()},
            "metrics": dict(self.metrics),
            "evidence": [dict(row) for row in self.evidence],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` wrote."""
        window = Window(*(as_utc(datetime.fromisoformat(raw["window"][end])) for end in ("start", "end")))
        return cls(**{**raw, "window": window})


def worst(verdicts: Iterable[Verdict]) -> Status:
    """Return the most severe status; `unknown` when there is no verdict, or nothing but unknown ones."""
    return max((verdict.status for verdict in verdicts), key=_SEVERITY.__getitem__, default="unknown")

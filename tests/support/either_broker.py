"""What a test that runs on both kinds of broker needs: one of them, and deployments that exist on paper only."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.config import ModelRef, StreamConfig
from mlflow_flywheel.pipelines.model import Scorer
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema


@dataclass(frozen=True)
class EitherBroker:
    """A broker that runs."""

    url: str
    embedded: bool

    def config(self, folder: Path, **settings: Any) -> StreamConfig:
        """Return a deployment with topics of its own, whose files are in a folder."""
        name = f"d-{uuid.uuid4().hex[:8]}"
        known = {
            "deployment": name,
            "model": ModelRef(name="m", version="1", path=""),
            "spool": str(folder / "spool"),
            "status_file": str(folder / f"{name}.status.json"),
            "broker": self.url,
            "embedded": self.embedded,
            "input_topic": f"{name}-in",
            "output_topic": f"{name}-out",
            "feedback_topic": f"{name}-feedback",
            "dead_letter_topic": f"{name}-dlq",
            "subscription": name,
        }
        return StreamConfig.model_validate(known | settings)


def doubling_scorer(predict: Callable[[Any], Any] = lambda x: x * 2) -> Scorer:
    """Return a scorer of one feature `x` without a model file behind it."""
    return Scorer(
        ModelRef(name="m", version="1", path=""),
        FeatureSchema([Feature("x", "double")]),
        lambda frame, params: (predict(frame["x"]), None),
        None,
        None,
        "double",
        None,
    )

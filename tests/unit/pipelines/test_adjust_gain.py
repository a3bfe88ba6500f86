"""On drifting streams each adjustment beats its model, on stationary ones it does not hurt: a few seeds of the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.prequential import Stream, classification, play, regression

from mlflow_flywheel.pipelines.config import AdjustKind

ROWS, SEEDS = 2000, 2


@pytest.mark.parametrize(
    ("make", "kind", "drift", "most"),
    [
        (regression, "bias", "abrupt", 0.87),
        (regression, "partial_fit", "concept", 0.93),
        (classification, "recalibrate", "abrupt", 0.95),
        (regression, "bias", "stationary", 1.002),
        (classification, "recalibrate", "stationary", 1.002),
    ],
)
def test_the_loss_against_the_unadjusted_model(
    make: Callable[[str, int, int], Stream], kind: AdjustKind, drift: str, most: float
) -> None:
    ratios = [play(make(drift, seed, ROWS), kind, batch=100).ratio for seed in range(SEEDS)]
    assert np.mean(ratios) <= most, ratios

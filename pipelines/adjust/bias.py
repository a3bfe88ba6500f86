"""A running correction of a regressor's mean error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .outputs import spread
from .rows import Floats, Labelled, Sample

# As many labels more are imagined that find the model right: few labels move little.
PRIOR_LABELS = 50
# An error farther than this from the middle one counts as one at this distance: one wrong label moves next to nothing.
_FARTHEST_SPREADS = 10


class Bias:
    """Adds to each prediction the mean error of the remembered rows, drawn towards 0 while there are few of them."""

    name = "bias"
    needs_features = False

    def __init__(self) -> None:
        self._shift = 0.0

    def propose(self, raw: Floats, features: pa.RecordBatch | pa.Table) -> Floats:
        return raw + self._shift if self._shift else raw

    def learn(self, sample: Sample, fresh: Sequence[Labelled]) -> None:
        errors = sample.truths - sample.raw[:, 0]
        middle, farthest = float(np.median(errors)), _FARTHEST_SPREADS * spread(errors)
        total = np.clip(errors, middle - farthest, middle + farthest).sum()
        self._shift = float(
            f"{total / (len(errors) + PRIOR_LABELS):.5g}"
        )  # what the id says is what is added

    def effect(self) -> str:
        return f"{self._shift:+.5g}"

    def parameters(self) -> dict[str, float]:
        return {"shift": self._shift}

    def dump(self) -> Any:
        return self._shift

    def load(self, state: Any) -> None:
        self._shift = 0.0 if state is None else float(state)

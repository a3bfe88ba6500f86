"""Probabilities in a few hundred narrow cells.

Within a cell a calibrator's answer is as good as constant, so that everything that is asked of rows becomes sums over
cells: a thousand bootstrap replicates cost the same for a thousand rows and for a million.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflow_flywheel.monitors.outcomes import Codes, Floats
from mlflow_flywheel.pipelines.gate import PROBABILITY_FLOOR

# Most cells for each sample that is looked at, and rows that a cell is worth; both samples' quantiles are edges.
_CELLS, _ROWS = 100, 10


@dataclass(frozen=True)
class Grid:
    """Edges between cells, and the mean log-odds of each cell."""

    edges: Floats
    logits: Floats

    @classmethod
    def over(cls, *samples: Floats) -> Grid:
        """Make one in which each sample's probabilities are spread evenly; ties stay in one cell."""
        bounded = [bounded_probability(sample) for sample in samples if len(sample)]
        edges = np.unique(np.concatenate([np.quantile(s, _steps(len(s)), method="lower") for s in bounded]))
        together = np.concatenate(bounded)
        place = np.searchsorted(edges, together, side="right")
        rows = np.bincount(place, minlength=len(edges) + 1)
        sums = np.bincount(place, weights=logit(together), minlength=len(edges) + 1)
        # Only the cell below the first edge can be empty.
        nearest = logit(edges)[np.maximum(np.arange(len(edges) + 1) - 1, 0)]
        return cls(edges, np.where(rows > 0, sums / np.maximum(rows, 1), nearest))

    def __len__(self) -> int:
        return len(self.logits)

    def place(self, probabilities: Floats) -> Codes:
        """Return the cell of each probability."""
        return np.searchsorted(self.edges, bounded_probability(probabilities), side="right")

    def sums(self, places: Codes, blocks: Codes, values: Floats | None = None) -> Floats:
        """Add up values (rows without any) per block and cell: blocks x cells."""
        n = int(blocks.max()) + 1
        flat = np.bincount(blocks * len(self) + places, weights=values, minlength=n * len(self))
        return flat.astype(np.float64).reshape(n, len(self))


def _steps(rows: int) -> Floats:
    return np.linspace(0, 1, min(_CELLS, rows // _ROWS + 2) + 1)[1:-1]


def bounded_probability(values: Floats) -> Floats:
    """Keep probabilities off 0 and 1, as the metrics do."""
    return np.clip(values, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)


def logit(probabilities: Floats) -> Floats:
    """Return log-odds."""
    return np.log(probabilities) - np.log1p(-probabilities)

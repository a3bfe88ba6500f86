"""The interface of what learns: it proposes predictions, from what the model said and the labels that came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from .rows import Floats, Labelled, Sample


class Method(Protocol):
    """One way to adjust. Not safe to use from several threads; equal rows in equal order give an equal state.

    Whatever it proposes is bounded afterwards, and answered only while it proves to help.
    """

    name: str
    needs_features: bool

    def propose(self, raw: Floats, features: pa.RecordBatch | pa.Table) -> Floats:
        """Return predictions for rows; before anything was learnt they are `raw` itself."""

    def learn(self, sample: Sample, fresh: Sequence[Labelled]) -> None:
        """Learn from labels that came: all that are remembered, and those of them that are new, by their answers' order."""

    def effect(self) -> str:
        """Say what it does to predictions in as few characters as tell one state from another in its epoch."""

    def parameters(self) -> dict[str, float]:
        """Return what it has learnt, for people."""

    def dump(self) -> Any:
        """Return the state as JSON-ready values."""

    def load(self, state: Any) -> None:
        """Take a state that `dump` gave; None is that of a beginning."""

"""How far back to train: a few windows are tried on the newest training rows, in the order of time.

The held-out rows are never looked at: the training rows before them are cut into an older part and, newest, a few folds,
and each fold is predicted from what was before it. All windows are judged on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from .errors import ModelError
from .scores import Scores
from .times import EPOCH
from .training_files import EVENT_TIME
from .training_rows import MIN_ROWS, since

_FOLDS = 3
_VALIDATION_SHARE = 0.3

Try = Callable[[pa.Table, pa.Table], Scores]
"""Fit to the first rows and score the second ones. Raises ModelError when that cannot be done."""


@dataclass(frozen=True)
class WindowChoice:
    """The window that was chosen, and the mean loss of each that could be judged, on `rows` rows in `folds` folds.

    `left_out` says of the others why they could not be. Without any that could, the longest is chosen.
    """

    name: str
    metric: str = ""
    losses: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    folds: int = 0

    def __str__(self) -> str:
        if not self.losses:
            said = "no window could be judged, so the longest is used"
        else:
            found = ", ".join(f"{name} {loss:.4g}" for name, loss in self.losses.items())
            said = (
                f"mean {self.metric.replace('_', ' ')} on {self.rows:,} rows in {self.folds} folds: {found}"
            )
        reasons = "; ".join(f"{name} was left out: {why}" for name, why in self.left_out.items())
        return f"{self.name} ({said}{'; ' if reasons else ''}{reasons})"


def choose_window(
    rows: pa.Table, windows: Mapping[str, timedelta | None], end: datetime, attempt: Try
) -> WindowChoice:
    """Return the window whose models had the lowest mean loss on later rows, of equal ones the longest.

    `rows` are the training rows before `end`, where the hold-out begins.
    """
    edges = _edges(rows)
    folds = list(zip(edges, [*edges, end][1:], strict=True))
    losses: dict[str, float] = {}
    left_out: dict[str, str] = {}
    metric, judged = "", 0
    for name, length in windows.items():
        fewest = min(since(rows, length, moment).num_rows for moment in (*edges, end))
        if not folds or fewest < MIN_ROWS:
            left_out[name] = f"{fewest} rows before a fold or the hold-out, fewer than {MIN_ROWS}"
            continue
        try:
            found = [
                attempt(since(rows, length, first), since(rows, last - first, last)) for first, last in folds
            ]
        except ModelError as error:
            left_out[name] = error.message
            continue
        every = np.concatenate([scores.losses for scores in found])
        if np.isfinite(every).all():
            metric, judged, losses[name] = found[0].metric, len(every), float(every.mean())
        else:
            left_out[name] = "a prediction or a label is no number"
    longest = sorted(windows, key=lambda name: windows[name] or timedelta.max, reverse=True)
    chosen = min(
        (name for name in longest if name in losses), key=lambda name: losses[name], default=longest[0]
    )
    return WindowChoice(chosen, metric, losses, left_out, judged, len(folds) if losses else 0)


def _edges(rows: pa.Table) -> list[datetime]:
    """Return where the folds begin; none goes through rows of one moment."""
    times = np.sort(rows[EVENT_TIME].drop_null().cast(pa.int64()).to_numpy())
    n = len(times)
    held = round(n * _VALIDATION_SHARE)
    places = (
        {int(times[n - held + held * fold // _FOLDS]) for fold in range(_FOLDS)} if held >= _FOLDS else set()
    )
    return [EPOCH + timedelta(microseconds=moment) for moment in sorted(places)]

"""The live adjustment of a stream deployment: what it can be, its files, and how the control plane resets it.

The files are beside the deployment's status file: the journal of the worker's adjustment, and for a moment a wish that
it should begin anew.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow_flywheel.pipelines.adjust.choice import choose
from mlflow_flywheel.pipelines.adjust.journal import Journal
from mlflow_flywheel.pipelines.adjust.live import LiveAdjustment
from mlflow_flywheel.pipelines.adjust.state import AdjustmentState
from mlflow_flywheel.pipelines.config import StreamConfig
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.pipelines.model import Scorer

from .stats import StatsKeeper

_log = logging.getLogger(__name__)


def new_state(config: StreamConfig, scorer: Scorer) -> AdjustmentState | None:
    """Return the adjustment that a deployment wants, at its beginning; None when it wants none.

    Raises BadInput, with what would do instead, when its model cannot be adjusted so.
    """
    if config.adjust == "off":
        return None
    method, outputs = choose(config.adjust, scorer)
    return AdjustmentState(
        method,
        outputs,
        window=config.adjust_window,
        waiting=config.adjust_memory,
        bound=config.adjust_bound,
    )


def open_adjustment(config: StreamConfig, state: AdjustmentState | None) -> LiveAdjustment | None:
    """Bring the deployment's adjustment to where it was, or let it begin: with each version and each other setting anew.

    Raises Unavailable when its journal cannot be written.
    """
    path = _journal_file(config.status_file)
    if state is None:
        path.unlink(missing_ok=True)
        reset_file(config.status_file).unlink(missing_ok=True)
        return None
    settings = config.model_dump(include={"adjust", "adjust_window", "adjust_bound", "adjust_memory"})
    owner = {**config.model.model_dump(exclude={"path"}), **settings}
    return LiveAdjustment(state, Journal(path, owner, config.durability))


def look_after(adjustment: LiveAdjustment, config: StreamConfig, stats: StatsKeeper) -> None:
    """Do what the control plane wishes, and tell how the adjustment does; to be called about every second."""
    wish = reset_file(config.status_file)
    if wish.exists():
        try:
            adjustment.reset()
            wish.unlink(missing_ok=True)
            _log.info("the adjustment begins anew, as was asked for")
        except Unavailable as error:
            _log.warning("%s; the adjustment is reset as soon as that works", error)
    stats.note(adjustment=adjustment.status())


def reset_file(status_file: str | Path) -> Path:
    """Return the file whose presence tells a deployment's worker to reset its adjustment; it is removed when that is done."""
    status = Path(status_file)
    return status.with_name(f"{status.stem}.adjustment-reset")


def _journal_file(status_file: str | Path) -> Path:
    status = Path(status_file)
    return status.with_name(f"{status.stem}.adjustment.jsonl")

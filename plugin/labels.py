"""Labels from a file into a model's inference table, all of them or none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlflow_flywheel.pipelines.committer import Committer
from mlflow_flywheel.pipelines.errors import NotFound, Unavailable
from mlflow_flywheel.pipelines.feedback import FeedbackLog, parse_feedback, read_feedback_file
from mlflow_flywheel.pipelines.inference_table import InferenceTable

from .context import Context

_COMMIT_SECONDS = 60.0
_PAUSE_SECONDS = 0.1


def give_labels(context: Context, model: str, file: Path, *, source: str) -> dict[str, Any]:
    """Check every row of a file, keep the labels, and return when they are in the table.

    Returns `accepted`, and of the whole table `rows`, `labelled` and `unmatched`: labels whose prediction is not there.
    Raises BadInput that names the row, before anything is kept.
    """
    table = InferenceTable.open(context.home.tables, model)
    if not table.exists:
        raise NotFound(f"model {model!r} has no inference table yet; deploy it first")
    number = 0
    for rows in read_feedback_file(file):
        for row in rows:
            parse_feedback(row, table.kind, number)
            number += 1
    log = FeedbackLog(context.home.spool, model, table.kind, source=source)
    try:
        accepted = sum(log.submit(rows) for rows in read_feedback_file(file))
    finally:
        log.close()
    _commit(context, model, log.slot)
    counts = table.counts()
    return {
        "accepted": accepted,
        "rows": counts.answered,
        "labelled": counts.labelled,
        "unmatched": table.unmatched_feedback(),
    }


def _commit(context: Context, model: str, slot: Path) -> None:
    """Move the labels into the table; the daemon, which may be at it too, takes turns with this."""
    committer = Committer(context.home.spool, context.home.tables)
    deadline = time.monotonic() + _COMMIT_SECONDS
    while any(slot.glob("*.seg")):
        if committer.commit_model(model).segments == 0:
            time.sleep(_PAUSE_SECONDS)
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the labels are kept in {slot}, but could not be moved into the table within "
                f"{_COMMIT_SECONDS:g} s; 'flywheel logs daemon' says why"
            )

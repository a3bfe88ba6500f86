"""What a drift check with its report costs, and Evidently's preset on the same frames: CPU seconds and memory.

Each is taken in a process of its own, imports and a first small run apart on both sides.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from monitor_samples import WINDOW, features, reference_of, window_of

COLUMNS = 20
ROUNDS = 3


def speeds(rows: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure both sides on the same frames, and ours by size."""
    mine = [_apart(ours, [rows], rows)[rows]]
    theirs = _apart(evidently, rows)
    mine += [_apart(ours, [rows], rows)[rows] for _ in range(rounds - 1)]
    sizes = _apart(ours, [rows // 10, rows // 3, rows, 2 * rows], 20_000)
    return {
        "rows": rows,
        "columns": COLUMNS,
        "ours": {step: median(one[step] for one in mine) for step in mine[0]},
        "rounds": mine,
        "evidently": theirs,
        "by_rows": sizes,
    }


def ours(sizes: Sequence[int], reference_rows: int) -> dict[int, dict[str, float]]:
    """Check windows of these sizes and draw their reports; return CPU seconds of each step and the peak memory so far."""
    from mlflow_flywheel.monitors.drift import drift
    from mlflow_flywheel.monitors.evidently import drift_report
    from mlflow_flywheel.monitors.overview import overview

    def look(rows: int, reference_rows: int) -> dict[str, float]:
        rng = np.random.default_rng(rows)
        reference = reference_of(features(rng, reference_rows, COLUMNS))
        window = window_of(features(rng, rows, COLUMNS, 0.5))
        marks = [time.process_time()]
        assert reference.profile.columns
        marks.append(time.process_time())
        verdict = drift(window, reference, WINDOW)
        marks.append(time.process_time())
        html = drift_report(window, reference, verdict)
        marks.append(time.process_time())
        page = overview("bench", "1", [verdict], window, reference)
        marks.append(time.process_time())
        assert len(html) > 1_000_000 and verdict.status != "ok" and "<svg" in page
        found = dict(zip(("profile", "check", "report", "overview"), np.diff(marks).tolist(), strict=True))
        return found | {"total": marks[-1] - marks[1], "peak_gb": _peak_gb()}

    look(1_000, 1_000)
    return {rows: look(rows, reference_rows) for rows in sizes}


def evidently(rows: int) -> dict[str, float]:
    """Run Evidently's preset on the same frames; return the CPU seconds of the run alone and the peak memory."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    def look(rows: int) -> float:
        rng = np.random.default_rng(rows)
        old = pa.table(features(rng, rows, COLUMNS)).to_pandas()
        new = pa.table(features(rng, rows, COLUMNS, 0.5)).to_pandas()
        definition = DataDefinition(
            numerical_columns=[name for name in old if name.startswith("x")],
            categorical_columns=[name for name in old if name.startswith("c")],
            text_columns=[],
            datetime_columns=[],
            unknown_columns=[],
            list_columns=[],
        )
        started = time.process_time()
        current, reference = (Dataset.from_pandas(frame, data_definition=definition) for frame in (new, old))
        Report([DataDriftPreset()]).run(current, reference)
        return time.process_time() - started

    look(1_000)
    return {"preset": look(rows), "peak_gb": _peak_gb()}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()

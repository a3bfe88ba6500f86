"""A back-test as an MLflow run: series with a point per period, tables, and the report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backtest import Backtest, Estimate, Period
from .backtest_page import page
from .backtest_words import conclusion, leak_note, shown_state
from .reporting import (
    KIND_TAG,
    MODEL_TAG,
    experiment_id,
    finish_run,
    mlflow_errors,
    plain_markdown,
    points_at,
    write_csv,
)
from .windows import format_duration

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

BACKTEST_ARTIFACT = "reports/backtest.html"
AGAINST_PREFIX, DIFFERENCE_PREFIX = "against/", "difference/"
_TAG_LENGTH = 4000
# What MLflow takes in one request.
_MOST_METRICS = 1000


def log_backtest(
    client: MlflowClient,
    result: Backtest,
    *,
    model_ids: tuple[str | None, ...] = (),
    table_versions: Mapping[str, int] | None = None,
) -> tuple[str, str]:
    """Log a back-test in the model's experiment and return the ids of experiment and run.

    Each metric has a point per period, at the period's start; those of the version that it is compared with are
    `against/<metric>`, the paired differences `difference/<metric>`; bounds of intervals end in `_low` and `_high`.
    """
    experiment = experiment_id(client, result.model)
    spec = result.spec
    name = "backtest " + " against ".join(result.versions)
    with mlflow_errors(client, f"log the back-test of {result.model!r}"):
        run = client.create_run(experiment, tags=_tags(result, table_versions), run_name=name)
        run_id = str(run.info.run_id)
        try:
            for key, value in _parameters(result).items():
                client.log_param(run_id, key, value)
            _link_models(client, run_id, model_ids)
            points = _series(result)
            while chunk := list(islice(points, _MOST_METRICS)):
                client.log_batch(run_id, metrics=chunk)
            client.log_batch(run_id, metrics=points_at(_overall(result), spec.end))
            _log_files(client, run_id, result)
        except BaseException:
            finish_run(client, run_id, "FAILED")
            raise
        finish_run(client, run_id, "FINISHED")
    return experiment, run_id


def to_dict(result: Backtest) -> dict[str, Any]:
    """Return the whole result as JSON-ready values."""
    spec = result.spec
    return {
        "model": result.model,
        "versions": list(result.versions),
        "training": list(result.training),
        "leak": leak_note(result),
        "conclusion": conclusion(result),
        "start": spec.start.isoformat(),
        "end": spec.end.isoformat(),
        "every": format_duration(spec.every),
        "confidence": spec.confidence,
        "overall": None if result.overall is None else asdict(result.overall),
        "periods": [
            {
                **asdict(period),
                "window": {
                    "start": period.window.start.isoformat(),
                    "end": period.window.end.isoformat(),
                },
                "state": shown_state(period, spec.min_rows),
            }
            for period in result.periods
        ],
    }


def _tags(result: Backtest, table_versions: Mapping[str, int] | None) -> dict[str, str]:
    spec = result.spec
    tags = {
        KIND_TAG: "backtest",
        MODEL_TAG: result.model,
        "flywheel.version": result.versions[0],
        "flywheel.window": f"{spec.start.isoformat()}/{spec.end.isoformat()}",
        "flywheel.backtest.leak": leak_note(result)[:_TAG_LENGTH],
        "flywheel.table_versions": json.dumps(table_versions or {}),
        "mlflow.note.content": "\n\n".join(map(plain_markdown, (conclusion(result), leak_note(result))))[
            :_TAG_LENGTH
        ],
    }
    return tags | ({"flywheel.against": result.versions[1]} if len(result.versions) > 1 else {})


def _parameters(result: Backtest) -> dict[str, str]:
    spec = result.spec
    found = {
        "version": result.versions[0],
        "from": spec.start.isoformat(),
        "to": spec.end.isoformat(),
        "every": format_duration(spec.every),
        "min_rows": str(spec.min_rows),
        "confidence": f"{spec.confidence:g}",
        "seed": str(spec.seed),
    }
    return found | ({"against": result.versions[1]} if len(result.versions) > 1 else {})


def _link_models(client: MlflowClient, run_id: str, model_ids: tuple[str | None, ...]) -> None:
    from mlflow.entities import LoggedModelInput

    known = [LoggedModelInput(model_id) for model_id in dict.fromkeys(model_ids) if model_id]
    if known:
        client.log_inputs(run_id, models=known)


def _series(result: Backtest) -> Iterator[Metric]:
    for period in result.periods:
        yield from points_at(_numbers(period), period.window.start)


def _numbers(period: Period) -> dict[str, float]:
    found: dict[str, float] = {"rows": period.events, "label_rows": period.labelled}
    if period.coverage is not None:
        found["label_coverage"] = period.coverage
    for prefix, side in zip(("", AGAINST_PREFIX), period.sides, strict=False):
        found[f"{prefix}scored_rows"] = side.scored
        found[f"{prefix}unscored_rows"] = sum(side.unscored.values())
        found[f"{prefix}training_rows"] = side.training_rows
        found |= _flat(prefix, side.metrics)
    return found | _flat(DIFFERENCE_PREFIX, period.difference)


def _flat(prefix: str, estimates: Mapping[str, Estimate]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        found[prefix + name] = estimate.value
        if estimate.low is not None and estimate.high is not None:
            found[f"{prefix}{name}_low"], found[f"{prefix}{name}_high"] = estimate.low, estimate.high
    return found


def _overall(result: Backtest) -> dict[str, float]:
    overall = result.overall
    if overall is None:
        return {}
    found = {"overall/rows": float(overall.rows), "overall/periods": float(overall.periods)}
    for prefix, loss in zip(("overall/", "overall/against_"), overall.losses, strict=False):
        found |= _flat(prefix, {overall.metric: loss})
    if overall.difference is not None:
        found |= _flat("overall/difference_", {overall.metric: overall.difference})
    return found


def _log_files(client: MlflowClient, run_id: str, result: Backtest) -> None:
    with tempfile.TemporaryDirectory(prefix="flywheel-backtest-") as folder:
        root = Path(folder)
        (root / "backtest").mkdir()
        (root / "backtest" / "result.json").write_text(json.dumps(to_dict(result), indent=1))
        rows = [
            {
                "start": period.window.start.isoformat(),
                "end": period.window.end.isoformat(),
                "state": shown_state(period, result.spec.min_rows),
                **_numbers(period),
            }
            for period in result.periods
        ]
        write_csv(rows, root / "backtest" / "periods.csv")
        unscored = [
            {"period": period.window.start.isoformat(), "version": version, "rows": rows, "reason": reason}
            for period in result.periods
            for version, side in zip(result.versions, period.sides, strict=True)
            for reason, rows in side.unscored.items()
        ]
        write_csv(unscored, root / "backtest" / "unscored.csv")
        report = root / BACKTEST_ARTIFACT
        report.parent.mkdir()
        report.write_text(page(result), encoding="utf-8", errors="replace")
        client.log_artifacts(run_id, folder)

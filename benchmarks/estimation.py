"""How near estimates without labels come to what is realised, and how often their intervals hold it.

Made-up rows without drift, with other rows (covariate drift) and with another meaning (concept drift: no estimate can see
it, the comparison with labels must say so), and a year of real flights by month for the January model. Beside it: whether
intervals of realised metrics hold when rows of one day are alike, drawn by rows and by days. No figure depends on the
machine; some four minutes of one core.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from report import publish
from rich.console import Console
from rich.table import Table

from mlflow_flywheel.monitors.estimation.monitor import estimation
from mlflow_flywheel.monitors.measures import measure, quantiles
from mlflow_flywheel.monitors.outcomes import infer_task, outcomes
from mlflow_flywheel.monitors.performance import reference_metrics
from mlflow_flywheel.monitors.reference import FEATURE_PREFIX, Reference
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window
from mlflow_flywheel.pipelines.training_files import EVENT_TIME
from mlflow_flywheel.plugin.demo import flights as source
from mlflow_flywheel.plugin.demo.model import January, fit_january

# Of intervals that are meant to hold 95 of 100.
GOALS = {
    "coverage_without_drift": ">= 0.93",
    "coverage_other_rows": ">= 0.90",
    "error_other_rows_vs_no_estimate": "<= 0.5",
    "false_alarms_max": "<= 0.07",
    "other_meaning_told": ">= 0.95",
    "coverage_day_blocks": ">= 0.90",
    "flights_auc_error_vs_no_estimate": "< 1",
}
START = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAYS = 28
WINDOW = Window(START, START + timedelta(days=DAYS))
CLASSIFIER_RUNS, REGRESSOR_RUNS, SPLITS = 60, 15, 8
KINDS = {"without drift": {}, "other rows": {"centre": 0.8}, "other meaning": {"concept": 1.0}}
Columns = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One kind of model and how much of it there is; days share a deviation of the log-odds, or of the error's."""

    name: str
    draw: Callable[..., tuple[Columns, Columns]]
    reference_rows: int
    rows: int
    day: float
    metrics: tuple[str, ...]
    runs: int


def classifier(
    rng: np.random.Generator, n: int, day: float, centre: float = 0.0, concept: float = 0.0
) -> tuple[Columns, Columns]:
    """Draw rows of an over-confident classifier that knows one of the two causes."""
    x, unknown = rng.normal(centre, 1, n), rng.normal(0, 0.5, n)
    truth = rng.random(n) < _sigmoid(x - 1 + unknown + _by_day(rng, n, day) + concept)
    score = _sigmoid(1.5 * (x - 1))
    proba = pa.array(list(np.column_stack([1 - score, score])), pa.list_(pa.float64()))
    return {"x": x}, {"prediction": (score > 0.5) * 1.0, "prediction_proba": proba, "label": truth * 1.0}


def regressor(
    rng: np.random.Generator, n: int, day: float, centre: float = 0.0, concept: float = 0.0
) -> tuple[Columns, Columns]:
    """Draw rows of a regressor whose error depends on two features."""
    x, word = rng.normal(centre, 1, n), rng.choice(["calm", "loud"], n)
    size = np.exp(x / 2 + (word == "loud") / 2 + _by_day(rng, n, day) + concept / 3)
    return {"x": x, "word": word}, {"prediction": x, "label": x + rng.normal(0, 1, n) * size}


SETTINGS = (
    Setting("classifier, 500 + 2,000 rows", classifier, 500, 2000, 0.0, ("auc", "log_loss"), CLASSIFIER_RUNS),
    Setting(
        "classifier, 5,000 + 5,000 rows", classifier, 5000, 5000, 0.0, ("auc", "log_loss"), CLASSIFIER_RUNS
    ),
    Setting("classifier, days differ", classifier, 5000, 5000, 0.5, ("auc", "log_loss"), CLASSIFIER_RUNS),
    Setting("regressor, 2,000 + 2,000 rows", regressor, 2000, 2000, 0.0, ("mae",), REGRESSOR_RUNS),
    Setting("regressor, days differ", regressor, 2000, 2000, 0.2, ("mae",), REGRESSOR_RUNS),
)


def main() -> None:
    """Measure everything and publish it."""
    simulated = [row for setting in SETTINGS for row in simulate(setting)]
    show("estimated against realised, 95% intervals", simulated)
    year = source.load_flights()
    january = fit_january(year.of_months(1, 1).known_at(source.midnight(date(2013, 2, 1))))
    months = by_month(year, january)
    show("the January model on real flights", months)
    blocks = interval_coverage(year, january)
    show("95% intervals of the difference of two halves", blocks)

    ratios = summed_up(simulated, months, blocks)
    details = {"simulated": simulated, "flights": months, "intervals": blocks}
    print(f"written to {publish('estimation', ratios, GOALS, details, ['numpy', 'scikit-learn', 'scipy'])}")


def summed_up(
    simulated: list[dict[str, Any]], months: list[dict[str, Any]], blocks: list[dict[str, Any]]
) -> dict[str, float]:
    """Return the ratios: means over settings and metrics, the worst for alarms and for what must be told.

    The AUC hardly moves with other rows, so only losses can be nearer than no estimate at all.
    """

    def of(kind: str, column: str, *metrics: str) -> list[float]:
        return [r[column] for r in simulated if r["kind"] == kind and (not metrics or r["metric"] in metrics)]

    moved = [of("other rows", column, "log_loss", "mae") for column in ("error", "error_of_reference")]
    return {
        "coverage_without_drift": float(np.mean(of("without drift", "coverage"))),
        "coverage_other_rows": float(np.mean(of("other rows", "coverage"))),
        "error_other_rows_vs_no_estimate": float(np.mean(np.divide(*moved))),
        "false_alarms_max": max(of("without drift", "alarms")),
        "other_meaning_told": min(of("other meaning", "told")),
        "coverage_day_blocks": float(np.mean([r["by_days"] for r in blocks if r["halves"] == "random days"])),
        "flights_auc_error_vs_no_estimate": _error(months, "estimated_auc") / _error(months, "reference_auc"),
    }


def simulate(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield a row per kind of drift and metric: mean error, coverage, alarms, and how often distrust is told."""
    for kind, change in KINDS.items():
        found: dict[str, list[tuple[float, bool, float]]] = defaultdict(list)
        alarms = told = 0
        for seed in range(setting.runs):
            rng = np.random.default_rng(seed)
            reference = Reference(
                _table(setting.draw(rng, setting.reference_rows, setting.day), "", EVENT_TIME)
            )
            rows = _table(
                setting.draw(rng, setting.rows, setting.day, **change), FEATURE_PREFIX, "event_time"
            )
            verdict = estimation(rows, reference, WINDOW)
            alarms += any(row.get("status") == "alarm" for row in verdict.evidence)
            told += "not to be trusted" in verdict.summary
            was = reference_metrics(reference)
            for name in setting.metrics:
                found[name].append(_outcome(verdict, name, was[name]))
        for name, outcome in found.items():
            errors, inside, without = (np.array(column) for column in zip(*outcome, strict=True))
            yield {
                "setting": setting.name,
                "kind": kind,
                "metric": name,
                "error": _rounded(np.abs(errors).mean()),
                "bias": _rounded(errors.mean()),
                "error_of_reference": _rounded(np.abs(without).mean()),
                "coverage": _rounded(inside.mean()),
                "alarms": _rounded(alarms / setting.runs),
                "told": _rounded(told / setting.runs),
            }


def by_month(year: source.Flights, january: January) -> list[dict[str, Any]]:
    """Return what the monitor says of each month, its labels known; the months before teach and are compared."""
    reference = Reference(_flights(january, january.reference, "", EVENT_TIME))
    was = reference_metrics(reference)
    found, before = [], None
    for month in range(2, 13):
        frame = year.of_months(month, month).frame
        rows = _flights(january, frame, FEATURE_PREFIX, "event_time")
        start = source.midnight(date(2013, month, 1))
        end = source.midnight(date(2013, month + 1, 1) if month < 12 else date(2014, 1, 1))
        verdict = estimation(rows, reference, Window(start, end), before=before)
        alone = estimation(rows, reference, Window(start, end))
        line: dict[str, Any] = {"month": month}
        for name in ("auc", "log_loss"):
            line |= {
                f"reference_{name}": _rounded(was[name]),
                f"from_reference_{name}": _rounded(alone.metrics[f"estimated_{name}"]),
                f"estimated_{name}": _rounded(verdict.metrics[f"estimated_{name}"]),
                f"low_{name}": _rounded(verdict.metrics[f"estimated_{name}_low"]),
                f"high_{name}": _rounded(verdict.metrics[f"estimated_{name}_high"]),
                f"realised_{name}": _rounded(verdict.metrics[f"realised_{name}"]),
            }
        line["told"] = "not to be trusted" in verdict.summary
        found.append(line | {"status": verdict.status})
        before = rows
    return found


def interval_coverage(year: source.Flights, january: January) -> list[dict[str, Any]]:
    """Return how often the interval of the difference of two halves holds zero, drawn by rows and by days.

    Halves of random days are alike but for chance; the two fortnights of a month also differ by what the weather does
    for longer than a day, which no interval from within them can know.
    """
    hits: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for month in range(2, 13):
        frame = year.of_months(month, month).frame
        days = frame[source.DAY].dt.day.to_numpy()
        task = infer_task(_flights(january, frame, FEATURE_PREFIX, "event_time"))
        halves = [("fortnights", (days <= 14, (days > 14) & (days <= 28)))]
        for seed in range(SPLITS):
            drawn = np.random.default_rng(seed).permutation(32)[:16]
            halves.append(("random days", (np.isin(days, drawn), ~np.isin(days, drawn))))
        for name, masks in halves:
            samples = [
                outcomes(_flights(january, frame[mask], FEATURE_PREFIX, "event_time"), task) for mask in masks
            ]
            mixed = [replace(s, blocks=np.random.default_rng(0).integers(0, 500, len(s))) for s in samples]
            for metric in ("auc", "log_loss"):
                hits[name, metric].append((_holds_zero(mixed, metric), _holds_zero(samples, metric)))
    return [
        {
            "halves": name,
            "metric": metric,
            "pairs": len(held),
            "by_rows": _rounded(np.mean([by_rows for by_rows, _ in held])),
            "by_days": _rounded(np.mean([by_days for _, by_days in held])),
        }
        for (name, metric), held in hits.items()
    ]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=240).print(table)


def _holds_zero(samples: list[Any], metric: str) -> bool:
    first, second = (measure(sample, seed) for seed, sample in enumerate(samples))
    changes = first.replicates[metric] - second.replicates[metric]
    low, high = quantiles(changes, min(first.blocks, second.blocks), 0.025)
    return low <= 0 <= high


def _outcome(verdict: Verdict, name: str, was: float) -> tuple[float, bool, float]:
    known = verdict.metrics
    came = known[f"realised_{name}"]
    inside = known[f"estimated_{name}_low"] <= came <= known[f"estimated_{name}_high"]
    return known[f"estimated_{name}"] - came, inside, was - came


def _table(columns: tuple[Columns, Columns], prefix: str, time: str) -> pa.Table:
    features, own = columns
    n = len(own["label"])
    micros = int(START.timestamp() * 1e6) + np.arange(n) * int(DAYS * 86_400e6) // n
    moments = pa.array(micros, pa.timestamp("us", tz="UTC"))
    return pa.table({**{prefix + name: values for name, values in features.items()}, **own, time: moments})


def _flights(january: January, frame: pd.DataFrame, prefix: str, time: str) -> pa.Table:
    score = january.scores(frame)
    own = {
        "prediction": (score > 0.5) * 1.0,
        "prediction_proba": pa.array(list(np.column_stack([1 - score, score])), pa.list_(pa.float64())),
        "label": pa.array(frame[source.LABEL], from_pandas=True),
    }
    features = {prefix + name: pa.array(frame[name], from_pandas=True) for name in source.FEATURES}
    moments = pa.array(frame[source.EVENT_TIME]).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({**features, **own, time: moments})


def _error(months: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([abs(month[name] - month["realised_auc"]) for month in months]))


def _by_day(rng: np.random.Generator, n: int, deviation: float) -> Any:
    return np.repeat(rng.normal(0, deviation, DAYS), -(-n // DAYS))[:n]


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def _rounded(value: Any) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    main()

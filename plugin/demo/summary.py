"""What the demo showed, in numbers: the January model against the flywheel, and the table's account."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_flywheel.pipelines.errors import FlywheelError
from mlflow_flywheel.pipelines.inference_table import InferenceTable, TableCounts
from mlflow_flywheel.plugin.cost import DeploymentCost

from .flights import DAY, KEY, LABEL, Flights
from .model import MODEL_NAME, January
from .replay import Retraining

if TYPE_CHECKING:
    import pandas as pd

_FLOOR = 1e-15


@dataclass(frozen=True)
class Scores:
    """How good probabilities were, on labelled flights."""

    auc: float
    log_loss: float
    brier: float


@dataclass(frozen=True)
class Month:
    """One month of the replay: both models on the same flights; `versions` are those that answered, oldest first."""

    month: int
    flights: int
    static: Scores
    flywheel: Scores
    versions: tuple[str, ...]


@dataclass(frozen=True)
class TableAccount:
    """Whether every answered flight is in the inference table exactly once."""

    rows: int
    expected: int
    duplicates: int
    labelled: int
    labels: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing is there twice."""
        return self.rows == self.expected and self.duplicates == 0 and self.labelled == self.labels


@dataclass(frozen=True)
class Summary:
    """All of it."""

    months: tuple[Month, ...]
    deployments: tuple[Mapping[str, Any], ...]
    costs: Mapping[str, DeploymentCost]
    retrainings: tuple[Retraining, ...]
    table: TableAccount
    links: Mapping[str, str]
    seconds: float
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values; `version` of a month is the one in force at its end."""
        return {
            "months": [
                {
                    "month": m.month,
                    "flights": m.flights,
                    "static": asdict(m.static),
                    "flywheel": asdict(m.flywheel),
                    "version": m.versions[-1],
                    "versions": list(m.versions),
                }
                for m in self.months
            ],
            "deployments": [
                {name: d[name] for name in ("name", "mode", "status", "version", "predictions")}
                | {
                    name: self.costs[d["name"]].to_json()[name]
                    for name in ("cpu_seconds", "cost", "cost_per_1k")
                }
                for d in self.deployments
            ],
            "retrainings": [{**asdict(r), "as_of": r.as_of.isoformat()} for r in self.retrainings],
            "table": {
                "rows": self.table.rows,
                "expected": self.table.expected,
                "duplicates": self.table.duplicates,
                "labelled": self.table.labelled,
            },
            "links": dict(self.links),
            "seconds": round(self.seconds, 1),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def account(counts: TableCounts, asked: int, labels: int) -> TableAccount:
    """Compare the table with what was asked and what labels were handed in."""
    return TableAccount(counts.rows, asked, counts.duplicates, counts.labelled, labels)


def compare_months(table: InferenceTable, flights: Flights, january: January) -> tuple[Month, ...]:
    """Score the January model and the logged answers on the same labelled flights, month by month."""
    frame = flights.frame[flights.frame[LABEL].notna()]
    logged = _logged(table).reindex(frame[KEY])
    if logged["late"].isna().any() or (logged["label"].to_numpy() != frame[LABEL].to_numpy()).any():
        raise FlywheelError(
            f"the inference table of {MODEL_NAME!r} does not hold the labels that were handed in"
        )
    static = january.scores(frame)
    months = frame[DAY].dt.month.to_numpy()
    found = []
    for month in np.unique(months):
        chosen = months == month
        truth = frame[LABEL].to_numpy()[chosen]
        rows = logged[chosen]
        found.append(
            Month(
                int(month),
                int(chosen.sum()),
                score(truth, static[chosen]),
                score(truth, rows["late"].to_numpy()),
                _in_order(rows["model_version"]),
            )
        )
    return tuple(found)


def score(truth: np.ndarray[Any, Any], probability: np.ndarray[Any, Any]) -> Scores:
    """Return the metrics of probabilities against 0/1 labels; the AUC of one class alone is NaN."""
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(truth, dtype=np.float64)
    bounded = np.clip(np.asarray(probability, dtype=np.float64), _FLOOR, 1 - _FLOOR)
    loss = -(truth * np.log(bounded) + (1 - truth) * np.log1p(-bounded))
    area = float(roc_auc_score(truth, bounded)) if 0 < truth.mean() < 1 else math.nan
    return Scores(area, float(loss.mean()), float(((bounded - truth) ** 2).mean()))


def _logged(table: InferenceTable) -> pd.DataFrame:
    rows = table.read(
        columns=["client_request_id", "model_version", "prediction_proba", "label"],
        labelled=True,
        order_by=None,
    )
    proba = rows["prediction_proba"].combine_chunks()
    late = proba.flatten().to_numpy().reshape(len(proba), 2)[:, 1]
    frame: pd.DataFrame = rows.drop_columns(["prediction_proba"]).to_pandas()
    return frame.assign(late=late).set_index("client_request_id")


def _in_order(versions: Sequence[str] | pd.Series) -> tuple[str, ...]:
    return tuple(sorted(set(versions), key=int))

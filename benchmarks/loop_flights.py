"""The real year of flights, week by week, as a stream of the same kind as the simulated ones.

What is true of it is only known by its labels: the expected loss of a flight is its loss. A promotion is harmful when
the four weeks that follow, which nobody had seen, are answered worse by the new version than by the one before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from loop_strategies import STRATEGIES
from loop_streams import Batch, Floats, Stream
from loop_table import Played, played, runs, summary
from sklearn.base import clone

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.schema import TIMESTAMP, Feature, FeatureSchema
from mlflow_flywheel.pipelines.scores import auc
from mlflow_flywheel.plugin.demo.flights import (
    CATEGORIES,
    DAY,
    EVENT_TIME,
    FEATURES,
    LABEL,
    LABEL_TIME,
    load_flights,
    midnight,
)
from mlflow_flywheel.plugin.demo.model import fit_january
from mlflow_flywheel.plugin.demo.scenario import POLICY as DEMO
from mlflow_flywheel.plugin.demo.scenario import YEAR

# That of the demo, asked every week.
POLICY = PolicySpec.parse({**DEMO, "monitors": "drift,performance,quality"})
_AHEAD = 4
_PROCESSES = 2


def year_of_flights(seed: int = 0) -> Stream:
    """Return February to December in weeks; the model is January's."""
    year = load_flights()
    starts = [midnight(day.date()) for day in pd.date_range(date(YEAR, 2, 1), date(YEAR, 12, 31), freq="7D")]
    ends = [*starts[1:], midnight(date(YEAR + 1, 1, 1))]
    january = fit_january(year.of_months(1, 1).known_at(starts[0]), seed)
    later = year.of_months(2, 12).frame
    later = later[later[LABEL].notna()]
    cuts = later[EVENT_TIME].searchsorted(ends)
    batches = [_batch(later.iloc[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    reference = january.reference.assign(**{LABEL_TIME: january.reference[EVENT_TIME]})

    def fit(data: Any, labels: Any, n: int) -> tuple[Any, Any]:
        made = clone(january.estimator).fit(data, labels.astype("int64"))
        return made, made

    def ahead(window: int) -> Batch:
        following = batches[window + 1 : window + 1 + _AHEAD] or batches[-1:]
        return Batch(
            pa.concat_tables([batch.rows for batch in following]),
            np.concatenate([batch.chance for batch in following]),
        )

    return Stream(
        name="flights",
        schema=FeatureSchema(
            [Feature(name, "string" if name in CATEGORIES else "double") for name in FEATURES]
        ),
        reference=_batch(reference).rows,
        batches=batches,
        ends=ends,
        fresh=ahead,
        first=january.estimator,
        fit=fit,
        chances=_chances,
    )


def play_year(policy: PolicySpec = POLICY) -> dict[str, Played]:
    """Let every strategy play the year."""
    os.environ["OMP_NUM_THREADS"] = "1"
    names = sorted(STRATEGIES, key=("always", "on_drift", "ours", "never").index)  # the longest first
    with ProcessPoolExecutor(_PROCESSES) as pool:
        found = dict(zip(names, pool.map(_played, names, [policy] * len(names)), strict=True))
    return {name: found[name] for name in STRATEGIES}


def _played(name: str, policy: PolicySpec) -> Played:
    return played(year_of_flights(), policy, name)


def table(found: Mapping[str, Played]) -> dict[str, dict[str, Any]]:
    """Return the year's table, by strategy."""
    return summary([runs(found)])


def months(found: Mapping[str, Played]) -> list[dict[str, float]]:
    """Return, month by month, each strategy's area under the curve."""
    frame = load_flights().of_months(2, 12).frame
    frame = frame[frame[LABEL].notna()]
    month, late = frame[DAY].dt.month.to_numpy(), frame[LABEL].to_numpy() == 1
    said = {name: np.concatenate(each.answers) for name, each in found.items()}
    return [
        {
            "month": int(m),
            **{name: auc(late[month == m], answers[month == m]) for name, answers in said.items()},
        }
        for m in np.unique(month)
    ]


def _batch(frame: pd.DataFrame) -> Batch:
    rows = pa.Table.from_pandas(frame[[*FEATURES, EVENT_TIME, LABEL, LABEL_TIME]], preserve_index=False)
    for name in (EVENT_TIME, LABEL_TIME):
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(TIMESTAMP))
    renamed = {EVENT_TIME: "event_time", LABEL: "label", LABEL_TIME: "label_time"}
    rows = rows.rename_columns([renamed.get(name, name) for name in rows.column_names])
    return Batch(rows, rows["label"].to_numpy())


def _chances(models: Sequence[Any], rows: pa.Table) -> Floats:
    frame = rows.select(list(FEATURES)).to_pandas()
    return np.stack([model.predict_proba(frame)[:, 1] for model in models])

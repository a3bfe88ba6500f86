"""What the drift monitor keeps of a reference: made once per version, kept beside it, so that nothing is sorted twice.

A Parquet file with one row per column of the reference: `reference-profile.parquet` beside `reference.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.training_files import EVENT_TIME, LABEL, PREDICTION, PREDICTION_PROBA

from .columns import Unreadable, summarise
from .dependence import Days, Likeness, days_of
from .outcomes import probabilities
from .samples import Categories, Column, Location, Numbers

Role = Literal["feature", "prediction", "label"]
Key = tuple[Role, str]

PROFILE_FILE = "reference-profile.parquet"
PREDICTION_SCORE = "prediction score"
_FORMAT = "2"
_FORMAT_KEY = b"flywheel.profile"
_LIKENESS = pa.struct(
    [
        ("days", pa.int64()),
        *((name, pa.float64()) for name in ("size", "effect", "freedom", "steps", "steps_freedom", "error")),
    ]
)
_LOCATION = pa.struct(
    [
        ("scores", pa.list_(pa.float64())),
        *((name, pa.float64()) for name in ("value", "variance")),
        ("alike", _LIKENESS),
    ]
)
_SCHEMA = pa.schema(
    [
        ("role", pa.string()),
        ("column", pa.string()),
        ("kind", pa.string()),
        ("type", pa.string()),
        ("rows", pa.int64()),
        ("missing", pa.int64()),
        ("infinite", pa.int64()),
        ("numeric", pa.bool_()),
        ("deviation", pa.float64()),
        ("exact", pa.bool_()),
        ("values", pa.list_(pa.float64())),
        ("below", pa.list_(pa.int64())),
        ("categories", pa.list_(pa.string())),
        ("counts", pa.list_(pa.int64())),
        ("other", pa.int64()),
        ("borders", pa.list_(pa.float64())),
        ("cells", pa.list_(pa.string())),
        ("alike", _LIKENESS),
        ("missing_alike", _LIKENESS),
        ("location", _LOCATION),
    ]
)


@dataclass(frozen=True)
class Profile:
    """The columns of a sample by role and name; an unreadable one is left out."""

    columns: Mapping[Key, Column]

    def save(self, path: Path) -> None:
        """Write the profile."""
        rows = [_row(key, column) for key, column in self.columns.items()]
        table = pa.Table.from_pylist(rows, _SCHEMA.with_metadata({_FORMAT_KEY: _FORMAT}))
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read what `save` wrote. Raises BadInput for anything else, also of another release's format."""
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"file {str(path)!r} is no profile of a reference: {error}") from None
        found = (table.schema.metadata or {}).get(_FORMAT_KEY, b"none").decode()
        if found != _FORMAT:
            raise BadInput(f"file {str(path)!r} has the profile format {found}, not {_FORMAT}; make it again")
        return cls(dict(_columns(table)))


def make_profile(reference: pa.Table) -> Profile:
    """Summarise every feature of a reference, its predictions and its labels."""
    days = days_of(reference, EVENT_TIME)
    columns: dict[Key, Column] = {}
    for key, values, of in _parts(reference, days):
        try:
            found = summarise(values, of)
        except Unreadable:
            continue
        columns[key] = found if found.numbers is None else _thinned(found)
    return Profile(columns)


def _thinned(column: Column) -> Column:
    assert column.numbers is not None
    return replace(column, numbers=column.numbers.thinned())


def _parts(reference: pa.Table, days: Days | None) -> Iterator[tuple[Key, pa.ChunkedArray, Days | None]]:
    for name in feature_names(reference):
        yield ("feature", name), reference[name], days
    if PREDICTION in reference.column_names:
        yield ("prediction", PREDICTION), reference[PREDICTION], days
    scores = scores_of(reference)
    if scores is not None:
        yield ("prediction", PREDICTION_SCORE), scores, days
    if LABEL in reference.column_names:
        yield ("label", LABEL), *known_only(reference[LABEL], days)


def feature_names(reference: pa.Table) -> tuple[str, ...]:
    """Return the features of a reference, in the model's order."""
    own = (PREDICTION, PREDICTION_PROBA, LABEL)
    return tuple(n for n in reference.column_names if n not in own and not n.startswith("flywheel."))


def known_only(labels: pa.ChunkedArray, days: Days | None) -> tuple[pa.ChunkedArray, Days | None]:
    """Return the labels that came: those that are on their way are not missing."""
    if not labels.null_count:
        return labels, days
    kept = pc.is_valid(labels)
    return labels.filter(kept), days and days.only(np.asarray(kept.to_numpy(), dtype=np.bool_))


def scores_of(table: pa.Table) -> pa.ChunkedArray | None:
    """Return the positive class's probability, or None when it is no binary classifier with probabilities."""
    proba = probabilities(table)
    return pa.chunked_array([pa.array(proba[:, 1])]) if proba is not None and proba.shape[1] == 2 else None


def _row(key: Key, column: Column) -> dict[str, Any]:
    numbers, categories = column.numbers, column.categories
    return {
        "role": key[0],
        "column": key[1],
        **{
            name: getattr(column, name) for name in ("kind", "type", "rows", "missing", "infinite", "numeric")
        },
        "deviation": numbers.deviation if numbers else None,
        "exact": numbers.exact if numbers else None,
        "values": numbers.values if numbers else None,
        "below": numbers.below if numbers else None,
        "categories": categories.names if categories else None,
        "counts": categories.counts if categories else None,
        "other": categories.other if categories else None,
        "borders": column.borders,
        "cells": column.cells,
        "alike": asdict(column.alike) if column.alike else None,
        "missing_alike": asdict(column.missing_alike) if column.missing_alike else None,
        "location": asdict(column.location) if column.location else None,
    }


def _columns(table: pa.Table) -> Iterator[tuple[Key, Column]]:
    plain = table.drop_columns(["values", "below", "categories", "counts"]).to_pylist()
    for place, row in enumerate(plain):
        numbers = categories = None
        if row["exact"] is not None:
            kept = [_array(table[name][place]) for name in ("values", "below")]
            numbers = Numbers(kept[0], kept[1], row["deviation"], row["exact"])
        elif row["other"] is not None:
            names = tuple(table["categories"][place].as_py())
            categories = Categories(names, _array(table["counts"][place]), row["other"])
        yield (
            (row["role"], row["column"]),
            Column(
                row["kind"],
                row["type"],
                row["rows"],
                row["missing"],
                row["infinite"],
                numbers,
                categories,
                row["numeric"],
                tuple(row["borders"]),
                tuple(row["cells"]),
                _likeness(row["alike"]),
                _likeness(row["missing_alike"]),
                _location(row["location"]),
            ),
        )


def _array(value: pa.ListScalar) -> Any:
    return value.values.to_numpy(zero_copy_only=False)


def _location(row: Mapping[str, Any] | None) -> Location | None:
    if row is None:
        return None
    return Location(tuple(row["scores"]), row["value"], row["variance"], _likeness(row["alike"]))


def _likeness(row: Mapping[str, Any] | None) -> Likeness | None:
    return None if row is None else Likeness(**row)

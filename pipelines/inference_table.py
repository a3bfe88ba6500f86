"""The inference table: every prediction of a registered model, and the labels that came for it later.

Two Delta tables per model, `predictions` and `feedback`, both append only. Labels are joined when they are read, so a
late, repeated or corrected label never rewrites a row: per prediction the label with the latest `label_time`, then the
latest `received_time`, wins, whether it named the prediction or the caller's own request id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa

from .commits import plain_text
from .delta import DeltaLog
from .errors import BadInput
from .schema import TIMESTAMP, Feature, FeatureSchema
from .scoring import FEATURE_PREFIX
from .table_columns import feedback_schema, label_rows_for, predictions_schema, rows_for, same_type
from .table_queries import HAS_LABEL, IS_SHADOW, filters, quoted, with_labels
from .times import EPOCH

_MICROSECOND = timedelta(microseconds=1)
LABEL_COLUMNS = ("label", "label_time", "received_time", "label_source")


@dataclass(frozen=True)
class TableCounts:
    """How much is in an inference table.

    `shadow` of its `rows` repeat an answered row by a challenger that nobody heard; `labelled` and `by_deployment`
    are about the answered ones only, so that no row counts twice.
    """

    rows: int
    distinct_ids: int
    labelled: int
    by_deployment: dict[str, int] = field(default_factory=dict)
    shadow: int = 0

    @property
    def answered(self) -> int:
        return self.rows - self.shadow

    @property
    def duplicates(self) -> int:
        return self.rows - self.distinct_ids


@dataclass(frozen=True)
class Traffic:
    """What a deployment answered: rows, those that sampling left out included, and the model's own seconds per row."""

    rows: float
    seconds_per_row: float | None


class InferenceTable:
    """The two tables of one registered model, under a folder or a URL that delta-rs can write."""

    def __init__(self, tables: str, model_name: str) -> None:
        # delta-rs would read a % as the beginning of an escaped character
        root = f"{tables.rstrip('/')}/{quote(model_name, safe='@ ').replace('%', '+')}"
        self.model_name = model_name
        self.predictions = DeltaLog(f"{root}/predictions", "event_date", ("event_time", "model_version"))
        self.feedback = DeltaLog(f"{root}/feedback", "received_date", ("received_time",))

    @classmethod
    def open(cls, tables: str, model_name: str) -> InferenceTable:
        """Return the table of a model; nothing is read or made yet."""
        return cls(str(tables), model_name)

    def pinned(self) -> InferenceTable:
        """Return the table as it is now, for many readings of the same rows."""
        snapshot = copy(self)
        snapshot.predictions, snapshot.feedback = self.predictions.pinned(), self.feedback.pinned()
        return snapshot

    @property
    def exists(self) -> bool:
        return self.predictions.exists and self.feedback.exists

    def ensure(self, schema: FeatureSchema, kind: str) -> None:
        """Create what is missing: the tables, or columns for features that are new in this version.

        Raises BadInput when a feature or the prediction has another type than in earlier versions.
        """
        for log, wanted in (
            (self.predictions, predictions_schema(schema, kind)),
            (self.feedback, feedback_schema(kind)),
        ):
            have = log.ensure(wanted)
            for column in wanted:
                found = have.field(column.name).type
                if not same_type(found, column.type):
                    raise BadInput(
                        f"{column.name!r} is {column.type} in this version of {self.model_name!r} but {found} in its "
                        "inference table; rename the feature, or register the model under another name"
                    )

    @property
    def kind(self) -> str:
        """The type of predictions and labels: "double" or "string"."""
        return "string" if self.predictions.schema().field("prediction").type == pa.string() else "double"

    def features(self) -> FeatureSchema:
        """Return the features that any version logged, as types of the table."""
        names = {pa.float64(): "double", pa.string(): "string", pa.bool_(): "boolean"}
        return FeatureSchema(
            [
                Feature(
                    column.name.removeprefix(FEATURE_PREFIX),
                    names.get(column.type, "datetime"),
                    required=False,
                )
                for column in self.predictions.schema()
                if column.name.startswith(FEATURE_PREFIX)
            ]
        )

    def append_predictions(self, rows: pa.Table, transactions: Mapping[str, int]) -> bool:
        """Append rows of predictions; return False when these transactions were committed before."""
        return self.predictions.append(plain_text(rows_for(rows, self.predictions.schema())), transactions)

    def append_feedback(self, rows: pa.Table, transactions: Mapping[str, int]) -> bool:
        """Append rows of feedback; return False when these transactions were committed before."""
        return self.feedback.append(label_rows_for(rows, self.feedback.schema()), transactions)

    def read(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        deployment: str | None = None,
        version: str | None = None,
        variant: str | None = None,
        requests: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        labelled: bool | None = None,
        known_before: datetime | None = None,
        received_before: datetime | None = None,
        order_by: str | None = "event_time, prediction_id",
    ) -> pa.Table:
        """Return predictions with their labels, one row per prediction.

        `start` <= event_time < `end`. `requests` keeps rows with one of these `client_request_id`s.
        `labelled` True keeps rows with a label, False those without, None both.
        `known_before` counts only labels whose `label_time` is before it: what was known at that time;
        `received_before` only labels that had reached a door of ours by then.
        Label columns are `label`, `label_time`, `received_time` and `label_source`, null while no label came.
        """
        where, parameters = filters(start, end, deployment=deployment, model_version=version, variant=variant)
        if requests is not None:
            where = f"{where or 'WHERE true'} AND client_request_id IN (SELECT unnest(?))"
            parameters.append(list(requests))
        wanted = list(columns) if columns is not None else None
        chosen = "*" if wanted is None else ", ".join(quoted(name) for name in wanted)
        labels_needed = labelled is not None or wanted is None or bool(set(wanted) & set(LABEL_COLUMNS))
        source = f"SELECT * FROM predictions {where}"
        if labels_needed:
            sources = wanted is None or "label_source" in wanted
            source, parameters = with_labels(where, parameters, known_before, received_before, sources)
            if labelled is not None:
                source = f"SELECT * FROM ({source}) WHERE label IS {'NOT ' if labelled else ''}NULL"
        order = f" ORDER BY {order_by}" if order_by else ""
        return self._query(f"SELECT {chosen} FROM ({source}){order}", parameters, labels_needed)

    def counts(self, *, start: datetime | None = None, end: datetime | None = None) -> TableCounts:
        """Count rows, distinct ids, shadow rows and labelled rows, and the answered rows by deployment."""
        where, parameters = filters(start, end)
        result = self._query(
            "SELECT deployment, count(*) AS n, count(DISTINCT prediction_id) AS ids, "
            f"count(*) FILTER ({IS_SHADOW}) AS shadow, count(*) FILTER (NOT {IS_SHADOW} AND {HAS_LABEL}) AS labelled "
            f"FROM predictions {where} GROUP BY deployment ORDER BY deployment",
            parameters,
            labels=True,
        ).to_pydict()
        return TableCounts(
            rows=sum(result["n"]),
            distinct_ids=sum(result["ids"]),
            labelled=sum(result["labelled"]),
            by_deployment={
                name: n - shadow
                for name, n, shadow in zip(result["deployment"], result["n"], result["shadow"], strict=True)
            },
            shadow=sum(result["shadow"]),
        )

    def answered(self) -> dict[str, int]:
        """Count the answered rows by deployment, as `counts` does, without a look at ids and labels."""
        found = self._query(
            f"SELECT deployment, count(*) AS n FROM predictions WHERE NOT {IS_SHADOW} GROUP BY ALL ORDER BY ALL",
            [],
        ).to_pydict()
        return dict(zip(found["deployment"], found["n"], strict=True))

    def traffic(self, start: datetime, end: datetime) -> dict[str, Traffic]:
        """Return what each deployment answered with `request_time` in [start, end)."""
        return self.traffic_by(start, end, end - start).get(start, {}) if end > start else {}

    def traffic_by(
        self, start: datetime, end: datetime, step: timedelta
    ) -> dict[datetime, dict[str, Traffic]]:
        """Return the same for each step of the span that has rows, by when it begins; the table is read once."""
        found = self._query(
            "SELECT deployment, (epoch_us(request_time) - ?) // ? AS place, "
            "sum(1 / coalesce(sampling_fraction, 1)) AS n, avg(execution_duration_us) / 1e6 AS seconds "
            f"FROM predictions WHERE request_time >= ? AND request_time < ? AND NOT {IS_SHADOW} GROUP BY ALL",
            [(start - EPOCH) // _MICROSECOND, step // _MICROSECOND, start, end],
        ).to_pylist()
        steps: dict[datetime, dict[str, Traffic]] = {}
        for row in found:
            at = steps.setdefault(start + row["place"] * step, {})
            at[row["deployment"]] = Traffic(row["n"], row["seconds"])
        return steps

    def watermark(self) -> datetime | None:
        """Return the newest event time, or None for an empty table."""
        found = self._query("SELECT max(event_time) AS newest FROM predictions", []).column("newest")[0]
        return found.as_py() if found.is_valid else None

    def span(self) -> tuple[datetime, datetime] | None:
        """Return the oldest and the newest event time, or None for an empty table."""
        found = self._query("SELECT min(event_time) AS a, max(event_time) AS b FROM predictions", [])
        first, last = (found.column(name)[0].as_py() for name in ("a", "b"))
        return None if first is None else (first, last)

    def filled(
        self, start: datetime, end: datetime, columns: Sequence[str]
    ) -> dict[tuple[str, str], tuple[int, dict[str, int]]]:
        """Count, for each (deployment, version) of a span, the rows and the values that are not null in columns."""
        where, parameters = filters(start, end)
        counts = "".join(f", count({quoted(name)}) AS {quoted(name)}" for name in columns)
        rows = self._query(
            f"SELECT deployment, model_version, count(*) AS n{counts} FROM predictions {where} GROUP BY ALL",
            parameters,
        ).to_pylist()
        return {
            (row["deployment"], row["model_version"]): (row["n"], {name: row[name] for name in columns})
            for row in rows
        }

    def asked_again(self, start: datetime, end: datetime, every: timedelta) -> pa.Table:
        """Find the events of [start, end) that were asked in more than one of its periods, by `client_request_id`.

        Returns `client_request_id` and the `prediction_id` of the row that stands for the event: of those with the
        latest label the champion's, of them the first.
        """
        where, parameters = filters(start, end)
        period = "floor((epoch_us({}) - epoch_us(?::TIMESTAMPTZ)) / ?)"
        length = [start, every / timedelta(microseconds=1)]
        asked = f"{where} AND client_request_id IS NOT NULL AND NOT {IS_SHADOW}"
        again = self._query(
            f"SELECT client_request_id FROM predictions {asked} GROUP BY ALL "
            f"HAVING {period.format('min(event_time)')} <> {period.format('max(event_time)')}",
            [*parameters, *length, *length],
        )
        if not again.num_rows:
            return again.append_column("prediction_id", pa.array([], pa.string()))
        asked += " AND client_request_id IN (SELECT unnest(?))"
        source, parameters = with_labels(asked, [*parameters, again["client_request_id"].to_pylist()])
        return self._query(
            "SELECT client_request_id, first(prediction_id ORDER BY label_time DESC NULLS LAST, variant <> 'champion', "
            f"event_time, prediction_id) AS prediction_id FROM ({source}) GROUP BY ALL",
            parameters,
            labels=True,
        )

    def unmatched_feedback(self) -> int:
        """Count the ids in feedback that no prediction has (yet)."""
        result = self._query(
            "SELECT count(*) AS n FROM (SELECT DISTINCT prediction_id, client_request_id FROM feedback f "
            "WHERE NOT EXISTS (SELECT 1 FROM predictions p WHERE p.prediction_id = f.prediction_id) "
            "AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.client_request_id = f.client_request_id))",
            [],
            labels=True,
        )
        return int(result.column("n")[0].as_py())

    def versions(self) -> dict[str, int]:
        """Return the newest Delta version of both tables: together they name a state of the data."""
        return {"predictions": self.predictions.version(), "feedback": self.feedback.version()}

    def maintain(self) -> bool:
        """Compact and clean both tables where it is due; return whether anything was done."""
        return any([self.predictions.maintain(), self.feedback.maintain()])

    def _query(self, sql: str, parameters: Sequence[Any], labels: bool = False) -> pa.Table:
        """Run SQL over `predictions` and, when it asks for labels, `feedback`."""
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("predictions", self.predictions.dataset())
            if labels:
                self._show_feedback(connection)
            return _utc(connection.sql(sql, params=list(parameters)).to_arrow_table())

    def _show_feedback(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Name the feedback table. Its columns never change, so that DuckDB's own reader can do: a fifth of the cost."""
        files = self.feedback.local_files()
        if files:
            columns = [name for name in self.feedback.schema().names if name != "received_date"]
            connection.read_parquet(files, hive_partitioning=False).select(*columns).create_view("feedback")
        else:
            connection.register("feedback", self.feedback.dataset())


def _utc(table: pa.Table) -> pa.Table:
    """Give timestamps the unit and zone of DESIGN's columns, whatever DuckDB called them."""
    for i, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type) and column.type != TIMESTAMP:
            table = table.set_column(i, column.name, table.column(i).cast(TIMESTAMP))
    return table

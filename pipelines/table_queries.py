"""SQL over the inference table: which rows a reader asks for, and the label that counts for each."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from .ids import SHADOW_SUFFIX

IS_SHADOW = f"ends_with(prediction_id, '{SHADOW_SUFFIX}')"
# of an answered row; which label it is does not matter here
HAS_LABEL = (
    "(prediction_id IN (SELECT prediction_id FROM feedback WHERE prediction_id IS NOT NULL) OR client_request_id IN "
    "(SELECT client_request_id FROM feedback WHERE client_request_id IS NOT NULL))"
)


def with_labels(
    where: str,
    parameters: list[Any],
    known_before: datetime | None = None,
    received_before: datetime | None = None,
    sources: bool = False,
) -> tuple[str, list[Any]]:
    """Join predictions with the latest label of each; DuckDB compares structs field by field.

    A label that names an answered row by its id is as true of what a shadow said of that row. Of a span only the labels
    of its own rows are compared: a day costs a day, however many labels there are.
    """
    bounds = {"label_time": known_before, "received_time": received_before}
    extra = [bound for bound in bounds.values() if bound is not None]
    clauses = [f"{column} < ?" for column, bound in bounds.items() if bound is not None]
    known = f"WHERE {' AND '.join(clauses)}" if clauses else ""
    how = "NOT MATERIALIZED" if where else ""  # what two readings pass over need not be held
    its_ids = "AND prediction_id IN (SELECT answered_id FROM p)" if where else ""
    its_clients = "AND client_request_id IN (SELECT client_request_id FROM p)" if where else ""
    latest = (
        f"max({{'t': label_time, 'r': received_time, 'l': label{', s: source' if sources else ''}}}) AS best"
    )
    sql = f"""
        WITH p AS (
            SELECT *, CASE WHEN {IS_SHADOW} THEN left(prediction_id, -{len(SHADOW_SUFFIX)}) ELSE prediction_id END
                AS answered_id
            FROM predictions {where}
        ),
        known AS {how} (SELECT * FROM feedback {known}),
        by_id AS (
            SELECT prediction_id, {latest} FROM known WHERE prediction_id IS NOT NULL {its_ids} GROUP BY prediction_id
        ),
        by_client AS (
            SELECT client_request_id, {latest} FROM known WHERE client_request_id IS NOT NULL {its_clients}
            GROUP BY client_request_id
        ),
        joined AS (
            SELECT p.* EXCLUDE (answered_id), CASE WHEN a.best IS NULL OR b.best > a.best THEN b.best ELSE a.best END AS best
            FROM p
            LEFT JOIN by_id a ON p.answered_id = a.prediction_id
            LEFT JOIN by_client b ON p.client_request_id = b.client_request_id
        )
        SELECT * EXCLUDE (best), best.l AS label, best.t AS label_time, best.r AS received_time
        {", best.s AS label_source" if sources else ""}
        FROM joined"""
    return sql, [*parameters, *extra]


def filters(start: datetime | None, end: datetime | None, **equal: str | None) -> tuple[str, list[Any]]:
    clauses: list[str] = []
    parameters: list[Any] = []
    # the conditions on the partition column let whole files be passed over
    if start is not None:
        clauses.append("event_time >= ? AND event_date >= ?")
        parameters += [start, start.astimezone(timezone.utc).date()]
    if end is not None:
        clauses.append("event_time < ? AND event_date <= ?")
        parameters += [end, end.astimezone(timezone.utc).date()]
    for column, wanted in equal.items():
        if wanted is not None:
            clauses.append(f"{column} = ?")
            parameters.append(wanted)
    return ("WHERE " + " AND ".join(clauses) if clauses else ""), parameters


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

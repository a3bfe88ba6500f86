"""What a database is asked for instead of a query's whole result."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mlflow_flywheel.pipelines.batch.sql_narrowing import RowsAbove, RowsWithin

START = datetime(2013, 1, 20, 6, tzinfo=timezone.utc)
END = datetime(2013, 1, 21, tzinfo=timezone(timedelta(hours=2)))
START_MS, END_MS = 1358661600000, 1358719200000


@pytest.mark.parametrize(
    ("like", "first", "last"),
    [
        (datetime(2012, 1, 1, tzinfo=timezone(timedelta(hours=5))), START, END),
        (datetime(2012, 1, 1), datetime(2013, 1, 20, 6), datetime(2013, 1, 20, 22)),
        (date(2012, 1, 1), date(2013, 1, 20), date(2013, 1, 21)),  # a day is its first moment
        (5, START_MS, END_MS),
        (5.5, START_MS, END_MS),
        (Decimal(5), START_MS, END_MS),
    ],
)
def test_a_span_is_asked_for_in_the_columns_own_kind(like: Any, first: Any, last: Any) -> None:
    condition, values = RowsWithin("at", START, END).condition('"at"', like) or ("", {})
    assert condition == '"at" >= :flywheel_from AND "at" < :flywheel_before'
    assert values == {"flywheel_from": first, "flywheel_before": last}
    assert RowsWithin("at", None, END).condition("at", like) == (
        "at < :flywheel_before",
        {"flywheel_before": last},
    )


def test_a_bound_between_two_milliseconds_lets_both_through() -> None:
    moment = START + timedelta(microseconds=300)
    assert RowsWithin("at", moment, None).condition("at", 1) == (
        "at >= :flywheel_from",
        {"flywheel_from": START_MS},
    )
    assert RowsWithin("at", None, moment).condition("at", 1) == (
        "at < :flywheel_before",
        {"flywheel_before": START_MS + 1},
    )


@pytest.mark.parametrize("like", ["2013-01-20", None, True, b"2013"])
def test_a_column_that_a_database_orders_otherwise_is_not_asked_about(like: Any) -> None:
    assert RowsWithin("at", START, END).condition("at", like) is None


def test_the_first_run_takes_all_that_have_a_value() -> None:
    assert RowsAbove("n").condition("n", None) == ("n IS NOT NULL", {})
    assert RowsAbove("n", 7).condition("n", None) == ("n > :flywheel_watermark", {"flywheel_watermark": 7})

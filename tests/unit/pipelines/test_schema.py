"""What fits a model and what does not: any input either becomes exactly the features, or says why it cannot."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

SCHEMA = FeatureSchema(
    [
        Feature("amount", "double"),
        Feature("count", "long"),
        Feature("city", "string"),
        Feature("open", "boolean"),
        Feature("since", "datetime"),
        Feature("extra", "double", required=False),
    ]
)
GOOD: dict[str, Any] = {
    "amount": 1.5,
    "count": 3,
    "city": "Rome",
    "open": True,
    "since": "2020-01-01T00:00:00Z",
}


def test_a_fitting_row_becomes_the_signatures_types() -> None:
    frame = SCHEMA.to_frame(SCHEMA.from_records([GOOD, {**GOOD, "amount": None, "city": None}]))
    assert list(frame.columns) == list(SCHEMA.names)
    assert [str(kind) for kind in frame.dtypes][:2] == ["float64", "int64"]
    assert frame["open"].dtype == bool
    assert math.isnan(frame["amount"][1])
    assert frame["city"].isna().tolist() == [False, True]
    assert frame["extra"].isna().all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"amount": "1.5"}, "row 1: feature 'amount' must be double, got str '1.5'"),
        ({"amount": True}, "must be double, got bool"),
        ({"amount": [1]}, "must be double, got list"),
        ({"count": 3.7}, "must be long, got float 3.7"),
        ({"count": None}, "'count' is null, but long has no missing value"),
        ({"count": float("nan")}, "must be long"),
        ({"count": 2**70}, "must be long"),
        ({"city": 5}, "must be string, got int 5"),
        ({"open": 1}, "must be boolean, got int 1"),
        ({"since": "yesterday-ish"}, "must be a datetime in ISO 8601"),
        ({"since": 12}, "must be a datetime in ISO 8601"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_row(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput) as caught:
        SCHEMA.from_records([GOOD, {**GOOD, **change}])
    assert complaint in caught.value.message


def test_a_missing_feature_is_named() -> None:
    row = {name: value for name, value in GOOD.items() if name != "city"}
    with pytest.raises(BadInput, match="'city' .* is missing"):
        SCHEMA.from_records([row])
    with pytest.raises(BadInput, match="did you mean 'town_city'"):
        FeatureSchema([Feature("city", "string")]).from_columns({"town_city": ["x"]}, 1)


def test_whole_floats_are_integers_and_other_columns_are_ignored() -> None:
    batch = SCHEMA.from_records([{**GOOD, "count": 4.0, "unknown": object()}])
    assert batch.column("count").to_pylist() == [4]


def test_good_rows_are_kept_when_others_do_not_fit() -> None:
    rows = [GOOD, {**GOOD, "amount": "x"}, GOOD, {}]
    batch, kept, reasons = SCHEMA.split_valid(rows)
    assert (batch.num_rows, kept, sorted(reasons)) == (2, [0, 2], [1, 3])
    assert "amount" in reasons[1]


def test_tables_are_cast_but_never_truncated() -> None:
    one = FeatureSchema([Feature("n", "long")])
    assert one.from_table(pa.table({"n": pa.array([1.0, 2.0])})).column("n").to_pylist() == [1, 2]
    for bad in (pa.array([1.5]), pa.array(["1"]), pa.array([True]), pa.array([1, None])):
        with pytest.raises(BadInput, match="column 'n'"):
            one.from_table(pa.table({"n": bad}))
    words = pa.array(["a", "b"]).dictionary_encode()
    assert FeatureSchema([Feature("s", "string")]).from_table(pa.table({"s": words})).column(
        "s"
    ).to_pylist() == ["a", "b"]


def test_datetimes_are_utc() -> None:
    since = FeatureSchema([Feature("t", "datetime")])
    batch = since.from_records([{"t": "2020-06-01T12:00:00+02:00"}])
    assert batch.column("t").to_pylist() == [datetime(2020, 6, 1, 10, tzinfo=timezone.utc)]


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)


@given(st.lists(st.dictionaries(st.sampled_from(SCHEMA.names), _values), max_size=5))
def test_any_rows_are_accepted_or_refused_with_a_sentence(rows: list[dict[str, Any]]) -> None:
    try:
        batch = SCHEMA.from_records(rows)
    except BadInput as error:
        assert "feature" in error.message
    else:
        assert batch.num_rows == len(rows)
        assert len(SCHEMA.to_frame(batch)) == len(rows)


def test_numbers_beyond_32_bits_are_refused_where_the_model_takes_32() -> None:
    schema = FeatureSchema([Feature("n", "integer")])
    edge = [2**31 - 1, -(2**31), 2.0**31 - 1]
    assert schema.from_columns({"n": edge}, 3).column("n").to_pylist() == [2**31 - 1, -(2**31), 2**31 - 1]
    with pytest.raises(BadInput, match="row 1: feature 'n' must be integer, got int 2147483648"):
        schema.from_columns({"n": [1, 2**31]}, 2)
    with pytest.raises(BadInput, match="column 'n' must be integer, found numbers beyond 32 bits"):
        schema.from_table(pa.table({"n": [1, 2**40]}))


FLOATS = FeatureSchema([Feature(name, "double") for name in "abc"])


@given(
    rows=st.lists(
        st.lists(st.one_of(st.floats(), st.integers(-9, 9), st.none()), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_floats_are_the_same_whichever_way_they_take(rows: list[list[Any]]) -> None:
    columns = dict(zip("abc", map(list, zip(*rows, strict=True)), strict=True))
    batch = FLOATS.from_columns({**columns, "more": ["x"] * len(rows)}, len(rows))
    expected = [pa.array(columns[name], pa.float64()) for name in "abc"]
    assert [str(column) for column in batch.columns] == [str(column) for column in expected]  # nan is nan
    assert repr(FLOATS.to_lists(batch)) == repr([column.to_pylist() for column in expected])
    table = pa.Table.from_batches([batch])
    for order in ("C", "F"):
        several = pa.concat_tables([table.slice(0, 1), table.slice(1)])
        matrix = FLOATS.to_matrix(several, order)
        np.testing.assert_array_equal(FLOATS.to_matrix(batch), matrix)
        assert matrix.flags[f"{order}_CONTIGUOUS"]
    assert repr(FLOATS.to_lists(table)) == repr(FLOATS.to_lists(batch))


def test_a_model_that_writes_into_its_matrix_changes_no_feature() -> None:
    batch = FLOATS.from_columns({name: [1.0] for name in "abc"}, 1)
    FLOATS.to_matrix(batch)[:] = 9
    assert FLOATS.to_lists(batch) == [[1.0]] * 3

"""Rows that do not fit are found, and no others: as the schema itself would say of each alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.batch.fitting import features_of, misfits, with_numbers
from mlflow_flywheel.pipelines.batch.wanted import Wanted
from mlflow_flywheel.pipelines.errors import BadInput
from mlflow_flywheel.pipelines.schema import Feature, FeatureSchema

NUMBERS = st.one_of(
    st.none(),
    st.integers(-(2**62), 2**62).map(float),
    st.floats(allow_nan=False),
    st.sampled_from([2.0**31, -(2.0**31), 2.0**31 - 1, 2.0**63, -(2.0**63), 0.5]),
)


def wanted(kind: str, required: bool = True) -> Wanted:
    return Wanted(FeatureSchema([Feature("v", kind, required)]))


def fits(table: pa.Table, want: Wanted) -> bool:
    try:
        features_of(table, want.features)
    except BadInput:
        return False
    return True


@given(st.lists(NUMBERS, max_size=8), st.sampled_from(["double", "long", "integer"]), st.booleans())
def test_numbers_are_judged_row_by_row_as_the_schema_does(
    values: list[float | None], kind: str, required: bool
) -> None:
    want = wanted(kind, required)
    table = pa.table({"v": pa.array(values, pa.float64())})
    alone = [i for i in range(len(values)) if not fits(table.slice(i, 1), want)]
    assert [misfit.at for misfit in misfits(table, want, ())] == alone


@pytest.mark.parametrize(
    ("kind", "text", "odd"),
    [
        ("double", ["1", " 2.5 ", "-3e2", ".5", "nan", "inf", None], []),
        ("double", ["x", "1,5", "--1", "", "0x1", "1_0", "+1"], [0, 1, 2, 3, 4, 5, 6]),
        ("long", ["1", "2.0", "2.5", "1e30", None], [2, 3, 4]),
        ("integer", ["1", "3000000000", "-5"], [1]),
        ("boolean", ["true", "FALSE", "1", "yes"], [3]),
    ],
)
def test_text_that_a_reader_could_not_take_is_parsed_value_by_value(
    kind: str, text: list[str | None], odd: list[int]
) -> None:
    want = wanted(kind)
    table = pa.table({"v": text})
    assert [misfit.at for misfit in misfits(table, want, {"v"})] == odd
    good = [i for i in range(len(text)) if i not in odd]
    parsed = with_numbers(table, want.features, {"v"}).take(pa.array(good, pa.int64()))
    assert fits(parsed, want)
    assert misfits(table, want, ()) == []  # text is never parsed into numbers unasked


def test_times_are_judged_value_by_value() -> None:
    values: list[Any] = ["2013-01-01", "soon", None, "2013-01-01T05:00:00+02:00"]
    want = Wanted(FeatureSchema([Feature("v", "datetime")]), timestamp_column="t")
    table = pa.table({"v": values, "t": list(reversed(values))})
    found = {misfit.at: (misfit.column, misfit.found) for misfit in misfits(table, want, ())}
    assert found == {1: ("v", "'soon'"), 2: ("t", "'soon'")}

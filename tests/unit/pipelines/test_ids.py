from __future__ import annotations

import uuid

import pyarrow as pa

from mlflow_flywheel.pipelines.ids import (
    batch_prediction_ids,
    new_prediction_ids,
    place_of,
    shadow_prediction_id,
    stream_position,
    stream_prediction_id,
)


def test_web_ids_are_uuid7_and_distinct() -> None:
    ids = new_prediction_ids(5_000)
    assert len(set(ids)) == 5_000
    assert {uuid.UUID(text).version for text in ids} == {7}
    assert {uuid.UUID(text).variant for text in ids} == {uuid.RFC_4122}
    assert new_prediction_ids(1)[0][:13] >= ids[0][:13]


def test_stream_ids_carry_their_position() -> None:
    name = stream_prediction_id("persistent://public/default/flights", 12, 34, -1)
    assert stream_position(name) == ("persistent://public/default/flights", 12, 34, -1)
    assert stream_position("no-position") is None
    assert stream_position("a:b:c:d") is None


def test_batch_ids_are_repeatable() -> None:
    assert batch_prediction_ids("job", "f", pa.array([0, 1])).to_pylist() == ["job:f:0", "job:f:1"]


def test_a_shadows_id_follows_from_the_answered_rows_and_is_no_stream_position() -> None:
    ids = [
        *new_prediction_ids(3),
        stream_prediction_id("t", 1, 2, 3),
        *batch_prediction_ids("job", "f", pa.array([0, 1])).to_pylist(),
    ]
    shadows = [shadow_prediction_id(name) for name in ids]
    assert shadows == [shadow_prediction_id(name) for name in ids]
    assert len({*ids, *shadows}) == 2 * len(ids)
    assert [stream_position(name) for name in shadows] == [None] * len(ids)


def test_a_keys_places_for_two_purposes_have_nothing_to_do_with_each_other() -> None:
    places = [(place_of(f"order-{n}", "one"), place_of(f"order-{n}", "other")) for n in range(10_000)]
    assert places[0] == (place_of("order-0", "one"), place_of("order-0", "other"))
    assert all(0 <= place < 1 for pair in places for place in pair)
    first = [other for one, other in places if one < 0.1]
    assert 900 < len(first) < 1100
    assert 0.05 < sum(other < 0.1 for other in first) / len(first) < 0.15

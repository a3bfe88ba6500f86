"""Positions are a set, whatever the order; a stream without gaps is one interval."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mlflow_flywheel.pipelines.positions import Positions

_places = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 30), st.integers(-1, 3))


def _canonical(place: tuple[str, int, int, int]) -> tuple[str, int, int, int]:
    return (*place[:3], max(place[3], 0))


@given(st.lists(_places, max_size=200))
def test_add_tells_new_from_known_as_a_set_does(places: list[tuple[str, int, int, int]]) -> None:
    positions, seen = Positions(), set()
    for place in places:
        assert positions.add(place) == (_canonical(place) not in seen)
        seen.add(_canonical(place))


def test_a_gapless_stream_is_one_interval_and_survives_a_restart(tmp_path: Path) -> None:
    positions = Positions()
    assert all(positions.add(("t", 7, entry, -1)) for entry in range(10_000))
    positions.save(tmp_path / "positions.json")
    assert (tmp_path / "positions.json").stat().st_size < 100
    again = Positions.load(tmp_path / "positions.json")
    assert not again.add(("t", 7, 5_000, -1))
    assert again.add(("t", 7, 10_000, -1))
    assert again.add(("t", 8, 5_000, -1))

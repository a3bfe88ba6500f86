import numpy as np
import pyarrow as pa
import pytest

from mlflow_flywheel.monitors.dependence import (
    Days,
    Likeness,
    counts_by_day,
    days_of,
    likeness,
    likeness_of_mean,
    likeness_of_scores,
    worth,
)

DAYS, PER_DAY = 28, 100
CODES = np.repeat(np.arange(DAYS), PER_DAY)


def measured(seed, of_day=0.0, lasts=0.0, change=0.0, per_day=PER_DAY):
    """Measure numbers whose mean moves from day to day, and by `change` in the last week."""
    rng = np.random.default_rng(seed)
    moved = rng.normal(size=DAYS)
    for day in range(1, DAYS):
        moved[day] = lasts * moved[day - 1] + np.sqrt(1 - lasts**2) * moved[day]
    codes = np.repeat(np.arange(DAYS), per_day)
    values = rng.normal(size=len(codes)) + of_day * moved[codes] + change * (codes >= DAYS - 7)
    cells = np.searchsorted(np.linspace(-1.5, 1.5, 15), values)
    return likeness(counts_by_day(Days(codes, DAYS), cells, 16), ordered=True), values


def effects(**how):
    return np.array([measured(seed, **how)[0].effect for seed in range(40)])


def test_independent_rows_keep_their_worth():
    found = effects()
    assert np.median(found) == 1.0 and found.mean() < 1.1
    alike = measured(int(np.argmin(found)))[0]
    assert worth((2800, alike), (2800, alike)).freedom == np.inf


def test_rows_of_a_day_that_move_together_are_worth_little_more_than_one():
    alike, values = measured(1, of_day=3.0)
    known = worth((len(values), alike), (len(values), alike))
    assert 5 < known.reference < 3 * DAYS and 3 < known.freedom < 2 * DAYS
    assert 5 < len(values) / likeness_of_mean(Days(CODES, DAYS), values).effect < 3 * DAYS


def test_what_lasts_from_day_to_day_makes_rows_worth_less_still():
    assert np.median(effects(of_day=1.0, lasts=0.7)) > 2 * np.median(effects(of_day=1.0))


def test_a_change_inside_of_the_window_does_not_pass_for_its_usual_noise():
    usual, changed = measured(1)[0], measured(2, change=2.0)[0]
    assert changed.effect > 50
    known = worth((2800, usual), (2800, changed))
    assert known.current > 20 * 2800 / changed.effect
    # without the reference's days, what differs from day to day counts, not what lasts
    assert worth((2800, None), (2800, changed)).current > 1000


def test_a_side_of_few_days_is_taken_to_be_as_alike_as_the_other():
    alike, _ = measured(1, of_day=2.0)
    one_day = likeness(counts_by_day(Days(np.zeros(500, int), 1), np.arange(500) % 16, 16), ordered=True)
    assert not one_day.known and one_day.size == 500
    assert worth((2800, alike), (500, one_day)).current < 20
    assert worth((500, one_day), (2800, alike)).reference < 20


def test_rows_without_times_are_independent_as_far_as_anybody_knows():
    table = pa.table({"at": pa.array([None, 0], pa.timestamp("us")), "x": [1, 2]})
    assert days_of(table, "at") is None and days_of(table, "nothing") is None
    assert days_of(table.slice(0, 0), "at") is None
    known = worth((300, None), (200, None))
    assert (known.reference, known.current, known.freedom) == (300, 200, np.inf)
    assert known.both == pytest.approx(120)


def test_days_are_counted_from_the_first_in_utc():
    at = pa.array(["2013-01-01T23:30", "2013-01-02T00:30", "2013-01-05T12:00"]).cast(pa.timestamp("us"))
    days = days_of(pa.table({"at": at}), "at")
    assert days.codes.tolist() == [0, 1, 4] and days.span == 5


def test_scores_of_cells_are_as_alike_as_the_numbers_that_they_stand_for():
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 16, len(CODES))
    scores = rng.normal(size=16)
    days = Days(CODES, DAYS)
    assert likeness_of_scores(counts_by_day(days, cells, 16), scores) == likeness_of_mean(days, scores[cells])


@pytest.mark.parametrize("cells", [np.zeros(DAYS * PER_DAY, int), np.full(DAYS * PER_DAY, 16)])
def test_a_column_that_never_varies_is_not_judged(cells):
    assert not likeness(counts_by_day(Days(CODES, DAYS), cells, 17)[:, :16], ordered=True).known
    assert worth((0, None), (10, Likeness(3, 3.0))).reference == 0

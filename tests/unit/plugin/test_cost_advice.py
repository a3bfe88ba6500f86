"""Which mode costs least: sums that can be done by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from mlflow_flywheel.plugin.cost import BatchRunUsage, CostReport, DeploymentCost
from mlflow_flywheel.plugin.cost_advice import (
    Demand,
    Rates,
    batch_rates,
    estimated_rates,
    offers,
    rows_per_day,
    served_rates,
)
from mlflow_flywheel.plugin.prices import Prices
from mlflow_flywheel.plugin.usage_records import Usage

PRICES = Prices(cpu_hour=0.36, gb_hour=0.01)
DAILY, HOURLY = timedelta(days=1), timedelta(hours=1)
WEB = Rates("web", "measured", gigabytes=0.5, idle_cpu_per_day=1000.0, cpu_per_row=0.001)
NOTHING = Usage()
BATCH = Rates("batch", "measured", cpu_per_run=10.0, cpu_per_row=0.0001)


def cost_of(
    mode: str, usage: Usage = NOTHING, rows: float | None = 0.0, *runs: BatchRunUsage
) -> DeploymentCost:
    return DeploymentCost(f"late-{mode}", "late", mode, usage, rows, 0.0, runs)


def test_a_batch_is_cheap_unless_its_answers_must_be_young() -> None:
    daily = offers([WEB, BATCH], Demand(10_000, DAILY), PRICES)
    assert [offer.mode for offer in daily] == ["batch", "web"]
    assert daily[0].cost_per_day == pytest.approx(11 * 0.36 / 3600)
    assert daily[1].cost_per_day == pytest.approx(1010 * 0.36 / 3600 + 12 * 0.01)
    assert daily[1].cost_per_1k == pytest.approx(daily[1].cost_per_day / 10)
    assert daily[0].arithmetic == "(1 runs x 10.00 s + 10,000 rows x 0.1 ms) = 11 CPU s x 0.36/h"
    assert daily[1].arithmetic == (
        "(1,000 s idle + 10,000 rows x 1 ms) = 1,010 CPU s x 0.36/h, + 0.50 GB x 24 h x 0.01/h"
    )
    each_minute = offers([WEB, BATCH], Demand(10_000, timedelta(minutes=1)), PRICES)
    assert [offer.mode for offer in each_minute] == ["web", "batch"]


def test_half_a_run_more_is_a_whole_one() -> None:
    (offer,) = offers([BATCH], Demand(0, timedelta(hours=10)), PRICES)
    assert offer.cost_per_day == pytest.approx(30 * 0.36 / 3600)
    assert offer.cost_per_1k is None


def test_the_quietest_slot_is_idling_and_the_rest_is_for_the_rows() -> None:
    slots = [Usage(6.0, 300.0, 600.0), Usage(66.0, 300.0, 600.0), Usage(36.0, 300.0, 600.0)]
    rates = served_rates(cost_of("web", sum(slots, Usage()), 9000.0), slots)
    assert rates is not None
    assert (rates.gigabytes, rates.idle_cpu_per_day) == (0.5, pytest.approx(864.0))
    assert rates.cpu_per_row == pytest.approx(90 / 9000)
    few = served_rates(cost_of("web", slots[1], 1000.0), slots[1:2])
    assert few is not None and (few.idle_cpu_per_day, few.cpu_per_row) == (0.0, 0.066)
    assert served_rates(cost_of("web"), []) is None


@pytest.mark.parametrize(
    ("runs", "per_run", "per_row"),
    [
        ([(0, 2.0), (1000, 3.0), (2000, 4.0)], 2.0, 0.001),
        ([(500, 5.0), (500, 7.0)], 0.0, 0.012),
        ([(0, 3.0)], 3.0, 0.0),
        ([(1000, 3.0), (2000, 2.0)], 2.5, 0.0),  # more rows never cost less
        ([(1000, 1.0), (2000, 3.0)], 0.0, 0.0014),  # and nothing costs less than nothing
    ],
)
def test_runs_of_several_sizes_tell_starting_from_scoring(
    runs: list[tuple[int, float]], per_run: float, per_row: float
) -> None:
    rates = batch_rates(cost_of("batch", Usage(), 1.0, *(BatchRunUsage(*run) for run in runs)))
    assert rates is not None
    assert (rates.cpu_per_run, rates.cpu_per_row) == (pytest.approx(per_run), pytest.approx(per_row))


def test_what_was_never_measured_is_said_to_be_an_estimate() -> None:
    stream = estimated_rates("stream", [WEB, BATCH], 0.0005)
    assert stream is not None and stream.gigabytes == 0.5 and "estimated: as web" in stream.basis
    batch = estimated_rates("batch", [WEB], 0.0005)
    assert batch is not None and batch.cpu_per_row == 0.0005 and batch.basis.startswith("estimated")
    assert estimated_rates("web", [BATCH], 0.0005) is None
    assert estimated_rates("batch", [WEB], None) is None
    assert batch_rates(cost_of("batch")) is None


def test_the_traffic_of_a_model_is_that_of_all_its_deployments() -> None:
    start = datetime(2024, 1, 1, tzinfo=timezone.utc)
    costs = (
        cost_of("web", Usage(), 300.0),
        cost_of("batch", Usage(), None),
        cost_of("stream", Usage(), 100.0),
    )
    report = CostReport(start, start + timedelta(days=2), PRICES, costs, ())
    assert rows_per_day(report, "late") == 200.0
    assert rows_per_day(report, "other") == 0.0

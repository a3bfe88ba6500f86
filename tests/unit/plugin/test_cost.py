"""What a home cost: from readings of its processes, results of its runs and rows of its inference table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from support.backtests import LoggedRows

from mlflow_flywheel.pipelines.times import EPOCH, utc_now
from mlflow_flywheel.plugin.cli import main
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.cost import cost_report, cost_reports
from mlflow_flywheel.plugin.cost_series import tell_costs
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.metrics import metrics_of
from mlflow_flywheel.plugin.pages import costs
from mlflow_flywheel.plugin.prices import Prices
from mlflow_flywheel.plugin.slot_series import SlotSeries
from mlflow_flywheel.plugin.usage_records import SLOT, Reading, slot_of

PRICES = Prices(cpu_hour=3600.0, gb_hour=3600.0)  # a second of a core, or of a gigabyte, costs 1
MINUTE = timedelta(minutes=1)


class Costly:
    """A home with three deployments, some of them at work."""

    def __init__(self, home: Home) -> None:
        self.context = Context.open(home)
        self.logged = LoggedRows(home.path, model="late")
        for mode, log in (("web", "all"), ("stream", "none"), ("batch", "all")):
            self.context.records.add_deployment(
                f"late-{mode}",
                model_uri="models:/late@champion",
                model_name="late",
                mode=mode,
                config={"mode": mode, "log": log}
                | ({"input_topic": "i", "output_topic": "o"} if mode == "stream" else {}),
                flavor="sklearn",
                version="1",
                status="ready",
            )

    def read(self, process: str, began: datetime, minutes: float, cpu: float) -> None:
        """Count what a process with 0.5 GB used."""
        names = {f"deployment-{d.name}": d.created for d in self.context.records.deployments()}
        taken = Reading("1:1", began, began + minutes * MINUTE, cpu, 500_000_000)
        self.context.records.add_reading(process, names.get(process, EPOCH), taken)

    def run(self, rows: int, cpu: float) -> None:
        """Record a batch run that ended now."""
        task = self.context.records.enqueue("batch_run", "late-batch", {}, "schedule")
        assert self.context.records.claim(["batch_run"], "w") is not None
        self.context.records.finish(task, {"rows_out": rows, "cpu_seconds": cpu})

    def answer(self, n: int, moment: datetime, deployment: str = "late-web") -> None:
        self.logged.log({"a": [0.5] * n}, None, [moment] * n, deployment=deployment)


@pytest.fixture
def costly(tmp_path: Path) -> Iterator[Costly]:
    made = Costly(Home(tmp_path / "home"))
    yield made
    made.context.records.close()


def test_every_mode_is_charged_for_what_it_used(costly: Costly) -> None:
    now = utc_now()
    began = now - 2 * MINUTE
    costly.read("deployment-late-web", began, 2, 30.0)
    costly.read("deployment-late-stream", began, 1, 10.0)
    costly.read("daemon", began, 2, 50.0)
    costly.answer(100, now - MINUTE)
    costly.run(1000, 20.0)
    report = cost_report(costly.context, now - timedelta(hours=1), utc_now(), prices=PRICES)
    batch, stream, web = report.deployments
    assert (web.rows, web.cost) == (100, pytest.approx(30 + 0.5 * 120))
    assert web.per_1k == pytest.approx(900)
    assert (stream.rows, stream.per_1k, stream.cost) == (None, None, pytest.approx(10 + 0.5 * 60))
    assert (batch.rows, batch.cost, batch.per_1k) == (1000, 20.0, 20.0)
    (daemon,) = report.shared
    assert daemon.usage.cpu_seconds == pytest.approx(30)  # without the run that was counted as the batch's
    alone = cost_report(costly.context, now - timedelta(hours=1), utc_now(), "late", PRICES)
    assert (alone.deployments, alone.shared) == (report.deployments, ())


def test_steps_add_up_to_the_whole_and_the_page_shows_the_commands_figures(costly: Costly) -> None:
    now = slot_of(utc_now())
    for hours, cpu in ((3, 20.0), (1, 30.0)):
        began = now - timedelta(hours=hours)
        names = {d.name: d.created for d in costly.context.records.deployments()}
        taken = Reading(str(hours), began, began + MINUTE, cpu, 500_000_000)
        costly.context.records.add_reading("deployment-late-web", names["late-web"], taken)
        costly.answer(100 * hours, began)
    costly.run(1000, 20.0)
    end = now + SLOT
    steps = cost_reports(costly.context, now - timedelta(hours=4), end, timedelta(hours=1), "late", PRICES)
    assert [step.deployments[2].rows for step in steps] == [0, 300, 0, 100, 0]
    assert [step.deployments[2].cost for step in steps] == [0, pytest.approx(50), 0, pytest.approx(60), 0]
    assert [len(step.deployments[0].runs) for step in steps] == [0, 0, 0, 0, 1]
    whole = cost_report(costly.context, now - timedelta(hours=4), end, "late", PRICES)
    assert whole.deployments[2].per_1k == pytest.approx(275)
    *_, web, total = costs.lines(whole)
    assert (web.name, web.cpu, web.predictions, web.cost, web.per_1k) == (
        "late-web",
        "50.0 s",
        "400",
        "110.00",
        "275.00",
    )
    assert (total.name, total.predictions, total.cost) == ("All", "1,400", "130.00")
    drawn = json.loads(costs.chart(steps))
    assert drawn["step"] == "1h" and len(drawn["labels"]) == 5
    cost, per_1k = (measure["series"][2]["values"] for measure in drawn["measures"][:2])
    assert cost == [step.deployments[2].cost for step in steps]
    assert per_1k == [None, pytest.approx(50 / 0.3), None, pytest.approx(600), None]
    assert costs.chart(steps[:1]) == ""


def test_what_was_before_or_after_the_span_does_not_count(costly: Costly) -> None:
    long_ago = datetime(2024, 1, 1, tzinfo=timezone.utc)
    costly.read("deployment-late-web", long_ago, 5, 30.0)
    costly.answer(100, long_ago)
    costly.run(1000, 20.0)
    report = cost_report(
        costly.context, long_ago + timedelta(days=1), long_ago + timedelta(days=2), prices=PRICES
    )
    assert [each.cost for each in report.deployments] == [0, 0, 0]
    assert [each.rows for each in report.deployments] == [0, None, 0]


def test_the_command_shows_costs_and_the_cheapest_mode(
    costly: Costly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_PRICE_CPU_HOUR", "3600")
    now = utc_now()
    costly.read("deployment-late-web", now - 2 * MINUTE, 2, 30.0)
    costly.answer(100, now + MINUTE)  # nothing is answered after the report
    costly.answer(40, now)
    costly.run(1000, 20.0)
    home = str(costly.context.home.path)
    said = CliRunner().invoke(main, ["cost", "--home", home])
    assert said.exit_code == 0, said.output
    assert "cheapest for this: batch" in said.output
    assert "not logged" in said.output
    told: dict[str, Any] = json.loads(
        CliRunner().invoke(main, ["cost", "late-web", "--home", home, "--json"]).stdout
    )
    assert {each["deployment"]: each["predictions"] for each in told["deployments"]}["late-web"] == 40
    advice = told["advice"]["late"]
    assert {offer["mode"] for offer in advice["offers"]} == {"web", "stream", "batch"}
    assert (advice["unknown"], advice["max_age_seconds"]) == ([], 86_400)
    costly.context.records.set_policy("late", {"max_age": "1m"})
    said = CliRunner().invoke(main, ["cost", "late", "--home", home])
    assert "answers at most 1m old" in said.output
    wrong = CliRunner().invoke(main, ["cost", "--home", home, "--since", "soon"])
    assert wrong.exit_code == 1 and "'soon' is not a duration" in wrong.output


def test_prometheus_reads_what_everything_has_used(costly: Costly) -> None:
    costly.read("deployment-late-web", utc_now() - 2 * MINUTE, 2, 30.0)
    costly.context.records.add_verdict("late", "drift", EPOCH, EPOCH + MINUTE, "alarm", {})
    costly.context.records.add_verdict("late", "drift", EPOCH, EPOCH + 2 * MINUTE, "ok", {})
    for monitor in ("performance", "slices"):
        costly.context.records.add_verdict("late", monitor, EPOCH, EPOCH + 2 * MINUTE, "alarm", {})
    families = text_string_to_metric_families(metrics_of(costly.context).decode())
    found = {(s.name, s.labels.get("monitor")): s for family in families for s in family.samples}
    used = found["flywheel_cpu_seconds_total", None]
    assert used.labels == {"deployment": "late-web", "mode": "web", "model_name": "late"}
    assert used.value == pytest.approx(30)  # the two minutes may lie in two slots
    assert found["flywheel_alarm", "drift"].value == 0
    assert found["flywheel_alarm", "performance"].value == 1
    assert found["flywheel_verdict_window_end_seconds", "drift"].value == 120
    assert ("flywheel_alarm", "slices") not in found, "no policy asks for slices"
    costly.context.records.set_policy("late", {"monitors": ["-performance"], "slices": ["carrier"]})
    families = text_string_to_metric_families(metrics_of(costly.context).decode())
    switched = {
        s.labels["monitor"]: s.value for f in families for s in f.samples if s.name == "flywheel_alarm"
    }
    assert switched == {"drift": 0, "slices": 1}


def test_the_series_have_a_point_for_every_ten_minutes_that_ended(
    costly: Costly, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = costly.context
    context.home.bind(tracking_uri)
    for deployment in context.records.deployments():
        context.records.update_deployment(deployment.name, model_name=costly.logged.table.model_name)
    newest = slot_of(utc_now())
    costly.read("deployment-late-web", newest - SLOT, 10, 60.0)
    costly.answer(50, newest - MINUTE)
    series = SlotSeries(tell_costs)
    monkeypatch.setattr("mlflow_flywheel.plugin.slot_series.utc_now", lambda: newest + 3 * MINUTE)
    for _ in range(2):  # the second time nothing is due
        series.log(context)
    run_id = context.records.deployment("late-web").run_id
    assert run_id is not None
    history = MlflowClient(context.home.tracking_uri).get_metric_history
    assert [m.value for m in history(run_id, "cpu_cores")] == [pytest.approx(0.1)]
    assert [m.value for m in history(run_id, "memory_gb")] == [pytest.approx(0.5)]
    (per_1k,) = history(run_id, "cost_per_1k_predictions")
    assert per_1k.value == pytest.approx(Prices.of().cost(60, 300) * 20)
    assert per_1k.timestamp == newest.timestamp() * 1000
    assert context.records.deployment("late-stream").run_id is None  # it is not up

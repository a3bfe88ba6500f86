from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

import pytest
from support.page_home import gate

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.plugin.pages import words
from mlflow_flywheel.plugin.pages.timeline import Mark, Point, Timeline
from mlflow_flywheel.plugin.record_types import ActionRecord, VerdictRecord

T0 = datetime(2013, 2, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def drawing(timeline: Timeline) -> ElementTree.Element:
    return ElementTree.fromstring(timeline.svg())


def bars(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [rect for rect in svg.iter("rect") if rect.attrib["class"].startswith("bar ")]


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def action(status: str, result: dict[str, Any] | None = None, kind: str = "retrain") -> ActionRecord:
    return ActionRecord(1, "m", kind, "why", {}, T0, "k", status, result, None, T0, T0)


def test_nothing_to_draw_is_no_drawing() -> None:
    assert Timeline("AUC", [], []).svg() == ""


@pytest.mark.parametrize("days", [0, 0.01, 1, 5, 30, 120, 900])
def test_everything_drawn_is_within_the_frame_whatever_the_span(days: float) -> None:
    times = [T0 + i / 20 * days * DAY for i in range(21)]
    performance = [Point(t, "ok", "fine", 0.7 + i / 500, 0.6, 0.9, 0.71) for i, t in enumerate(times)]
    drift = [Point(t, "alarm", "moved", i / 20) for i, t in enumerate(times)]
    svg = drawing(Timeline("AUC", performance, drift, [Mark(times[-1], "v2", "all well", "promoted")], 0.3))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for circle in svg.iter("circle"):
        x, y = numbers(circle, "cx", "cy")
        assert 0 <= x <= width and 0 <= y <= height
    assert len(bars(svg)) == len(set(times))
    for bar in svg.iter("rect"):
        x, y, w, h = numbers(bar, "x", "y", "width", "height")
        assert x >= 0 and x + w <= width and h > 0 and y + h <= height
    labels = [text.text for text in svg.iter("text") if text.attrib["class"] == "tick middle"]
    assert len(labels) <= 12
    assert len(set(labels)) == len(labels) or days > 366


def test_time_goes_right_and_better_goes_up() -> None:
    points = [Point(T0, "ok", "a", 0.6), Point(T0 + DAY, "ok", "b", 0.7)]
    first, second = drawing(Timeline("AUC", points, [])).iter("circle")
    assert numbers(second, "cx") > numbers(first, "cx")
    assert numbers(second, "cy") < numbers(first, "cy")


def test_too_little_data_is_not_drawn_as_a_value() -> None:
    svg = drawing(
        Timeline("performance", [Point(T0, "unknown", "few labels")], [Point(T0, "unknown", "few")])
    )
    assert list(svg.iter("circle")) == bars(svg) == []
    assert "no labelled window yet" in [text.text for text in svg.iter("text")]


def test_words_of_monitors_cannot_break_out() -> None:
    hostile = '</title><script>alert("&")</script>'
    text = Timeline(
        hostile, [Point(T0, hostile, hostile, 1.0)], [], [Mark(T0, hostile, hostile, "promoted")]
    ).svg()
    assert "<script" not in text
    svg = ElementTree.fromstring(text)
    assert [circle.attrib["class"] for circle in svg.iter("circle")] == ["unknown"]


def test_each_window_is_one_link_and_the_newest_is_the_way_in() -> None:
    performance = [Point(T0 + i * DAY, "ok", "fine", 0.7, link=f"/w?a=1&b={i}") for i in range(3)]
    drift = [Point(T0 + i * DAY, "alarm", "moved", 0.5, link=f"/w?a=1&b={i}") for i in range(3)]
    links = list(drawing(Timeline("AUC", performance, drift)).iter("a"))
    assert [link.attrib["href"] for link in links] == ["/w?a=1&b=0", "/w?a=1&b=1", "/w?a=1&b=2"]
    assert [link.attrib["tabindex"] for link in links] == ["-1", "-1", "0"]
    assert (links[0].findtext("title") or "").splitlines()[1:] == ["ok: fine", "alarm: moved"]


def test_labels_of_marks_never_lie_on_each_other() -> None:
    marks = [Mark(T0 + i * timedelta(hours=1), "refused", "why", "refused") for i in range(9)]
    svg = drawing(
        Timeline("AUC", [Point(T0, "ok", "a", 0.6), Point(T0 + 90 * DAY, "ok", "b", 0.6)], [], marks)
    )
    shown = [mark for mark in svg.iter("g") if mark.attrib.get("class") == "mark refused"]
    assert len(shown) == 9
    assert len({label.attrib["y"] for mark in shown for label in mark.iter("text")}) == 2


def test_what_is_done_by_the_clock_does_not_stretch_a_replay() -> None:
    from mlflow_flywheel.plugin.pages import view
    from mlflow_flywheel.plugin.pages.snapshot import ModelView

    verdicts = [VerdictRecord(i, "m", "drift", T0, T0 + i * DAY, "ok", {}, None, T0) for i in (1, 9)]
    told = [action("done", kind="policy")]
    told.append(replace(told[0], id=2, as_of=T0 + 4000 * DAY))
    model = ModelView("m", [], None, verdicts, told, None, {}, None, None, None)
    assert [mark.at for mark in view.timeline(model).marks] == [T0]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("promoted", "Version 4 promoted: log loss 0.5012 → 0.4731, AUC 0.6680 → 0.7110, gain +0.0281"),
        ("refused", "Version 4 refused, the champion stays: log loss"),
        ("waiting", "Version 4 passed and waits for approval: "),
        ("rejected", "Version 4 rejected by a person"),
        ("running", "Under way"),
        ("queued", "Queued"),
    ],
)
def test_outcomes_say_what_became_of_a_retraining(status: str, said: str) -> None:
    found = words.outcome(action(status, {"version": "4", "gate": gate(True)}))
    assert found.startswith(said)
    if status not in ("running", "queued"):
        assert found.endswith("(interval +0.0174 to +0.0392) on 11,730 held-out rows")


def test_an_outcome_without_numbers_still_reads() -> None:
    assert words.outcome(action("failed", {"reason": "no labels\nmore"})) == "Failed: no labels"
    assert words.outcome(action("failed")) == "Failed: see its run"
    assert words.outcome(action("promoted", {"version": "4"})) == "Version 4 promoted"
    assert words.outcome(action("done", {}, kind="alert")) == ""
    few = {**gate(False), "difference": None, "low": None, "champion": {}}
    assert words.gate_words(few) == "on 11,730 held-out rows"


def test_an_approver_is_told_of_another_champion() -> None:
    meanwhile = "version 5 became champion meanwhile, and the gate compared with 2"
    assert words.caveat(action("waiting", {"reason": f"passed: numbers; {meanwhile}"})) == meanwhile
    asked = "passed: numbers; waiting for approval: set the alias champion to version 4"
    assert words.caveat(action("waiting", {"reason": asked})) == ""


def test_the_policy_in_words() -> None:
    lines = dict(words.policy_lines(PolicySpec.parse({"retrain_on": "performance,labels"})))
    assert lines["Monitors"] == "hourly, over 30d of event time"
    assert lines["Retrains"] == "after performance alarms, 2 in a row or 10,000 new labels"
    assert lines["At most"] == "every 7d, 4 times in 30d"
    assert lines["Promotes"] == "by itself, if the gate is 95% sure of no harm"
    once = {"consecutive": 1, "budget": 1, "retrain_on": "drift,schedule"}
    lines = dict(words.policy_lines(PolicySpec.parse(once)))
    assert lines["Retrains"] == "after a drift alarm or 30d without one"
    assert lines["At most"] == "every 7d, once in 30d"
    changed = {
        "retrain_on": "",
        "monitor_schedule": "30 2 * * *",
        "approval": "manual",
        "monitors": "-latency",
    }
    lines = dict(words.policy_lines(PolicySpec.parse(changed)))
    assert lines["Retrains"] == "never by itself"
    assert lines["Monitors"].startswith("daily at 02:30 UTC")
    assert lines["Promotes"].startswith("when a person approves")
    assert lines["Monitors"].endswith("of event time; without latency")
    cron = PolicySpec.parse({"monitor_schedule": "*/5 1-3 * * mon"})
    assert dict(words.policy_lines(cron))["Monitors"].startswith("at */5 1-3 * * mon")


def test_what_was_switched_off_or_had_nothing_to_say_is_no_current_verdict() -> None:
    from mlflow_flywheel.plugin.pages.snapshot import ModelView

    said = [("drift", 9), ("latency", 9), ("quality", 9), ("relevance", 8), ("performance", 7)]
    verdicts = [
        VerdictRecord(9 - i, "m", monitor, T0, T0 + end * DAY, "alarm", {}, None, T0)
        for i, (monitor, end) in enumerate(said)
    ]
    policy = PolicySpec.parse({"monitors": "-latency"})
    view = ModelView("m", [], None, verdicts, [], policy, {}, None, None, None)
    assert [v.monitor for v in view.current] == ["drift", "performance", "quality"]


def test_how_many_have_a_label_and_how_late() -> None:
    def told(**metrics: float) -> str:
        return words.coverage(
            VerdictRecord(1, "m", "performance", T0, T0 + DAY, "ok", {"metrics": metrics}, None, T0)
        )

    assert words.coverage(None) == told(auc=0.7) == ""
    assert told(label_coverage=0.5) == "50% of the newest window"
    late = told(label_coverage=0.9, label_delay_hours=0.5, label_arrival_hours=72.0)
    assert late == "90% of the newest window, true after 30 min and here after 3.0 days (median)"


def test_spans_leave_out_what_both_ends_share() -> None:
    assert words.span(T0, T0 + 30 * DAY) == "1 Feb – 3 Mar 2013"
    assert words.span(T0 - 30 * DAY, T0) == "2 Jan – 1 Feb 2013"
    assert words.span(T0 - 40 * DAY, T0) == "23 Dec 2012 – 1 Feb 2013"
    assert words.span(T0, T0 + timedelta(hours=6)) == "1 Feb 2013, 00:00 – 1 Feb 2013, 06:00"


def moved(kind: str, status: str = "done", **evidence: str) -> ActionRecord:
    told = {"before": "1", "after": "2", "requested_by": "ada", **evidence}
    return ActionRecord(1, "m", kind, "why", told, T0, "k", status, {"reason": "it failed"}, None, T0, T0)


def test_moves_of_the_champion_are_told_in_words_and_once() -> None:
    assert words.outcome(moved("rollback")) == "Version 1 → 2, by ada"
    assert words.outcome(moved("promote", "started")) == "Version 1 → 2, under way"
    assert words.outcome(moved("promote", "superseded")) == "Version 1 stayed: it failed"
    assert words.kind(action("done", kind="alert_end")) == "all clear"
    told = [moved("promote"), moved("promote", run_id="r"), moved("rollback", run_id="r")]
    assert words.noteworthy(told) == [told[0], told[2]]  # the second is told with its retraining


def test_the_gates_evidence_is_a_table_and_the_worst_slice_comes_first() -> None:
    found = gate(True) | {
        "attempt": 2,
        "slices": [
            {"slice": "a", "rows": 1200, "difference": 0.02, "low": 0.01, "high": 0.03},
            {"slice": "b", "rows": 60, "difference": -0.1, "low": None, "high": None},
        ],
    }
    assert words.gate_table(found) == [("log loss", "0.5012", "0.4731"), ("AUC", "0.6680", "0.7110")]
    assert words.slices(found) == [
        ("b", "60", "-0.1000", ""),
        ("a", "1,200", "+0.0200", "+0.0100 to +0.0300"),
    ]
    assert words.gate_words(found).endswith("on 11,730 held-out rows, attempt 2 on this evidence")
    assert words.slices(gate(True)) == []

"""Our page in a real MLflow server, asked by programs and looked at in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import requests
from support.browser import chromium, picture, wants_pictures, watched
from support.mlflow_server import mlflow_server
from support.page_home import MODEL, START, make
from support.page_pictures import at_work, real_reports
from support.waiting import eventually

from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.pipelines.errors import Unavailable
from mlflow_flywheel.plugin.context import Context
from mlflow_flywheel.plugin.daemon_server import DaemonServer
from mlflow_flywheel.plugin.home import Home
from mlflow_flywheel.plugin.policy_file import write_policy
from mlflow_flywheel.plugin.records import Records
from mlflow_flywheel.plugin.webhook_inbox import WebhookInbox
from mlflow_flywheel.plugin.webhooks import create_webhook, delete_webhook, webhook_state

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PREFIX = "/ml"
# a server sends to nobody on its own machine unless it is told to
WEBHOOKS = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_CACHE_TTL": "0",
}
HOSTILE = "<script>document.title = 'broken out'</script>"


@dataclass(frozen=True)
class Site:
    """A server with a filled home, and what its page said before there was one."""

    url: str
    run_id: str
    before: str
    records: Records
    home: Home

    @property
    def page(self) -> str:
        return f"{self.url}/flywheel/"

    def ask(self, what: str, **fields: str) -> requests.Response:
        headers = {"Accept": "application/json"}
        return requests.post(
            f"{self.url}/ajax-api/2.0/flywheel/{what}", data=fields, headers=headers, timeout=20
        )

    def status(self) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/ajax-api/2.0/flywheel/status", timeout=20)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("pages")
    environment = {"FLYWHEEL_HOME": str(folder / "home"), **WEBHOOKS}
    with mlflow_server(folder, prefix=PREFIX, environment=environment) as url:
        before = requests.get(f"{url}/flywheel/", timeout=20).text
        assert not (folder / "home").exists()
        client = MlflowClient(url)
        run_id = client.create_run(client.create_experiment(f"flywheel/{MODEL}")).info.run_id
        for artifact, html in _reports().items():
            client.log_text(run_id, html, artifact)
        client.create_registered_model(MODEL)
        for _ in range(3):
            client.create_model_version(MODEL, f"runs:/{run_id}/model", run_id)
        client.set_registered_model_alias(MODEL, "champion", "2")
        client.set_registered_model_alias(MODEL, "challenger", "3")
        home = make(folder / "home", url, run_id)
        records = Records(home.database_url)
        with at_work(home) if wants_pictures() else nullcontext():
            yield Site(url, run_id, before, records, home)
        records.close()


def _reports() -> dict[str, str]:
    """Return the reports of the monitor run: real ones for pictures, since they take seconds to draw."""
    if wants_pictures():
        return real_reports()
    return {
        "reports/drift.html": "<h1>Drift of the flights</h1>",
        "reports/overview.html": "<h1>Overview of the flights</h1>",
    }


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(site: Site, browser: Browser) -> Iterator[Page]:
    made = browser.new_page(viewport={"width": 1280, "height": 1000})
    trouble = watched(made, site.url.removesuffix(PREFIX))
    yield made
    made.close()
    assert trouble == []


def test_a_home_that_is_not_there_is_said_and_not_made(site: Site) -> None:
    assert "No deployment yet" in site.before
    assert "mlflow deployments create -t flywheel" in site.before


def test_the_status_says_what_the_records_and_the_table_say(site: Site) -> None:
    status = site.status()
    (model,) = status["models"]
    assert (model["name"], model["versions"]) == (MODEL, ["2"])
    assert {d["name"]: (d["mode"], d["predictions"]) for d in model["deployments"]} == {
        "late-web": ("web", 300),
        "late-stream": ("stream", 300),
        "late-nightly": ("batch", 300),
    }
    # nothing runs in this home: what was asked for is not what is
    assert [d["status"] for d in model["deployments"] if d["mode"] != "batch"] == ["stopped", "stopped"]
    assert status["health"] == {"status": "alarm", "text": "late-stream, late-web are not serving"}
    assert model["table"] == {"rows": 900, "labelled": 810, "duplicates": 0}
    verdicts = {v["monitor"]: v for v in model["verdicts"]}
    assert verdicts["performance"]["status"] == "ok"
    assert (
        verdicts["drift"]["report_url"]
        .partition("?")[0]
        .endswith(f"/runs/{site.run_id}/artifacts/reports/drift.html")
    )
    promoted = next(
        a for a in model["actions"] if a["status"] == "promoted" and a["as_of"].startswith("2013-04-06")
    )
    assert promoted["outcome"].startswith("Version 2 promoted: log loss 0.5012 → 0.4731")
    assert promoted["run_url"].startswith(f"{PREFIX}/#/experiments/1/runs/{site.run_id}")


def test_the_way_from_mlflow_to_the_page(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/")
    page.get_by_role("link", name="Flywheel").click()
    page.wait_for_url(f"**{PREFIX}/flywheel/")
    assert page.locator("svg.timeline circle.alarm").count() > 3
    picture(page, "page")
    picture(page.get_by_role("region", name="Waiting for approval"), "page-approval")
    report = page.get_by_role("link", name="report", exact=True).get_attribute("href") or ""
    assert report.partition("?")[0].endswith(f"/runs/{site.run_id}/artifacts/reports/drift.html")


def test_from_the_timeline_to_a_window_by_keyboard_and_on_to_its_reports(site: Site, page: Page) -> None:
    page.goto(site.page)
    newest = page.locator(".timeline a.window").last
    newest.focus()
    for _ in range(42):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="5 Feb – 7 Mar 2013").wait_for()
    (alert,) = page.get_by_role("listitem").all()
    assert "alert" in alert.inner_text()  # what was done about this window
    page.get_by_role("link", name="Later →").click()
    page.get_by_role("heading", name="7 Feb – 9 Mar 2013").wait_for()
    picture(page, "page-window")
    for name, artifact in (("Overview page", "overview"), ("Evidently's report", "drift")):
        page.get_by_role("link", name=name).click()
        page.wait_for_url(f"**/artifacts/reports/{artifact}.html?*")
        page.frame_locator("iframe").locator("h1").first.wait_for()
        picture(page, f"report-{artifact}")
        page.go_back()
    page.get_by_text("numbers of the monitors").click()
    assert page.get_by_role("row", name="drift share").is_visible()


def test_what_it_costs_is_a_table_a_chart_and_advice(site: Site, page: Page) -> None:
    page.goto(site.page)
    cost = page.get_by_role("group", name=f"Cost of {MODEL}")
    assert cost.get_by_role("row", name="late-web").locator("td").nth(4).inner_text() == "300"
    told = site.status()["models"][0]["cost"]["advice"][MODEL]["offers"]
    advised = cost.locator(".advice tbody tr")
    assert [row.locator("th").inner_text() for row in advised.all()] == [offer["mode"] for offer in told]
    assert told[0]["arithmetic"] in advised.first.inner_text()
    shown = """() => Chart.getChart(document.querySelector("canvas")).data.datasets.map(each => each.data.reduce((a, b) => a + b))"""
    assert page.evaluate(shown) == pytest.approx(
        [d["cost"] for d in site.status()["models"][0]["cost"]["deployments"]]
    )
    cost.get_by_role("radio", name="Cost").focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(shown) == [300, 300, 300]
    page.keyboard.press("ArrowRight")
    picture(cost, "page-cost")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_is_readable_in_both_schemes_and_on_a_phone(
    site: Site, browser: Browser, scheme: Any, width: int
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    measure = """element => {
        const light = color => { const [r, g, b] = color.match(/\\d+/g).map(Number); return (r + g + b) / 765 };
        const style = getComputedStyle(element);
        return [light(style.color), light(style.backgroundColor), document.documentElement.scrollWidth];
    }"""
    (model,) = site.status()["models"]
    window = model["verdicts"][0]["window_url"].removeprefix(PREFIX)
    for name, place in (
        ("page", "/flywheel/"),
        ("window", window),
        ("policy", f"/flywheel/policy?model={MODEL}"),
    ):
        page.goto(site.url + place)
        ink, ground, wide = page.locator("body").evaluate(measure)
        assert abs(ink - ground) > 0.6
        assert (ground < 0.5) == (scheme == "dark")
        assert wide <= width, name
        if name == "page" and width < 800:
            picture(page, "page-narrow")
    page.close()


def test_a_verdict_on_a_replaced_version_is_told_apart(site: Site) -> None:
    end = START + timedelta(days=122)
    old = {"text": "auc 0.5 of an old one", "metrics": {"auc": 0.5}, "version": "1"}
    site.records.add_verdict(MODEL, "performance", end - timedelta(days=30), end, "alarm", old)
    page = requests.get(site.page, timeout=20).text
    assert "On version 1, replaced since:</strong> auc 0.5 of an old one" in page
    new = {**old, "text": "auc 0.7 of this one", "version": "2", "metrics": {"auc": 0.7}}
    site.records.add_verdict(MODEL, "performance", end - timedelta(days=30), end, "ok", new)
    assert "replaced since" not in requests.get(site.page, timeout=20).text


def test_the_page_holds_no_foreign_address_and_escapes_what_it_shows(site: Site) -> None:
    number = site.records.add_action(MODEL, "alert", HOSTILE, {}, START, key="hostile")
    site.records.update_action(number, "done")
    text = requests.get(site.page, timeout=20).text
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "https://" not in text


def test_no_page_has_a_script_or_style_of_its_own_and_the_browser_is_told(site: Site) -> None:
    (model,) = site.status()["models"]
    window = site.url.removesuffix(PREFIX) + model["verdicts"][0]["window_url"]
    for address in (site.page, window, f"{site.page}policy?model={MODEL}", f"{site.page}policy?model=nobody"):
        answer = requests.get(address, headers={"Accept": "text/html"}, timeout=20)
        assert "script-src 'self'; style-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "<style" not in answer.text and " style=" not in answer.text and " onclick" not in answer.text
        assert answer.text.count("<script") == answer.text.count("<script src=")
    assert answer.status_code == 404 and "there is no model &#39;nobody&#39; here" in answer.text
    chart = requests.get(f"{site.page}static/Chart.bundle.js", timeout=20)
    assert chart.status_code == 200 and "Chart.js v4" in chart.text[:200]
    assert requests.get(f"{site.page}static/routes.py", timeout=20).status_code == 404


def test_another_sites_page_cannot_ask_for_anything(site: Site) -> None:
    asked = site.records.tasks(kind="retrain")
    for what in ("retrain", "approve", "reject", "rollback", "pause", "resume", "policy"):
        answer = requests.post(
            f"{site.url}/ajax-api/2.0/flywheel/{what}",
            data={"model": MODEL, "action": "5"},
            headers={"Origin": "https://elsewhere.example"},
            timeout=20,
        )
        assert answer.status_code == 403
    assert site.records.tasks(kind="retrain") == asked


def test_a_retraining_is_asked_for_once_and_at_the_time_of_the_events(site: Site) -> None:
    first, second = site.ask("retrain", model=MODEL), site.ask("retrain", model=MODEL)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    task = site.records.task(first.json()["task"])
    assert (task.status, task.requested_by) == ("queued", "page")
    newest = START + timedelta(hours=2 * 899)
    assert datetime.fromisoformat(task.payload["as_of"]) == newest + timedelta(seconds=1)
    assert site.status()["models"][0]["retraining"] == "queued"
    assert site.records.claim(["retrain"], "test") == site.records.task(task.id)
    site.records.finish(task.id, {})


@pytest.mark.parametrize(
    ("what", "fields", "code", "said"),
    [
        (
            "retrain",
            {"model": "flight-lat"},
            404,
            "'flight-lat' has no deployment here; deployed are: flight-late",
        ),
        ("retrain", {}, 400, "names no 'model'"),
        ("approve", {"action": "999"}, 404, "action '999' does not exist"),
        ("approve", {"action": "1"}, 400, "action 1 is done: nothing waits for approval"),
        ("reject", {}, 400, "names no 'action'"),
        ("policy", {"model": MODEL, "text": "model: other"}, 400, "is for model 'other'"),
        ("policy", {"model": MODEL, "text": "x: ["}, 400, "the policy cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(
    site: Site, what: str, fields: dict[str, str], code: int, said: str
) -> None:
    answer = site.ask(what, **fields)
    assert answer.status_code == code
    assert said in answer.json()["message"]
    form = requests.post(
        f"{site.url}/ajax-api/2.0/flywheel/{what}", data=fields, headers={"Accept": "text/html"}, timeout=20
    )
    assert form.status_code == code
    assert ("Nothing was changed." if what == "policy" else "Back to the page") in form.text


def test_mlflow_itself_is_served_with_a_link_whatever_the_browser_knows(site: Site) -> None:
    known = {"If-None-Match": "*", "If-Modified-Since": "Wed, 01 Jan 2031 00:00:00 GMT"}
    answer = requests.get(f"{site.url}/", headers=known, timeout=20)
    assert answer.status_code == 200
    assert f'"{PREFIX}/flywheel/"' in answer.text
    assert "ETag" not in answer.headers


def test_the_policy_is_checked_and_changed_on_the_page(site: Site, page: Page) -> None:
    page.goto(site.page)
    page.get_by_role("link", name="See all settings").click()
    text = page.get_by_role("textbox")
    before = text.input_value()
    assert before == write_policy(MODEL, PolicySpec.parse(site.records.policy(MODEL)))
    text.fill(before.replace("cooldown: 7d", "coldown: 7d"))
    page.get_by_role("button", name="Put in force").click()
    page.get_by_role("alert").get_by_text(
        "unknown loop setting 'coldown' (did you mean 'cooldown'?)"
    ).wait_for()
    assert "coldown: 7d" in text.input_value()
    text.fill(before.replace("cooldown: 7d", "cooldown: 3d"))
    page.get_by_role("button", name="Only check").click()
    page.get_by_role("status").get_by_text("7d → 3d").wait_for()
    picture(page, "page-policy")
    assert "cooldown" not in site.records.policy(MODEL)
    page.get_by_role("button", name="Put in force").click()
    page.get_by_role("listitem").get_by_text("cooldown: 7d → 3d, by page").wait_for()
    assert site.records.policy(MODEL)["cooldown"] == "3d"
    seen = page.locator("input[name=seen]").input_value()
    mine = {"model": MODEL, "text": f"model: {MODEL}", "seen": seen}
    assert site.ask("policy", **mine).json()["applied"] is True
    late = site.ask("policy", **mine)
    assert late.status_code == 400 and "changed by somebody else meanwhile" in late.json()["message"]
    site.records.set_policy(MODEL, {"approval": "manual"})


def test_the_page_renews_itself(site: Site, page: Page) -> None:
    page.goto(site.page)
    end = START + timedelta(days=121)
    fresh = {"text": "9 of 12 features drifted: a new sentence", "metrics": {"share": 0.75}}
    site.records.add_verdict(MODEL, "drift", end - timedelta(days=30), end, "alarm", fresh, site.run_id)
    page.get_by_text("a new sentence").first.wait_for(timeout=15_000, state="attached")


def test_a_click_asks_for_a_retraining(site: Site, page: Page) -> None:
    page.goto(site.page)
    page.get_by_role("button", name="Retrain now").click()
    page.get_by_role("button", name="Retraining is queued").wait_for()
    page.wait_for_url(f"**{PREFIX}/flywheel/")
    task = site.records.claim(["retrain"], "test")
    assert task is not None and task.subject == MODEL
    site.records.fail(task.id, "the test has seen enough\nand more")
    page.get_by_text("the test has seen enough").wait_for(timeout=15_000)


def test_a_click_promotes_the_version_that_waits(site: Site, page: Page) -> None:
    from mlflow import MlflowClient

    page.goto(site.page)
    assert page.get_by_role("button", name="Reject").is_visible()
    page.get_by_role("button", name="Promote version 3").click()
    page.get_by_role("list").get_by_text("Version 3 promoted").wait_for()
    assert page.get_by_role("button", name="Promote version 3").count() == 0
    assert MlflowClient(site.url).get_registered_model(MODEL).aliases == {"champion": "3"}
    action = next(
        a for a in site.records.actions(MODEL, kinds=("retrain",)) if (a.result or {}).get("version") == "3"
    )
    assert (action.status, (action.result or {})["decided_by"]) == ("promoted", "page")
    assert site.ask("reject", action=str(action.id)).status_code == 400


def test_a_rejected_version_never_gets_the_alias(site: Site) -> None:
    from mlflow import MlflowClient

    before = MlflowClient(site.url).get_model_version_by_alias(MODEL, "champion").version
    number = site.records.add_action(MODEL, "retrain", "labels", {}, START + timedelta(days=119), key="again")
    site.records.update_action(number, "waiting", {"version": "1", "status": "waiting"})
    assert site.ask("reject", action=str(number)).json() == {"action": number, "version": "1"}
    assert MlflowClient(site.url).get_model_version_by_alias(MODEL, "champion").version == before
    outcome = eventually(lambda: site.status()["models"][0]["actions"][0]["outcome"])
    assert outcome == "Version 1 rejected by a person, the champion stays"


def test_a_click_goes_back_to_the_version_before_and_a_second_one_finds_nothing_to_do(
    site: Site, page: Page
) -> None:
    from mlflow import MlflowClient

    page.goto(site.page)
    page.get_by_text("Roll back…").click()
    page.get_by_role("button", name="Roll back to version 2").click()
    page.get_by_role("list").get_by_text("Version 3 → 2, by page").wait_for()
    client = MlflowClient(site.url)
    assert client.get_registered_model(MODEL).aliases == {"champion": "2"}
    assert "asked for by page" in client.get_model_version(MODEL, "3").tags["flywheel.rolled_back"]
    late = site.ask("rollback", model=MODEL, version="3")
    assert (
        late.status_code == 400 and "version 2 is champion of 'flight-late' by now" in late.json()["message"]
    )
    assert [a.kind for a in site.records.moves(MODEL)] == ["rollback", "promote"]


def test_the_loop_is_paused_and_resumed_once(site: Site, page: Page) -> None:
    page.goto(site.page)
    page.get_by_role("button", name="Pause the loop").click()
    page.get_by_text("The loop is paused").first.wait_for()
    assert site.ask("pause", model=MODEL).json() == {"model": MODEL, "paused": True, "changed": False}
    assert site.status()["models"][0]["paused"].startswith("by page since ")
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Pause the loop").wait_for()
    assert site.records.paused(MODEL) is None
    kinds = [a.kind for a in site.records.actions(MODEL) if a.kind in ("pause", "resume")]
    assert kinds == ["resume", "pause"]


def test_mlflow_tells_of_an_alias_that_is_set_until_its_webhook_is_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(Context, "ensure_daemon", lambda self: None)  # the test listens in its place
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.url)
    context, client, heard = Context.open(site.home), MlflowClient(site.url), threading.Semaphore(0)
    with closing(DaemonServer(context, WebhookInbox(site.home, heard.release))) as server:
        with pytest.raises(Unavailable, match="do not arrive: status 404"):
            create_webhook(context, server.metrics_url)
        assert list(client.list_webhooks()) == [] and webhook_state(context) is None
        first = create_webhook(context, server.webhook_url)
        made = create_webhook(context, server.webhook_url)  # with another secret, in place of the first
        assert [hook.webhook_id for hook in client.list_webhooks()] == [made.id] != [first.id]
        assert heard.acquire(timeout=0) and heard.acquire(timeout=0)
        client.set_registered_model_alias(MODEL, "watched", "1")
        assert heard.acquire(timeout=20)
        state = webhook_state(context)
        assert state is not None and (state.at_mlflow, state.trial.why[:15]) == ("active", "no daemon runs;")
        delete_webhook(context)
        client.delete_registered_model_alias(MODEL, "watched")
        assert list(client.list_webhooks()) == [] and not heard.acquire(blocking=False)
    context.records.close()

import os
import re

import numpy as np
import pyarrow as pa
from support.browser import chromium
from support.windows_of import WINDOW, reference_of, two_classes, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.evidently import drift_report
from mlflow_flywheel.monitors.overview import overview

SCRIPT = "</script><script>window.pwned=1</script>"
MARKUP = [SCRIPT, "<!--", "<img src=x onerror=window.pwned=2>", "${window.pwned=3}"]


def sample(n, seed, shift=0.0, **more):
    rng = np.random.default_rng(seed)
    features = {
        "x": rng.normal(shift, 1, n),
        "flag": rng.integers(0, 2, n) * 1.0,
        "carrier": rng.choice(list("abcd"), n),
    }
    score = rng.random(n)
    own = {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score)}
    return {**features, **{name: make(rng, n) for name, make in more.items()}}, own


def report(n=1200, shift=0.0, now=None, before=None):
    old, old_own = sample(n, 1, **(before or {}))
    new, new_own = sample(n, 2, shift, **(now or before or {}))
    reference, rows = reference_of(old, **old_own), window_of(new, **new_own)
    verdict = drift(rows, reference, WINDOW)
    return verdict, drift_report(rows, reference, verdict, sample_rows=600)


def opened(browser, path, scheme):
    """Open a page as MLflow shows an artifact, in a frame that may run scripts, and return what it did."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 900})
    trouble = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None
    )
    frame = path.with_name("frame.html")
    frame.write_text(
        f'<iframe id="report" sandbox="allow-scripts" src="{path.name}" width="1000" height="800"></iframe>'
    )
    page.goto(frame.as_uri())
    report = page.frame_locator("#report")
    return page, report, trouble


def figures_of(html):
    """Return the part that Evidently embeds: everything but our header."""
    return re.sub(r'<section class="fw".*?</section>', "", html, flags=re.DOTALL)


def _told(verdict):
    drifted, tested = (int(verdict.metrics[name]) for name in ("drifted_columns", "tested_columns"))
    return f"({drifted} out of {tested})"


def test_the_page_is_headed_by_our_verdict_and_evidently_says_the_same():
    verdict, html = report(shift=0.15)
    body = html.index("<body")
    assert html.index('id="flywheel-verdict"') - body < 2000
    assert verdict.status == "alarm" and verdict.summary in html.replace("&#x27;", "'")
    figures = figures_of(html)
    assert _told(verdict) in figures and "largest likely effect, verdict above" in figures
    assert "carrier" in figures and "prediction score" in figures
    quiet, calm = report(shift=0.03)
    assert _told(quiet) in figures_of(calm)
    assert os.environ["DO_NOT_TRACK"]


def test_markup_in_a_category_and_in_a_column_name_is_harmless():
    odd = {SCRIPT: lambda rng, n: rng.choice(MARKUP, n), "<b>": lambda rng, n: rng.normal(0, 1, n)}
    verdict, html = report(before=odd)
    assert {SCRIPT, "<b>"} <= {row["column"] for row in verdict.evidence}
    assert "window.pwned=1" in html  # it is shown, as text
    for planted in (SCRIPT, "<script>window", "<img src=x", "<b>"):
        assert planted not in html
    plain = report()[1]
    assert figures_of(html).count("</script") == figures_of(plain).count("</script")
    assert figures_of(html).count("<!--") == figures_of(plain).count("<!--")


def test_a_browser_shows_planted_markup_and_runs_none_of_it(tmp_path):
    odd = {SCRIPT: lambda rng, n: rng.choice(MARKUP, n), "<b>": lambda rng, n: rng.normal(0, 1, n)}
    before = {**odd, SCRIPT: lambda rng, n: rng.choice(MARKUP[:2], n)}
    old, old_own = sample(1200, 1, **before)
    new, new_own = sample(1200, 2, 1.0, **odd)
    reference, rows = reference_of(old, **old_own), window_of(new, **new_own)
    verdict = drift(rows, reference, WINDOW)
    report = tmp_path / "drift.html"
    report.write_text(drift_report(rows, reference, verdict, sample_rows=600))
    page_of_all = tmp_path / "overview.html"
    page_of_all.write_text(overview("late", "1", [verdict], rows, reference))
    with chromium() as browser:
        grounds = set()
        for path, scheme, heading in (
            (report, "light", "#flywheel-verdict h1"),
            (page_of_all, "light", "h1"),
            (page_of_all, "dark", "h1"),
        ):
            page, shown, trouble = opened(browser, path, scheme)
            shown.locator(heading).first.wait_for()
            assert "window.pwned=1" in shown.locator("body").inner_text()
            if path == report:
                shown.locator(".js-plotly-plot, .MuiGrid-root").first.wait_for()
            assert shown.locator("body").evaluate("() => window.pwned") is None
            ground = shown.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
            grounds.add((path.name, scheme, ground))
            assert trouble == []
            page.close()
    assert len({ground for name, _, ground in grounds if name == "overview.html"}) == 2


def test_what_cannot_be_drawn_is_left_out_and_named():
    before = {
        "empty": lambda rng, n: pa.nulls(n, pa.float64()),
        "gone": lambda rng, n: rng.normal(0, 1, n),
        "retyped": lambda rng, n: rng.normal(0, 1, n),
        "when": lambda rng, n: pa.array(np.arange(n), pa.timestamp("us")),
        "infinite": lambda rng, n: np.where(np.arange(n) % 3 == 0, np.inf, rng.normal(0, 1, n)),
        "constant": lambda rng, n: np.ones(n),
        "target": lambda rng, n: rng.normal(0, 1, n),
        "ids": lambda rng, n: [f"id{i}" for i in range(n)],
    }
    now = {k: v for k, v in before.items() if k != "gone"} | {
        "retyped": lambda rng, n: rng.choice(list("ab"), n)
    }
    verdict, html = report(now=now, before=before)
    note = re.search(r"Not drawn below: (.*?)</p>", html).group(1)
    assert all(f"{name} (" in note for name in ("empty", "gone", "retyped", "when"))
    assert not any(f"{name} (" in note for name in ("infinite", "constant", "target", "ids", "x"))
    assert "id1199" not in figures_of(html) and "(other)" in figures_of(html)
    assert len(verdict.evidence) == 12


def test_when_nothing_can_be_drawn_the_page_is_the_verdict_alone():
    reference = reference_of({"x": np.zeros(300)})
    rows = window_of({"y": np.zeros(300)})
    verdict = drift(rows, reference, WINDOW)
    html = drift_report(rows, reference, verdict)
    assert len(html) < 10_000 and "not in the window" in html and "ALARM" in html.upper()


def test_an_unknown_verdict_still_makes_a_page():
    rows, reference = window_of({"x": np.zeros(5)}), reference_of({"x": np.zeros(300)})
    assert "too few to compare" in drift_report(rows, reference, drift(rows, reference, WINDOW))


def test_two_names_that_look_alike_once_harmless_stay_two():
    odd = {"<b": lambda rng, n: rng.normal(0, 1, n), "\u2039b": lambda rng, n: rng.normal(0, 1, n)}
    figures = figures_of(report(before=odd)[1])
    names = set(re.findall(r'"column_name": ?"(?:\u2039|\\u2039)b(.*?)"', figures))
    assert len(names) == 2 and "" in names, names


def test_a_column_that_evidently_fails_on_stops_no_other():
    broken = {"broken": lambda rng, n: rng.choice([-1.7e308, 0.5, 1.7e308], n) * rng.random(n)}
    _, html = report(before=broken)
    assert "broken (Evidently cannot draw it)" in html
    assert "carrier" in figures_of(html) and "Drift is detected for" in figures_of(html)


def test_the_page_does_not_grow_with_the_window():
    small, large = report(n=700)[1], report(n=30_000)[1]
    assert len(large) < 1.02 * len(small)

from datetime import timedelta

import numpy as np
import pyarrow as pa
from support.windows_of import WINDOW, reference_of, two_classes, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.overview import episode_start, overview
from mlflow_flywheel.monitors.performance import performance
from mlflow_flywheel.monitors.verdicts import Verdict
from mlflow_flywheel.monitors.windows import Window

SCRIPT = "</script><script>window.pwned=1</script>"
N = 800


def side(seed, shift=0.0, person="a@example.com"):
    rng = np.random.default_rng(seed)
    score = rng.random(N)
    words = np.where(
        np.arange(N) < 3, person, rng.choice([SCRIPT, "b"], N, p=[0.5 + shift / 4, 0.5 - shift / 4])
    )
    features = {SCRIPT: rng.normal(shift, 1, N), "word": pa.array(words), "same": rng.normal(0, 1, N)}
    own = {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score)}
    return features, own | {"label": (rng.random(N) < score) * 1.0}


def page(since=None, shift=1.5):
    old, old_own = side(0)
    new, new_own = side(1, shift, "b@example.com")
    rows, reference = window_of(new, **new_own), reference_of(old, **old_own)
    verdicts = [drift(rows, reference, WINDOW), performance(rows, reference, WINDOW)]
    return verdicts, overview("late", "7", verdicts, rows, reference, since)


def test_it_says_what_was_seen_where_since_when_and_what_it_did():
    verdicts, html = page({"drift": WINDOW.start})
    assert html.startswith("<!doctype html>") and "late version 7" in html
    assert ">alarm</span>late" in html and verdicts[1].summary in html
    assert "2013-02-01 00:00" in html and "auc" in html
    assert html.count("<svg") == 2 and "jensen-shannon" in html


def test_it_holds_no_row_nothing_that_runs_and_nothing_from_elsewhere():
    _, html = page()
    assert SCRIPT not in html and "&lt;/script&gt;" in html
    assert not any(word in html for word in ("<script", "http:", "https:", "url(", "@import", " src="))
    assert "@example.com" not in html


def test_a_calm_look_says_so():
    _, html = page(shift=0.0)
    assert "None." in html and html.count("<svg") == 0


def test_a_look_without_a_reference_still_has_its_page():
    rows = window_of(side(1)[0])
    verdicts = [drift(rows, None, WINDOW)]
    assert "no reference to compare with" in overview("late", "7", verdicts, rows, None)


def test_trouble_began_with_the_first_window_of_an_unbroken_row():
    def before(days, status):
        return Window(WINDOW.start - timedelta(days), WINDOW.end - timedelta(days)), status

    now = Verdict("drift", "alarm", "", WINDOW)
    earlier = [
        before(1, "warn"),
        before(2, "unknown"),
        before(3, "alarm"),
        before(4, "ok"),
        before(5, "alarm"),
    ]
    assert episode_start(now, earlier) == WINDOW.end - timedelta(days=3)
    assert episode_start(now, []) == WINDOW.end
    assert episode_start(Verdict("drift", "ok", "", WINDOW), earlier) is None

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.windows_of import WINDOW, reference_of, two_classes, window_of

from mlflow_flywheel.monitors.cutting import MOST_CATEGORIES
from mlflow_flywheel.monitors.policy import PolicySpec
from mlflow_flywheel.monitors.slices import MOST_SLICES, SlicesMonitor, SlicesSpec, slices
from mlflow_flywheel.monitors.slicing import Condition, Slices, parse_slices
from mlflow_flywheel.pipelines.errors import BadInput

N = 3000


def sample(rng, n=N, spoiled=0.0, words="abcd"):
    """Return features and columns of a classifier that errs more by `spoiled` where the word is "a"."""
    x, word = rng.normal(0, 1, n), rng.choice(list(words), n)
    truth = rng.random(n) < 1 / (1 + np.exp(-2 * x + spoiled * (word == "a")))
    score = 1 / (1 + np.exp(-2 * x))
    own = {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score), "label": truth * 1.0}
    return {"x": x, "word": word}, own


def judged(asked, now, before, **spec):
    rows, reference = window_of(now[0], **now[1]), reference_of(before[0], **before[1])
    return slices(rows, reference, WINDOW, SlicesSpec(slices=parse_slices(asked), **spec))


def of(verdict):
    return {row["slice"]: row for row in verdict.evidence}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("carrier, origin", [("carrier",), ("origin",)]),
        ("distance>1000", [("distance", ">", "1000")]),
        ("distance >= -1.5e3,a==b", [("distance", ">=", "-1.5e3"), ("a", "=", "b")]),
        ("carrier=UA & origin != JFK , x", [("carrier", "=", "UA", "origin", "!=", "JFK"), ("x",)]),
        ("flight number<7", [("flight number", "<", "7")]),
        ('"a,b"=\'say "x"\', `it\'s`', [("a,b", "=", 'say "x"'), ("it's",)]),
        ("  ", []),
    ],
)
def test_slices_are_read_as_written(text, means):
    expected = []
    for words in means:
        made = [
            Condition(column=words[i], operator=words[i + 1], value=words[i + 2])
            for i in range(0, len(words) - 2, 3)
        ]
        expected.append(Slices(conditions=tuple(made)) if made else Slices(column=words[0]))
    spec = PolicySpec.parse({"slices": text})
    assert list(spec.slices) == expected
    assert PolicySpec.parse(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("text", ["a>", ">3", "a=1 b=2", "a=1&", "a&b", "a<b<c", 'a="x', "__import__('os')"])
def test_what_is_no_slice_is_refused_with_an_example(text):
    with pytest.raises(BadInput) as error:
        PolicySpec.parse({"slices": text})
    assert "no list of slices" in str(error.value) and "distance>1000" in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=8), st.text(max_size=8))
def test_any_name_and_value_can_be_written(name, value):
    assume(all(any(quote not in word for quote in "'\"`") for word in (name, value)))
    entry = Slices(conditions=(Condition(column=name, operator="=", value=value),))
    assert parse_slices(str(entry)) == (entry,)


def test_a_slice_that_got_worse_is_found_and_named_while_all_rows_look_well():
    rng = np.random.default_rng(0)
    verdict = judged("word, x", sample(rng, spoiled=2.0), sample(rng))
    assert verdict.status == "warn"
    assert verdict.summary.startswith("1 of 8 slices surely worse") and "word=a (skill" in verdict.summary
    row = verdict.evidence[0]
    assert (row["slice"], row["worse"]) == ("word=a", True) and row["p_adjusted"] < 0.05
    assert row["low"] < row["value"] < row["high"] < row["reference"]
    assert {"word a/skill", "word a/rows", "word a/drift_share"} <= set(verdict.metrics)
    assert judged("word", sample(rng, spoiled=2.0), sample(rng), alarm=True).status == "alarm"


def test_many_slices_are_no_more_false_warnings():
    rng, warned = np.random.default_rng(1), 0
    for _ in range(8):
        cut = "word, x, x>0, x<=0 & word!=b"
        verdict = judged(cut, sample(rng, words="abcdefgh"), sample(rng, words="abcdefgh"), loss_margin=0.0)
        warned += verdict.status != "ok"
    assert warned <= 2


def test_rare_categories_are_judged_together_and_missing_ones_too():
    rng = np.random.default_rng(2)
    features, own = sample(rng)
    words = np.array([f"w{i:02}" for i in np.minimum(rng.geometric(0.15, N), 30)])
    cut = {"word": pa.array(words, mask=np.arange(N) % 20 == 0), "x": features["x"]}
    rows = of(judged("word", (cut, own), (cut, own)))
    assert len(rows) == MOST_CATEGORIES + 2
    assert rows["word: missing"]["rows"] == 150 and sum(row["rows"] for row in rows.values()) == N


def test_numbers_are_cut_where_the_references_quarters_are_and_few_values_are_categories():
    rng = np.random.default_rng(3)
    (now, own), (before, known) = sample(rng), sample(rng)
    now |= {"x": now["x"] + 1, "grade": np.arange(N) % 3 * 1.0}
    before |= {"grade": np.arange(N) % 3 * 1.0}
    rows = of(judged("x, grade", (now, own), (before, known)))
    quarters = [row["rows"] for name, row in rows.items() if "x" in name]
    assert len(quarters) == 4 and sum(quarters) == N and max(quarters) > 1.5 * N / 4
    assert {name for name in rows if "grade" in name} == {"grade=0", "grade=1", "grade=2"}


def test_a_slice_that_cannot_be_made_is_told_and_stops_no_other():
    rng = np.random.default_rng(4)
    verdict = judged("wrod, word>3, x=high, x>0", sample(rng), sample(rng))
    assert list(of(verdict)) == ["x>0"] and verdict.status == "ok"
    for said in ("there is no column 'wrod'", "nothing is > 3", "'high' is none"):
        assert said in verdict.summary


def test_slices_are_bounded_and_their_series_have_names_of_their_own():
    rng = np.random.default_rng(5)
    cut = ", ".join([*(f"x>{i / 100}" for i in range(60)), "word"])
    verdict = judged(cut, sample(rng, 1000), sample(rng, 1000))
    assert verdict.metrics["slices"] == MOST_SLICES and f"first {MOST_SLICES} slices" in verdict.summary
    both = judged("word=a, word='a!'", sample(rng, 1000), sample(rng, 1000)).metrics
    assert {"word a/rows", "word a too/rows"} <= set(both)


def test_too_little_to_compare_is_unknown_and_says_why():
    rng = np.random.default_rng(6)
    (features, own), reference = sample(rng, 300), sample(rng, 300)
    unlabelled = own | {"label": pa.nulls(300, pa.float64())}
    wanted = SlicesSpec(slices=parse_slices("word"))
    for verdict, says in (
        (judged("word", (features, unlabelled), reference), "none of 4 slices has 50 labelled rows"),
        (slices(window_of(features, **own), None, WINDOW, wanted), "no reference"),
        (slices(window_of(features, **own).slice(0, 10), None, WINDOW, wanted), "10 rows in the window"),
    ):
        assert verdict.status == "unknown" and says in verdict.summary
    assert len(judged("word", (features, unlabelled), reference).evidence) == 4


def test_thresholds_come_from_the_policy_and_without_slices_nothing_is_asked():
    policy = PolicySpec.parse(
        {"slices": "word", "slice_alarm": "true", "confidence": 0.9, "drift_effect": 0.2}
    )
    spec = SlicesSpec.of(policy)
    assert (spec.slices, spec.alarm, spec.confidence) == (policy.slices, True, 0.9)
    assert spec.drift.effect == 0.2 and not PolicySpec().slices
    assert SlicesMonitor().name == "slices"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.windows_of import WINDOW, times, two_classes, window_of

from mlflow_flywheel.monitors.drift import drift
from mlflow_flywheel.monitors.profile import Profile, make_profile
from mlflow_flywheel.monitors.reference import Reference
from mlflow_flywheel.monitors.samples import MOST_POINTS, Categories, Numbers
from mlflow_flywheel.monitors.statistics import compare_numbers
from mlflow_flywheel.pipelines.errors import BadInput

N = 1500


def columns(seed, shift=0.0):
    rng = np.random.default_rng(seed)
    features = {
        "x": np.where(rng.random(N) < 0.1, np.nan, rng.normal(shift, 1, N)),
        "flag": rng.integers(0, 2, N) * 1.0,
        "word": pa.array(rng.choice(["a", "b", "</script>", None], N)),
        "empty": pa.nulls(N, pa.float64()),
        "when": pa.array(np.arange(N), pa.timestamp("us")),
    }
    score = rng.random(N)
    own = {"prediction": (score > 0.5) * 1.0, "prediction_proba": two_classes(score), "label": score}
    return features, own


def reference(seed=0):
    features, own = columns(seed)
    return pa.table({**features, **own, "flywheel.event_time": times(N)})


def test_a_kept_profile_says_what_the_reference_says(tmp_path):
    table = reference()
    make_profile(table).save(tmp_path / "profile.parquet")
    kept = Reference(table, Profile.load(tmp_path / "profile.parquet"))
    features, own = columns(1, shift=0.3)
    rows = window_of(features, **own)
    assert drift(rows, kept, WINDOW) == drift(rows, Reference(table), WINDOW)
    assert {key[1] for key in kept.profile.columns} == {
        *("x", "flag", "word", "empty", "when", "prediction", "prediction score", "label")
    }


def test_what_cannot_be_summarised_is_left_out_and_told(tmp_path):
    table = reference().append_column("nested", pa.array([[1]] * N))
    assert ("feature", "nested") not in make_profile(table).columns
    verdict = drift(window_of({**columns(1)[0], "nested": np.zeros(N)}), Reference(table), WINDOW)
    row = next(row for row in verdict.evidence if row["column"] == "nested")
    assert not row["drifted"] and "cannot be compared" in row["note"]


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "profile.parquet"
    for table in (reference(), pa.table({"x": [1]}).replace_schema_metadata({"flywheel.profile": "0"})):
        pq.write_table(table, path)
        with pytest.raises(BadInput, match="make it again"):
            Profile.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(BadInput, match="no profile"):
        Profile.load(path)


def test_more_values_than_are_kept_lose_next_to_nothing():
    rng = np.random.default_rng(0)
    many, few = np.sort(rng.normal(0, 1, 10 * MOST_POINTS)), Numbers(np.sort(rng.normal(0.1, 1, 5000)))
    thin = Numbers(many).thinned()
    assert len(thin.values) <= MOST_POINTS and not thin.exact and thin.rows == len(many)
    whole = Numbers(many).thinned(most=len(many))
    assert whole.exact
    found, expected = (compare_numbers(one, few) for one in (thin, whole))
    assert found.statistic == pytest.approx(expected.statistic, abs=2 / MOST_POINTS)
    assert found.statistic <= expected.statistic
    assert found.effect == pytest.approx(expected.effect, rel=0.01)


def test_repeated_values_are_kept_once():
    thin = Numbers(np.sort(np.repeat([1.0, 2.0, 5.0], [10, 20, 30]))).thinned()
    assert thin.values.tolist() == [1, 2, 5] and thin.below.tolist() == [10, 30, 60]
    assert thin.at_or_below(np.array([0.0, 2.0, 9.0])).tolist() == [0, 30, 60]
    assert thin.under(np.array([2.0])).tolist() == [10]
    assert thin.quantiles(np.array([0.0, 0.4, 0.99])).tolist() == [1, 2, 5]


def test_categories_too_rare_to_be_kept_are_counted_together():
    kept = Categories(("a", "b"), np.array([5, 3]), other=2)
    names, old, new = kept.beside(Categories(("b", "c"), np.array([1, 4])))
    assert names == ("a", "b", "c")
    assert old.tolist() == [5, 3, 0, 2] and new.tolist() == [0, 1, 4, 0]

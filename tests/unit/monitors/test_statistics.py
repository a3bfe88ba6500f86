import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from mlflow_flywheel.monitors.samples import Numbers
from mlflow_flywheel.monitors.statistics import (
    benjamini_hochberg,
    compare_counts,
    compare_numbers,
    compare_shares,
    pool_rare,
    population_stability,
)

RNG = np.random.default_rng(7)


def numbers(values):
    return Numbers(np.sort(values)).thinned()


@pytest.mark.parametrize(("n", "m"), [(300, 300), (5000, 200), (500, 5000)])
def test_numbers_agree_with_scipy(n, m):
    a, b = RNG.normal(0, 2, n), RNG.normal(0.3, 2, m)
    found = compare_numbers(numbers(a), numbers(b))
    expected = stats.ks_2samp(a, b, method="asymp")
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.effect, found.effect_name) == (
        pytest.approx(stats.wasserstein_distance(a, b) / a.std()),
        "wasserstein/sigma",
    )


def test_an_outlier_in_the_reference_does_not_hide_a_shift():
    a, b = RNG.normal(0, 1, 2000), RNG.normal(1, 1, 2000)
    a[0] = 1e6
    found = compare_numbers(numbers(a), numbers(b))
    assert found.effect > 0.3 and found.effect_name == "ks distance"


def test_a_constant_that_changed_is_a_full_change():
    found = compare_numbers(numbers(np.full(300, 1.0)), numbers(np.full(300, 2.0)))
    assert found.effect == 1.0 and found.p_value < 1e-6
    assert compare_numbers(numbers(np.full(300, 1.0)), numbers(np.full(300, 1.0))).effect == 0.0


def test_counts_agree_with_scipy_when_none_is_rare():
    a, b = np.array([400, 600]), np.array([210, 290])
    expected = stats.chi2_contingency(np.stack([a, b]), correction=False)
    found = compare_counts(a, b)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)


def test_the_noise_of_many_categories_is_subtracted_from_their_distance():
    shares = RNG.dirichlet(np.ones(100))
    effects = [
        compare_counts(RNG.multinomial(1000, shares), RNG.multinomial(1000, shares)).effect for _ in range(50)
    ]
    assert np.median(effects) < 0.06 and max(effects) < 0.15  # without: .16 in the median
    half = np.where(np.arange(100) < 50, 1.6, 0.4) / 100
    moved = compare_counts(
        RNG.multinomial(1000, np.ones(100) / 100), RNG.multinomial(1000, half / half.sum())
    )
    assert moved.effect > 0.2 and moved.p_value < 1e-6


def test_one_category_of_many_that_changed_is_not_drowned_by_the_others():
    a = np.full(60, 100)
    b = np.where(np.arange(60) == 7, 170, 100)
    assert stats.chi2_contingency(np.stack([a, b]), correction=False).pvalue > 0.5
    assert compare_counts(a, b).p_value < 0.01


@pytest.mark.parametrize("rows", [200, 5000])
def test_p_values_of_counts_are_calibrated_where_many_categories_are_rare(rows):
    shares = 1 / np.arange(1, 41)
    shares /= shares.sum()
    found = np.array(
        [
            compare_counts(RNG.multinomial(5000, shares), RNG.multinomial(rows, shares)).p_value
            for _ in range(600)
        ]
    )
    # 5.9% and 0.6% of 4,000; these bounds are three standard errors away.
    assert 0.03 < (found < 0.05).mean() < 0.09 and (found < 0.005).mean() < 0.017


def test_nothing_but_rare_categories_is_not_tested():
    found = compare_counts(np.ones(2000, dtype=int), np.zeros(2000, dtype=int) + (np.arange(2000) < 3))
    assert np.isnan(found.p_value)


@given(hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 30)), elements=st.integers(0, 200)))
def test_pooling_keeps_every_row_and_leaves_no_thin_cell(table):
    pooled = pool_rare(table)
    assert (pooled.sum(axis=1) == table.sum(axis=1)).all()
    if pooled.shape[1] > 1:
        expected = pooled.sum(axis=1)[:, None] * pooled.sum(axis=0)[None, :] / pooled.sum()
        assert expected.min() >= 5 - 1e-9


def test_shares_use_an_exact_test_where_counts_are_small():
    few = compare_shares(0, 300, 3, 300)
    assert few.test == "fisher" and few.p_value == pytest.approx(stats.fisher_exact([[0, 300], [3, 297]])[1])
    many = compare_shares(100, 1000, 160, 1000)
    expected = stats.chi2_contingency([[100, 900], [160, 840]], correction=False).pvalue
    assert many.test == "proportions" and many.p_value == pytest.approx(expected)
    assert np.isnan(compare_shares(0, 10, 0, 10).p_value)


def test_adjusted_p_values_agree_with_scipy_and_skip_what_was_not_tested():
    p = np.array([0.001, np.nan, 0.03, 0.04, 0.9, 0.02])
    adjusted = benjamini_hochberg(p)
    assert np.isnan(adjusted[1])
    assert adjusted[[0, 2, 3, 4, 5]] == pytest.approx(stats.false_discovery_control(p[[0, 2, 3, 4, 5]]))
    assert len(benjamini_hochberg(np.array([]))) == 0


def test_population_stability_by_hand():
    expected = (0.3 - 0.5) * np.log(0.3 / 0.5) + (0.7 - 0.5) * np.log(0.7 / 0.5)
    assert population_stability(np.array([50, 50]), np.array([30, 70])) == pytest.approx(expected)

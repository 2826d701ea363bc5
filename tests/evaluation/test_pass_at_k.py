"""pass@k and its intervals against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.evaluation.pass_at_k import mean_interval, paired_difference, pass_at_k, permutation_p_value


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_subsets_that_hold_a_solution(case):
    samples, correct, k = case
    outcomes = [True] * correct + [False] * (samples - correct)
    subsets = [any(some) for some in itertools.combinations(outcomes, k)]
    assert pass_at_k(samples, correct, k) == pytest.approx(np.mean(subsets))


def test_it_is_unbiased():
    """Its mean over binomial counts is 1 - (1 - p)^k, exactly."""
    n, k, p = 16, 4, 0.2
    counts = np.arange(n + 1)
    binomial = np.array([np.prod([(n - i) / (i + 1) for i in range(c)]) for c in counts])
    distribution = binomial * p**counts * (1 - p) ** (n - counts)
    assert distribution @ pass_at_k(n, counts, k) == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [((4, 2, 5), "k: got 5, may be in 1 .. samples"), ((4, 2, 0), "k: got 0"), ((4, 5, 1), "correct: got 5 .. 5")],
)
def test_what_cannot_be_is_named(arguments, names):
    with pytest.raises(ValueError, match=names):
        pass_at_k(*arguments)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = [(lambda i: i.low <= 0.3 <= i.high)(mean_interval(rng.random(80) < 0.3, seed)) for seed in range(40)]
    assert np.mean(held) >= 0.85


def test_pairing_removes_what_problems_share():
    rng = np.random.default_rng(1)
    hard = rng.random(400)
    mine, other = np.clip(hard + 0.02 + rng.normal(0, 0.01, 400), 0, 1), np.clip(hard, 0, 1)
    paired = paired_difference(mine, other)
    assert paired.low > 0  # seen, though each sampler's own interval is far wider than the difference
    alone = mean_interval(mine)
    assert alone.high - alone.low > 4 * (paired.high - paired.low)
    with pytest.raises(ValueError, match="other: got 2 problems, may be 3"):
        paired_difference([1, 0, 1], [1, 0])


def test_p_values_are_exact_for_few_problems():
    """Every one of the 2^n sign patterns, against the sampled ones."""
    mine, other = np.array([1, 1, 0.5, 1, 0, 1]), np.array([0, 0.25, 0.75, 0, 0, 0.5])
    difference = mine - other
    patterns = np.array(list(itertools.product((-1, 1), repeat=len(mine))))
    exact = np.mean(np.abs(patterns @ difference) >= abs(difference.sum()) - 1e-12)
    assert permutation_p_value(mine, other) == pytest.approx(exact, abs=0.02)
    assert permutation_p_value(mine, mine) == 1
    assert permutation_p_value([1], [0]) == permutation_p_value([1], [1]) == 1  # either sign is as far from 0


@pytest.mark.slow
def test_equal_samplers_are_rarely_told_apart_and_unequal_ones_are():
    rng = np.random.default_rng(2)
    same = [permutation_p_value(rng.random(100) < 0.5, rng.random(100) < 0.5, seed) for seed in range(60)]
    assert np.mean(np.array(same) < 0.05) <= 0.15
    assert permutation_p_value(rng.random(200) < 0.7, rng.random(200) < 0.4) < 0.01

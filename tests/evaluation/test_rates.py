"""Tokens per second of two ways, in pairs."""

import pytest

from zaya_jax.evaluation.rates import compiles, ratio_interval


def test_the_ratios_interval_is_that_of_pairs():
    """Prompts of which one way takes exactly half the other's time, whatever that is: no interval at all."""
    seconds, tokens = [1.0, 5.0, 0.2], [10.0, 10.0, 3.0]
    assert ratio_interval(tokens, [x / 2 for x in seconds], tokens, seconds) == pytest.approx([2.0, 2.0])
    low, high = ratio_interval(tokens, [0.5, 5.0, 0.2], tokens, seconds)
    assert low == pytest.approx(1.0) and high == pytest.approx(2.0, abs=0.2)


def test_a_length_is_compiled_once():
    prompts = [[1] * 5, [1] * 32, [1] * 33, [1] * 64, [1]]
    assert [compiles(prompts, number) for number in range(5)] == [True, False, True, False, False]

"""The roofline against counts done by hand, and its limits."""

import numpy as np
import pytest

from zaya_jax.analysis.flops import forward_flops, parameter_count
from zaya_jax.analysis.roofline import HARDWARE, Hardware, experts_touched, forward_seconds
from zaya_jax.architecture import preset

CONFIG = preset("zaya1_8b")


def test_experts_touched_are_counted():
    rng = np.random.default_rng(0)
    for tokens, published in ((1, 1.0), (16, 10.3), (64, 15.7), (272, 16.0)):  # tidar.md section 3
        assert experts_touched(16, tokens) == pytest.approx(published, abs=0.06)
        drawn = [len(set(rng.integers(0, 16, tokens))) for _ in range(2000)]
        assert experts_touched(16, tokens) == pytest.approx(np.mean(drawn), rel=0.02)


def test_one_row_is_bound_by_memory_and_many_by_arithmetic():
    one = forward_seconds(CONFIG, HARDWARE["mi300x"], 1, context=0)
    count = parameter_count(CONFIG)
    active = count.active_with_head  # every layer's shared weights, one expert each, and the tied embedding as the head
    assert one == pytest.approx(2 * active / 5.3e12)
    many = forward_seconds(CONFIG, HARDWARE["mi300x"], 4096, context=0)
    assert many == pytest.approx(forward_flops(CONFIG, 4096, 4096).total / 1307.4e12)


def test_context_adds_its_keys_and_values():
    slow = Hardware(1e30, 1.0)  # memory only
    more = forward_seconds(CONFIG, slow, 1, batch=3, context=1000) - forward_seconds(
        CONFIG, slow, 1, batch=3, context=0
    )
    assert more == pytest.approx(2 * 1000 * 3 * 40 * 2 * 2 * 128)

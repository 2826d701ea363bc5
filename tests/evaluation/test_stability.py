"""Measures of stability against closed forms."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.stability import ARMS
from zaya_jax.errors import UserError
from zaya_jax.evaluation.draw_variance import WHOLE, draw_noise, draw_weights, group_of
from zaya_jax.evaluation.variance import relative_variance, split_variance, squares_of, weight_variance
from zaya_jax.training.objective import Objective
from zaya_jax.training.stability import largest_stable_rate, margin_interval, spikes, trajectory

COUNTS = (16, 8, 8)
CLOSED = {  # rivals.md, section 4.3, and what follows from it
    "tidar": 0.0, "complementary": 0.0, "bd3_clipped": 0.494, "random": 1.0, "sbd": 1.0, "bd3": 5.915,
    "bd3_no_ar": 5.915, "llada": 5.915,
}  # fmt: skip


def nested(rng, data: float, rate: float, mask: float, counts=COUNTS) -> np.ndarray:
    """Draws [data, rate, mask] of a number of mean 3, with these standard deviations of its three sources."""
    parts = (rng.standard_normal(counts[: i + 1]).reshape(*counts[: i + 1], *[1] * (2 - i)) for i in range(3))
    return 3 + sum(scale * part for scale, part in zip((data, rate, mask), parts, strict=True))


def test_the_split_is_unbiased():
    rng, scales = np.random.default_rng(0), (0.7, 0.4, 1.1)
    found = np.array([split_variance(squares_of(nested(rng, *scales)), COUNTS)[:3] for _ in range(2000)])
    error = found.std(0) / math.sqrt(len(found))
    assert (np.abs(found.mean(0) - np.square(scales)) < 4 * error).all()
    assert (error < 0.02).all()


def test_the_split_of_one_source_alone():
    values = np.broadcast_to(np.arange(16.0)[:, None, None], COUNTS)
    split = split_variance(squares_of(values), COUNTS)
    assert (split.data, split.rate, split.mask) == pytest.approx((np.var(values[:, 0, 0], ddof=1), 0, 0))
    assert split.cosine == pytest.approx(1)
    with pytest.raises(UserError, match=r"counts: got \(16, 1, 8\), may be at least 2"):
        split_variance(squares_of(values[:, :1]), (16, 1, 8))


@dataclasses.dataclass(frozen=True)
class Linear:
    """An objective whose gradient by two parameters is a sum of independent draws of known variances."""

    scales: tuple[float, float] = (2.0, 0.5)  # of rate and mask

    def draw(self, key, batch, row, mask_key):
        rate, mask = (scale * jax.random.normal(k, (2,)) for scale, k in zip(self.scales, (key, mask_key), strict=True))
        return {"noise": rate + mask}

    def counts(self, batch, drawn):
        return {}

    def sums(self, model, variables, batch, drawn):
        gradient = batch["tokens"][0] + drawn["noise"]
        params = variables["params"]
        return {"x": params["embed"] * gradient[0] + params["expert"] * gradient[1]}

    def loss(self, sums, counts):
        return sums["x"]


def test_gradients_are_split_as_they_were_drawn():
    """Means (3, 1), standard deviations 1, 2 and 0.5 of each: noise 2 * 5.25 / 10, cosine (10 + 2) / (10 + 10.5)."""
    rng, data = np.random.default_rng(0), 400
    batches = [
        {"tokens": (np.array([[3.0, 1.0]]) + rng.standard_normal((1, 2))).astype(np.float32)} for _ in range(data)
    ]
    variables = {"params": {"embed": jnp.float32(1), "expert": jnp.float32(2)}}
    found = draw_noise(None, variables, Linear(), batches, rates=4, masks=4)
    whole = found.gradient[WHOLE]
    assert (whole.data, whole.rate, whole.mask) == pytest.approx((2, 8, 0.5), rel=0.2)
    assert whole.mean_square == pytest.approx(10, rel=0.1)
    for name, value in {"noise": 1.05, "cosine": 12 / 20.5, "data": 0.2, "rate": 0.8, "mask": 0.05}.items():
        estimate = found.relative[name]
        assert abs(estimate.value - value) < 4 * estimate.error < 0.5 * max(value, 0.1), name
    assert set(found.gradient) == {WHOLE, "embedding", "experts"}
    assert found.gradient["embedding"].mean_square + found.gradient["experts"].mean_square == pytest.approx(
        whole.mean_square
    )
    assert found.loss.mask == pytest.approx(0.25 * (1 + 4), rel=0.2)  # parameters (1, 2)
    assert group_of((jax.tree_util.DictKey("final_norm"),)) == "other"


@pytest.mark.parametrize("name", CLOSED)
def test_weights_vary_as_the_closed_form_says(name):
    """Measured from the very draws that training makes, to their sampling error."""
    objective = ARMS[name]
    assert weight_variance(objective) == pytest.approx(CLOSED[name], abs=2e-3)
    found, error = relative_variance(*draw_weights(objective, 2**16, 16))
    assert abs(found - weight_variance(objective)) <= 4 * error
    assert error < (2.0 if CLOSED[name] > 2 else 0.01)  # single weights reach 1000


def test_a_weighted_pair_has_a_closed_form_too():
    pair = Objective("tidar", 4, masking="complementary", weight="inverse", least_rate=0.1, most_rate=0.7)
    found, error = relative_variance(*draw_weights(pair, 4096, 32))
    assert abs(found - weight_variance(pair)) <= 4 * error < 0.1
    with pytest.raises(UserError, match=r"most_rate: got 1\.0, may be below 1"):
        weight_variance(dataclasses.replace(pair, most_rate=1.0))


def test_spikes_are_what_stands_out_of_the_losses_before():
    losses = np.tile([1.0, 1.2, 0.8, 1.1, 0.9], 20)  # median 1, median deviation 0.1
    assert not spikes(losses).any()
    losses[70], losses[80] = 1.55, math.nan
    assert np.flatnonzero(spikes(losses)).tolist() == [70, 80]
    losses[70] = 1.45
    assert np.flatnonzero(spikes(losses)).tolist() == [80]


def test_a_trajectory_is_measured_in_windows():
    norms = np.concatenate([np.full(100, 2.0), np.tile([1.0, 3.0], 50), np.full(30, 9.0)])
    found = trajectory(norms, clip=2.5)
    assert found.variation == pytest.approx((0 + math.sqrt(100 / 99) / 2) / 2)
    assert found.tail == pytest.approx((1 + 3 / 2) / 2)
    assert found.clipped == pytest.approx(80 / 230)
    with pytest.raises(UserError, match="norms: got 5, may be at least 100"):
        trajectory(norms[:5], 1.0)


def test_the_margin_is_the_largest_rate_that_ends_well():
    good, worse, bad = [1.0] * 5, [1.04] * 4 + [9.0], [1.0] * 3 + [math.inf] * 2
    assert largest_stable_rate({1e-3: [1.2] * 5, 2e-3: good, 4e-3: worse, 8e-3: bad}) == 4e-3
    assert largest_stable_rate({1e-3: good, 2e-3: bad, 4e-3: [1.06] * 5}) == 1e-3
    assert largest_stable_rate({1e-3: [math.nan] * 5}) is None
    low, high = margin_interval({2e-3: good, 4e-3: worse, 8e-3: [1.5] * 5})
    assert (low, high) == (2e-3, 4e-3)
    # each resample of seeds, one at a time
    ends = {2e-3: [1.0, 1.01, 1.02, 1.03], 4e-3: [1.04, 0.99, 1.07, 1.01], 8e-3: [0.99, math.nan, 1.06, 1.0]}
    drawn = np.random.default_rng(0).integers(0, 4, (60, 4))
    found = [largest_stable_rate({rate: np.array(x)[some] for rate, x in ends.items()}) for some in drawn]
    assert None not in found and len(set(found)) == 3
    assert margin_interval(ends, resamples=60) == tuple(np.quantile(found, (0.025, 0.975), method="nearest"))

"""Advantages and reductions against the published formulas, written down one rollout at a time."""

import numpy as np
import pytest

from zaya_jax.rollouts.advantages import ALGORITHMS, BASELINES, REDUCTIONS, SCALES, advantages, mixed, row_weights

REWARDS = np.array([[1, 0, 0.1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], float)
LENGTHS = np.array([3, 9, 1, 5, 2, 2, 8, 7])
NEW = 9


def one_by_one(rewards: np.ndarray, baseline: str, scale: str) -> np.ndarray:
    out = np.zeros_like(rewards)
    for g, group in enumerate(rewards):
        if len(set(group)) == 1:
            continue
        for i, reward in enumerate(group):
            others = [other for j, other in enumerate(group) if j != i or baseline == "mean"]
            out[g, i] = reward - sum(others) / len(others)
            if scale != "none":
                spread = group if scale == "group" else rewards
                out[g, i] /= np.sqrt(np.mean((spread - spread.mean()) ** 2))
    return out


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_advantages(baseline, scale):
    found = advantages(REWARDS, baseline, scale)
    np.testing.assert_allclose(found, one_by_one(REWARDS, baseline, scale), rtol=1e-12)
    assert not found[[1, 3]].any() and found[[0, 2]].all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)


def test_leave_one_out_is_dr_grpo_by_a_factor():
    size = REWARDS.shape[1]
    dr_grpo, rloo = (
        advantages(REWARDS, ALGORITHMS[name]["baseline"], ALGORITHMS[name]["scale"]) for name in ("dr_grpo", "rloo")
    )
    np.testing.assert_allclose(rloo, dr_grpo * size / (size - 1), rtol=1e-12)


def test_equal_rewards_tell_nothing_even_where_their_mean_is_rounded():
    rewards = np.full((2, 3), 0.1)
    assert not mixed(rewards).any()
    for baseline in BASELINES:
        for scale in SCALES:
            assert not advantages(rewards, baseline, scale).any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    """A loss of 1 a token sums to what the formula says, with two rollouts left out."""
    counted = np.array([True, True, False, True, True, False, True, True])
    weight = row_weights(LENGTHS, counted, reduction, NEW)
    rows, kept = len(LENGTHS), LENGTHS[counted]
    expected = {
        "constant": kept.sum() / (rows * NEW),  # Dr. GRPO: sum over tokens / (G * L_max)
        "sequence": len(kept) / rows,  # GRPO: 1/G * sum of 1/|o| * sum over its tokens
        "token": 1.0,  # DAPO: sum over all tokens / all tokens
    }
    assert (weight * LENGTHS).sum() == pytest.approx(expected[reduction])
    assert not weight[~counted].any()
    same = weight[counted] * (kept if reduction == "sequence" else 1)
    np.testing.assert_allclose(same, same[0])


def test_a_batch_that_tells_nothing_weighs_nothing():
    for reduction in REDUCTIONS:
        assert not row_weights(LENGTHS, np.zeros(len(LENGTHS), bool), reduction, NEW).any()

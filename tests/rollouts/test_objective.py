"""The policy's gradient: by hand, from either source of log-probabilities, and nothing where there is nothing to learn.

The model is a ZAYA with all that it has (CCA, top-1 experts with a skip expert, router state), float32, every parameter
random. Rollouts of every lossless sampler are scored by the training forward, mask tokens beside the text or not.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import fresh_state, random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.rollouts.advantages import ALGORITHMS
from zaya_jax.rollouts.batches import answer, lay_out
from zaya_jax.rollouts.objective import PolicyObjective, score
from zaya_jax.sampling import SamplerConfig
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.training.gradients import make_gradients
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

BLOCK, NEW, ROW, ROWS = 3, 8, 16, 8
CONFIG = small_config()
ROWS_OF = ("tokens", "document", "answer")  # of a batch, what is scored
SAMPLERS = {
    mode: SamplerConfig(mode, BLOCK, stop_tokens=(3,)) for mode in ("autoregressive", "single_pass", "two_pass")
}
PLAIN = PolicyObjective(block_size=BLOCK, draft_on="none")
ADVANTAGE = np.array([1, -0.5, 0, 0.25, -1, 2, 0, 0.5], np.float32)


@functools.cache
def model_and_variables(seed: int = 0):
    return Zaya(CONFIG), random_variables(CONFIG, seed)


@functools.cache
def rolled(mode: str):
    """Rollouts by a sampler, as a batch."""
    model, variables = model_and_variables()
    prompts = [[1 + i % 4, *range(4, 4 + i % 5)] for i in range(ROWS)]
    sequences, _ = answer(model, variables, prompts, range(ROWS), SAMPLERS[mode], NEW, 8, 4)
    batch = lay_out(prompts, sequences, ROW, 0)
    weight = np.full(ROWS, 1 / (ROWS * NEW), np.float32)
    return batch | {"advantage": ADVANTAGE, "weight": weight, "which": np.eye(ROWS, dtype=np.float32)}


@functools.cache
def compiled(objective: PolicyObjective):
    return jax.jit(make_gradients(Zaya(CONFIG), objective, None))


def gradient(objective: PolicyObjective, batch: dict, seed: int = 0):
    """(gradients of the parameters, sums, loss)."""
    _, variables = model_and_variables(seed)
    drawn = objective.draw(jax.random.key(3), ROWS, ROW)
    grads, sums = compiled(objective)(variables["params"], variables["balancing"], batch, drawn)
    return grads, sums, float(objective.loss(sums, sums))


def close(a, b, tolerance: float = 1e-5) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(1e-3, float(jnp.abs(other).max())))


@pytest.mark.parametrize("mode", SAMPLERS)
def test_rollout_and_training_agree_on_every_tokens_probability(mode):
    model, variables = model_and_variables()
    batch = rolled(mode)
    rows = {name: batch[name] for name in ROWS_OF}
    scored = np.asarray(score(model, variables, rows, 1.0))
    has = batch["answer"] != 0
    assert has.sum() > 2 * ROWS and not scored[~has].any()
    assert np.abs(scored - batch["log_rollout"])[has].max() <= 1e-5
    # in the policy's own forward, with and without draft blocks beside the text
    for objective in (PLAIN, PolicyObjective(block_size=BLOCK)):
        sums = gradient(objective, batch)[1]
        assert sums["log_gap"].shape == (ROWS,) and float(sums["log_gap"].max()) <= 1e-5
        np.testing.assert_allclose(-sums["ar_nll"], scored.sum(), rtol=1e-5)
        assert int(sums["ar_count"]) == has.sum()


@pytest.mark.slow
@pytest.mark.parametrize("mode", SAMPLERS)
def test_on_a_trained_model_they_differ_by_rounding_alone(mode, x64):
    """In float64 they are the same to 1e-10; in float32 999 of 1,000 to 1e-5 (docs/results/rollouts.md)."""
    config, variables = load_pretrained("results/list_programs/model")
    task, tokenizer = make_task("list_programs", max_operations=2), ByteTokenizer()
    prompts = [task.encode(task.problem("train", i, 0), tokenizer) for i in range(4) for _ in range(8)]
    anchors = {"anchors": (1, 3, 6)} if mode == "single_pass" else {}
    sampler = SamplerConfig(mode, 16, stop_tokens=tokenizer.eos_ids, **anchors)
    for dtype, bounds in (("float64", {1: 1e-10}), ("float32", {0.999: 1e-5, 1: 1e-4})):
        model = Zaya(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), variables)
        sequences, _ = answer(model, params, prompts, range(len(prompts)), sampler, 48, 112, 16)
        batch = lay_out(prompts, sequences, 160, tokenizer.pad_id)
        scored = np.asarray(score(model, params, {name: batch[name] for name in ROWS_OF}, 1.0))
        assert scored.dtype == dtype
        rolled = np.concatenate([each.log_probabilities for each in sequences])
        gap = np.abs(rolled - scored[batch["answer"] != 0])
        assert gap.size > 300
        for quantile, bound in bounds.items():
            assert np.quantile(gap, quantile) <= bound, (dtype, quantile)


def test_the_gradient_is_that_of_the_formula():
    """Dr. GRPO with one update: the sum over tokens of A grad log p, over rows and the longest answer."""
    model, variables = model_and_variables()
    batch = rolled("single_pass")
    rows = {name: batch[name] for name in ROWS_OF}

    def gain(params):
        log_p = score(model, {**variables, "params": params}, rows, 1.0)
        return -(log_p.sum(1) * ADVANTAGE).sum() / (ROWS * NEW)

    grads, _, _ = gradient(PLAIN, batch)
    close(grads, jax.grad(gain)(variables["params"]))


def test_either_source_of_log_probabilities_gives_the_same_gradient():
    batch = rolled("single_pass")
    other = dataclasses.replace(PLAIN, log_probabilities="rollout")
    close(gradient(other, batch)[0], gradient(PLAIN, batch)[0], 1e-4)


def test_ratios_are_clipped_one_by_one():
    """Against the formula, with rollouts of another policy than the one that is trained."""
    model, _ = model_and_variables()
    variables = model_and_variables(1)[1]
    objective = dataclasses.replace(PLAIN, log_probabilities="rollout", clip_low=0.2, clip_high=0.28, kl=0.5)
    batch = dict(rolled("single_pass"))
    rows = {name: batch[name] for name in ROWS_OF}
    has = batch["answer"] != 0
    log_p = np.asarray(score(model, variables, rows, 1.0), np.float64)
    batch["log_rollout"] = np.where(has, log_p + np.random.default_rng(0).normal(0, 0.4, log_p.shape), 0).astype("f4")
    batch["log_start"] = np.where(has, log_p + np.random.default_rng(1).normal(0, 0.3, log_p.shape), 0).astype("f4")
    _, sums, loss = gradient(objective, batch, seed=1)
    policy = kl = clipped = 0.0
    for row, t in zip(*np.nonzero(has), strict=True):
        ratio, advantage = np.exp(log_p[row, t] - batch["log_rollout"][row, t]), float(ADVANTAGE[row])
        within = min(max(ratio, 0.8), 1.28)
        policy -= min(ratio * advantage, within * advantage) / (ROWS * NEW)
        clipped += ratio * advantage > within * advantage
        log_r = batch["log_start"][row, t] - log_p[row, t]
        kl += (np.exp(log_r) - log_r - 1) / (ROWS * NEW)
    assert float(sums["policy_loss"]) == pytest.approx(policy, rel=1e-4) and int(sums["clipped"]) == clipped > 0
    assert loss == pytest.approx(policy + 0.5 * kl, rel=1e-4)


@pytest.mark.slow
def test_importance_weights_are_capped():
    objective = dataclasses.replace(PLAIN, importance_cap=1.5)
    batch = dict(rolled("single_pass"))
    close(gradient(objective, batch)[0], gradient(PLAIN, batch)[0], 1e-4)  # a lossless rollout needs no correction
    model, variables = model_and_variables()
    has = batch["answer"] != 0
    drawn = batch["log_rollout"] + np.random.default_rng(0).normal(0, 0.5, has.shape)
    batch["log_rollout"] = np.where(has, drawn, 0).astype("f4")
    rows = {name: batch[name] for name in ROWS_OF}
    log_p = np.asarray(score(model, variables, rows, 1.0))
    weights = np.minimum(np.exp(log_p - batch["log_rollout"]), 1.5)
    expected = -(np.where(has, weights, 0) * ADVANTAGE[:, None]).sum() / (ROWS * NEW)
    assert float(gradient(objective, batch)[1]["policy_loss"]) == pytest.approx(expected, rel=1e-4)


def test_groups_that_tell_nothing_have_no_gradient():
    """Weight 0 is what `row_weights` gives them: nothing of them is left, not even a pull to the start model."""
    objective = dataclasses.replace(PLAIN, kl=0.5)
    batch = dict(rolled("single_pass"))
    batch |= {"advantage": np.zeros(ROWS, np.float32), "weight": np.zeros(ROWS, np.float32)}
    batch["log_start"] = np.zeros_like(batch["log_rollout"])
    grads, _, loss = gradient(objective, batch)
    assert loss == 0 and not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_a_loss_below_zero_is_no_spike():
    """A policy's loss has any sign; without a spike factor no loss is too high, whatever came before."""
    optimizer = OptimizerConfig()
    state = fresh_state(model_and_variables()[1], optimizer).replace(recent_loss=jnp.float32(-1))
    step = make_train_step(Zaya(CONFIG), PLAIN, optimizer)
    state, metrics = step(state, rolled("single_pass"), 1.0)
    assert not metrics["bad"] and float(state.recent_loss) > -1


def test_the_draft_loss_is_tidars_on_the_rows_that_are_chosen():
    """One forward serves both losses: with no advantage anywhere it is the draft loss alone."""
    batch = dict(rolled("single_pass"))
    tidar = Objective(block_size=BLOCK, loss_on="answers", alpha=0.0)
    drawn = tidar.draw(jax.random.key(3), ROWS, ROW)
    model, variables = model_and_variables()
    sums_of = jax.jit(lambda plain: tidar.sums(model, variables, plain, drawn))
    plain = {name: batch[name] for name in ROWS_OF}
    both = PolicyObjective(block_size=BLOCK, draft_weight=0.5)
    batch["advantage"] = np.zeros(ROWS, np.float32)
    expected = sums_of(plain)
    assert gradient(both, batch)[2] == pytest.approx(0.5 * float(tidar.loss(expected, expected)), rel=1e-5)
    # those of positive advantage alone
    chosen = dataclasses.replace(both, draft_on="positive")
    batch["advantage"] = ADVANTAGE
    plain["answer"] = plain["answer"] * (ADVANTAGE > 0)[:, None].astype(np.int32)
    expected = sums_of(plain)
    _, sums, loss = gradient(chosen, batch)
    np.testing.assert_array_equal(sums["draft_count"], expected["draft_count"])
    assert loss == pytest.approx(float(sums["policy_loss"]) + 0.5 * float(tidar.loss(expected, expected)), rel=1e-5)


@pytest.mark.slow
def test_a_batch_in_pieces_is_the_batch():
    batch = rolled("single_pass")
    objective = PolicyObjective(block_size=BLOCK, draft_on="positive")
    _, variables = model_and_variables()
    drawn = objective.draw(jax.random.key(3), ROWS, ROW)
    pieces = jax.jit(make_gradients(Zaya(CONFIG), objective, None, accumulate=4))
    grads, sums = pieces(variables["params"], variables["balancing"], batch, drawn)
    whole, of_whole, _ = gradient(objective, batch)
    close(grads, whole)
    np.testing.assert_allclose(sums["log_gap"], of_whole["log_gap"], atol=1e-6)


def test_algorithms_are_fields_of_the_objective():
    for fields in ALGORITHMS.values():
        PolicyObjective(**fields)
    assert PolicyObjective(**ALGORITHMS["dr_grpo"]) == PolicyObjective()
    for field, value in {"baseline": "median", "kl": -1.0, "temperature": 0.0, "alpha": 0.5, "loss_on": "all"}.items():
        with pytest.raises(ValueError, match=rf"^Objective\.{field}: got"):
            PolicyObjective(**{field: value})

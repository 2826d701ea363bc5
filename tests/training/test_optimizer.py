"""Optimizers against their rules written out; accumulation, averages, freezing, schedules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import Zaya
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import (
    SCHEDULES,
    OptimizerConfig,
    balancing_error,
    frozen_parameters,
    hold,
    make_optimizer,
    rates,
)
from zaya_jax.training.state import make_train_step

pytestmark = pytest.mark.early

CONFIG = small_config(tie_word_embeddings=False)


@functools.cache
def params() -> dict:
    return random_variables(CONFIG)["params"]


def paths(tree) -> dict:
    """The tree's leaves by path, "a/b/c"."""
    return {
        "/".join(part.key for part in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    }


def gradients(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), params())


def adamw_reference(config, rate, grads, leaf, decay):
    """Updates of AdamW for a list of gradients of one parameter that stays where it is."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g * g
        yield -rate * (m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + 1e-8) + decay * leaf)


def muon_reference(config, grads, leaf):
    """Updates of Muon for one matrix: Nesterov momentum, five Newton-Schulz steps, AdamW's RMS."""
    momentum = 0.0
    for t, g in enumerate(grads, 1):
        momentum = 0.95 * momentum + 0.05 * g
        # optax removes the average's bias towards 0, of the average to come and of the gradient each by its own count
        x = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        x = x / (np.linalg.norm(x) + 1e-8)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        yield -config.learning_rate * (0.2 * np.sqrt(max(g.shape)) * x + config.weight_decay * leaf)


def test_muon_moves_the_layers_matrices_and_adamw_the_rest():
    """Every matrix of every layer and expert alone against the rule written out, in two steps; and who gets which."""
    config = OptimizerConfig(
        name="muon", learning_rate=0.02, adam_learning_rate=0.003, weight_decay=0.1, clip_norm=0, warmup_steps=0
    )
    rule, given_grads = make_optimizer(config), [gradients(1), gradients(2)]
    state, updates, step = jax.jit(rule.init)(params()), [], jax.jit(rule.update)
    for grads in given_grads:
        update, state = step(grads, state, params())
        updates.append(paths(update))
    flat, by_muon = paths(params()), set()
    for path, leaf in flat.items():
        leaf, got = np.asarray(leaf, np.float64), [np.asarray(u[path]) for u in updates]
        grads = [np.asarray(paths(g)[path], np.float64) for g in given_grads]
        name = path.split("/")[-1]
        decay = config.weight_decay * (name in ("kernel", "gate_up_proj", "down_proj"))
        expected = list(adamw_reference(config, 0.003, grads, leaf, decay))
        if np.allclose(got, expected, rtol=1e-3, atol=1e-7):
            continue
        by_muon.add(path)
        for index in np.ndindex(leaf.shape[:-2]):
            for one, wanted in zip(got, muon_reference(config, [g[index] for g in grads], leaf[index]), strict=True):
                np.testing.assert_allclose(one[index], wanted, rtol=5e-3, atol=2e-5)
                # AdamW-RMS matching: without the decay, 0.2 x the rate, up to Newton-Schulz's own 0.7 .. 1.2
                rms = np.sqrt(np.mean((one[index] + config.learning_rate * 0.1 * leaf[index]) ** 2))
                assert 0.6 < rms / (0.2 * config.learning_rate) < 1.25
    names = {"q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "o_proj"}
    experts = {"layers/mlp/gate_up_proj", "layers/mlp/down_proj"}
    assert by_muon == {f"layers/self_attn/{name}/kernel" for name in names} | experts
    assert {"embed_tokens", "lm_head/kernel", "layers/mlp/gate/fc1/kernel"} <= set(flat) - by_muon


def test_a_rate_of_zero_is_zero():
    """Of what is not Muon's: 0 is a rate like others; None is learning_rate's."""
    for rate, moves in ((0.0, False), (None, True)):
        rule = make_optimizer(OptimizerConfig(name="muon", adam_learning_rate=rate))
        update = paths(jax.jit(lambda g, p, rule=rule: rule.update(g, rule.init(p), p)[0])(gradients(1), params()))
        assert np.any(update["embed_tokens"]) == moves and np.any(update["layers/mlp/down_proj"])


@functools.cache
def batch() -> dict:
    document = np.array(
        [[0] * 5 + [1] * 6 + [-1], [0] * 12, [-1] * 12, [0] * 2 + [-1] * 10, [0] * 12, [0] * 7 + [1] * 5]
    )
    return {"tokens": jnp.asarray(random_tokens(CONFIG, 6, 12)), "document": jnp.asarray(document, jnp.int32)}


def run(optimizer: OptimizerConfig, steps: int, objective=None, rates=None, **kwargs):
    """States (the first one included) and metrics of a few steps on one batch."""
    objective = objective or Objective("tidar", 4, masking="random")
    step = make_train_step(Zaya(CONFIG), objective, optimizer, **kwargs)
    state = fresh_state({**random_variables(CONFIG)}, optimizer)
    states, metrics = [jax.device_get(state)], []
    for i in range(steps):
        state, told = step(state, batch(), 1.0 if rates is None else rates[i])
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(told))
    return states, metrics


def test_micro_batches_are_the_whole_batch():
    """Rows hold 0 to 11 targets, so a mean of micro-batches' means would be another number.

    Rates of 0 keep the parameters in place; the optimizer's first moment then is the gradient.
    """
    objective = Objective("tidar", 4, 0.5, masking="random", slot_decay=0.8)
    told, moments = {}, {}
    for count in (1, 3):
        optimizer = OptimizerConfig(clip_norm=0, accumulate=count)
        states, metrics = run(optimizer, 2, objective, [0.0, 0.0])
        told[count], moments[count] = metrics, states[1].opt_state[0].mu
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-7), told[1], told[3])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-7), moments[1], moments[3])
    with pytest.raises(
        ValueError, match=r"OptimizerConfig.accumulate: got 4, may be a divisor of the batch's rows \(6\)"
    ):
        run(OptimizerConfig(accumulate=4), 1)


def test_frozen_parameters_stay_and_the_average_follows():
    """One run with Muon, decay, whole parameters and one layer frozen, and an average; skip balanced."""
    optimizer = OptimizerConfig(
        name="muon", learning_rate=0.05, weight_decay=0.5, ema_decay=0.75, balance_skip=True, balancing_rate=0.01,
        freeze=("embed_tokens", "layers/mlp/gate/*", "layers[0:1]/*"),
    )  # fmt: skip
    states, _ = run(optimizer, 3)
    first, last, frozen = states[0], states[-1], paths(frozen_parameters(optimizer, params()))
    moved = 0
    for path, before in paths(first.params).items():
        same = np.asarray(paths(last.params)[path]) == np.asarray(before)
        held = np.broadcast_to(frozen[path], same.shape)
        assert same[held].all(), path
        if not held.all():
            moved += 1
            assert (~same[~held]).mean() > 0.5, path
    assert moved > 10
    expected = first.params
    for state in states[1:]:
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, expected, state.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), expected, last.ema)
    assert jax.tree.leaves(first.balancing)[0][0, -1] != jax.tree.leaves(last.balancing)[0][0, -1]
    # what is frozen whole has no moments: 5 arrays of the router and the embedding, in two moments, are missing
    kept = [leaf.shape for leaf in jax.tree.leaves(last.opt_state)]
    assert params()["embed_tokens"].shape not in kept
    assert params()["layers"]["mlp"]["gate"]["fc1"]["kernel"].shape not in kept


def test_patterns_choose_paths_and_layers():
    """Against the paths themselves; one that chooses nothing is a mistake."""

    def chosen(*patterns: str) -> dict:
        return paths(frozen_parameters(OptimizerConfig(freeze=patterns), params()))

    assert not any(value is not False for value in chosen().values())
    whole = chosen("layers/mlp/*")
    assert {path for path, value in whole.items() if value is True} == {p for p in whole if p.startswith("layers/mlp/")}
    for pattern in ("layers[1]/*", "layers[-1]/*", "layers[1:]/*", "layers[-1:2]/*"):
        values = chosen(pattern)
        assert all((value is False) == (not path.startswith("layers/")) for path, value in values.items())
        for path, value in values.items():
            if value is not False:
                assert value.shape == (2, *[1] * (paths(params())[path].ndim - 1))
                assert value.ravel().tolist() == [False, True]
    assert chosen("layers[0]/self_attn/*", "layers[1]/self_attn/*") == chosen("layers/self_attn/*")
    held = paths(hold(frozen_parameters(OptimizerConfig(freeze=("layers[0]/mlp/*",)), params()), params()))
    np.testing.assert_array_equal(held["layers/mlp/down_proj"][0], 0)
    np.testing.assert_array_equal(held["layers/mlp/down_proj"][1], params()["layers"]["mlp"]["down_proj"][1])
    for pattern in ("layer/*", "layers[2]/*", "layers[1:1]/*", "layers[0]/nothing", "layers[]/*", "embed"):
        with pytest.raises(
            ValueError, match=r"^OptimizerConfig.freeze: '.*' matches nothing, may be of paths"
        ) as error:
            chosen(pattern)
        assert "\n" not in str(error.value)


def test_clipping_may_be_off():
    grads = gradients(3)
    for clip in (0, 1e9):  # AdamW does not see the gradient's scale, its first moment does
        rule = make_optimizer(OptimizerConfig(clip_norm=clip))
        state = jax.jit(lambda g, p, rule=rule: rule.update(g, rule.init(p), p)[1])(grads, params())
        moments = jax.tree.leaves(state)
        assert any(np.allclose(leaf, 0.1 * grads["embed_tokens"]) for leaf in moments if leaf.shape == (17, 16))
    rule = make_optimizer(OptimizerConfig(clip_norm=1e-3))
    state = jax.jit(lambda g, p, rule=rule: rule.update(g, rule.init(p), p)[1])(grads, params())
    assert not any(
        np.allclose(leaf, 0.1 * grads["embed_tokens"]) for leaf in jax.tree.leaves(state) if leaf.shape == (17, 16)
    )


@given(st.sampled_from(SCHEDULES), st.integers(0, 30), st.integers(1, 200), st.floats(0, 1), st.floats(0.01, 1))
def test_schedules_warm_up_and_fall_to_the_final_rate(name, warmup, steps, final, decay):
    config = OptimizerConfig(
        schedule=name, warmup_steps=warmup, final_learning_rate=final, decay_share=decay, learning_rate=1.0
    )
    shares = rates(config, steps)
    warm = min(warmup, steps // 2)
    np.testing.assert_allclose(shares[:warm], np.arange(1, warm + 1) / (warm + 1))
    assert shares[warm] == 1 or warm == steps
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(shares[warm:]))
    np.testing.assert_allclose(shares[-1], 1.0 if name == "constant" else final, atol=1e-9)
    if name == "wsd":
        start = max(warm, steps - max(1, round(decay * steps)))
        np.testing.assert_array_equal(shares[warm : start + 1], 1)
        if steps > start:
            expected = 1 - (1 - final) * np.arange(steps - start + 1) / (steps - start)
            np.testing.assert_allclose(shares[start:], expected, atol=1e-9)
    if name == "linear" and steps > warm:
        np.testing.assert_allclose(np.diff(shares[warm:]), -(1 - final) / (steps - warm), atol=1e-9)


def test_another_schedule_compiles_nothing():
    model, objective = Zaya(CONFIG), Objective()
    mine = make_train_step(model, objective, OptimizerConfig())
    others = OptimizerConfig(schedule="wsd", warmup_steps=3, final_learning_rate=0, decay_share=0.5)
    assert make_train_step(model, objective, others) is mine
    assert make_train_step(model, objective, OptimizerConfig(b1=0.8)) is not mine


def test_skip_is_a_class_like_the_others_if_it_is_balanced():
    load = jnp.array([[[40, 20, 20, 10, 10], [0, 0, 0, 0, 0]]])
    np.testing.assert_allclose(balancing_error(load)[0], [0.15, -0.05, -0.05, -0.15, 0], atol=1e-6)
    np.testing.assert_allclose(balancing_error(load, True)[0], [0.2, 0, 0, -0.1, -0.1], atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        dict(schedule="step"), dict(decay_share=0), dict(clip_norm=-1), dict(accumulate=0), dict(accumulate=True),
        dict(ema_decay=1.0), dict(freeze="embed_tokens"), dict(balance_skip="fixed"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(bad):
    with pytest.raises(ValueError, match=rf"^OptimizerConfig.{next(iter(bad))}: got .*, may be ") as error:
        OptimizerConfig(**bad)
    assert "\n" not in str(error.value)

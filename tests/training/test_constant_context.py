"""Drafts trained with context tokens as constants: the whole row's gradients, and blocks where they are asked for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import cast, drawn_by, random_tokens, random_variables, small_config
from zaya_jax.architecture import Execution, Zaya
from zaya_jax.training.gradients import make_gradients
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig, frozen_parameters, hold, with_frozen

pytestmark = pytest.mark.early

DOCUMENT = np.array([[0] * 5 + [1] * 6 + [-1], [0] * 12, [-1] * 12])
FROZEN = OptimizerConfig(freeze=("*", "!*lora*"))
KINDS = {
    "zaya": dict(cca_time0=3, cca_time1=2, layer_types=("hybrid", "hybrid_sliding"), sliding_window=4),
    "llama": dict(attention="gqa", feed_forward="dense", residual_scaling=False),
}
EXECUTIONS = {"zaya": Execution(), "llama": Execution(remat="full", attention_backend="tiled", query_chunk=8)}
OBJECTIVES = {
    "grid": Objective("tidar", 4, alpha=0.0),
    "sampled": Objective("tidar", 4, alpha=0.0, distill=0.5, blocks_per_row=3, loss_on="answers"),
}


def batch_of(config) -> dict[str, jax.Array]:
    answer = (np.random.default_rng(0).random(DOCUMENT.shape) < 0.5) & (DOCUMENT >= 0)
    tokens = random_tokens(config, *DOCUMENT.shape)
    return jax.tree.map(jnp.asarray, {"tokens": tokens, "document": DOCUMENT, "answer": answer.astype(np.int32)})


PAIRS = [("zaya", "grid"), ("llama", "sampled"), ("zaya", "sampled"), ("llama", "grid")]


@pytest.mark.parametrize(
    ("kind", "objective"),
    [PAIRS[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in PAIRS[1:])],
)
def test_gradients_are_those_of_the_whole_row(kind, objective, x64):
    config = small_config(
        **KINDS[kind], lora_rank=3, lora_alpha=2.0, lora_rows="drafts", dtype="float64", param_dtype="float64"
    )
    model = Zaya(config, EXECUTIONS[kind])
    variables, objective = cast(random_variables(config), "float64"), OBJECTIVES[objective]
    batch, drawn = batch_of(config), drawn_by(objective, jax.random.key(0), *DOCUMENT.shape)
    frozen = frozen_parameters(FROZEN, variables["params"])
    assert objective.context_is_constant(model, frozen)

    def run(constant: bool):
        held = functools.partial(with_frozen, frozen)
        gradients = jax.jit(make_gradients(model, objective, None, 1, held, constant))
        grads, sums = gradients(variables["params"], variables.get("balancing", {}), batch, drawn)
        return hold(frozen, grads), sums

    (whole, sums), (alone, mine) = run(False), run(True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13), alone, whole)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole)) > 0.1
    for name in ("draft_nll", "draft_count", "draft_correct", "load"):
        np.testing.assert_allclose(mine[name], sums[name], rtol=1e-6)


def test_the_autoregressive_loss_is_that_of_the_drafted_tokens():
    """Every token once, on a grid: it is then the whole row's, but for tokens that no block holds."""
    config = small_config(lora_rank=3, lora_rows="drafts")
    model, variables, objective = Zaya(config), random_variables(config), OBJECTIVES["grid"]
    batch = batch_of(config) | {"document": jnp.zeros(DOCUMENT.shape, jnp.int32)}
    drawn = {"offset": jnp.zeros(3, jnp.int32)}
    run = jax.jit(functools.partial(objective.sums, model), static_argnames="constant_context")
    whole, alone = (run(variables, batch, drawn, constant_context=constant) for constant in (False, True))
    assert alone["ar_count"] == whole["ar_count"] == 33
    np.testing.assert_allclose(alone["ar_nll"], whole["ar_nll"], rtol=1e-6)


def test_context_is_constant_only_where_it_is():
    config = small_config(lora_rank=3, lora_rows="drafts")
    objective, params = OBJECTIVES["grid"], random_variables(config)["params"]
    frozen = functools.partial(frozen_parameters, params=params)

    def constant(objective=objective, config=config, freeze=FROZEN.freeze) -> bool:
        return objective.context_is_constant(Zaya(config), frozen(OptimizerConfig(freeze=freeze)))

    assert constant()
    assert not constant(dataclasses.replace(objective, alpha=0.1))
    assert not constant(Objective("autoregressive"))
    assert not constant(config=config.replace(lora_rows="all"))
    assert not constant(freeze=("*", "!*lora*", "!*norm*"))
    assert not constant(freeze=("layers[0]/*",))


def test_sampled_blocks_start_at_tokens_with_a_loss_about_as_many_apart():
    objective = Objective("tidar", 4, blocks_per_row=4, loss_on="answers")
    answer = np.zeros((2000, 40), np.int32)
    answer[:, 10:18] = answer[:, 22:30] = 1
    answer[-1] = 0
    batch = {"tokens": np.ones((2000, 40), np.int32), "document": np.zeros((2000, 40), np.int32), "answer": answer}
    drawn = drawn_by(objective, jax.random.key(0), 2000, 40)
    layout = jax.device_get(jax.jit(objective.layout)(batch, drawn))
    first = np.asarray(layout.blocks().horizon[..., 0])
    assert layout.num_blocks == 4 and (np.diff(first[:-1], axis=1) >= 0).all()
    tokens = np.flatnonzero(answer[0]).reshape(4, 4)
    for block, these in enumerate(tokens):  # a quarter of the answers' tokens each, all equally likely
        counts = np.bincount(first[:-1, block], minlength=40)
        assert counts[these].min() > 400 and counts.sum() == counts[these].sum()
    last = jax.tree.map(lambda x: x[-1:], batch)
    counted = jax.jit(objective.counts)(last, drawn_by(objective, jax.random.key(0), 1, 40))
    assert np.asarray(counted["draft_count"]).sum() == 0


@pytest.mark.parametrize("change", [dict(masking="random"), dict(blocks_per_row=-1)])
def test_what_sampled_blocks_cannot_be(change):
    with pytest.raises(ValueError, match=r"Objective\.blocks_per_row: got -?\d, may be"):
        Objective("tidar", **{"blocks_per_row": 2, **change})

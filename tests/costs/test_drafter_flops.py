"""A drafter's FLOPs against XLA's count of its training form."""

import jax
import jax.numpy as jnp
import pytest

from zaya_jax.architecture import Layout, Zaya, preset
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.architecture.features import Features
from zaya_jax.costs.drafters import drafter_flops, objective_flops
from zaya_jax.costs.flops import Trained, drafter_count, training_flops
from zaya_jax.training.drafter_objective import DrafterObjective

ROW, BATCH, BLOCKS = 48, 2, 5
DRAFTERS = {
    "dflash": DrafterConfig("dflash", drafts=3, layers=2),
    "eagle3": DrafterConfig("eagle3", drafts=3),
    "mtp": DrafterConfig("mtp", drafts=3),
    "medusa": DrafterConfig("medusa", drafts=3),
}


@pytest.mark.parametrize("kind", DRAFTERS)
def test_flops_agree_with_xla(kind):
    """XLA's programs compute hidden pairs, which ours do not count, and elementwise work."""
    config = preset("tiny", drafter=DRAFTERS[kind])
    model, layout = Zaya(config), Layout.causal(jnp.zeros((BATCH, ROW), jnp.int32))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), layout))
    taps = len(DRAFTERS[kind].taps_of(config.num_hidden_layers))
    groups = BLOCKS if kind == "dflash" else ROW

    def run(variables, features, embedded, first):
        hidden = model.apply(variables, "training", features, embedded, layout, first, method="draft")
        return model.apply(variables, hidden, method="draft_head")

    hidden = jax.ShapeDtypeStruct((BATCH, ROW, config.hidden_size), jnp.float32)
    features = Features(hidden, jax.ShapeDtypeStruct((BATCH, ROW, taps, config.hidden_size), jnp.float32))
    first = jax.ShapeDtypeStruct((BATCH, groups), jnp.int32)
    got = jax.jit(run).lower(variables, features, hidden, first).cost_analysis()["flops"]
    ours = drafter_flops(config, BATCH, ROW, groups)
    width, drafts = 2 * 2 * config.num_attention_heads * config.head_dim, config.drafter.drafts
    every = {
        "dflash": 2 * groups * (drafts + 1) * (ROW + drafts + 1),
        "medusa": 0,
    }.get(kind, drafts * ROW * ROW + ROW * drafts * (drafts - 1) // 2)
    expected = ours.products + ours.head + BATCH * width * every
    assert ours.attention <= BATCH * width * every
    assert 0.99 * expected < got < 1.3 * expected


def test_a_frozen_target_costs_a_forward_and_a_joint_one_all_three_passes():
    objective = DrafterObjective("mtp", block_size=4)
    config = preset("tiny", drafter=objective.drafter)
    mine = drafter_flops(config, BATCH, ROW, ROW)
    joint = objective_flops(config, DrafterObjective("mtp", block_size=4, alpha=1.0), BATCH, ROW)
    assert joint == training_flops(config, BATCH, ROW) + 3 * (mine.products + mine.attention + mine.head)
    frozen = objective_flops(config, objective, BATCH, ROW)
    target = training_flops(config, BATCH, ROW, trained=Trained(context=1))
    head = 2 * BATCH * ROW * config.vocab_size * config.hidden_size
    assert frozen == target - head + 3 * (mine.products + mine.attention) + 2 * mine.head
    assert objective_flops(config, DrafterObjective("mtp", block_size=4, distill=1.0), BATCH, ROW) == frozen + head
    assert drafter_count(config) > 0 == drafter_count(preset("tiny"))

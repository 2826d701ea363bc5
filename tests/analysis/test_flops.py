"""Analytic counts against the model's own shapes, and FLOPs against products counted by hand and by XLA."""

import jax
import jax.numpy as jnp
import pytest

from zaya_jax.analysis.flops import describe, forward_flops, parameter_count, training_flops, training_memory
from zaya_jax.architecture import PRESETS, Layout, Zaya, preset

VARIANTS = [(name, {}) for name in PRESETS] + [
    ("tiny", {"tie_word_embeddings": False, "attention_bias": True, "lm_head_bias": True}),
    ("tiny", {"cca_time0": 3, "cca_time1": 1, "num_hidden_layers": 1, "num_key_value_heads": 1}),
    ("tiny", {"attention": "gqa", "feed_forward": "dense", "residual_scaling": False}),
    ("tiny", {"attention": "gqa", "qk_norm": True, "attention_bias": True, "router_state": False}),
    ("tiny", {"cca_grouped": False, "cca_mean": False, "qk_norm": False, "attention_bias": True}),
    ("tiny", {"cca_depthwise": False, "cca_delayed_value": False, "residual_scaling": False}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_parameter_count_is_what_init_makes(name, changes):
    config = preset(name, **changes)
    layout = Layout.causal(jnp.zeros((1, 2), jnp.int32))
    shapes = jax.eval_shape(lambda: Zaya(config).init(jax.random.key(0), layout))
    assert parameter_count(config).total == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_zaya1_8b():
    count = parameter_count(preset("zaya1_8b"))
    assert count.total == 8_840_488_784
    assert count.total_without_embedding == 8_303_355_728
    assert count.active_without_embedding == 753_608_528
    assert count.active_with_head == 1_290_741_584
    assert (count.experts, count.attention, count.router) == (8_053_063_680, 223_027_280, 26_439_424)


def test_forward_flops_are_two_per_active_weight_and_row_but_for_attention():
    config = preset("zaya1_8b")
    flops, count = forward_flops(config, rows=1, context=0), parameter_count(config)
    vectors = count.active_with_head - flops.total // 2  # norms, scales, biases: no matrix product
    assert 0 < vectors < 0.001 * count.active_with_head
    seen = forward_flops(config, rows=3, context=100)
    assert seen.attention == 3 * 40 * 100 * 8 * 128 * 2 * 2
    assert forward_flops(config, rows=3, context=100, head_rows=1).head == flops.head


def test_sliding_layers_see_no_more_than_their_window():
    config = preset("tiny", layer_types=("hybrid", "hybrid_sliding"), sliding_window=4)
    full = forward_flops(preset("tiny"), 1, 10).attention
    assert forward_flops(config, 1, 10).attention == full * 14 // 20


def test_forward_flops_agree_with_xla_on_one_layer():
    """One layer, so that a scan's body counts once; every expert computed, so XLA's count is E times ours there."""
    config = preset("tiny", num_hidden_layers=1, expert_backend="dense", attention_backend="dense")
    rows = 32
    model, layout = Zaya(config), Layout.causal(jnp.zeros((1, rows), jnp.int32))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), layout))
    analysis = jax.jit(lambda v: model.apply(v, layout).logits).lower(variables).cost_analysis()
    ours = forward_flops(config, rows, context=rows)
    expected = ours.total + ours.experts * (config.num_experts - 1)
    assert expected < analysis["flops"] < 1.35 * expected  # the rest is elementwise: norms, softmax, rotation


def test_training_counts():
    config = preset("zaya1_300k")
    plain, tidar = (training_flops(config, 16, 128, tidar=tidar) for tidar in (False, True))
    assert plain == 3 * forward_flops(config, 16 * 128, 128).total
    assert 2 < tidar / plain < 2.1
    assert training_flops(config.replace(remat="full"), 16, 128) < 4 / 3 * plain
    memory = training_memory(config, 16, 128)
    assert memory.optimizer == 2 * memory.parameters == 8 * parameter_count(config).total
    assert training_memory(preset("zaya1_8b"), 64, 4096).logits <= 2 * 4 * 2**26  # the head runs in chunks


def test_describe_says_sizes_before_compiling():
    text = describe(preset("zaya1_8b"), batch_size=4, row_length=100, tidar=True, block_size=16)
    assert "8,840,488,784 total" in text
    assert "753,608,528" in text
    assert "100 clean + 112 draft slots (block size 16)" in text
    assert len(text.splitlines()) == 4
    assert "draft" not in describe(preset("tiny"), 4, 100, tidar=False)

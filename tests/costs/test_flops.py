"""Analytic counts against the model's own shapes, and FLOPs against products counted by hand and by XLA."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.architecture import PRESETS, Execution, Layout, Zaya, preset
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.costs.flops import (
    Split,
    Trained,
    activations,
    describe,
    forward_flops,
    parameter_count,
    training_flops,
    training_memory,
    visible_pairs,
)
from zaya_jax.training.objective import Objective, piece_size
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step

VARIANTS = [(name, {}) for name in PRESETS] + [
    ("tiny", {"tie_word_embeddings": False, "attention_bias": True, "lm_head_bias": True}),
    ("tiny", {"cca_time0": 3, "cca_time1": 1, "num_hidden_layers": 1, "num_key_value_heads": 1}),
    ("tiny", {"attention": "gqa", "feed_forward": "dense", "residual_scaling": False}),
    ("tiny", {"attention": "gqa", "qk_norm": "unit", "attention_bias": True, "router_state": False}),
    ("tiny", {"cca_grouped": False, "cca_mean": False, "qk_norm": "none", "attention_bias": True}),
    (
        "tiny",
        {
            "attention": "gqa",
            "qk_norm": "rms",
            "attention_bias": True,
            "output_bias": False,
            "residual_scaling": False,
            "feed_forward": "dense",
            "mlp_bias": True,
            "rope_scaling": "linear",
            "rope_factor": 2.0,
        },
    ),
    ("tiny", {"cca_depthwise": False, "cca_delayed_value": False, "residual_scaling": False}),
    ("tiny", {"lora_rank": 2, "mask_token_id": 7}),
    ("tiny", {"drafter": DrafterConfig("eagle3", own_head=True)}),
    ("tiny", {"lora_rank": 3, "lora_rows": "drafts", "feed_forward": "dense"}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_parameter_count_is_what_init_makes(name, changes):
    config = preset(name, **changes)
    layout = Layout.causal(jnp.zeros((1, 2), jnp.int32))
    shapes = jax.eval_shape(lambda: Zaya(config).init(jax.random.key(0), layout))
    assert parameter_count(config).total == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


DENSE = Execution("dense", "dense")  # every expert and every pair of tokens


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
    config = preset("tiny", num_hidden_layers=1)
    rows = 32
    model, layout = Zaya(config, DENSE), Layout.causal(jnp.zeros((1, rows), jnp.int32))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), layout))
    analysis = jax.jit(lambda v: model.apply(v, layout).logits).lower(variables).cost_analysis()
    ours = forward_flops(config, rows, context=rows)
    expected = ours.total + ours.experts * (config.num_experts - 1)
    assert expected < analysis["flops"] < 1.35 * expected  # the rest is elementwise: norms, softmax, rotation


@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize(("row", "block"), [(12, 4), (9, 3), (5, 1), (8, 8)])
def test_visible_pairs_are_those_of_the_layout(row, block, window):
    @jax.jit
    def seen(tokens):
        return Layout.causal(tokens).visibility(window).sum(), Layout.tidar(tokens, block).visibility(window).sum()

    clean, whole = seen(np.zeros((1, row), np.int32))
    assert visible_pairs(row, window=window) == clean
    assert visible_pairs(row, True, block, window) == whole
    assert visible_pairs(row - 1, True, block) >= visible_pairs(row - 1) + block  # a last block that is not full


def test_training_flops_agree_with_xla_on_one_layer():
    """Forward and backward of one layer, every pair and every expert computed, which ours then counts too."""
    config = preset("tiny", num_hidden_layers=1)
    rows = 64
    model, layout = Zaya(config, DENSE), Layout.causal(jnp.zeros((1, rows), jnp.int32))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), layout))
    loss = jax.grad(lambda v: model.apply(v, layout).logits.sum())
    got = jax.jit(loss).lower(variables).cost_analysis()["flops"]
    width = 2 * 2 * config.num_attention_heads * config.head_dim
    hidden = width * (rows * rows - visible_pairs(rows))
    others = forward_flops(config, rows, 0).experts * (config.num_experts - 1)
    expected = training_flops(config, 1, rows) + 3 * (hidden + others)
    assert 0.95 * expected < got < 1.35 * expected  # dead ends (the ids' gradient) go, elementwise work comes on top


def test_what_is_frozen_is_not_counted():
    """Context tokens forward alone; mask tokens forward and through the layers, in blocks that are spread evenly."""
    config = preset("zaya1_300k")
    drafts_alone = Trained(parameters=100, context=1, drafts=2, blocks=4)
    keys = np.array([0, 32, 64, 96]).repeat(8) + 8  # before each block, and the block itself
    forward = [
        forward_flops(config, 16 * rows, 0).total + forward_flops(config, 16 * rows, np.mean(seen)).attention
        for rows, seen in ((128, np.arange(1, 129)), (32, keys))
    ]
    assert training_flops(config, 16, 128, True, 8, trained=drafts_alone) == forward[0] + 2 * forward[1]
    whole, less = (training_memory(config, 16, 128, True, 8, trained=each) for each in (Trained(), drafts_alone))
    assert less.gradients == 400 and less.optimizer == 800 and less.parameters == whole.parameters
    assert less.activations < whole.activations / 4


def test_training_counts():
    config = preset("zaya1_300k")
    plain, tidar = (training_flops(config, 16, 128, tidar=tidar) for tidar in (False, True))
    attention = forward_flops(config, 16 * 128, 129 / 2).attention  # a token sees 64.5 on average
    assert plain == 3 * (forward_flops(config, 16 * 128, 0).total + attention)
    assert 2 < tidar / plain < 2.1
    assert training_flops(config, 16, 128, remat="full") < 4 / 3 * plain
    # the head runs over pieces: as few tokens as pay for reading it, or as many as have few logits
    assert training_memory(preset("zaya1_8b"), 64, 4096).logits == 2 * 4 * 1024 * 262_272
    assert piece_size(49_153) == 2**26 // 49_153 > 1024


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", ["zaya1_300k", "zaya1_8b"])
def test_memory_of_the_state_is_that_of_the_real_state(name, model):
    """To within step counters: a few scalars."""
    config = preset(model, tie_word_embeddings=model == "zaya1_8b")
    state = jax.eval_shape(lambda: init_state(init_variables(Zaya(config), 0), OptimizerConfig(name), 0))
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    memory = training_memory(config, 1, 8, optimizer=name)
    assert memory.parameters == memory.gradients == size(state.params)
    assert 0 <= size(state.opt_state) - memory.optimizer < 200


def test_memory_is_divided():
    config, full = preset("zaya1_8b"), Execution(remat="full")
    one, many = (
        training_memory(config, 8, 4096, True, 16, "muon", True, split, full) for split in (None, Split(8, 1, 8))
    )
    assert one.parameters == one.average == 17_680_977_568
    for name in ("parameters", "gradients", "optimizer", "average"):
        assert abs(getattr(one, name) / 8 - getattr(many, name)) <= 8
    by_expert = training_memory(config, 8, 4096, True, 16, split=Split(experts=16), execution=full)
    assert by_expert.parameters == 2 * (parameter_count(config).total - 15 * 8_053_063_680 // 16)
    assert training_memory(config, 8, 4096, split=Split(batch=8), execution=full).activations < one.activations / 3
    grouped = Execution("ragged_dot", remat="full")  # no copies of experts for every block
    whole, half = (
        training_memory(config, 8, 4096, split=split, execution=grouped).activations
        for split in (None, Split(sequence=2))
    )
    assert 0.45 < half / whole < 0.55 and whole < training_memory(config, 8, 4096, execution=full).activations


def test_activations_grow_linearly_with_the_row_and_less_with_remat():
    config, full = preset("zaya1_8b"), Execution(remat="full")
    sizes = [activations(config, 2 * row, row, execution=full) for row in (2**15, 2**16, 2**17)]
    assert all(1.8 < b / a < 2.0 for a, b in itertools.pairwise(sizes))
    assert activations(config, 2**16, 2**15) > 5 * sizes[0]


@pytest.mark.slow  # compiles a train step
@pytest.mark.parametrize("remat", ["none", "full"])
def test_activations_are_what_xla_allocates_within_a_factor_of_two(remat):
    config = preset("zaya1_25m", num_hidden_layers=6, vocab_size=260)
    execution = Execution(remat=remat)
    optimizer = OptimizerConfig()
    step = make_train_step(Zaya(config, execution), Objective("tidar", 8), optimizer)
    state = jax.eval_shape(lambda: init_state(init_variables(Zaya(config), 0), optimizer, 0))
    rows = jax.ShapeDtypeStruct((4, 512), jnp.int32)
    stats = step.lower(state, {"tokens": rows, "document": rows}, jnp.float32(1)).compile().memory_analysis()
    memory = training_memory(config, 4, 512, True, 8, execution=execution)
    ours = memory.gradients + memory.logits + memory.activations
    assert 0.5 < stats.temp_size_in_bytes / ours < 2


def test_describe_says_sizes_before_compiling():
    text = describe(preset("zaya1_8b"), batch_size=4, row_length=100, tidar=True, block_size=16)
    assert "8,840,488,784 total" in text
    assert "753,608,528" in text
    assert "100 clean + 112 mask tokens (block size 16)" in text
    assert "GFLOP a clean token" in text and "remat none" in text
    assert len(text.splitlines()) == 4
    assert "draft" not in describe(preset("tiny"), 4, 100, tidar=False)
    whole, one = (describe(preset("tiny"), batch, 100, tidar=False).splitlines() for batch in (8, 2))
    pieces = describe(preset("tiny"), 8, 100, tidar=False, accumulate=4).splitlines()
    assert pieces[-1] == one[-1] != whole[-1]  # memory is one micro-batch's
    assert pieces[-2] == whole[-2].replace("tokens:", "tokens, in 4 micro-batches:")
    split = describe(preset("tiny"), 4, 100, False, optimizer="muon", average=True, split=Split(parameters=2))
    adapters = describe(preset("tiny", lora_rank=2), 4, 100, False, trained=Trained(parameters=1056, moving=1000))
    assert "45,108 total" in adapters and ", 1,000 trained, 44,108 frozen;" in adapters
    assert "parameters / 2" in split and "muon" in split and "moving average" in split

"""Adapters: nothing at first, nothing on clean rows if so chosen, mergeable, and alone in what they train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.helpers import built, fresh_state, random_tokens, random_variables, small_config
from zaya_jax import SamplerConfig, generate, load_pretrained
from zaya_jax.architecture import Layout, Zaya, ZayaConfig, init_cache
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.editing.adapters import fresh_adapters, is_adapter, merge_adapters
from zaya_jax.interop.formats.adapter_folder import save_adapters
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.runs.start import load_start
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

pytestmark = pytest.mark.early

KINDS = {
    "zaya": {},
    "dense": dict(attention="gqa", feed_forward="dense", residual_scaling=False, mlp_bias=True, attention_bias=True),
    "untied": dict(attention="gqa", feed_forward="dense", tie_word_embeddings=False, cca_delayed_value=True),
}


def flat(tree) -> dict:
    return traverse_util.flatten_dict(tree)


def adapted(kind: str, **changes) -> tuple[ZayaConfig, dict, dict]:
    """(config with adapters, all variables random, the same without adapters)."""
    config = small_config(**KINDS[kind], lora_rank=3, lora_alpha=2.0, **changes)
    variables = random_variables(config)
    plain = {path: leaf for path, leaf in flat(variables).items() if not is_adapter(path)}
    return config, variables, traverse_util.unflatten_dict(plain)


def plain_of(config: ZayaConfig) -> Zaya:
    return Zaya(config.replace(lora_rank=0))


@functools.cache
def run(model: Zaya):
    return jax.jit(model.apply)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_what_is_said_and_nothing_to_begin_with(kind):
    config, _, plain = adapted(kind)
    names = {path for path in abstract_variables(config) if is_adapter(path)}
    assert set(abstract_variables(config)) - names == set(abstract_variables(config.replace(lora_rank=0)))
    fresh = fresh_adapters(config, seed=1)
    assert set(fresh) == names and len(names) == 2 * {"zaya": 5, "dense": 6, "untied": 6}[kind] + 1
    layout = built(Layout.tidar, random_tokens(config, 2, 8), block_size=4)
    variables = traverse_util.unflatten_dict({**flat(plain), **fresh})
    got, wanted = run(Zaya(config))(variables, layout).logits, run(plain_of(config))(plain, layout).logits
    assert np.array_equal(got, wanted)
    assert fresh_adapters(config.replace(lora_rank=0), seed=1) == {}


@pytest.mark.parametrize("kind", ["zaya", "dense"])
def test_adapters_on_drafts_leave_clean_rows_as_they_are_to_the_bit(kind):
    config, variables, plain = adapted(kind, lora_rows="drafts")
    model, frozen = Zaya(config), plain_of(config)
    tokens = random_tokens(config, 2, 8)
    rows = built(Layout.causal, tokens), built(Layout.tidar, tokens, block_size=4)
    for layout, drafts in zip(rows, (0, 8), strict=True):
        got, wanted = run(model)(variables, layout).logits, run(frozen)(plain, layout).logits
        clean = layout.clean_size
        assert got.shape[1] - clean == drafts
        assert np.array_equal(got[:, :clean], wanted[:, :clean])
        assert not drafts or np.abs(got[:, clean:] - wanted[:, clean:]).min(1).max() > 1e-3
        assert np.array_equal(np.asarray(layout.block != 0)[0], np.arange(got.shape[1]) >= clean)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zaya", "dense"])
def test_drafting_with_adapters_is_lossless_for_the_frozen_model(kind):
    config, variables, plain = adapted(kind, lora_rows="drafts")
    prompts = [[1, 2, 3], [4, 5]]
    alone = generate(plain_of(config), plain, prompts, SamplerConfig("autoregressive", temperature=0.0), 12)
    sampler = SamplerConfig("single_pass", 3, temperature=0.0)
    assert generate(Zaya(config), variables, prompts, sampler, 12).tokens == alone.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_are_the_same_model(kind, x64):
    config, variables, _ = adapted(kind, dtype="float64", param_dtype="float64")
    merged_config, merged = merge_adapters(config, variables)
    assert merged_config == config.replace(lora_rank=0) and set(flat(merged)) == set(abstract_variables(merged_config))
    layout = built(Layout.tidar, random_tokens(config, 2, 8), block_size=4)
    got, wanted = run(Zaya(merged_config))(merged, layout).logits, run(Zaya(config))(variables, layout).logits
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)
    assert merge_adapters(merged_config, merged)[0] == merged_config


def test_what_cannot_be_merged_or_exported_says_so(tmp_path):
    config, variables, _ = adapted("zaya", lora_rows="drafts")
    with pytest.raises(ValueError, match=r"ZayaConfig\.lora_rows: got 'drafts', may be 'all' where"):
        merge_adapters(config, variables)
    with pytest.raises(ValueError, match=r"ZayaConfig\.lora_rank: got 3, may be 0 in a Hugging Face folder"):
        save_huggingface(tmp_path, config, variables)
    assert not list(tmp_path.iterdir())
    for field, value in (("lora_rank", -1), ("lora_rank", True), ("lora_alpha", 0.0), ("lora_rows", "clean")):
        with pytest.raises(ValueError, match=rf"ZayaConfig\.{field}: got {value!r}, may be"):
            config.replace(**{field: value})


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_adapters_alone_are_trained_and_have_the_optimizers_state(accumulate):
    config, variables, _ = adapted("dense", lora_rows="drafts")
    optimizer = OptimizerConfig(freeze=("*", "!*lora*"), warmup_steps=1, accumulate=accumulate, balancing_rate=0.0)
    model, objective = Zaya(config), Objective("tidar", block_size=4, alpha=0.0)
    tokens = random_tokens(config, 2, 16)
    batch = {"tokens": tokens, "document": np.zeros_like(tokens), "answer": np.ones_like(tokens)}
    state = fresh_state(variables, optimizer)
    adapters = sum(leaf.size for path, leaf in flat(variables).items() if is_adapter(path))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * adapters + 8  # two moments, counters
    state, metrics = make_train_step(model, objective, optimizer)(state, batch, 1e-2)
    before, after = flat(variables["params"]), flat(state.params)
    for path in before:
        assert np.array_equal(before[path], after[path]) != is_adapter(path), path
    assert float(metrics["loss"]) == pytest.approx(float(metrics["draft_loss"]), rel=1e-6)
    assert float(metrics["loss"]) != pytest.approx(float(metrics["ar_loss"]), rel=1e-3)


@pytest.mark.slow
def test_no_gradient_is_computed_for_what_is_frozen():
    config, variables, _ = adapted("dense")
    tokens = random_tokens(config, 2, 16)
    batch = {"tokens": tokens, "document": np.zeros_like(tokens), "answer": np.ones_like(tokens)}
    objective, flops = Objective("tidar", block_size=4), []
    for freeze in ((), ("*", "!*lora*")):
        optimizer = OptimizerConfig(freeze=freeze)
        step = make_train_step(Zaya(config), objective, optimizer)
        lowered = step.lower(fresh_state(variables, optimizer), batch, 1e-2)
        flops.append(lowered.compile().cost_analysis()["flops"])
    assert flops[1] < 0.85 * flops[0]


def test_a_phase_gives_its_start_adapters(tmp_path):
    config, _, plain = adapted("zaya", lora_rows="drafts")
    save_huggingface(tmp_path / "start", config.replace(lora_rank=0), plain)
    found = flat(load_start(config, tmp_path / "start", "sft.start", seed=5))
    fresh = jax.device_get(fresh_adapters(config, 5))
    assert set(found) == set(abstract_variables(config))
    assert all(np.array_equal(found[path], (fresh | flat(plain))[path]) for path in found)
    other = fresh_adapters(config, 6)
    assert any(not np.array_equal(other[path], fresh[path]) for path in fresh)
    base = load_pretrained(tmp_path / "start")  # or those of a folder
    trained = traverse_util.unflatten_dict(flat(plain) | {path: leaf + 1 for path, leaf in fresh.items()})
    save_adapters(tmp_path / "adapters", config, trained, base, 4, {}, "")
    found = flat(load_start(config, tmp_path / "start", "sft.start", adapters=tmp_path / "adapters"))
    for path, leaf in fresh.items():
        assert np.array_equal(found[path], (leaf + 1).astype(jnp.bfloat16).astype(np.float32))


def test_a_cached_clean_row_is_the_frozen_models():
    config, variables, plain = adapted("zaya", lora_rows="drafts")
    tokens = random_tokens(config, 1, 6)
    caches = [init_cache(c, 1, 32) for c in (config, config.replace(lora_rank=0))]
    got, wanted = (
        run(m)(v, built(Layout.causal, tokens), cache)
        for m, v, cache in zip((Zaya(config), plain_of(config)), (variables, plain), caches, strict=True)
    )
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (got.cache, wanted.cache)), strict=True))

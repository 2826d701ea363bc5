"""Contract 2: one function, many rows. The same text gives the same numbers however its rows are laid out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_tokens, random_variables, small_config
from zaya_jax.architecture import Execution, Layout, Zaya, init_cache

CONFIGS = {
    "plain": {},
    "kernels": dict(cca_time0=3, cca_time1=4),
    "no convolution": dict(cca_time0=1, cca_time1=1),
    "biases": dict(attention_bias=True, lm_head_bias=True, tie_word_embeddings=False),
    "sliding": dict(layer_types=("hybrid", "hybrid_sliding"), sliding_window=4),
    "identity skip": dict(skip_expert="identity"),
    "gqa, dense": dict(attention="gqa", feed_forward="dense", residual_scaling=False),
    "gqa, biases": dict(attention="gqa", qk_norm="unit", attention_bias=True, router_state=False),
    "llama": dict(
        attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0, head_dim=6,
        qk_norm="rms", attention_bias=True, output_bias=False, mlp_bias=True, tie_word_embeddings=False,
        rope_scaling="llama3", rope_factor=4.0, rope_original_max_positions=32, rope_theta=100.0,
        layer_types=("hybrid_sliding",) * 2, sliding_window=6, sliding_rope_theta=100.0,
    ),
    "grouped alone": dict(cca_depthwise=False, cca_mean=False, router_state=False, residual_scaling=False),
    "depthwise alone": dict(cca_grouped=False, cca_delayed_value=False, qk_norm="rms"),
    "adapters": dict(attention="gqa", feed_forward="dense", mlp_bias=True, lora_rank=2, lora_alpha=1.0),
    "adapters on drafts": dict(lora_rank=2, lora_alpha=1.0, lora_rows="drafts"),
    "delay alone": dict(cca_depthwise=False, cca_grouped=False, feed_forward="dense"),
}  # fmt: skip


@functools.cache
def model_of(name: str):
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", **CONFIGS[name])
        return Zaya(config), random_variables(config)


@functools.cache
def compiled(name: str):
    model, variables = model_of(name)
    return functools.partial(jax.jit(model.apply), variables)


def logits_of(name, layout, cache=None):
    return compiled(name)(layout, cache)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_clean_half_of_a_tidar_row_is_the_ar_model(name, x64):
    tokens = random_tokens(model_of(name)[0].config, 2, 12)
    document = np.array([[0] * 5 + [1] * 7, [-1] * 2 + [0] * 8 + [-1] * 2])
    plain = logits_of(name, Layout.causal(tokens, document=document)).logits
    for offset in (0, 2):
        both = logits_of(name, Layout.tidar(tokens, 4, offset, document=document)).logits
        assert_close(both[:, :12], plain)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_branch_is_the_block_drafted_alone_and_the_training_block(name, x64):
    """Behind 6 cached tokens, verify 4 and draft behind each; then the same blocks in a training row, and alone."""
    tokens = random_tokens(model_of(name)[0].config, 2, 16, seed=1)
    size, start = 4, np.array([6, 5])
    cache = init_cache(model_of(name)[0].config, 2, 32)
    prompt = logits_of(name, Layout.verify_and_draft(tokens[:, :6], 0), cache)
    cache = prompt.cache.commit(jnp.asarray(start))
    block = np.stack([tokens[r, start[r] : start[r] + size] for r in range(2)])
    verified = logits_of(name, Layout.verify_and_draft(block, cache.length, (1, 2, 3, 4), size), cache).logits
    plain = logits_of(name, Layout.causal(tokens)).logits
    for row in range(2):
        assert_close(verified[row, :size], plain[row, start[row] : start[row] + size])
        for j in range(1, size + 1):
            first = start[row] + j
            branch = verified[row, size * j : size * (j + 1)]
            training = logits_of(name, Layout.tidar(tokens[row : row + 1], size, first % size)).logits[0]
            at = 16 + (first // size) * size
            assert_close(branch, training[at : at + size])
            # alone: the prefix (right-padded, so that one program serves all lengths) and this one block, no cache
            layout = Layout.verify_and_draft(tokens[row : row + 1], 0, np.array([[first]]), size, np.array([first]))
            assert_close(branch, logits_of(name, layout).logits[0, 16:])


@settings(max_examples=8)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.sampled_from(list(CONFIGS)))
def test_any_chunking_is_one_pass(chunks, name):
    with jax.enable_x64(True):
        config = model_of(name)[0].config
        total = sum(chunks)
        tokens = random_tokens(config, 1, 24, seed=2)[:, :total]
        expected = logits_of(name, Layout.causal(tokens)).logits
        cache, done = init_cache(config, 1, 24), 0
        for n in chunks:
            # chunks travel right-padded to one width, so that one program serves all
            padded = np.zeros((1, 4), np.int32)
            padded[:, :n] = tokens[:, done : done + n]
            layout = Layout.verify_and_draft(padded, cache.length, count=jnp.array([n]))
            out = logits_of(name, layout, cache)
            cache = out.cache.commit(jnp.array([n]))
            assert_close(out.logits[:, :n], expected[:, done : done + n])
            done += n


@pytest.mark.parametrize("name", ["plain", "kernels", "sliding"])
def test_rejected_rows_leave_no_trace(name, x64):
    """Verify 4, accept k < 4, go on with other tokens: as if the rejected ones had never been there."""
    config = model_of(name)[0].config
    tokens, wrong = random_tokens(config, 1, 12, seed=3), random_tokens(config, 1, 4, seed=4)
    expected = logits_of(name, Layout.causal(tokens)).logits
    for k in range(1, 4):
        cache = init_cache(config, 1, 20)
        cache = logits_of(name, Layout.verify_and_draft(tokens[:, :5], 0), cache).cache.commit(jnp.array([5]))
        mixed = np.concatenate([tokens[:, 5 : 5 + k], wrong[:, k:]], axis=1)
        cache = logits_of(name, Layout.verify_and_draft(mixed, cache.length, (1,), 4), cache).cache.commit(
            jnp.array([k])
        )
        rest = logits_of(name, Layout.verify_and_draft(tokens[:, 5 + k : 9 + k], cache.length), cache).logits
        assert_close(rest[:, : 7 - k], expected[:, 5 + k : min(12, 9 + k)][:, : 7 - k])


@pytest.mark.parametrize("name", ["plain", "kernels", "biases"])
def test_packed_documents_and_padding_change_nothing(name, x64):
    config = model_of(name)[0].config
    a, b = random_tokens(config, 1, 5, seed=5), random_tokens(config, 1, 7, seed=6)
    alone = [logits_of(name, Layout.causal(x)).logits for x in (a, b)]
    pad = np.zeros((1, 2), np.int32)
    row = np.concatenate([pad, a, b, pad], axis=1)
    document = np.array([[-1] * 2 + [3] * 5 + [1] * 7 + [-1] * 2])
    packed = logits_of(name, Layout.causal(row, document=document)).logits
    assert_close(packed[:, 2:7], alone[0])
    assert_close(packed[:, 7:14], alone[1])


WAYS = [
    dict(attention_backend="dense"),
    dict(query_chunk=4),
    dict(remat="full"),
    dict(remat="dots"),
    dict(attention_backend="tiled", query_chunk=8),
    dict(unroll_layers=True),
    dict(qkv_backend="fused"),
]
HEADS = ["kernels", "gqa, biases", "llama", "grouped alone", "depthwise alone", "adapters on drafts", "delay alone"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, way) for name in ("plain", "sliding") for way in WAYS]
    + [(name, dict(qkv_backend="fused")) for name in HEADS],
)
def test_fast_paths_agree_with_the_default(name, changes, x64):
    """The ways to compute a forward pass against each other, values and gradients."""
    model, variables = model_of(name)
    tokens = random_tokens(model.config, 2, 11, seed=7)
    layout = Layout.tidar(tokens, 3, 1, document=np.array([[0] * 6 + [1] * 5, [-1] + [0] * 10]))

    def run(**how):
        def loss(params):
            hidden, _, _ = Zaya(model.config, Execution(**how)).apply(
                {**variables, "params": params}, layout, method="backbone"
            )
            real = (layout.document >= 0)[..., None]  # padding sees padding, which nobody reads
            return (jnp.where(real, hidden, 0) ** 3).sum(), jnp.where(real, hidden, 0)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (grad, hidden), (twin_grad, twin_hidden) = run(), run(**changes)
    assert_close(hidden, twin_hidden)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), grad, twin_grad)

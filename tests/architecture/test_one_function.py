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

pytestmark = pytest.mark.early

CONFIGS = {
    "plain": {},
    "all of cca's": dict(
        cca_time0=3, cca_time1=4, attention_bias=True, lm_head_bias=True, tie_word_embeddings=False,
        layer_types=("hybrid", "hybrid_sliding"), sliding_window=4, skip_expert="identity",
    ),
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
    "adapters on drafts": dict(cca_time0=1, cca_time1=1, lora_rank=2, lora_alpha=1.0, lora_rows="drafts"),
    "delay alone": dict(cca_depthwise=False, cca_grouped=False, feed_forward="dense"),
}  # fmt: skip
# Each of these stands in another config, or two of them do: compared by themselves in the slow tests.
PARTS_OF_ANOTHER = (
    "kernels", "no convolution", "biases", "sliding", "identity skip", "gqa, dense", "adapters", "delay alone",
)  # fmt: skip
WIDTH, SIZE, CAPACITY = 16, 4, 32  # one width for all texts and chunks, shorter ones padded: a program a layout

every_config = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in PARTS_OF_ANOTHER else name for name in CONFIGS]
)


@functools.cache
def model_of(name: str):
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", **CONFIGS[name])
        return Zaya(config), random_variables(config)


class Programs:
    """A config's forward passes over two texts, each layout compiled once. Logits are [2, row, vocabulary]."""

    def __init__(self, name: str) -> None:
        model, variables = model_of(name)
        self.config = model.config

        def logits(layout):
            return model.apply(variables, layout).logits

        @jax.jit
        def chunk(cache, tokens, count):
            """Reads `count` of SIZE tokens after the cache: (logits, the cache with them)."""
            out = model.apply(variables, Layout.verify_and_draft(tokens, cache.length, count=count), cache)
            return out.logits, out.cache.commit(count)

        @jax.jit
        def verify(cache, tokens, kept):
            """Verifies SIZE tokens and drafts after each: (logits, the cache with the first `kept`)."""
            anchors = tuple(range(1, SIZE + 1))
            out = model.apply(variables, Layout.verify_and_draft(tokens, cache.length, anchors, SIZE), cache)
            return out.logits, out.cache.commit(kept)

        self.chunk, self.verify = chunk, verify
        self.causal = jax.jit(lambda tokens, document: logits(Layout.causal(tokens, document=document)))
        self.tidar = jax.jit(
            lambda tokens, document, offset: logits(Layout.tidar(tokens, SIZE, offset, document=document))
        )
        # the first `count` tokens and one block after them, without a cache
        self.alone = jax.jit(
            lambda tokens, count: logits(Layout.verify_and_draft(tokens, 0, count[:, None], SIZE, count))
        )
        self.cache = jax.jit(lambda: init_cache(model.config, 2, CAPACITY))()

    def read(self, tokens, counts):
        """A fresh cache into which chunks of the texts were read: (logits of all of them, the cache)."""
        cache, done, found = self.cache, np.zeros(2, int), []
        for count in counts:
            padded = np.zeros((2, SIZE), np.int32)
            for row, n in enumerate(np.broadcast_to(count, 2)):
                padded[row, :n] = tokens[row, done[row] : done[row] + n]
            logits, cache = self.chunk(cache, padded, np.broadcast_to(np.int32(count), 2))
            found.append(logits)
            done = done + count
        return found, cache


programs = functools.cache(Programs)
ONE_TEXT = np.zeros((2, WIDTH), np.int32)  # `document`: each row is one


def texts(name: str, seed: int) -> np.ndarray:
    return random_tokens(model_of(name)[0].config, 2, WIDTH, seed=seed)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@every_config
def test_clean_half_of_a_tidar_row_is_the_ar_model(name, x64):
    run, tokens = programs(name), texts(name, 0)
    document = np.array([[0] * 5 + [1] * 11, [-1] * 2 + [0] * 8 + [-1] * 6], np.int32)
    plain = run.causal(tokens, document)
    for offset in ([0, 2], [2, 0]):
        assert_close(run.tidar(tokens, document, np.int32(offset))[:, :WIDTH], plain)


@every_config
def test_every_branch_is_the_block_drafted_alone_and_the_training_block(name, x64):
    """After 6 and 5 cached tokens, verify 4 and draft after each; the same blocks in a training row, and alone."""
    run, tokens, start = programs(name), texts(name, 1), np.array([6, 5], np.int32)
    _, cache = run.read(tokens, [np.int32([4, 4]), np.int32([2, 1])])
    block = np.stack([tokens[row, start[row] : start[row] + SIZE] for row in range(2)])
    verified, _ = run.verify(cache, block, np.int32([0, 0]))
    plain = run.causal(tokens, ONE_TEXT)
    for row in range(2):
        assert_close(verified[row, :SIZE], plain[row, start[row] : start[row] + SIZE])
    for j in range(1, SIZE + 1):
        first = start + j
        training = run.tidar(tokens, ONE_TEXT, first % SIZE)
        alone = run.alone(tokens, first)  # the prefix right-padded, so that one program serves all lengths
        for row in range(2):
            branch = verified[row, SIZE * j : SIZE * (j + 1)]
            at = WIDTH + (first[row] // SIZE) * SIZE
            assert_close(branch, training[row, at : at + SIZE])
            assert_close(branch, alone[row, WIDTH:])


@every_config
@settings(max_examples=6)
@given(st.lists(st.tuples(st.integers(1, SIZE), st.integers(1, SIZE)), min_size=1, max_size=4))
def test_any_chunking_is_one_pass(name, chunks):
    """Two texts, each in chunks of its own sizes; right-padded to one width, so that one program serves all."""
    with jax.enable_x64(True):
        run, tokens = programs(name), texts(name, 2)
        expected, done = run.causal(tokens, ONE_TEXT), np.zeros(2, int)
        for count, logits in zip(chunks, run.read(tokens, map(np.int32, chunks))[0], strict=True):
            for row, n in enumerate(count):
                assert_close(logits[row, :n], expected[row, done[row] : done[row] + n])
            done += count


@pytest.mark.parametrize("name", ["plain", "all of cca's"])
def test_rejected_rows_leave_no_trace(name, x64):
    """Verify 4, accept k < 4, go on with other tokens: as if the rejected ones had never been there."""
    run, tokens, wrong = programs(name), texts(name, 3), texts(name, 4)
    expected = run.causal(tokens, ONE_TEXT)
    _, cache = run.read(tokens, [4, 1])
    for k in range(1, SIZE):
        mixed = np.concatenate([tokens[:, 5 : 5 + k], wrong[:, k:SIZE]], axis=1)
        _, kept = run.verify(cache, mixed, np.int32([k, k]))
        rest, _ = run.verify(kept, tokens[:, 5 + k : 9 + k], np.int32([0, 0]))
        assert_close(rest[:, :SIZE], expected[:, 5 + k : 9 + k])


@pytest.mark.parametrize("name", ["plain", "all of cca's"])
def test_packed_documents_and_padding_change_nothing(name, x64):
    run, tokens = programs(name), texts(name, 5)  # a text of 5 tokens and one of 7
    alone = run.causal(tokens, np.int32([[0] * 5 + [-1] * 11, [0] * 7 + [-1] * 9]))
    row = np.concatenate([tokens[:1, :2], tokens[:1, :5], tokens[1:, :7], tokens[:1, :2]], axis=1)
    packed = run.causal(np.repeat(row, 2, 0), np.int32([[-1] * 2 + [3] * 5 + [1] * 7 + [-1] * 2] * 2))
    assert_close(packed[0, 2:7], alone[0, :5])
    assert_close(packed[0, 7:14], alone[1, :7])


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
# The ways that say something of their own; the others, and what a head shares with another, are compared in the slow
# tests: a gradient each.
OTHER_WAYS = [
    ("sliding", dict(attention_backend="tiled", query_chunk=8)),
    *((name, WAYS[-1]) for name in ("llama", "adapters on drafts")),
]
TOGETHER = ("plain", dict(remat="full", unroll_layers=True, qkv_backend="fused"))
EVERY_WAY = [(name, way) for name in ("plain", "sliding") for way in WAYS]
EVERY_WAY += [TOGETHER, *((name, WAYS[-1]) for name in HEADS)]


@functools.cache
def hidden_and_gradient(name: str, **changes):
    """Of a loss of the hidden states, over packed rows with padding, which sees padding and which nobody reads."""
    model, variables = model_of(name)
    tokens = random_tokens(model.config, 2, 11, seed=7)
    document = np.array([[0] * 6 + [1] * 5, [-1] + [0] * 10], np.int32)

    @jax.jit
    def run(params):
        layout = Layout.tidar(tokens, 3, 1, document=document)

        def loss(params):
            other = Zaya(model.config, Execution(**changes))
            hidden, _, _ = other.apply({**variables, "params": params}, layout, method="backbone")
            real = (layout.document >= 0)[..., None]
            return (jnp.where(real, hidden, 0) ** 3).sum(), jnp.where(real, hidden, 0)

        return jax.grad(loss, has_aux=True)(params)

    return run(variables["params"])


@pytest.mark.parametrize(
    ("name", "changes"),
    OTHER_WAYS + [pytest.param(*way, marks=pytest.mark.slow) for way in EVERY_WAY if way not in OTHER_WAYS],
)
def test_fast_paths_agree_with_the_default(name, changes, x64):
    """The ways to compute a forward pass against each other, values and gradients."""
    (grad, hidden), (other_grad, other_hidden) = hidden_and_gradient(name), hidden_and_gradient(name, **changes)
    assert_close(hidden, other_hidden)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9), grad, other_grad)

"""The six dispatches compute one thing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.architecture.moe.experts import (  # fmt: skip
    BACKENDS,
    _block_rows,
    _capacity,
    block_padded,
    blocks_of,
    cheapest_cached,
    dense,
    dispatch,
    dispatch_cached,
    gather,
    in_place,
    ragged_dot,
    rounds,
    sequential,
    sequential_vjp,
)


def loop(x, choice, gate_up, down):
    """One token at a time, in numpy."""
    out = np.zeros_like(x)
    for t, e in enumerate(choice):
        if e < len(gate_up):
            gate, up = np.split(x[t] @ gate_up[e], 2)
            out[t] = (gate / (1 + np.exp(-gate)) * up) @ down[e]
    return out


def inputs(tokens, experts, seed=0, hidden=6, inner=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, hidden))
    choice = rng.integers(0, experts + 1, tokens).astype(np.int32)  # the last class is skip
    return x, choice, rng.standard_normal((experts, hidden, 2 * inner)), rng.standard_normal((experts, inner, hidden))


def turn(x, choice, gate_up, down, f=sequential):
    """`sequential` on a stack whose other layer is poison."""
    stacks = (jnp.stack([jnp.full_like(w, jnp.nan), w]) for w in (gate_up, down))
    return f(x, choice, *stacks, jnp.int32(1))


def place(*args):
    """`in_place` on a stack whose other layer is poison."""
    return turn(*args, f=in_place)


@given(st.sampled_from([(1, 9), (7, 1), (33, 9), (70, 4)]), st.integers(0, 10))
def test_every_backend_is_the_loop(sizes, seed):
    tokens, experts = sizes
    with jax.enable_x64(True):
        args = inputs(tokens, experts, seed)
        expected = loop(*args)
        for f in (dense, block_padded, sequential_vjp, ragged_dot, gather, turn, place, rounds):
            np.testing.assert_allclose(jax.jit(f)(*args), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("f", [block_padded, sequential_vjp, ragged_dot, turn, place, rounds])
def test_any_imbalance_is_dropless(f, x64):
    """All tokens on one expert, the last expert, or skip."""
    x, choice, gate_up, down = inputs(200, 4)
    for collapse in (0, 3, 4):
        choice[:] = collapse
        np.testing.assert_allclose(jax.jit(f)(x, choice, gate_up, down), loop(x, choice, gate_up, down), atol=1e-11)


def test_gradients_agree(x64):
    args = inputs(90, 8)

    def gradient(f):
        def loss(x, gate_up, down):
            return (f(x, jnp.asarray(args[1]), gate_up, down) ** 3).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(args[0], args[2], args[3])

    expected = gradient(dense)
    for f in (block_padded, sequential_vjp, ragged_dot, gather):
        for got, want in zip(gradient(f), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("experts", [1, 8, 16])
def test_blocks_are_enough_for_any_choice_and_few_for_many_tokens(experts):
    """Each block copies its expert's weights, so that their number must not grow with the row."""
    for tokens in (1, 17, 1000, 8192, 65_536, 10**6):
        size, blocks = _block_rows(tokens, experts), blocks_of(tokens, experts)
        lone = min(experts, tokens) - 1  # experts with one token each; the last one has the rest
        assert lone + -(-(tokens - lone) // size) <= blocks <= tokens
        even = -(-tokens // experts)
        assert min(tokens, experts) * -(-even // size) <= blocks + experts
        if tokens >= 1024 * experts:
            assert blocks <= 17 * experts and blocks * size <= 1.126 * tokens


def test_ragged_dot_lets_no_gradient_out_of_skip(x64):
    """Skip tokens are multiplied with the last expert; nothing of that may come back."""
    x, choice, gate_up, down = inputs(12, 3)
    choice[:] = np.arange(12) % 4
    gradient = jax.jit(jax.grad(lambda *a: (ragged_dot(a[0], choice, *a[1:]) ** 2).sum(), argnums=(0, 1, 2)))
    skipped = choice == 3
    dx, *dw = gradient(x, gate_up, down)
    assert not np.any(dx[skipped]) and np.all(np.any(dx[~skipped], axis=1))
    louder = np.where(skipped[:, None], 100 * x, x)
    for a, b in zip(dw, gradient(louder, gate_up, down)[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_auto_picks_by_token_count(x64):
    for tokens in (3, 40):
        args = [jnp.asarray(a) for a in inputs(tokens, 4)]
        auto = jax.jit(dispatch, static_argnums=0)("auto", *args)
        np.testing.assert_allclose(auto, jax.jit(BACKENDS["dense"])(*args), atol=1e-11)


@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_dispatch_with_a_cache(tokens, x64):
    args = [jnp.asarray(a) for a in inputs(tokens, 4)]
    cached = jax.jit(functools.partial(turn, f=dispatch_cached))(*args)
    np.testing.assert_allclose(cached, jax.jit(dense)(*args), atol=1e-11)


def test_experts_nobody_chose_are_not_read(x64):
    x, choice, gate_up, down = inputs(40, 8)
    choice = np.where(choice == 5, 2, choice)
    gate_up[5] = np.nan
    assert np.isfinite(jax.jit(turn)(x, choice, gate_up, down)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_and_compute_dtype_may_differ(dtype):
    """Parameters stay as they are stored until a block needs them."""
    x, choice, gate_up, down = (jnp.asarray(a) for a in inputs(20, 4))
    x, gate_up, down = x.astype(dtype), gate_up.astype(jnp.float32), down.astype(jnp.float32)
    got = jax.jit(turn)(x, choice, gate_up, down)
    assert got.dtype == x.dtype
    expected = jax.jit(dense)(x, choice, gate_up.astype(dtype), down.astype(dtype)).astype(jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=0.05, atol=0.05 if dtype == "bfloat16" else 1e-4)


def test_rounds_are_as_many_as_the_fullest_expert_needs(x64):
    """With more tokens than an expert takes at once, and all of them for one expert."""
    args = [jnp.asarray(a) for a in inputs(200, 8)]
    assert _capacity(200, 8) == 64
    for choice in (args[1], jnp.full_like(args[1], 3), jnp.full_like(args[1], 8)):
        got, expected = (jax.jit(f)(args[0], choice, *args[2:]) for f in (rounds, dense))
        np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("f", [place, rounds])
@pytest.mark.parametrize("tokens", [3, 100])
def test_what_a_gpu_takes_rounds_as_the_others_do(f, tokens):
    """bfloat16: both products are rounded once, sums are in float32."""
    args = inputs(tokens, 4, hidden=64, inner=32)
    x, gate_up, down = (jnp.asarray(a, jnp.bfloat16) for a in (args[0], args[2], args[3]))
    got = jax.jit(f)(x, args[1], gate_up, down)
    assert got.dtype == jnp.bfloat16
    expected = loop(
        *(np.asarray(a, np.float64) for a in (x,)), args[1], *(np.asarray(w, np.float64) for w in (gate_up, down))
    )
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=0.02 * np.abs(expected).max())


def test_the_cheapest_form_reads_few_experts_then_each_once_then_copies():
    """One expert a token up to as many as there are; blocks where arithmetic is the cost."""
    forms = [cheapest_cached(tokens, 16) for tokens in (1, 8, 16, 17, 64, 512, 4096, 65_536)]
    assert forms == ["in_place"] * 3 + ["rounds"] * 4 + ["block_padded"]

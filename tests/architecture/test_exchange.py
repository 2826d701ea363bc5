"""Tokens sent to their experts' devices: what gathering all of them gives, gradients too; none is dropped.

XLA's CPU has no ragged all-to-all, so a literal reading of its definition stands in for it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from zaya_jax.architecture.moe import exchange
from zaya_jax.architecture.moe.experts import across, dense

DEVICES, TOKENS, WIDTH, INNER, EXPERTS = 4, 13, 6, 5, 8


def move(x, into, at, to, places, incoming, axis):
    """Of every sender the rows at .. at + to, at `places` of the receiver, as jax.lax.ragged_all_to_all says."""
    me = jax.lax.axis_index(axis)
    xs, ats, tos, placed = (jax.lax.all_gather(z, axis) for z in (x, at, to, places))
    row = jnp.arange(into.shape[0])
    for sender in range(DEVICES):
        index = row - placed[sender, me]
        mine = (index >= 0) & (index < tos[sender, me])
        rows = xs[sender].at[index + ats[sender, me]].get(mode="clip")
        into = jnp.where(mine[:, None], rows, into)
        into = jnp.where(incoming[sender] == tos[sender, me], into, jnp.nan)  # both must know how many
    return into


@pytest.fixture
def literal(monkeypatch):
    monkeypatch.setattr(exchange, "_move", move)


def inputs(kind: str):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(DEVICES, TOKENS, WIDTH))
    choice = {
        "even": rng.integers(0, EXPERTS + 1, (DEVICES, TOKENS)),
        "one device": rng.integers(2, 4, (DEVICES, TOKENS)),
        "nobody": np.full((DEVICES, TOKENS), EXPERTS),
    }[kind].astype(np.int32)
    gate_up = rng.normal(size=(DEVICES, EXPERTS // DEVICES, WIDTH, 2 * INNER))
    return x, choice, gate_up, rng.normal(size=(DEVICES, EXPERTS // DEVICES, INNER, WIDTH))


@pytest.mark.parametrize("kind", ["even", "one device", "nobody"])
def test_sent_tokens_get_what_gathered_ones_get_and_so_do_gradients(kind, literal, x64):
    x, choice, gate_up, down = inputs(kind)
    weight = np.random.default_rng(1).normal(size=x.shape)

    def run(f):
        def own(x, gate_up, down, choice, weight):  # differentiated within the map, as `make_gradients` does
            return (f(("expert",), x, choice, gate_up, down) * weight).sum()

        mapped = jax.vmap(jax.value_and_grad(own, (0, 1, 2)), axis_name="expert")
        return jax.jit(mapped)(x, gate_up, down, choice, weight)

    sent, gathered = run(exchange.exchanged), run(across)
    for a, b in zip(jax.tree.leaves(sent), jax.tree.leaves(gathered), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    flat = (z.reshape(-1, *z.shape[2:]) for z in (x, choice, gate_up, down))
    expected = (dense(*flat).reshape(x.shape) * weight).sum()
    np.testing.assert_allclose(sent[0].sum(), expected, atol=1e-10)


def test_no_more_is_moved_than_the_tokens_that_move_and_their_counts():
    """At 64k slots a device, ZAYA1-8B's width in bfloat16, 8 devices: an eighth of what gathering moves."""
    tokens, width, devices = 65_536, 2048, 8
    gathered, sent = exchange.bytes_moved(devices, tokens, width, 16, 2)
    moving = 2 * tokens * (devices - 1) // devices * width * 2
    assert sent <= 1.01 * moving and gathered > 7.9 * sent


def test_auto_gathers_on_a_cpu():
    x, choice, gate_up, down = (z.reshape(-1, *z.shape[2:]) for z in inputs("even"))
    mesh, split = jax.make_mesh((2,), ("expert",), devices=jax.devices()[:2]), PartitionSpec("expert")
    each = [
        jax.jit(
            jax.shard_map(
                functools.partial(f, ("expert",)), mesh=mesh, in_specs=split, out_specs=split, check_vma=False
            )
        )(x, choice, gate_up, down)
        for f in (exchange.across_by_bytes, across)
    ]
    np.testing.assert_array_equal(*each)

"""Unmasking a block over several forwards, nothing verified: TiDAR's baselines (docs/method.md#published-numbers).

Every forward reads [the finished block before ‖ the block being unmasked], so that one kind of forward both writes a
finished block's keys and values and begins the next. Rows of a batch are at different stages: where the block
before is committed already, its slots are padding. The distribution of what comes out is that of no language model.

A slot that stays hidden is drawn again by the next forward, with noise of its own: which tokens a slot shows must not
depend on which of them its first noise happened to favour. The noise belongs to (row's key, position, number of the
block's forward).
"""

import jax
import jax.numpy as jnp
from flax import struct

from zaya_jax.architecture import MASK, Cache, Layout
from zaya_jax.sampling.core import distributions
from zaya_jax.sampling.core.distributions import at_token
from zaya_jax.sampling.core.random_streams import Purpose
from zaya_jax.sampling.strategies.base import Follow, Method, Progress, Setup, StepResult, is_healthy

Array = jax.Array


class Canvas(struct.PyTreeNode):
    """A block on its way from MASK to text."""

    before: Array  # int32 [B, block_size]: the finished block before it
    pending: Array  # int32 [B]: how many of `before` are not in the cache yet (block_size or 0)
    tokens: Array  # int32 [B, block_size], MASK where not revealed
    log_distribution: Array  # [B, block_size]: of each revealed token, under the distribution that drew it
    forwards: Array  # int32 [B]: that have drawn this block's slots


def read(setup: Setup, tokens: Array, count: Array, cache: Cache) -> tuple[Array, Cache]:
    """Reads prompts and a block of MASK after them; returns the block's logits, and the cache with the prompts."""
    layout = Layout.verify_and_draft(tokens, cache.length, count[:, None], setup.plan.block_size, count)
    hidden, cache = setup.forward(layout, cache)
    return setup.head(hidden[:, layout.clean_size :]), cache.commit(count)


def begin(setup: Setup, logits: Array, cache: Cache, progress: Progress) -> tuple[StepResult, Canvas, Cache]:
    """Reveals the first slots."""
    batch, size, _ = logits.shape
    none = jnp.zeros((batch, size), jnp.int32)
    log_distribution = jnp.zeros((batch, size), jnp.promote_types(logits.dtype, jnp.float32))
    empty = Canvas(none, none[:, 0], none + MASK, log_distribution, none[:, 0])
    return *_reveal(setup, logits, empty, cache.length), cache


def step(setup: Setup, canvas: Canvas, cache: Cache, active: Array, progress: Progress) -> tuple[StepResult, Follow]:
    """One forward: writes the finished block before, reveals more of this one."""
    size = setup.plan.block_size
    layout = Layout.verify_and_draft(canvas.before, cache.length, canvas.pending[:, None], size, canvas.pending)
    layout = layout.replace(tokens=jnp.concatenate([canvas.before, canvas.tokens], axis=1))
    hidden, pending = setup.forward(layout, cache)
    cache = pending.commit(jnp.where(active, canvas.pending, 0))
    result, following = _reveal(setup, setup.head(hidden[:, size:]), canvas, cache.length)
    return result, lambda active, kept: (following, cache)


def _reveal(setup: Setup, logits: Array, canvas: Canvas, first: Array) -> tuple[StepResult, Canvas]:
    """Draws every hidden slot, keeps some; a block that is whole is produced and the next one begins."""
    size = setup.plan.block_size
    position = first[:, None] + jnp.arange(size, dtype=jnp.int32)
    distribution = distributions.log_distribution(logits, setup.options.processing)
    again = jnp.broadcast_to(canvas.forwards[:, None], position.shape)
    drawn = setup.noise.draw(Purpose.DRAFT, position, distribution, setup.options.processing.warm, again)
    chosen = _chosen(setup, logits, drawn, canvas.tokens == MASK)
    tokens = jnp.where(chosen, drawn, canvas.tokens)
    log_of = jnp.where(chosen, at_token(distribution, drawn), canvas.log_distribution)
    whole = (tokens != MASK).all(axis=1)
    result = StepResult(tokens, log_of, jnp.where(whole, size, 0).astype(jnp.int32), is_healthy(logits))
    return result, Canvas(
        before=jnp.where(whole[:, None], tokens, canvas.before),
        pending=result.amount,
        tokens=jnp.where(whole[:, None], MASK, tokens),
        log_distribution=log_of,
        forwards=jnp.where(whole, 0, canvas.forwards + 1),
    )


def _chosen(setup: Setup, logits: Array, drawn: Array, hidden: Array) -> Array:
    """Which hidden slots show their token now, bool [B, block_size]; at least one if any is hidden."""
    reveal = setup.target.reveal
    assert reveal is not None  # a target of this mode
    order, sure = reveal(logits, drawn, hidden, setup.options.threshold)
    order = jnp.where(hidden, order, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-order, axis=1), axis=1)
    return hidden & (sure | (rank < setup.options.reveal))


BLOCK_DIFFUSION = Method(read, begin, step, lambda canvas: (canvas.tokens, canvas.tokens != MASK))

"""Verify the block, draw the next token and draft the next block, in one forward (TiDAR; docs/method.md#one-step).

Between steps L tokens are committed in the cache; one more is pending (drawn already: its distribution was known a step
earlier) and after it stand drafts, drawn from stored logits. A forward reads [pending token, drafts ‖ a block after
each anchor]. Autoregressive decoding is the same step with a block of one and nothing drafted.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import Cache, Layout
from zaya_jax.sampling.core.distributions import at_token
from zaya_jax.sampling.core.random_streams import Purpose
from zaya_jax.sampling.drafters.ngram import NGRAM, Text
from zaya_jax.sampling.strategies.base import (  # fmt: skip
    Drafted,
    Follow,
    Method,
    Plan,
    Progress,
    Setup,
    StepResult,
    draft,
    is_healthy,
    target_distribution,
    verify,
    with_next,
    with_tested,
)

Array = jax.Array


class Proposal(struct.PyTreeNode):
    """The block a step will verify."""

    pending_token: Array  # int32 [B]
    drafted: Drafted  # block_size - 1 of them

    @property
    def block(self) -> Array:
        """int32 [B, block_size]."""
        return jnp.concatenate([self.pending_token[:, None], self.drafted.tokens], axis=1)


def read(setup: Setup, tokens: Array, count: Array, cache: Cache) -> tuple[tuple[Array, Array], Cache]:
    """Reads prompts and drafts after them.

    Args:
      tokens: int32 [prompts, width], right-padded.
      count: int32 [prompts], their lengths (at least 1).
      cache: empty, or what an earlier turn committed.

    Returns:
      ((the target's logits after the prompt [prompts, 1, V], the mask tokens' hidden states), cache with the
      prompt committed). A block is drafted after the prompt whatever the anchors are, unless there are none.
    """
    plan = setup.plan
    anchors = count[:, None] if plan.anchors else None
    layout = Layout.verify_and_draft(tokens, cache.length, anchors, plan.block_size, count)
    hidden, cache = setup.forward(layout, cache)
    logits = setup.head(jnp.take_along_axis(hidden, (count - 1)[:, None, None], axis=1))
    slots = hidden[:, layout.clean_size :]
    committed = _noted(cache.commit(count), tokens, cache.length, count)
    return (with_next(setup, logits, slots), slots), committed


def begin(
    setup: Setup, readout: tuple[Array, Array], cache: Cache, progress: Progress
) -> tuple[StepResult, Proposal, Cache]:
    """Draws the first token, which is then pending, and its drafts."""
    logits, slots = readout
    batch, size = logits.shape[0], setup.plan.block_size
    result, pending_token = first_pending(setup, logits, cache, progress)
    exists = jnp.full((batch, size - 1), bool(setup.plan.anchors))
    slots = slots[:, 1:] if setup.plan.anchors else jnp.zeros((batch, size - 1, slots.shape[-1]), slots.dtype)
    drafted = draft(setup, setup.draft_head(slots), exists, cache.length + 1)
    return result, _proposal(setup, pending_token, drafted, cache), cache


def _proposal(setup: Setup, pending_token: Array, drafted: Drafted, cache: Cache) -> Proposal:
    """With what the text itself suggests in place of the drafts, where its last tokens occurred before."""
    if setup.plan.lookup:
        assert cache.drafter is not None  # `with_drafter`
        text: Text = cache.drafter[NGRAM.name]
        history, length, least = setup.drafter_variables.get("history"), drafted.tokens.shape[1], setup.plan.lookup
        drafter = dataclasses.replace(NGRAM, longest=max(NGRAM.longest, least))
        tokens, fixed = drafter.look_up(text, pending_token, cache.length, history, length, least)
        tokens = jnp.where(fixed, tokens, drafted.tokens)
        drafted = drafted.replace(tokens=tokens, exists=drafted.exists | fixed, fixed=fixed)
    return Proposal(pending_token, drafted)


def _noted(cache: Cache, tokens: Array, first: Array, count: Array) -> Cache:
    """The cache, whose text for look-ups has tokens[:, :count] more; as it was where nothing is looked up."""
    if not cache.drafter:
        return cache
    return cache.replace(drafter={NGRAM.name: cache.drafter[NGRAM.name].write(tokens, first, count)})


def first_pending(setup: Setup, logits: Array, cache: Cache, progress: Progress) -> tuple[StepResult, Array]:
    """The first new token from the target's logits after the prompt [B, 1, V]."""
    distribution = target_distribution(setup, logits, jnp.zeros((logits.shape[0], 0), jnp.int32), progress)[:, 0]
    pending_token = setup.noise.draw(Purpose.PENDING, cache.length, distribution, setup.options.processing.warm)
    one = jnp.ones_like(pending_token)
    return StepResult(
        pending_token[:, None], at_token(distribution, pending_token)[:, None], one, is_healthy(logits)
    ), pending_token


def step(
    setup: Setup, proposal: Proposal, cache: Cache, active: Array, progress: Progress
) -> tuple[StepResult, Follow]:
    """Verifies a proposal; `follow` commits what was kept and draws the next one. One forward pass."""
    plan, size = setup.plan, setup.plan.block_size
    layout = Layout.verify_and_draft(proposal.block, cache.length, plan.anchors or None, size)
    hidden, pending = setup.forward(layout, cache)
    # Which rows draft next is known after verification. With one block they are all of its own, and the head, a large
    # part of a small model's bytes, is read once for both; with more it is read twice, for far fewer rows.
    at_once = len(plan.anchors) == 1 and setup.vocabulary is None
    read = setup.head(hidden if at_once else hidden[:, :size])
    logits = with_tested(setup, read[:, :size], proposal.drafted)
    logits = with_next(setup, logits, hidden[:, size:])  # with all anchors there is a block after each block token
    verdict = verify(setup, logits, proposal.drafted, cache.length + 1, progress)

    def follow(active: Array, kept: Array) -> tuple[Proposal, Cache]:
        # The pending token before the block was kept a step ago, the one after it is not in the forward.
        count = jnp.where(active, jnp.minimum(verdict.accepted, kept) + 1, 0)
        committed = _noted(pending.commit(count), proposal.block, cache.length, count)
        row, exists = _next_slots(verdict.accepted + 1, plan)
        slots = jnp.take_along_axis(read if at_once else hidden, row[:, :, None], axis=1)
        slots = slots if at_once else setup.draft_head(slots)
        drafted = draft(setup, slots, exists, committed.length + 1)
        return _proposal(setup, verdict.pending_token, drafted, committed), committed

    return verdict.result, follow


def _next_slots(accepted: Array, plan: Plan) -> tuple[Array, Array]:
    """Rows of the forward that drafted the next block's slots 1 .. block_size - 1, and whether there was such a row.

    `accepted` (1 .. block_size) counts the pending token. After an accepted length without an anchor of its own, the
    nearest lower anchor's block already covers the next positions with its later slots; the last ones are then missing.
    Both int32/bool [batch, block_size - 1].
    """
    size = plan.block_size
    rows = np.zeros((size + 1, size - 1), np.int32)
    exists = np.zeros((size + 1, size - 1), bool)
    for k in range(1, size + 1):
        lower = [i for i, a in enumerate(plan.anchors) if a <= k]
        if not lower:
            continue
        late = k - plan.anchors[lower[-1]]
        slot = late + np.arange(1, size)
        exists[k] = slot < size
        rows[k] = size + lower[-1] * size + np.minimum(slot, size - 1)
    return jnp.asarray(rows)[accepted], jnp.asarray(exists)[accepted]


SINGLE_PASS = Method(read, begin, step, lambda proposal: (proposal.drafted.tokens, proposal.drafted.exists))

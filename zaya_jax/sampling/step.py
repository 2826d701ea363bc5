"""One sampling step: verify the block, settle the next token, draw the next block. One forward pass.

State between steps (tidar.md section 2.2): L tokens are committed in the cache; `block[0]` is settled (its law was
known a step earlier) and `block[1:]` are drafts of the positions after it, drawn from stored logits. Autoregressive
decoding is the same step with a block of one and nothing drafted.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import Cache, Layout, Zaya
from zaya_jax.sampling.laws import draw, log_acceptance, log_law, log_residual, mix
from zaya_jax.sampling.noise import Noise, Purpose

Array = jax.Array
Pass = tuple[Array, Cache, Array]  # what `Zaya.backbone` returns when it is given a cache


class Plan(NamedTuple):
    """The static part of a SamplerConfig (hashable: it keys the compilation)."""

    block_size: int  # clean rows verified, and slots a drafted block
    anchors: tuple[int, ...]
    target: str


class Knobs(NamedTuple):
    """The run-time part, float32 scalars; changing them compiles nothing."""

    temperature: Array
    draft_temperature: Array
    beta: Array


class Proposal(struct.PyTreeNode):
    """The block a step will verify."""

    block: Array  # int32 [batch, block_size]: settled token, then drafts
    logits: Array  # [batch, block_size - 1, vocab]: what drew block[:, 1:]
    drafted: Array  # bool [batch, block_size - 1]: False where no slot was left to draw from


class Verdict(NamedTuple):
    """What a step found out."""

    accepted: Array  # int32 [batch], 1 .. block_size: block tokens that are now committed, the settled one included
    settled: Array  # int32 [batch]: the token after them
    produced: Array  # int32 [batch, block_size]: tokens this forward decided: block[1:accepted], then settled
    log_target: Array  # [batch, block_size]: their log-probabilities under the target
    log_accept: Array  # [batch, block_size - 1]: log acceptance probability of each draft, were it tested
    log_settle: Array  # [batch, vocab]: the law `settled` was drawn from, not normalised


def prefill(model: Zaya, variables, tokens: Array, count: Array, cache: Cache, plan: Plan, knobs: Knobs, noise: Noise):
    """Reads the prompt, settles the first token and drafts behind it.

    Args:
      tokens: int32 [batch, width], right-padded prompts.
      count: int32 [batch], their lengths (at least 1).
      cache: empty, or what an earlier turn committed.

    Returns:
      (Proposal, cache with the prompt committed, log-probability [batch] of the settled token under the target).
    """
    anchors = count[:, None] if plan.anchors else None
    layout = Layout.verify_and_draft(tokens, cache.length, anchors, plan.block_size, count)
    hidden, cache, _ = cast(Pass, model.apply(variables, layout, cache, method="backbone"))
    cache = cache.commit(count)
    last = jnp.take_along_axis(hidden, (count - 1)[:, None, None], axis=1)
    logits = _head(model, variables, last)[:, 0]
    slots = hidden[:, layout.clean_size :]
    if plan.target == "mix_fresh":
        logits = mix(logits, _head(model, variables, slots[:, :1])[:, 0], knobs.beta)
    law = log_law(logits, knobs.temperature)
    settled = draw(law, noise.gumbel(Purpose.SETTLE, cache.length, law.shape[-1:], law.dtype))
    drafted = jnp.full((tokens.shape[0], plan.block_size - 1), bool(plan.anchors))
    slots = slots[:, 1:] if plan.anchors else jnp.zeros((tokens.shape[0], plan.block_size - 1, hidden.shape[-1]))
    proposal = _propose(model, variables, settled, slots, drafted, cache.length, knobs, noise)
    return proposal, cache, jnp.take_along_axis(law, settled[:, None], axis=1)[:, 0]


def step(
    model: Zaya, variables, proposal: Proposal, cache: Cache, active: Array, plan: Plan, knobs: Knobs, noise: Noise
):
    """Verifies a proposal and draws the next one, in one forward pass.

    Args:
      active: bool [batch]; rows that are finished compute along but commit nothing.

    Returns:
      (next Proposal, cache, Verdict).
    """
    size = plan.block_size
    layout = Layout.verify_and_draft(proposal.block, cache.length, plan.anchors or None, size)
    hidden, pending, _ = cast(Pass, model.apply(variables, layout, cache, method="backbone"))
    log_p, log_q = _laws(model, variables, hidden, proposal, plan, knobs)
    verdict = _verify(proposal, log_p, log_q, cache.length, noise)
    cache = pending.commit(jnp.where(active, verdict.accepted, 0))

    row, drafted = _next_slots(verdict.accepted, plan)
    slots = jnp.take_along_axis(hidden, row[:, :, None], axis=1)
    following = _propose(model, variables, verdict.settled, slots, drafted, cache.length, knobs, noise)
    return following, cache, verdict


def _laws(model, variables, hidden, proposal: Proposal, plan: Plan, knobs: Knobs) -> tuple[Array, Array]:
    """The target's and the drafts' laws.

    Returns:
      (after each block token [batch, block_size, vocab], of each draft [batch, block_size - 1, vocab]).
    """
    size = plan.block_size
    logits = _head(model, variables, hidden[:, :size])
    drafted = proposal.drafted[..., None]
    if plan.target == "mix_stale":
        tested = mix(logits[:, :-1], proposal.logits, knobs.beta)
        tested = jnp.where(drafted, tested, logits[:, :-1])
        logits = jnp.concatenate([tested, logits[:, -1:].astype(tested.dtype)], axis=1)
    elif plan.target == "mix_fresh":
        fresh = _head(model, variables, hidden[:, size::size])  # first slot of every block, one behind each block token
        logits = mix(logits, fresh, knobs.beta)
    log_q = jnp.where(drafted, log_law(proposal.logits, knobs.draft_temperature), -jnp.inf)
    return log_law(logits, knobs.temperature), log_q


def _verify(proposal: Proposal, log_p: Array, log_q: Array, length: Array, noise: Noise) -> Verdict:
    """Accepts a run of drafts and settles the token behind it."""
    batch, size, vocab = log_p.shape
    drafts = proposal.block[:, 1:]
    position = length[:, None] + jnp.arange(1, size, dtype=jnp.int32)
    log_u = noise.log_uniform(Purpose.ACCEPT, position, log_p.dtype)
    log_accept = jnp.where(proposal.drafted, log_acceptance(log_p[:, :-1], log_q, drafts), -jnp.inf)
    survives = (log_u <= log_accept) & proposal.drafted
    accepted = 1 + jnp.cumprod(survives, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)

    # Behind the whole block nothing was drafted: q = 0 there, and the residual is p itself.
    log_q_after = jnp.concatenate([log_q, jnp.full((batch, 1, vocab), -jnp.inf, log_q.dtype)], axis=1)
    at = (accepted - 1)[:, None, None]
    p, q = (jnp.take_along_axis(x, at, axis=1)[:, 0] for x in (log_p, log_q_after))
    law = log_residual(p, q)
    settled = draw(law, noise.gumbel(Purpose.SETTLE, length + accepted, (vocab,), law.dtype))

    index = jnp.arange(size, dtype=jnp.int32)
    shifted = jnp.concatenate([drafts, settled[:, None]], axis=1)
    produced = jnp.where(index == (accepted - 1)[:, None], settled[:, None], shifted)
    log_target = jnp.take_along_axis(log_p, produced[..., None], axis=2)[..., 0]
    return Verdict(accepted, settled, produced, log_target, log_accept, law)


def _next_slots(accepted: Array, plan: Plan) -> tuple[Array, Array]:
    """Rows of the forward that drafted the next block's slots 1 .. block_size - 1, and whether there was such a row.

    Behind an accept length without an anchor of its own, the nearest lower anchor's block already covers the next
    positions with its later slots; the last ones are then missing. Both int32/bool [batch, block_size - 1].
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


def _propose(model, variables, settled, slots, drafted, length, knobs: Knobs, noise: Noise) -> Proposal:
    """Draws drafts from the hidden states of the chosen draft slots [batch, block_size - 1, hidden]."""
    logits = _head(model, variables, slots)
    position = length[:, None] + jnp.arange(1, 1 + slots.shape[1], dtype=jnp.int32)
    law = log_law(logits, knobs.draft_temperature)
    drafts = draw(law, noise.gumbel(Purpose.DRAFT, position, law.shape[-1:], law.dtype))
    return Proposal(jnp.concatenate([settled[:, None], drafts], axis=1), logits, drafted)


def _head(model: Zaya, variables, hidden: Array) -> Array:
    return cast(Array, model.apply(variables, hidden, method="head"))

"""A drafter proposes, one causal forward of the target verifies, the drafter observes what became text.

Between steps L tokens are committed in the cache, where the drafter's state lies beside the target's; one more is
pending. A step's forward reads [pending token, drafts]: a chain, or a tree. What is committed ends where the row's text
ends, or before its newest token, so the state of a session is always that of its text.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Cache, Layout
from zaya_jax.sampling.drafters.base import Drafter, Proposal, Rows, find_drafter
from zaya_jax.sampling.strategies.base import (
    Drafted,
    Follow,
    Method,
    Plan,
    Progress,
    Setup,
    StepResult,
    verify,
)
from zaya_jax.sampling.strategies.single_pass import first_pending
from zaya_jax.sampling.strategies.two_pass import drafts
from zaya_jax.sampling.strategies.walk import walk

Array = jax.Array


class Seen(NamedTuple):
    """What a forward of the target shows of its rows, [B, n, ...]."""

    tokens: Array
    hidden: Array
    taps: Array | None

    def along(self, path: Array) -> "Seen":
        """The rows at int32 [B, n]."""

        def at(x: Array) -> Array:
            return jnp.take_along_axis(x, path.reshape(*path.shape, *(1,) * (x.ndim - 2)), axis=1)

        return jax.tree.map(at, self)


def read(setup: Setup, tokens: Array, count: Array, cache: Cache) -> tuple[tuple[Array, Seen], Cache]:
    """Reads prompts; the drafter observes them but for their last token, whose successor is not drawn yet.

    Returns:
      ((the target's logits after the prompt [prompts, 1, V], its last token), cache with the prompt).
    """
    seen, pending = _forward(setup, Layout.verify_and_draft(tokens, cache.length, None, 0, count), cache)
    last = seen.along((count - 1)[:, None])
    following = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
    committed = _observe(setup, pending.commit(count), seen, following, cache.length, count - 1)
    return (setup.head(last.hidden), last), committed


def begin(
    setup: Setup, readout: tuple[Array, Seen], cache: Cache, progress: Progress
) -> tuple[StepResult, Array, Cache]:
    """Draws the first token, which is then pending."""
    logits, last = readout
    result, pending_token = first_pending(setup, logits, cache, progress)
    one = jnp.ones_like(pending_token)
    return result, pending_token, _observe(setup, cache, last, pending_token[:, None], cache.length - 1, one)


def step(
    setup: Setup, pending_token: Array, cache: Cache, active: Array, progress: Progress
) -> tuple[StepResult, Follow]:
    """Proposes and verifies; `follow` commits what was kept and shows it to the drafter."""
    assert cache.drafter is not None  # the loop's `begin` gave it
    drafter = find_drafter(setup.plan.drafter)
    proposal = drafter.propose(setup, cache.drafter[drafter.name], pending_token, cache)
    _check(setup, drafter, proposal)
    tokens = jnp.concatenate([pending_token[:, None], proposal.tokens], axis=1)
    if proposal.parent is None:
        layout = Layout.verify_and_draft(tokens, cache.length)
    else:
        layout = Layout.verify_tree(tokens, proposal.parent, cache.length)
    seen, pending = _forward(setup, layout, cache)
    logits, first, path = setup.head(seen.hidden), cache.length + 1, None
    if proposal.logits is None:
        verdict, path = walk(setup, logits, proposal, first, progress)
    else:
        drafted = Drafted(proposal.tokens, proposal.tokens, proposal.logits, proposal.exists)
        verdict = verify(setup, logits, drafted, first, progress)

    def follow(active: Array, kept: Array) -> tuple[Array, Cache]:
        # Where a row ends before all that was produced, the token after its newest one is not text: nor is that one
        # committed, then.
        count = jnp.where(active, jnp.minimum(verdict.accepted + 1, kept), 0)
        rows, straight = (seen, pending) if path is None else (seen.along(path), pending.along(path))
        committed = straight.commit(count)
        return verdict.pending_token, _observe(setup, committed, rows, verdict.result.produced, cache.length, count)

    return verdict.result, follow


def method(plan: Plan) -> Method:
    """Of a plan whose mode is "drafter"."""
    drafter = find_drafter(plan.drafter)
    return Method(read, begin, step, drafts, 1 + len(drafter.target_forwards(plan.draft_length)))


def with_drafter(setup: Setup, cache: Cache) -> Cache:
    """The cache with the state of the plan's drafter: a session's, or that of an empty text where nothing was read."""
    if not setup.plan.observer:
        return cache
    drafter, empty = find_drafter(setup.plan.observer), cache.length == 0
    fresh = cache.replace(drafter={drafter.name: drafter.init(setup, cache.length.shape[0], cache.capacity)})
    if cache.drafter is None:
        return fresh

    def chosen(axis: int, new: Array, old: Array) -> Array:
        return jnp.where(empty.reshape((1,) * axis + (-1,) + (1,) * (new.ndim - axis - 1)), new, old)

    return fresh.over_batch(chosen, cache)


def _forward(setup: Setup, layout: Layout, cache: Cache) -> tuple[Seen, Cache]:
    """(what the drafter may need of the layout's rows, pending cache)."""
    taps = find_drafter(setup.plan.drafter).needs(setup.model.config).taps
    if not taps:
        hidden, pending = setup.forward(layout, cache)
        return Seen(layout.tokens, hidden, None), pending
    hidden, streams, pending = setup.forward_with_taps(layout, cache, taps)
    return Seen(layout.tokens, hidden, streams), pending


def _observe(setup: Setup, cache: Cache, seen: Seen, following: Array, first: Array, count: Array) -> Cache:
    """The cache whose drafter has observed `count` of these rows more."""
    drafter = find_drafter(setup.plan.drafter)
    assert cache.drafter is not None  # `with_drafter`
    hidden = seen.hidden if drafter.needs(setup.model.config).hidden else None
    rows = Rows(seen.tokens, following, first, count, hidden, seen.taps)
    return cache.replace(drafter={drafter.name: drafter.observe(setup, cache.drafter[drafter.name], rows)})


def _check(setup: Setup, drafter: Drafter, proposal: Proposal) -> None:
    """A drafter's mistake, found while it is traced."""
    wanted, tree = setup.plan.block_size - 1, proposal.parent is not None
    if (
        proposal.tokens.shape[1] != wanted
        or (tree and proposal.logits is not None)
        or tree != bool(setup.plan.tree_size)
    ):
        raise TypeError(
            f"drafter {drafter.name!r} proposed {proposal.tokens.shape[1]} tokens (a tree: {tree}, with logits: "
            f"{proposal.logits is not None}), may be {wanted} (a tree, without logits: {bool(setup.plan.tree_size)})"
        )

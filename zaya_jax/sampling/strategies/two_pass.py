"""Draft in one forward, verify in the next (docs/method.md#one-step).

The drafting forward reads [pending token ‖ one block after it]: unlike in single_pass the drafts know the pending
token, and the block's every slot is a draft. It also yields the distribution after the pending token, so the verifying
forward reads the drafts alone.
"""

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Cache, Layout
from zaya_jax.sampling.strategies import single_pass
from zaya_jax.sampling.strategies.base import Follow, Method, Progress, Setup, StepResult, draft, verify, with_tested

Array = jax.Array


def begin(
    setup: Setup, readout: tuple[Array, Array], cache: Cache, progress: Progress
) -> tuple[StepResult, Array, Cache]:
    """Draws the first token, which is then pending."""
    return *single_pass.first_pending(setup, readout[0], cache, progress), cache


def step(
    setup: Setup, pending_token: Array, cache: Cache, active: Array, progress: Progress
) -> tuple[StepResult, Follow]:
    """Two forwards: the first commits the pending token; `follow` commits the drafts that were kept."""
    size = setup.plan.block_size
    hidden, pending = setup.forward(Layout.verify_and_draft(pending_token[:, None], cache.length, (1,), size), cache)
    cache = pending.commit(active.astype(jnp.int32))
    if setup.vocabulary is None:
        logits = setup.head(hidden)
        slots = logits[:, 1:]
    else:
        logits, slots = setup.head(hidden[:, :1]), setup.draft_head(hidden[:, 1:])
    drafted = draft(setup, slots, jnp.ones((pending_token.shape[0], size), bool), cache.length)

    hidden, pending = setup.forward(Layout.verify_and_draft(drafted.tokens, cache.length), cache)
    logits = jnp.concatenate([logits[:, :1], setup.head(hidden)], axis=1)
    verdict = verify(setup, with_tested(setup, logits, drafted), drafted, cache.length, progress)

    def follow(active: Array, kept: Array) -> tuple[Array, Cache]:
        return verdict.pending_token, pending.commit(jnp.where(active, jnp.minimum(verdict.accepted, kept), 0))

    return verdict.result, follow


def drafts(pending_token: Array) -> tuple[Array, Array]:
    """None: drafts live within a step."""
    nothing = jnp.zeros((pending_token.shape[0], 0), jnp.int32)
    return nothing, nothing.astype(bool)


TWO_PASS = Method(single_pass.read, begin, step, drafts, forwards=2)

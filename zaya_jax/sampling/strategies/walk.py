"""Verification of drafts that are fixed given the text, a chain's or a tree's: sample at the node, follow the sample.

The token after each row is drawn from the target's own distribution there, with the noise that a plain autoregressive
step has at that position. Where the draw is one of the row's children, that child is text and the walk stands on it;
where it is not, the draw is the pending token. So what comes out has the target's distribution whatever was proposed,
and with the same seed it is the autoregressive sample itself, token for token.
"""

import jax
import jax.numpy as jnp

from zaya_jax.architecture.constructors import ancestors
from zaya_jax.sampling.core.distributions import at_token
from zaya_jax.sampling.core.random_streams import Purpose
from zaya_jax.sampling.drafters.base import Proposal
from zaya_jax.sampling.strategies.base import Progress, Setup, StepResult, Verdict, is_healthy, target_distribution

Array = jax.Array


def walk(
    setup: Setup, logits: Array, proposal: Proposal, first: Array, progress: Progress
) -> tuple[Verdict, Array | None]:
    """Accepts drafts and finds the token after them.

    Args:
      logits: the target's [B, 1 + m, V], after the pending token and each draft.
      first: int32 [B], position of the first draft.
      progress: before it.

    Returns:
      (verdict, path: int32 [B, draft_length + 1], the rows that were walked, the last one repeated; None for a chain,
      whose rows they are in order).
    """
    tokens, exists, parent = proposal.tokens, proposal.exists, proposal.parent
    above = None if parent is None else ancestors(parent)
    log_p = target_distribution(setup, logits, tokens, progress, above)
    # One noise for all rows of a depth: only one of them is walked on.
    position = first[:, None] + jnp.arange(setup.plan.draft_length + 1, dtype=jnp.int32)
    depth = None if above is None else jnp.minimum(above.sum(-1, dtype=jnp.int32) - 1, setup.plan.draft_length)
    drawn = setup.noise.draw(Purpose.PENDING, position, log_p, setup.options.processing.warm, at=depth)
    log_drawn = at_token(log_p, drawn)
    if parent is None:
        path = None
        accepted = jnp.cumprod((drawn[:, :-1] == tokens) & exists, axis=1, dtype=jnp.int32).sum(1, dtype=jnp.int32)
    else:
        path, accepted = _path(drawn, tokens, exists, parent, setup.plan.draft_length)
        drawn, log_drawn = (jnp.take_along_axis(x, path, axis=1) for x in (drawn, log_drawn))
    result = StepResult(drawn, log_drawn, accepted + 1, is_healthy(logits))
    return Verdict(accepted, jnp.take_along_axis(drawn, accepted[:, None], axis=1)[:, 0], result), path


def _path(drawn: Array, tokens: Array, exists: Array, parent: Array, depth: int) -> tuple[Array, Array]:
    """(rows walked [B, depth + 1], edges walked [B])."""
    rows = jnp.arange(drawn.shape[1], dtype=jnp.int32)
    hit = (
        (parent[:, None] == rows[:, None]) & (tokens[:, None] == drawn[..., None]) & exists[:, None]
    )  # [B, row, draft]
    child = jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1).astype(jnp.int32) + 1, 0)  # 0: the walk ends
    at = jnp.zeros(drawn.shape[:1], jnp.int32)
    path, going, accepted = [at], at == 0, at
    for _ in range(depth):
        following = jnp.take_along_axis(child, at[:, None], axis=1)[:, 0]
        going &= following > 0
        at = jnp.where(going, following, at)
        accepted += going
        path.append(at)
    return jnp.stack(path, axis=1), accepted

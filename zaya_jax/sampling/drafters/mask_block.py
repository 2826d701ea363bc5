"""The model drafts for itself: a block of mask tokens after the pending one, in a forward before the verifying one.

TiDAR's drafts as a drafter: two forwards a step, as in mode "two_pass", which saves a row and verifies a chain alone.
Here the block's marginals may also become a tree (`trees`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Cache, Layout
from zaya_jax.sampling.core.distributions import log_distribution
from zaya_jax.sampling.drafters.base import Drafter, Proposal, Rows, register_drafter
from zaya_jax.sampling.drafters.ngram import Text
from zaya_jax.sampling.drafters.trees import Prior, best_first
from zaya_jax.sampling.strategies.base import Setup, draft

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MaskBlock(Drafter):
    """See the file."""

    masks = True
    trees = True
    ngrams = True

    def target_forwards(self, draft_length: int) -> tuple[int, ...]:
        return (1 + draft_length,)

    def init(self, setup: Setup, batch: int, capacity: int) -> Text:
        return Text(jnp.zeros((batch, capacity), jnp.int32))

    def observe(self, setup: Setup, state: Text, rows: Rows) -> Text:
        return state.write(rows.tokens, rows.first, rows.count)

    def propose(self, setup: Setup, state: Text, pending_token: Array, cache: Cache) -> Proposal:
        plan, one = setup.plan, jnp.ones_like(pending_token)
        layout = Layout.verify_and_draft(pending_token[:, None], cache.length, (1,), plan.draft_length)
        hidden, _ = setup.forward(layout, cache)
        logits = setup.head(hidden[:, 1:])
        if not plan.tree_size:
            exists = jnp.ones(logits.shape[:2], bool)
            drafted = draft(setup, logits, exists, cache.length + 1)
            return Proposal(drafted.tokens, exists, logits)
        text = state.write(pending_token[:, None], cache.length, one).tokens
        log_q = log_distribution(logits, setup.options.draft_processing)
        return best_first(log_q, plan.tree_size, Prior(text, cache.length + 1, setup.options.ngram_weight))


register_drafter(
    MaskBlock("mask_block", "Drafts by the model's own mask tokens, in a forward before the one that verifies them.")
)

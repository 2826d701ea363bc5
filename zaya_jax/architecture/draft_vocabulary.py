"""Which tokens a model drafts, where they are fewer than its vocabulary: a head of fewer rows, for the drafts alone.

The head reads a matrix as large as the vocabulary. Of a small model it is a large part (113 of SmolLM2-135M's 538 MB),
and a step that verifies and drafts would read it twice. A token that is never drafted can still be sampled: it is then
drawn after a rejection, at the price of that block's remaining drafts and never of exactness, since a draft's
probability q is 0 for it and stays what drew the draft (docs/method.md#why-it-is-lossless). The idea is FR-Spec's
(arXiv 2502.14856), which takes the most frequent tokens; EAGLE-3 (arXiv 2503.01840) drafts from 32,000 likewise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.precision import on_rows
from zaya_jax.errors import UserError

Array = jax.Array
COLLECTION = "draft_vocabulary"  # of a model's variables: {"tokens": int32 [K]}


class DraftVocabulary(struct.PyTreeNode):
    """K tokens, in the order of their ids, and their part of the head."""

    tokens: Array  # int32 [K]
    rows: Array  # [K, M]
    bias: Array | None  # [K]

    def logits(self, hidden: Array) -> Array:
        """Hidden states [..., M] -> logits [..., K], in at least float32."""
        logits = on_rows(hidden, self.rows.astype(hidden.dtype))
        return logits if self.bias is None else logits + self.bias.astype(logits.dtype)

    def whole(self, distribution: Array, vocab_size: int) -> Array:
        """Log-probabilities [..., K] over all tokens [..., V]: -inf for those that are not drafted."""
        nothing = jnp.full((*distribution.shape[:-1], vocab_size), -jnp.inf, distribution.dtype)
        return nothing.at[..., self.tokens].set(distribution, unique_indices=True, indices_are_sorted=True)


def with_draft_vocabulary(config: ZayaConfig, variables: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    """A model's variables so that it drafts `tokens` alone, whatever their order.

    Raises:
      UserError: none, one twice, or one that the model cannot write.
    """
    ids = np.array(tokens)
    if not ids.size or ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"draft_vocabulary: got {tokens!r:.60}, may be a list of token ids")
    ids = np.sort(ids)
    wrong = (ids < 0) | (ids >= config.vocab_size) | (ids == config.mask_token_id)
    if wrong.any():
        may_be = f"in [0, {config.vocab_size}) and not the mask"
        raise UserError(f"draft_vocabulary: got token {ids[wrong][0]}, may be {may_be}")
    if (twice := ids[1:][ids[1:] == ids[:-1]]).size:
        raise UserError(f"draft_vocabulary: got token {twice[0]} twice, may hold each once")
    return {**variables, COLLECTION: {"tokens": jnp.asarray(ids, jnp.int32)}}

"""Prompt lookup: proposes what followed the text's last few tokens when they last occurred. Nothing is learned.

The longest suffix of at most `longest` tokens that occurred before decides, in the text itself (prompt and new tokens)
or in a history of other texts (`with_history`); of equally long ones the text's own, of those the latest. A match that
runs into the text's end repeats itself, as a period does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import Cache, ZayaConfig
from zaya_jax.architecture.config import DRAFTERS
from zaya_jax.checks import Integer, check
from zaya_jax.errors import UserError
from zaya_jax.sampling.drafters.base import Drafter, Proposal, Rows, register_drafter
from zaya_jax.sampling.strategies.base import Setup

Array = jax.Array
END = -1  # in a history: after each of its texts


class Text(struct.PyTreeNode):
    """The tokens that were observed."""

    tokens: Array  # int32 [B, S]

    def grow(self, capacity: int) -> "Text":
        more = max(0, capacity - self.tokens.shape[1])
        return self.replace(tokens=jnp.pad(self.tokens, ((0, 0), (0, more))))

    def write(self, tokens: Array, first: Array, count: Array) -> "Text":
        """With tokens[:, :count] (int32 [B, n]) at the positions from `first` on."""
        batch, n = tokens.shape
        index = jnp.arange(n, dtype=jnp.int32)
        slot = jnp.where(index < count[:, None], first[:, None] + index, self.tokens.shape[1])
        return self.replace(
            tokens=self.tokens.at[jnp.arange(batch)[:, None], slot].set(tokens.astype(self.tokens.dtype), mode="drop")
        )


@dataclasses.dataclass(frozen=True)
class NGram(Drafter):
    """See the file."""

    longest: int = 3  # tokens of the suffix that is looked up

    def __post_init__(self) -> None:
        check("NGram.longest", self.longest, Integer(1, 64))

    def require(self, config: ZayaConfig, variables: Any) -> None:
        history = variables.get(DRAFTERS, {}).get(self.name, {}).get("history")
        if history is not None and (np.ndim(history) != 1 or np.max(history, initial=0) >= config.vocab_size):
            raise UserError(f"history: got tokens that the model has not, may be in [0, {config.vocab_size})")

    def init(self, setup: Setup, batch: int, capacity: int) -> Text:
        return Text(jnp.zeros((batch, capacity), jnp.int32))

    def observe(self, setup: Setup, state: Text, rows: Rows) -> Text:
        return state.write(rows.tokens, rows.first, rows.count)

    def propose(self, setup: Setup, state: Text, pending_token: Array, cache: Cache) -> Proposal:
        history = setup.drafter_variables.get("history")
        return Proposal(*self.look_up(state, pending_token, cache.length, history, setup.plan.draft_length))

    def look_up(
        self, state: Text, pending_token: Array, position: Array, history: Array | None, length: int, least: int = 1
    ) -> tuple[Array, Array]:
        """What followed the last time: (tokens, whether they exist) [B, length], after int32 [B] at `position`.

        Args:
          least: tokens of the suffix that must have matched, 1 .. longest.
        """
        text = state.write(pending_token[:, None], position, jnp.ones_like(pending_token)).tokens
        look_up = jax.vmap(self._look_up, in_axes=(0, 0, None, None, None))
        return look_up(text, position, history, length, least)

    def _look_up(
        self, text: Array, last: Array, history: Array | None, length: int, least: int = 1
    ) -> tuple[Array, Array]:
        """Of one text [S], whose newest token stands at `last`: (tokens, whether they exist) [length]."""
        ahead = jnp.arange(length, dtype=jnp.int32)
        matched, end = self._match(text, text, last, jnp.arange(text.shape[0]) < last)
        tokens = text[end + 1 + ahead % jnp.maximum(last - end, 1)]
        exists = jnp.broadcast_to(matched >= least, tokens.shape)
        if history is None or not history.shape[0]:
            return tokens, exists
        others, end = self._match(history, text, last, history != END)
        at = end + 1 + ahead
        found = jnp.where(at < history.shape[0], history[jnp.minimum(at, history.shape[0] - 1)], END)
        runs = jnp.cumprod(found != END).astype(bool)
        better = (others > matched) & (others >= least)
        return jnp.where(better, jnp.maximum(found, 0), tokens), jnp.where(better, runs, exists)

    def _match(self, where: Array, text: Array, last: Array, allowed: Array) -> tuple[Array, Array]:
        """The text's longest suffix that ends somewhere allowed in `where`: (its length, 0 .. longest; that end)."""
        index = jnp.arange(where.shape[0], dtype=jnp.int32)
        run, length = allowed, jnp.zeros_like(index)
        for back in range(self.longest):
            run &= (index >= back) & (last >= back)
            run &= where[jnp.maximum(index - back, 0)] == text[jnp.maximum(last - back, 0)]
            length += run
        best = length.max()
        return best, jnp.max(jnp.where(length == best, index, 0))


NGRAM = NGram("ngram", "Proposes what followed the text's last few tokens when they last occurred.")
register_drafter(NGRAM)


def with_history(variables: Mapping[str, Any], texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A model's variables so that "ngram" also finds matches in other texts: earlier samples, a file being edited.

    Args:
      texts: of tokens; the later ones are preferred.
    """
    try:
        given: Any = np.array([token for text in texts for token in (*text, END)])
    except (TypeError, ValueError):
        given = np.array([np.nan])
    ids = not given.size or np.issubdtype(given.dtype, np.integer)
    if not ids or given.min(initial=END) < END or given.max(initial=END) >= 2**31:
        raise UserError(f"texts: got {texts!r:.60}, may be lists of token ids")
    drafters = {**variables.get(DRAFTERS, {}), NGRAM.name: {"history": jnp.asarray(given, jnp.int32)}}
    return {**variables, DRAFTERS: drafters}

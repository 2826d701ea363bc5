"""Drafters that draft token by token: one layer, run again on its own output (EAGLE-3, MTP).

Pair i of a text is what the target knows of token i together with token i + 1; the layer's output at pair i predicts
token i + 2. The first draft follows from the newest pair, (last committed token, pending token); each later one from
the layer's own output at the pair before it, paired with the token that was just drafted.

Training runs the same recursion at every token of a row at once (EAGLE-3's training-time test): step j at row i reads
the output of step j - 1 at row i and the *text's* token i + 1 + j, sees the keys of step 0 up to row i, those of steps
1 .. j of its own row, and no others, and stands at position i + j. That is what inference has in its cache, so that
both forms agree to rounding; a module that is trained at depth 1 alone meets its own output for the first time at
inference.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.drafters.parts import DraftAttention, DraftCache, KeyValue, empty_cache
from zaya_jax.architecture.features import Features
from zaya_jax.architecture.layers import RMSNorm
from zaya_jax.architecture.layout import Layout, visible

Array = jax.Array


class Recursion(struct.PyTreeNode):
    """Where a proposal stands after some drafts: on one path, or on the N newest nodes of a tree."""

    hidden: Array  # [B, N, M]: the layer's newest outputs
    key: Array  # [B, N, steps so far, K, D]: of the pairs on the path to each
    value: Array

    def of(self, nodes: Array) -> "Recursion":
        """Of some of the nodes, int32 [B, N']: each may be asked for several times."""

        def taken(x: Array) -> Array:
            return jnp.take_along_axis(x, nodes.reshape(*nodes.shape, *(1,) * (x.ndim - 2)), axis=1)

        return jax.tree.map(taken, self)


class Chain(nn.Module):
    """A drafter below it has self_attn (a `DraftAttention`), norm, and the three methods that raise here."""

    config: ZayaConfig
    if TYPE_CHECKING:
        self_attn: DraftAttention
        norm: RMSNorm

    def start(self, features: Features) -> Array:
        """What the target knows of each token [B, T, M]."""
        raise NotImplementedError

    def enter(self, embedded: Array, hidden: Array) -> tuple[Array, Array]:
        """Pairs [B, T, M] each -> (the residual stream [B, T, M], what attention projects [B, T, ...])."""
        raise NotImplementedError

    def leave(self, x: Array) -> Array:
        """The stream after attention -> the layer's output, both [B, T, M]."""
        raise NotImplementedError

    def training(self, features: Features, embedded: Array, layout: Layout, first: Array) -> Array:
        """Every step of the recursion at every row.

        Args:
          features: of the whole rows, [B, T, ...].
          embedded: their embedded tokens [B, T, M].
          layout: `Layout.causal` of them.
          first: not read; the pairs stand at all rows.

        Returns:
          hidden states that the head reads [B, T, drafts, M]; slot s of row i predicts token i + 2 + s.
        """
        assert self.config.drafter is not None
        hidden = self.start(features)
        seen, none = visible(layout, layout.keys), self._none(*embedded.shape[:2])
        context, own, out = none, none, []
        for step in range(self.config.drafter.drafts):
            paired, position = jnp.roll(embedded, -1 - step, axis=1), layout.position + step
            x, inner = self.enter(paired, hidden)
            keys = self.self_attn.keys(inner, position)
            if not step:
                context = keys
            else:
                own = _with(own, keys)
            mixed = self.self_attn(self.self_attn.queries(inner, position), context, seen, own, _all(step))
            hidden = self.leave(x + mixed.astype(x.dtype))
            out.append(self.norm(hidden))
        return jnp.stack(out, axis=2)

    def empty(self, batch: int, capacity: int) -> DraftCache:
        """The cache before anything is committed."""
        return empty_cache(self.config, 1, batch, capacity, self.config.hidden_size)

    def observe(self, cache: DraftCache, features: Features, following: Array, count: Array) -> DraftCache:
        """Absorbs the first `count` (int32 [B]) pairs of a target forward's committed rows.

        Args:
          features: of the rows, [B, T, ...].
          following: the embedded token after each of them [B, T, M]; after the last committed one it is the pending
            token.
        """
        batch, rows = following.shape[:2]
        position = cache.length[:, None] + jnp.arange(rows, dtype=jnp.int32)
        x, inner = self.enter(following, self.start(features))
        key, value = self.self_attn.keys(inner, position)
        cache = cache.write(key[:, None], value[:, None])
        seen = jnp.arange(cache.capacity) <= position[..., None]
        context, query = cache.of_layer(0), self.self_attn.queries(inner, position)
        mixed = self.self_attn(query, context, seen, self._none(batch, rows), _all(0))
        out = self.leave(x + mixed.astype(x.dtype))
        newest = jnp.take_along_axis(out, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
        hidden = jnp.where((count > 0)[:, None], newest, cache.hidden)
        return cache.replace(length=cache.length + count, hidden=hidden)

    def first(self, cache: DraftCache) -> tuple[Array, Recursion]:
        """(hidden state [B, 1, M] of the first draft, where the proposal stands)."""
        hidden = cache.hidden[:, None]
        return self.norm(hidden), Recursion(hidden, *self._none(hidden.shape[0], 1))

    def next(self, cache: DraftCache, so_far: Recursion, drafted: Array) -> tuple[Array, Recursion]:
        """The same for the drafts after `drafted`, the embedded newest ones [B, N, M], one a node."""
        (batch, nodes), step = drafted.shape[:2], so_far.key.shape[2] + 1
        position = jnp.broadcast_to(cache.length[:, None] - 1 + step, (batch, nodes))
        x, inner = self.enter(drafted, so_far.hidden)
        own = _with((so_far.key, so_far.value), self.self_attn.keys(inner, position))
        seen = jnp.arange(cache.capacity) < cache.length[:, None, None]
        seen = jnp.broadcast_to(seen, (batch, nodes, cache.capacity))
        context, query = cache.of_layer(0), self.self_attn.queries(inner, position)
        mixed = self.self_attn(query, context, seen, own, _all(step))
        hidden = self.leave(x + mixed.astype(x.dtype))
        return self.norm(hidden), Recursion(hidden, *own)

    def _none(self, batch: int, groups: int) -> KeyValue:
        cfg = self.config
        nothing = jnp.zeros((batch, groups, 0, cfg.num_key_value_heads, cfg.head_dim), cfg.dtype)
        return nothing, nothing


def _with(own: KeyValue, new: KeyValue) -> KeyValue:
    """Each group's keys and values [B, N, I, K, D], and one more of each, [B, N, K, D]."""
    key, value = (jnp.concatenate([before, x[:, :, None]], axis=2) for before, x in zip(own, new, strict=True))
    return key, value


def _all(keys: int) -> Array:
    return jnp.ones((1, keys), bool)

"""DFlash (arXiv 2602.06036): a block of masks that reads the target's features as keys and values; one pass a block.

The streams that enter a few of the target's layers are fused to one vector a committed token, c = norm(fc(taps)). Every
layer of the drafter projects c with its own key and value matrices, beside the block's own; queries and the
feed-forward are the block's alone. A block is [pending token, masks]; slot k predicts its own token. c covers the
tokens before the pending one, which the target has not run yet.

Differences from z-lab's code: the masks' embedding is a parameter of the drafter's, since a target that was trained
autoregressively never learned one. `causal` is JetSpec's head (arXiv 2606.18394).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.drafters.parts import (
    DraftAttention,
    DraftCache,
    KeyValue,
    by_group,
    empty_cache,
    feed_forward,
    linear,
    norm,
)
from zaya_jax.architecture.features import Features
from zaya_jax.architecture.layout import Layout, visible
from zaya_jax.architecture.parameters import parameter

Array = jax.Array


class DFlashLayer(nn.Module):
    """Attention of block rows to [context ‖ block], then a feed-forward; both with a residual."""

    config: ZayaConfig

    def setup(self) -> None:
        self.input_layernorm, self.post_attention_layernorm = norm(self.config), norm(self.config)
        self.self_attn = DraftAttention(self.config, qk_norm=True)
        self.mlp = feed_forward(self.config)

    def context(self, fused: Array, position: Array) -> KeyValue:
        """c [B, S, M] at positions [B, S] -> its keys and values."""
        return self.self_attn.keys(fused, position)

    def __call__(self, x: Array, position: Array, context: KeyValue, seen: Array, own_seen: Array) -> Array:
        """The stream of whole blocks [B, N * J, M] -> the same shape; see `DraftAttention.__call__`."""
        inner = self.input_layernorm(x)
        own = by_group(self.self_attn.keys(inner, position), x.shape[1] // own_seen.shape[0])
        x += self.self_attn(self.self_attn.queries(inner, position), context, seen, own, own_seen).astype(x.dtype)
        return x + self.mlp(self.post_attention_layernorm(x), x.shape[1]).astype(x.dtype)


class DFlash(nn.Module):
    """See the module's docstring. What it returns are hidden states that the head reads."""

    config: ZayaConfig

    def setup(self) -> None:
        cfg = self.config
        assert cfg.drafter is not None
        self.fc, self.hidden_norm, self.norm = linear(cfg, cfg.hidden_size), norm(cfg), norm(cfg)
        self.layers = [DFlashLayer(cfg) for _ in range(cfg.drafter.layers)]
        normal = nn.initializers.normal(cfg.initializer_range)
        self.mask = parameter(self, "mask_embedding", normal, (cfg.hidden_size,), jnp.dtype(cfg.param_dtype))

    def fuse(self, features: Features) -> Array:
        """c [B, T, M]."""
        taps = features.taps.astype(self.config.dtype)
        return self.hidden_norm(self.fc(taps.reshape(*taps.shape[:2], -1)))

    def training(self, features: Features, embedded: Array, layout: Layout, first: Array) -> Array:
        """Blocks anywhere in training rows.

        Args:
          features: of the whole rows, [B, T, ...].
          embedded: their embedded tokens [B, T, M].
          layout: `Layout.causal` of them.
          first: int32 [B, N], the row index of each block's pending token; from T on: no block.

        Returns:
          [B, N, drafts, M]; slot s predicts the token s + 1 after the block's first.
        """
        assert self.config.drafter is not None
        size, (batch, groups) = self.config.drafter.drafts + 1, first.shape
        rows = Layout.blocks_at(layout.tokens, first, size, document=layout.document).draft_rows()
        fused, keys = self.fuse(features), layout.keys
        pending = jnp.take_along_axis(embedded, jnp.minimum(first, embedded.shape[1] - 1)[..., None], axis=1)
        x = self._blocks(pending, size).reshape(batch, groups * size, -1)
        contexts = [layer.context(fused, keys.position) for layer in self.layers]
        out = self._run(x, rows.position, contexts, visible(rows, keys), size)
        return out.reshape(batch, groups, size, -1)[:, :, 1:]

    def empty(self, batch: int, capacity: int) -> DraftCache:
        """The cache before anything is committed."""
        return empty_cache(self.config, len(self.layers), batch, capacity, 0)

    def observe(self, cache: DraftCache, features: Features, count: Array) -> DraftCache:
        """Absorbs the first `count` (int32 [B]) of a target forward's rows [B, T, ...], which were committed."""
        position = cache.length[:, None] + jnp.arange(features.hidden.shape[1], dtype=jnp.int32)
        fused = self.fuse(features)
        keys, values = zip(*(layer.context(fused, position) for layer in self.layers), strict=True)
        return cache.write(jnp.stack(keys, axis=1), jnp.stack(values, axis=1)).replace(length=cache.length + count)

    def propose(self, cache: DraftCache, pending: Array, drafts: int) -> Array:
        """Hidden states [B, drafts, M] of the tokens after the pending one, whose embedding is [B, M]."""
        size, capacity = drafts + 1, cache.capacity
        position = cache.length[:, None] + jnp.arange(size, dtype=jnp.int32)
        seen = jnp.arange(capacity) < cache.length[:, None, None]  # [B, 1, S]
        seen = jnp.broadcast_to(seen, (*position.shape, capacity))
        contexts = [cache.of_layer(i) for i in range(len(self.layers))]
        return self._run(self._blocks(pending[:, None], size)[:, 0], position, contexts, seen, size)[:, 1:]

    def _blocks(self, pending: Array, size: int) -> Array:
        """Embedded pending tokens [B, N, M] -> the streams of their blocks [B, N, size, M]."""
        masks = jnp.broadcast_to(self.mask.astype(pending.dtype), (*pending.shape[:2], size - 1, pending.shape[-1]))
        return jnp.concatenate([pending[:, :, None], masks], axis=2)

    def _run(self, x: Array, position: Array, contexts: list[KeyValue], seen: Array, size: int) -> Array:
        assert self.config.drafter is not None
        own_seen = jnp.ones((size, size), bool)
        own_seen = jnp.tril(own_seen) if self.config.drafter.causal else own_seen
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, position, context, seen, own_seen)
        return self.norm(x)

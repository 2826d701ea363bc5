"""Medusa (arXiv 2401.10774): heads that each predict one later token from the target's last hidden state.

Head s turns h into h + SiLU(W h + b), which begins as h, and predicts the token s + 2 after h's. It knows neither the
pending token nor the drafts before its own. Its logits are the target's head's (`own_head` False), or those of a head
that begins as the target's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.drafters.parts import DraftCache, empty_cache
from zaya_jax.architecture.features import Features
from zaya_jax.architecture.layout import Layout
from zaya_jax.architecture.parameters import parameter
from zaya_jax.architecture.precision import product

Array = jax.Array


class Medusa(nn.Module):
    """See the module's docstring. What it returns are hidden states that the head reads."""

    config: ZayaConfig

    def setup(self) -> None:
        cfg = self.config
        assert cfg.drafter is not None
        heads, width, dtype = cfg.drafter.drafts, cfg.hidden_size, jnp.dtype(cfg.param_dtype)
        self.kernel = parameter(self, "kernel", nn.initializers.zeros, (heads, width, width), dtype)
        self.bias = parameter(self, "bias", nn.initializers.zeros, (heads, width), dtype)

    def heads(self, hidden: Array, count: int) -> Array:
        """The target's normed hidden states [B, T, M] -> the first `count` heads' [B, T, count, M]."""
        cfg = self.config
        x = hidden.astype(cfg.dtype)
        inner = product("btm,smn->btsn", x, self.kernel[:count].astype(cfg.dtype))
        return x[:, :, None] + jax.nn.silu(inner + self.bias[:count].astype(inner.dtype)).astype(cfg.dtype)

    def training(self, features: Features, embedded: Array, layout: Layout, first: Array) -> Array:
        """Every head at every row: [B, T, drafts, M]; slot s of row i predicts token i + 2 + s."""
        return self.heads(features.hidden, self.kernel.shape[0])

    def empty(self, batch: int, capacity: int) -> DraftCache:
        """The cache before anything is committed: it holds the newest hidden state alone."""
        return empty_cache(self.config, 0, batch, 0, self.config.hidden_size)

    def observe(self, cache: DraftCache, features: Features, count: Array) -> DraftCache:
        """Keeps the last of the first `count` (int32 [B]) of a target forward's rows [B, T, ...]."""
        newest = jnp.take_along_axis(features.hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
        hidden = jnp.where((count > 0)[:, None], newest.astype(cache.hidden.dtype), cache.hidden)
        return cache.replace(length=cache.length + count, hidden=hidden)

    def propose(self, cache: DraftCache, drafts: int) -> Array:
        """Hidden states [B, drafts, M] of the tokens after the pending one."""
        return self.heads(cache.hidden[:, None], drafts)[:, 0]

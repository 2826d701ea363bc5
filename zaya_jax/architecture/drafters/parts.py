"""What drafters share: plain attention over [context ‖ own keys], a layer around it, and the cache of context keys.

Shapes as everywhere (`zaya_jax.architecture`); N groups of query tokens (blocks, or a row's single tokens), J query
tokens a group, I keys of its own that a group has beside the context.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.layers import Linear, RMSNorm, inverse_frequencies, rotate, rotation, scale_frequencies
from zaya_jax.architecture.moe.router import FeedForward
from zaya_jax.architecture.precision import product

Array = jax.Array
KeyValue = tuple[Array, Array]


class DraftCache(struct.PyTreeNode):
    """What a drafter keeps of the committed text, beside the target's cache.

    Slots at or beyond `length` are nobody's: the next write overwrites them, so rolling back is not advancing.
    """

    key: Array  # [B, layers, S, K, D]; no layers where a drafter does not attend
    value: Array
    length: Array  # int32 [B]: slots in use
    hidden: Array  # [B, M]: what the newest of them gave that the first draft follows from; M is 0 for none

    @property
    def capacity(self) -> int:
        return self.key.shape[2]

    def of_layer(self, layer: int) -> KeyValue:
        """[B, S, K, D] each."""
        return self.key[:, layer], self.value[:, layer]

    def write(self, key: Array, value: Array) -> "DraftCache":
        """Puts [B, layers, T, K, D] at slots length, length + 1, ...; `length` stays."""
        batch, layers, rows = key.shape[:3]
        slot = self.length[:, None, None] + jnp.arange(rows)
        at = (jnp.arange(batch)[:, None, None], jnp.arange(layers)[:, None], slot)
        # "drop": a slot beyond capacity must never clamp onto a valid one
        return self.replace(
            key=self.key.at[at].set(key.astype(self.key.dtype), mode="drop"),
            value=self.value.at[at].set(value.astype(self.value.dtype), mode="drop"),
        )

    def grow(self, capacity: int) -> "DraftCache":
        """The same with slots for at least `capacity` tokens."""
        pad = [(0, 0), (0, 0), (0, max(0, capacity - self.capacity)), (0, 0), (0, 0)]
        return self.replace(key=jnp.pad(self.key, pad), value=jnp.pad(self.value, pad))


def empty_cache(config: ZayaConfig, layers: int, batch: int, capacity: int, hidden: int) -> DraftCache:
    """Nothing committed yet, room for `capacity` tokens."""
    shape = (batch, layers, capacity, config.num_key_value_heads, config.head_dim)
    return DraftCache(
        key=jnp.zeros(shape, config.dtype),
        value=jnp.zeros(shape, config.dtype),
        length=jnp.zeros((batch,), jnp.int32),
        hidden=jnp.zeros((batch, hidden), config.stream_dtype),
    )


def linear(config: ZayaConfig, features: int, **rest: Any) -> Linear:
    """A projection without bias, in the target's dtypes."""
    dtypes = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
    return Linear(features, False, config.initializer_range, *dtypes, **rest)


def norm(config: ZayaConfig) -> RMSNorm:
    return RMSNorm(config.rms_norm_eps, jnp.dtype(config.dtype), jnp.dtype(config.param_dtype))


def feed_forward(config: ZayaConfig) -> FeedForward:
    """A dense SwiGLU of an expert's size."""
    return FeedForward(config.replace(feed_forward="dense", router_state=True, mlp_bias=False, lora_rank=0))


class DraftAttention(nn.Module):
    """Multi-head attention with the target's heads and rotary base, whoever the keys are."""

    config: ZayaConfig
    qk_norm: bool = False  # an RMSNorm of each head of queries and keys (Qwen3's, hence DFlash's)

    def setup(self) -> None:
        cfg = self.config
        self.q_proj = linear(cfg, cfg.num_attention_heads * cfg.head_dim)
        self.k_proj = linear(cfg, cfg.num_key_value_heads * cfg.head_dim)
        self.v_proj = linear(cfg, cfg.num_key_value_heads * cfg.head_dim)
        self.o_proj = linear(cfg, cfg.hidden_size)
        if self.qk_norm:
            self.q_norm, self.k_norm = norm(cfg), norm(cfg)

    def queries(self, x: Array, position: Array) -> Array:
        """x [B, T, in] at positions [B, T] -> [B, T, H, D]."""
        query = self.q_proj(x).reshape(*x.shape[:2], -1, self.config.head_dim)
        return rotate(self.q_norm(query) if self.qk_norm else query, self._angle(position))

    def keys(self, x: Array, position: Array) -> KeyValue:
        """x [B, T, in] at positions [B, T] -> keys and values [B, T, K, D]."""
        key, value = (f(x).reshape(*x.shape[:2], -1, self.config.head_dim) for f in (self.k_proj, self.v_proj))
        return rotate(self.k_norm(key) if self.qk_norm else key, self._angle(position)), value

    def __call__(self, query: Array, context: KeyValue, seen: Array, own: KeyValue, own_seen: Array) -> Array:
        """One softmax over the context and each group's own keys.

        Args:
          query: [B, N * J, H, D].
          context: [B, S, K, D] each.
          seen: bool [B, N * J, S].
          own: [B, N, I, K, D] each.
          own_seen: bool [J, I], the same in each group.

        Returns:
          [B, N * J, M].
        """
        (batch, rows, heads, dim), (groups, kv_heads) = query.shape, (own[0].shape[1], own[0].shape[3])
        grouped = query.reshape(batch, groups, rows // groups, kv_heads, heads // kv_heads, dim)
        scores = product("bnjkgd,bskd->bkgnjs", grouped, context[0])
        own_scores = product("bnjkgd,bnikd->bkgnji", grouped, own[0])
        lowest = jnp.finfo(scores.dtype).min  # finite, so that padding which sees nothing stays finite
        scores = jnp.where(seen.reshape(batch, 1, 1, groups, -1, seen.shape[-1]), scores * dim**-0.5, lowest)
        own_scores = jnp.where(own_seen, own_scores * dim**-0.5, lowest)
        weights = jax.nn.softmax(jnp.concatenate([scores, own_scores], axis=-1), axis=-1).astype(query.dtype)
        size = seen.shape[-1]
        mixed = product("bkgnjs,bskd->bnjkgd", weights[..., :size], context[1])
        mixed += product("bkgnji,bnikd->bnjkgd", weights[..., size:], own[1])
        return self.o_proj(mixed.astype(query.dtype).reshape(batch, rows, heads * dim))

    def _angle(self, position: Array) -> tuple[Array, Array]:
        cfg = self.config
        return rotation(position, scale_frequencies(inverse_frequencies(cfg.rope_theta, cfg.rotary_dim), cfg))


def by_group(own: KeyValue, groups: int) -> KeyValue:
    """[B, N * I, K, D] -> [B, N, I, K, D]."""
    key, value = (x.reshape(x.shape[0], groups, -1, *x.shape[2:]) for x in own)
    return key, value

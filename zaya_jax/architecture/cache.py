"""What decoding keeps of the tokens already committed (docs/architecture.md#cached-decoding).

Keys and values are final the moment they are written. The convolutions and the delayed value also need the newest few
tokens' raw projections; a forward pass therefore returns the cache *pending*, with the raw columns of every clean row
it saw, and `commit` keeps those after the accepted ones. Rolling back is not advancing `length`: slots at or beyond it
are nobody's (their document is PADDING) and the next forward overwrites them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.layout import PADDING, Keys

Array = jax.Array


class Cache(struct.PyTreeNode):
    """State of all layers for a batch of rows; slot s of a row holds the token at position s.

    With nothing pending, pending = 0; a forward over n clean rows leaves pending = n until `commit`.
    """

    key: Array  # [layer, batch, capacity, kv_head, head_dim]: after convolution, mean, norm, temperature and rotation
    value: Array  # like key
    conv: Array  # [layer, batch, conv_history + pending, conv_channels]: raw [queries | keys], oldest first
    delayed: Array  # [layer, batch, 1 + pending, delayed_dim]: raw delayed values, oldest first
    length: Array  # int32 [batch]: committed tokens

    @property
    def capacity(self) -> int:
        return self.key.shape[2]

    def grow(self, capacity: int) -> "Cache":
        """The same with slots for at least `capacity` tokens."""
        pad = [(0, 0), (0, 0), (0, max(0, capacity - self.capacity)), (0, 0), (0, 0)]
        return self.replace(key=jnp.pad(self.key, pad), value=jnp.pad(self.value, pad))

    def commit(self, count: Array) -> "Cache":
        """Accepts the first `count` (int32 [batch]) of the pending rows and forgets the rest."""
        history = self.conv.shape[2] - (self.delayed.shape[2] - 1)
        return self.replace(
            conv=_window(self.conv, count, history),
            delayed=_window(self.delayed, count, 1),
            length=self.length + count,
        )


def init_cache(config: ZayaConfig, batch: int, capacity: int) -> Cache:
    """An empty cache. `capacity` must hold every position ever written: prompt, new tokens and two blocks of slack."""
    layers = config.num_hidden_layers
    dtype = jnp.dtype(config.dtype)
    kv = (layers, batch, capacity, config.num_key_value_heads, config.head_dim)
    return Cache(
        key=jnp.zeros(kv, dtype),
        value=jnp.zeros(kv, dtype),
        conv=jnp.zeros((layers, batch, config.conv_history, config.conv_channels), dtype),
        delayed=jnp.zeros((layers, batch, 1, config.delayed_dim), dtype),
        length=jnp.zeros((batch,), jnp.int32),
    )


def cached_keys(capacity: int, written: Array) -> Keys:
    """The visibility fields of cache slots when `written` (int32 [batch]) of them hold a token."""
    slot = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (written.shape[0], capacity))
    return Keys(
        position=slot,
        document=jnp.where(slot < written[:, None], 0, PADDING),
        block=jnp.zeros_like(slot),
    )


def _window(columns: Array, first: Array, size: int) -> Array:
    """columns[layer, b, first[b] : first[b] + size] for each batch row b."""
    index = first[:, None] + jnp.arange(size, dtype=jnp.int32)
    return jnp.take_along_axis(columns, index[None, :, :, None], axis=2)

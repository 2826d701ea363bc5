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
Layers = Array | tuple[Array, ...]


class Cache(struct.PyTreeNode):
    """State of all layers for a batch of rows; slot s of a row holds the token at position s.

    With nothing pending, pending = 0; a forward over n clean rows leaves pending = n until `commit`.

    Slots stand inside heads, so that attention multiplies a head's keys and values as they lie.

    Each field but `length` is one array for all layers, or a tuple of one a layer, each with a layer axis of 1: as the
    model's weights are (`Zaya.separate`).
    """

    key: Layers  # [L, B, K, S, D]: after convolution, mean, norm, temperature and rotation
    value: Layers  # like key
    conv: Layers  # [L, B, conv_history + pending, conv_channels]: raw [queries | keys], oldest first
    delayed: Layers  # [L, B, 1 + pending, delayed_dim]: raw delayed values, oldest first
    length: Array  # int32 [B]: committed tokens

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.key)[0].shape[3]

    @property
    def separate(self) -> bool:
        """One array a layer?"""
        return isinstance(self.key, tuple)

    def grow(self, capacity: int) -> "Cache":
        """The same with slots for at least `capacity` tokens."""
        pad = [(0, 0), (0, 0), (0, 0), (0, max(0, capacity - self.capacity)), (0, 0)]
        key, value = jax.tree.map(lambda x: jnp.pad(x, pad), (self.key, self.value))
        return self.replace(key=key, value=value)

    def commit(self, count: Array) -> "Cache":
        """Accepts the first `count` (int32 [B]) of the pending rows and forgets the rest."""
        conv, delayed = (jax.tree.leaves(x)[0] for x in (self.conv, self.delayed))
        history = conv.shape[2] - (delayed.shape[2] - 1)
        return self.replace(
            conv=jax.tree.map(lambda x: _window(x, count, history), self.conv),
            delayed=jax.tree.map(lambda x: _window(x, count, 1), self.delayed),
            length=self.length + count,
        )


def init_cache(config: ZayaConfig, batch: int, capacity: int, separate: bool = False) -> Cache:
    """An empty cache.

    Args:
      capacity: must hold every position ever written: prompt, new tokens and two blocks of slack.
      separate: `Zaya.separate` of the model that will use it.
    """
    layers = config.num_hidden_layers

    def zeros(*shape: int) -> Layers:
        dtype = jnp.dtype(config.dtype)
        if separate:
            return tuple(jnp.zeros((1, batch, *shape), dtype) for _ in range(layers))
        return jnp.zeros((layers, batch, *shape), dtype)

    return Cache(
        key=zeros(config.num_key_value_heads, capacity, config.head_dim),
        value=zeros(config.num_key_value_heads, capacity, config.head_dim),
        conv=zeros(config.conv_history, config.conv_channels),
        delayed=zeros(1, config.delayed_dim),
        length=jnp.zeros((batch,), jnp.int32),
    )


def cached_keys(capacity: int, written: Array) -> Keys:
    """The visibility fields of cache slots when `written` (int32 [B]) of them hold a token."""
    slot = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (written.shape[0], capacity))
    return Keys(
        position=slot,
        document=jnp.where(slot < written[:, None], 0, PADDING),
        block=jnp.zeros_like(slot),
    )


def _window(columns: Array, first: Array, size: int) -> Array:
    """columns [L, B, column, channels] -> [L, B, size, channels]: those from first[b] on of each sequence b."""
    index = first[:, None] + jnp.arange(size, dtype=jnp.int32)
    return jnp.take_along_axis(columns, index[None, :, :, None], axis=2)

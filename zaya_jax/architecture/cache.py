"""What decoding keeps of the tokens already committed (docs/architecture.md#cached-decoding).

Keys and values are final the moment they are written. The convolutions and the delayed value also need the newest few
tokens' raw projections; a forward pass therefore returns the cache *pending*, with the raw columns of every clean row
it saw, and `commit` keeps those after the accepted ones. Rolling back is not advancing `length`: slots at or beyond it
are nobody's (their document is PADDING) and the next forward overwrites them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.layout import PADDING, Keys, Layout
from zaya_jax.architecture.visibility import NO_TREE

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
    # {its name: state} of what drafts beside the model, if anything does: of the same committed tokens. A pytree whose
    # leaves have a leading axis B (but those of a `Cache` in it), with a method `grow` (`zaya_jax.sampling.drafters`).
    drafter: Any = None

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
        drafter = {name: state.grow(capacity) for name, state in (self.drafter or {}).items()}
        return self.replace(key=key, value=value, drafter=drafter or None)

    def over_batch(self, f: Callable[..., Array], *others: "Cache") -> "Cache":
        """f(axis of the batch, array, the others' arrays ...) of every array."""
        every = (self, *others)
        stacked = jax.tree.map(lambda *x: f(1, *x), *(each.replace(length=None, drafter=None) for each in every))

        def of_state(*x: Any) -> Any:
            return x[0].over_batch(f, *x[1:]) if isinstance(x[0], Cache) else f(0, *x)

        drafter = jax.tree.map(of_state, *(each.drafter for each in every), is_leaf=lambda x: isinstance(x, Cache))
        return stacked.replace(length=f(0, *(each.length for each in every)), drafter=drafter)

    def along(self, path: Array) -> "Cache":
        """A tree's pending rows (`Layout.verify_tree`) -> those on a path through it, as if they had been a row.

        Args:
          path: int32 [B, n], rows of the forward, in the order of the text.
        """
        batch, n = path.shape
        conv, delayed = (jax.tree.leaves(x)[0] for x in (self.conv, self.delayed))
        history = conv.shape[2] - (delayed.shape[2] - 1)
        first = self.length[:, None]
        slot = first + jnp.arange(n, dtype=jnp.int32)

        def moved(x: Array) -> Array:  # [L, B, K, S, D]
            at = jnp.arange(batch)[:, None, None], jnp.arange(x.shape[2])[:, None], slot[:, None]
            on_path = jnp.take_along_axis(x, (first + path)[None, :, None, :, None], axis=3)
            return x.at[:, *at].set(on_path, mode="drop", unique_indices=True)

        def kept(x: Array, history: int) -> Array:  # [L, B, column, channels]
            return jnp.concatenate([x[:, :, :history], _columns(x, history + path)], axis=2)

        return self.replace(
            key=jax.tree.map(moved, self.key),
            value=jax.tree.map(moved, self.value),
            conv=jax.tree.map(lambda x: kept(x, history), self.conv),
            delayed=jax.tree.map(lambda x: kept(x, 1), self.delayed),
        )

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


def cached_keys(capacity: int, written: Array, layout: Layout | None = None) -> Keys:
    """The visibility fields of cache slots when `written` (int32 [B]) of them hold a token.

    Args:
      layout: whose clean tokens are the last ones written; needed where they form a tree.
    """
    slot = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (written.shape[0], capacity))
    keys = Keys(
        position=slot,
        document=jnp.where(slot < written[:, None], 0, PADDING),
        block=jnp.zeros_like(slot),
    )
    if layout is None or layout.subtree_end is None:
        return keys
    own, rows = layout.clean_keys, layout.clean_size
    row = slot - (written - rows)[:, None]

    def where_own(field: Array, otherwise: Array) -> Array:
        values = jnp.take_along_axis(field, jnp.clip(row, 0, rows - 1), axis=1)
        return jnp.where((row >= 0) & (row < rows), values, otherwise)

    assert own.preorder is not None and own.subtree_end is not None
    return keys._replace(
        position=where_own(own.position, slot),
        preorder=where_own(own.preorder, jnp.zeros_like(slot)),
        subtree_end=where_own(own.subtree_end, jnp.full_like(slot, NO_TREE)),
    )


def _window(columns: Array, first: Array, size: int) -> Array:
    """columns [L, B, column, channels] -> [L, B, size, channels]: those from first[b] on of each sequence b."""
    return _columns(columns, first[:, None] + jnp.arange(size, dtype=jnp.int32))


def _columns(columns: Array, index: Array) -> Array:
    """columns [L, B, column, channels] at index int32 [B, n]."""
    return jnp.take_along_axis(columns, index[None, :, :, None], axis=2)

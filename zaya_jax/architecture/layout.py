"""The one idea: a forward pass reads a `Layout`.

Autoregressive training, TiDAR training, prefill, decoding and "verify this draft and draft again after every possible
outcome" are one model applied to a row of tokens whose order in memory is not their order in the text. A `Layout` says
the difference in a few integers per token. It has two rules:

* visibility (`visibility.visible`): who attends to whom;
* succession (`Layout.predecessor`): which token comes before this one *in the text*. Everything in CCA that looks
  backward (both convolutions and the delayed value) follows it, never the row index.

A row is always [context tokens ‖ blocks of block_size mask tokens]. That split is static, so attention never needs
scores between two blocks (attention/); it adds no rule of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import constructors, parts, targets
from zaya_jax.architecture.visibility import CONTEXT, MASK, PADDING, START, Keys, visible

__all__ = ["CONTEXT", "MASK", "PADDING", "START", "Keys", "Layout", "visible"]

Array = jax.Array


class Layout(struct.PyTreeNode):
    """A row of tokens and where each stands in its text. Every array int32 [B, T].

    | field       | meaning                                    | clean token at i | mask token i of block b           |
    |-------------|--------------------------------------------|------------------|-----------------------------------|
    | tokens      | ids; MASK for mask tokens                  | x_i              | MASK (x_i where revealed)         |
    | position    | logical position: rotary angle, window     | i                | i                                 |
    | document    | packed document; PADDING is its own value  | d                | d                                 |
    | horizon     | sees its document's clean positions < this | i + 1            | first position of block b         |
    | block       | 0 = clean; equal ids see each other        | 0                | unique id of the block            |
    | predecessor | row index of the token before it in the    | i - 1            | slot before; for a first slot the |
    |             | text, or START, or CONTEXT (the cache)     |                  | clean token just before the block |

    `clean_size` (static) says how many leading slots are clean; the rest are whole blocks of `block_size` (static).
    Build one with `causal`, `tidar`, `verify_and_draft` or `verify_tree`; all are pure and jit-able with static sizes.
    """

    tokens: Array
    position: Array
    document: Array
    horizon: Array
    block: Array
    predecessor: Array
    clean_size: int = struct.field(pytree_node=False)
    block_size: int = struct.field(pytree_node=False, default=0)
    # A part of a row that several devices share (`part`): the context tokens of all parts, and the axis they lie along.
    global_keys: Keys | None = None
    axis: tuple[str, ...] = struct.field(pytree_node=False, default=())
    # Where clean tokens form a tree: the place of each when the tree is walked depth first, and that after the last
    # token below it. So a token stands above another exactly if preorder <= the other's preorder < subtree_end.
    preorder: Array | None = None
    subtree_end: Array | None = None
    stretches: int = struct.field(pytree_node=False, default=1)  # of the text, that the part's context tokens are
    # Whether the first n context tokens see no context tokens but the first n; and whether the first n mask tokens for
    # whole blocks do, as on a grid.
    ordered: bool = struct.field(pytree_node=False, default=False)
    ordered_blocks: bool = struct.field(pytree_node=False, default=False)

    causal = classmethod(constructors.causal)
    tidar = classmethod(constructors.tidar)
    blocks_at = classmethod(constructors.blocks_at)
    whole = classmethod(constructors.whole)
    verify_and_draft = classmethod(constructors.verify_and_draft)
    verify_tree = classmethod(constructors.verify_tree)

    clean_targets = targets.clean_targets
    draft_targets = targets.draft_targets
    draft_teachers = targets.draft_teachers
    draft_sources = targets.draft_sources

    part = parts.part
    gather = parts.gather

    @property
    def keys(self) -> Keys:
        return Keys(self.position, self.document, self.block, self.preorder, self.subtree_end)

    @property
    def num_blocks(self) -> int:
        return (self.tokens.shape[-1] - self.clean_size) // self.block_size if self.block_size else 0

    def visibility(self, window: Array | int | None = None) -> Array:
        """The dense mask bool [B, T, T] of a row without cache: for tests and pictures."""
        return visible(self, self.keys, window)

    @property
    def clean_keys(self) -> Keys:
        """What visibility asks of the context tokens, those of the row's other parts included."""
        return self.clean_rows().keys if self.global_keys is None else self.global_keys

    def clean_rows(self) -> "Layout":
        """The context tokens alone."""
        return self.replace(global_keys=None, block_size=0)._map(lambda x: x[:, : self.clean_size])

    def draft_rows(self) -> "Layout":
        """The mask tokens alone, all blocks in one axis: fields [B, N * block_size]."""
        rows = self.replace(global_keys=None, clean_size=0, ordered=self.ordered_blocks)
        return rows._map(lambda x: x[:, self.clean_size :])

    def rows_of(self, slots: int) -> "Layout":
        """The rows that a forward computes `slots` rows of: all of this layout's, or its mask tokens alone."""
        return self if slots == self.tokens.shape[1] else self.draft_rows()

    def blocks(self) -> "Layout":
        """The mask tokens alone: fields [B, N, block_size]."""
        return self.draft_rows()._map(lambda x: x.reshape(x.shape[0], self.num_blocks, self.block_size))

    def _map(self, f) -> "Layout":
        return jax.tree.map(f, self)

    def layout_unaware(self) -> "Layout":
        """The same rows, but succession follows the row in memory: what a convolution that knows of no layout does.

        A negative control (`ZayaConfig.succession`): context tokens keep their predecessors, mask tokens get the wrong
        ones, their block's first the slot that happens to stand before it.
        """
        row = jnp.broadcast_to(jnp.arange(self.tokens.shape[1], dtype=jnp.int32), self.tokens.shape)
        before = jnp.where(row > 0, row - 1, CONTEXT)
        return self.replace(predecessor=jnp.where(self.block == 0, self.predecessor, before))

    def render(self, row: int = 0, window: int | None = None) -> str:
        """Who sees whom, as text: one line a query, '#' clean key, 'o' same-block key, '.' hidden. Not jit-able."""
        seen = np.asarray(self.visibility(window)[row])
        block = np.asarray(self.block[row])
        tokens, position = np.asarray(self.tokens[row]), np.asarray(self.position[row])
        lines = []
        for i in range(len(tokens)):
            marks = "".join(("." if not s else "#" if b == 0 else "o") for s, b in zip(seen[i], block, strict=True))
            name = "MASK" if tokens[i] == MASK else str(tokens[i])
            lines.append(f"{name:>7} @{position[i]:<4} {marks}")
        return "\n".join(lines)

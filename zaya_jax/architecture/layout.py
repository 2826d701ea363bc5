"""The one idea: a forward pass reads a `Layout`.

Autoregressive training, TiDAR training, prefill, decoding and "verify this draft and draft again after every possible
outcome" are one model applied to a row of tokens whose order in memory is not their order in the text. A `Layout` says
the difference in a few integers per token. Its two rules stand here and nowhere else:

* visibility (`visible`): who attends to whom;
* succession (`Layout.predecessor`): which token comes before this one *in the text*. Everything in CCA that looks
  backward (both convolutions and the delayed value) follows it, never the row index.

A row is always [clean tokens ‖ blocks of block_size mask tokens]. That split is static, so attention never needs scores
between two blocks (`attention.py`); it adds no rule of its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.errors import UserError

MASK = -1  # in `tokens`: a mask token; the model looks up its own mask_token_id
PADDING = -1  # in `document`: no document at all
START = -1  # in `predecessor`: nothing stands before this token
CONTEXT = -2  # in `predecessor`: the newest token of the cached context stands before this token

Array = jax.Array


class Keys(NamedTuple):
    """What visibility asks of a key; every field int32 [..., key]."""

    position: Array
    document: Array
    block: Array


def visible(query: "Layout", key: Keys, window: Array | int | None = None) -> Array:
    """The visibility rule: may this query attend to this key?

    allow(q, k) = same document
                  and (block_k = 0 and position_k < horizon_q   or   block_k = block_q != 0)
                  and position_q - position_k < window, in sliding layers.

    Args:
      query: a Layout whose fields are [..., query].
      key: fields [..., key], the leading axes broadcastable with the query's.
      window: keys a sliding layer sees, the query's own position included (transformers' count); None for all.

    Returns:
      bool [..., query, key].
    """

    def q(x: Array) -> Array:
        return x[..., :, None]

    def k(x: Array) -> Array:
        return x[..., None, :]

    clean = (k(key.block) == 0) & (k(key.position) < q(query.horizon))
    same_block = (k(key.block) == q(query.block)) & (q(query.block) != 0)
    allowed = (k(key.document) == q(query.document)) & (clean | same_block)
    if window is not None:
        allowed &= q(query.position) - k(key.position) < window
    return allowed


class Layout(struct.PyTreeNode):
    """A row of tokens and where each stands in its text. Every array int32 [batch, row].

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
    Build one with `causal`, `tidar` or `verify_and_draft`; all are pure and jit-able with static sizes.
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
    # Whether the first n context tokens, and the first n mask tokens for whole blocks, see no context tokens but the
    # first n.
    ordered: bool = struct.field(pytree_node=False, default=False)

    @property
    def keys(self) -> Keys:
        return Keys(self.position, self.document, self.block)

    @property
    def num_blocks(self) -> int:
        return (self.tokens.shape[-1] - self.clean_size) // self.block_size if self.block_size else 0

    def visibility(self, window: Array | int | None = None) -> Array:
        """The dense mask bool [batch, row, row] of a row without cache: for tests and pictures."""
        return visible(self, self.keys, window)

    @property
    def clean_keys(self) -> Keys:
        """What visibility asks of the context tokens, those of the row's other parts included."""
        return self.clean_rows().keys if self.global_keys is None else self.global_keys

    def gather(self, x: Array) -> Array:
        """x [batch, clean_size, ...] of this part's context tokens -> of all parts' ([batch, whole row's, ...])."""
        return jax.lax.all_gather(x, self.axis, axis=1, tiled=True) if self.axis else x

    def part(self, index: Array | int, count: int, axis: tuple[str, ...]) -> "Layout":
        """This device's part of a `causal` or `tidar` row: a piece of the text, and the blocks that start in it.

        What stands before the piece is to it what the cache is to decoding: its first token's predecessor is CONTEXT,
        and the clean keys of all parts (`gather`) are what its queries meet.

        Args:
          index: which part, 0 .. count - 1.
          count: equal parts, static.
          axis: the `shard_map` names that the parts lie along, in order.

        Raises:
          UserError: a row or its blocks that `count` does not divide.
        """
        if self.clean_size % count or self.num_blocks % count:
            raise UserError(
                f"row: got {self.clean_size} tokens and {self.num_blocks} blocks, may be multiples of {count} parts"
            )
        clean, drafts = self.clean_size // count, self.num_blocks // count * self.block_size
        first, first_draft = index * clean, self.clean_size + index * drafts

        def cut(x: Array) -> Array:
            pieces = [jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for start, size in at if size]
            return jnp.concatenate(pieces, axis=1)

        at = ((first, clean), (first_draft, drafts))
        mine = self._map(cut)
        before = mine.predecessor
        in_clean = jnp.where(before >= first, before - first, CONTEXT)
        in_drafts = before - first_draft + clean
        before = jnp.where(before < 0, before, jnp.where(before < self.clean_size, in_clean, in_drafts))
        global_keys = self.clean_rows().keys
        return mine.replace(predecessor=before, clean_size=clean, global_keys=global_keys, axis=axis, ordered=False)

    def clean_rows(self) -> "Layout":
        """The context tokens alone."""
        return self.replace(global_keys=None, block_size=0)._map(lambda x: x[:, : self.clean_size])

    def draft_rows(self) -> "Layout":
        """The mask tokens alone, all blocks in one axis: fields [batch, num_blocks * block_size]."""
        return self.replace(global_keys=None, clean_size=0)._map(lambda x: x[:, self.clean_size :])

    def blocks(self) -> "Layout":
        """The mask tokens alone: fields [batch, num_blocks, block_size]."""
        return self.draft_rows()._map(lambda x: x.reshape(x.shape[0], self.num_blocks, self.block_size))

    def _map(self, f) -> "Layout":
        return jax.tree.map(f, self)

    # --- constructors -------------------------------------------------------------------------------------------------

    @classmethod
    def causal(cls, tokens: Array, valid: Array | None = None, document: Array | None = None) -> "Layout":
        """Plain autoregressive rows.

        Args:
          tokens: int [batch, row].
          valid: bool [batch, row], False on padding, which may stand left or right; None for no padding.
          document: int [batch, row] >= 0, equal ids stand side by side (packed documents); None for one a row. PADDING
            (-1) marks padding here too.

        Returns:
          A Layout of the same row; positions count from 0 in each document.

        Raises:
          UserError: shapes that differ from tokens'.
        """
        tokens = _as_row(tokens)
        document = _documents(tokens, valid, document)
        position, starts = _positions(document)
        row = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        return cls(
            tokens=tokens,
            position=position,
            document=document,
            horizon=position + 1,
            block=jnp.zeros_like(tokens),
            predecessor=jnp.where(starts, START, row - 1),
            clean_size=tokens.shape[1],
            ordered=True,
        )

    @classmethod
    def tidar(
        cls,
        tokens: Array,
        block_size: int,
        offset: Array | int = 0,
        valid: Array | None = None,
        document: Array | None = None,
        reveal: Array | None = None,
    ) -> "Layout":
        """TiDAR's training rows: [row clean tokens ‖ ceil(row / block_size) blocks] (arXiv 2511.08923, section 3).

        Block b starts after the clean tokens 0 .. offset + b * block_size - 1 of its row and belongs to the document
        that stands at its first slot. Blocks are always whole, as at inference: slots that run past their document's or
        the row's end stay in the row but have no target (`draft_targets`). The first `offset` tokens of a row belong to
        no block, so draw the offset anew for every row and step: at inference blocks start anywhere.

        Args:
          tokens, valid, document: as in `causal`.
          block_size: slots a block, static.
          offset: first block's first row index, int or int [batch], in [0, block_size).
          reveal: bool [batch, row], True where a mask token shows its token instead of MASK (random masking); None for
            full masking.

        Raises:
          UserError: block_size < 1, a static offset out of range, or shapes that differ from tokens'.
        """
        _check_block_size(block_size)
        if isinstance(offset, (int, np.integer)) and not 0 <= offset < block_size:
            raise UserError(f"offset: got {offset}, may be in [0, block_size = {block_size})")
        tokens = _as_row(tokens)
        first = _grid(tokens.shape[0], tokens.shape[1], block_size, offset)[:, ::block_size]
        return cls.blocks_at(tokens, first, block_size, valid, document, reveal)

    @classmethod
    def blocks_at(
        cls,
        tokens: Array,
        first: Array,
        block_size: int,
        valid: Array | None = None,
        document: Array | None = None,
        reveal: Array | None = None,
    ) -> "Layout":
        """Training rows with draft blocks anywhere: [row clean tokens ‖ one block from each of `first` on].

        `tidar` puts them on a grid; a training layout of your own says where else (docs/extending.md#a-new-layout).

        Args:
          first: int [batch, block], the row index of each block's first slot. From the row's length on: no block, its
            slots are padding.
          tokens, block_size, valid, document, reveal: as in `tidar`.

        Raises:
          UserError: block_size < 1, or shapes that differ from tokens'.
        """
        _check_block_size(block_size)
        clean, first = cls.causal(tokens, valid, document), jnp.asarray(first, jnp.int32)
        row = clean.tokens.shape[1]
        inside = first < row

        def at_first(x: Array) -> Array:
            return jnp.take_along_axis(x, jnp.minimum(first, row - 1), axis=1)

        drafts = _draft_slots(
            horizon=at_first(clean.position),
            document=jnp.where(inside, at_first(clean.document), PADDING),
            before=at_first(clean.predecessor),
            clean_size=row,
            block_size=block_size,
        )
        if reveal is not None:
            if reveal.shape != clean.tokens.shape:
                raise UserError(f"reveal: got shape {reveal.shape}, may be tokens' shape {clean.tokens.shape}")
            slot_row = _slots(first, block_size)
            source = jnp.minimum(slot_row, row - 1)
            shown = jnp.take_along_axis(reveal, source, axis=1) & (slot_row < row)
            shown &= jnp.take_along_axis(clean.document, source, axis=1) == drafts.document
            drafts = drafts.replace(tokens=jnp.where(shown, jnp.take_along_axis(clean.tokens, source, axis=1), MASK))
        return clean._join(drafts)

    @classmethod
    def verify_and_draft(
        cls,
        tokens: Array,
        start: Array | int = 0,
        anchors: Array | tuple[int, ...] | None = None,
        block_size: int = 0,
        count: Array | None = None,
    ) -> "Layout":
        """Inference rows after `start` cached tokens: [tokens ‖ one block of mask tokens after each anchor].

        Everything a sampler does is an instance: decoding (one token, no anchors), a prompt's prefill (anchor = its
        length), "verify these drafts and draft after every outcome" (TiDAR, section 3.3: anchors 1 .. block_size) and
        a second pass seeded with the pending token (one token, anchor 1).

        Args:
          tokens: int [batch, row], the clean tokens at positions start .. start + row - 1.
          start: cached tokens before them, int or int [batch]. Must be the cache's length.
          anchors: for each block, after how many of `tokens` it starts (0 .. row; 0 is directly after the cache):
            static ints, or int [batch, block]. None for no blocks. Block a covers positions start + a ..
            start + a + block_size - 1.
          block_size: slots a block, static; needed with anchors.
          count: int [batch], how many of `tokens` are real; the rest are right padding. None for all.

        Raises:
          UserError: a static anchor out of range, or anchors without a block_size.
        """
        tokens = _as_row(tokens)
        batch, row = tokens.shape
        start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))[:, None]
        index = jnp.broadcast_to(jnp.arange(row, dtype=jnp.int32), tokens.shape)
        real = index < (row if count is None else jnp.asarray(count, jnp.int32)[:, None])
        position = start + index
        before_row = jnp.where(start > 0, CONTEXT, START)
        clean = cls(
            tokens=tokens,
            position=position,
            document=jnp.where(real, 0, PADDING),
            horizon=position + 1,
            block=jnp.zeros_like(tokens),
            predecessor=jnp.where(index == 0, before_row, index - 1),
            clean_size=row,
        )
        if anchors is None:
            return clean
        _check_block_size(block_size)
        if isinstance(anchors, (tuple, list)):
            bad = [a for a in anchors if not 0 <= a <= row]
            if bad:
                raise UserError(f"anchors: got {bad[0]}, may be in 0 .. {row} (the clean tokens of the row)")
        anchors = jnp.broadcast_to(jnp.asarray(anchors, jnp.int32), (batch, np.shape(anchors)[-1]))
        return clean._join(
            _draft_slots(
                horizon=start + anchors,
                document=jnp.zeros_like(anchors),
                before=jnp.where(anchors > 0, anchors - 1, before_row),
                clean_size=row,
                block_size=block_size,
            )
        )

    def _join(self, drafts: "Layout") -> "Layout":
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=1),
            self.replace(clean_size=0, block_size=0),
            drafts.replace(clean_size=0, block_size=0, ordered=self.ordered),
        )
        return joined.replace(clean_size=self.clean_size, block_size=drafts.block_size)

    def draft_teachers(self, offset: Array | int = 0, first: Array | None = None) -> tuple[Array, Array]:
        """The clean row slot whose AR distribution is of each mask token's position: (index, there is one).

        int32 and bool [batch, blocks * block_size]. None at a document's first token.

        Args:
          offset, first: what `tidar` or `blocks_at` was given.
        """
        slot_row = self._slot_row(offset, first)
        source = jnp.clip(slot_row - 1, 0, self.clean_size - 1)
        same = jnp.take_along_axis(self.clean_rows().document, source, axis=1) == self.draft_rows().document
        return source, same & (slot_row > 0)

    def layout_unaware(self) -> "Layout":
        """The same rows, but succession follows the row in memory: what a convolution that knows of no layout does.

        A negative control (`ZayaConfig.succession`): context tokens keep their predecessors, mask tokens get the wrong
        ones, their block's first the slot that happens to stand before it.
        """
        row = jnp.broadcast_to(jnp.arange(self.tokens.shape[1], dtype=jnp.int32), self.tokens.shape)
        before = jnp.where(row > 0, row - 1, CONTEXT)
        return self.replace(predecessor=jnp.where(self.block == 0, self.predecessor, before))

    # --- targets and pictures -----------------------------------------------------------------------------------------

    def clean_targets(self, scored: Array | None = None) -> tuple[Array, Array]:
        """Next-token targets of the context tokens: (ids, has_target), int32 and bool [batch, clean_size].

        The last token of a document and padding have none.

        Args:
          scored: bool [batch, clean_size], the clean tokens that may be targets; None for all.
        """
        clean = self.clean_rows()
        following = jnp.concatenate([clean.document[:, 1:], jnp.full_like(clean.document[:, :1], PADDING)], axis=1)
        has = (clean.document != PADDING) & (following == clean.document)
        ids = jnp.concatenate([clean.tokens[:, 1:], clean.tokens[:, :1]], axis=1)
        if scored is not None:
            has &= jnp.concatenate([scored[:, 1:], scored[:, :1]], axis=1)
        return jnp.where(has, ids, 0), has

    def draft_targets(
        self, offset: Array | int = 0, scored: Array | None = None, first: Array | None = None
    ) -> tuple[Array, Array]:
        """Same-position targets of the mask tokens of a `tidar` row: (ids, has_target) [batch, blocks * block_size].

        A slot has one iff it is MASK and its position exists in its document; so nothing is asked of slots beyond the
        document's end, of revealed slots and of padding.

        Args:
          offset, first: what `tidar` or `blocks_at` was given.
          scored: as in `clean_targets`.
        """
        clean, drafts = self.clean_rows(), self.draft_rows()
        slot_row = self._slot_row(offset, first)
        source = jnp.minimum(slot_row, self.clean_size - 1)
        has = (slot_row < self.clean_size) & (drafts.document != PADDING) & (drafts.tokens == MASK)
        has &= jnp.take_along_axis(clean.document, source, axis=1) == drafts.document
        if scored is not None:
            has &= jnp.take_along_axis(scored, source, axis=1)
        return jnp.where(has, jnp.take_along_axis(clean.tokens, source, axis=1), 0), has

    def _slot_row(self, offset: Array | int, first: Array | None) -> Array:
        """The clean row index that each mask token stands for."""
        if first is not None:
            return _slots(jnp.asarray(first, jnp.int32), self.block_size)
        return _grid(self.tokens.shape[0], self.clean_size, self.block_size, offset)

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


def _draft_slots(horizon: Array, document: Array, before: Array, clean_size: int, block_size: int) -> Layout:
    """Whole blocks of MASK; arguments int32 [batch, block]; `before` is the first slots' predecessor."""
    num_blocks = horizon.shape[1]
    slot = jnp.arange(num_blocks * block_size, dtype=jnp.int32)
    first_slot = slot % block_size == 0

    def spread(x: Array) -> Array:
        return jnp.repeat(x, block_size, axis=1, total_repeat_length=num_blocks * block_size)

    position = _slots(horizon, block_size)
    return Layout(
        tokens=jnp.full_like(position, MASK),
        position=position,
        document=spread(document),
        horizon=spread(horizon),
        block=jnp.broadcast_to(slot // block_size + 1, position.shape),
        predecessor=jnp.where(first_slot, spread(before), clean_size + slot - 1),
        clean_size=0,
        block_size=block_size,
    )


def _grid(batch: int, row: int, block_size: int, offset: Array | int) -> Array:
    """The row index each mask token of a `tidar` row stands for, int32 [batch, slots]; may run past the row's end."""
    offset = jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (batch,))
    num_blocks = -(-row // block_size)
    return _slots(offset[:, None] + block_size * jnp.arange(num_blocks, dtype=jnp.int32), block_size)


def _slots(first: Array, block_size: int) -> Array:
    """int32 [batch, block] -> [batch, block * block_size], counting up from each first."""
    slots = first[:, :, None] + jnp.arange(block_size, dtype=jnp.int32)
    return slots.reshape(first.shape[0], -1)


def _as_row(tokens: Array) -> Array:
    tokens = jnp.asarray(tokens, jnp.int32)
    if tokens.ndim != 2:
        raise UserError(f"tokens: got shape {tokens.shape}, may be [batch, row]")
    return tokens


def _check_block_size(block_size: int) -> None:
    if not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise UserError(f"block_size: got {block_size!r}, may be an integer of at least 1")


def _documents(tokens: Array, valid: Array | None, document: Array | None) -> Array:
    for name, value in (("valid", valid), ("document", document)):
        if value is not None and jnp.shape(value) != tokens.shape:
            raise UserError(f"{name}: got shape {jnp.shape(value)}, may be tokens' shape {tokens.shape}")
    document = jnp.zeros_like(tokens) if document is None else jnp.asarray(document, jnp.int32)
    return document if valid is None else jnp.where(jnp.asarray(valid, bool), document, PADDING)


def _positions(document: Array) -> tuple[Array, Array]:
    """Position in the document, and whether a token starts one: int32 and bool [batch, row]."""
    starts = jnp.concatenate([jnp.ones_like(document[:, :1], dtype=bool), document[:, 1:] != document[:, :-1]], axis=1)
    row = jnp.arange(document.shape[1], dtype=jnp.int32)
    start_row = jax.lax.cummax(jnp.where(starts, row, 0), axis=1)
    return row - start_row, starts

"""Who may attend to whom: the visibility rule, and what the integers of a `Layout` mean besides positions."""

from typing import TYPE_CHECKING, NamedTuple

import jax

if TYPE_CHECKING:
    from zaya_jax.architecture.layout import Layout

MASK = -1  # in `tokens`: a mask token; the model looks up its own mask_token_id
PADDING = -1  # in `document`: no document at all
START = -1  # in `predecessor`: nothing stands before this token
SECOND_CONTEXT = -3  # in `predecessor`, where devices share a row: the newest token before a part's second stretch
CONTEXT = -2  # in `predecessor`: the newest token of the cached context stands before this token

NO_TREE = 2**30 - 1  # in `subtree_end`: every query is below this token

Array = jax.Array


class Keys(NamedTuple):
    """What visibility asks of a key; every field int32 [..., S]."""

    position: Array
    document: Array
    block: Array
    # where tokens form a tree (`Layout.verify_tree`); elsewhere None
    preorder: Array | None = None
    subtree_end: Array | None = None


def visible(query: "Layout", key: Keys, window: Array | int | None = None) -> Array:
    """The visibility rule: may this query attend to this key?

    allow(q, k) = same document
                  and (block_k = 0 and position_k < horizon_q   or   block_k = block_q != 0)
                  and position_q - position_k < window, in sliding layers
                  and preorder_k <= preorder_q < subtree_end_k, where the query stands in a tree.

    Args:
      query: a Layout whose fields are [..., T].
      key: fields [..., S], the leading axes broadcastable with the query's.
      window: keys a sliding layer sees, the query's own position included (transformers' count); None for all.

    Returns:
      bool [..., T, S].
    """

    def q(x: Array) -> Array:
        return x[..., :, None]

    def k(x: Array) -> Array:
        return x[..., None, :]

    clean = (k(key.block) == 0) & (k(key.position) < q(query.horizon))
    same_block = (k(key.block) == q(query.block)) & (q(query.block) != 0)
    allowed = (k(key.document) == q(query.document)) & (clean | same_block)
    if query.preorder is not None and key.preorder is not None and key.subtree_end is not None:
        allowed &= (k(key.preorder) <= q(query.preorder)) & (q(query.preorder) < k(key.subtree_end))
    if window is not None:
        allowed &= q(query.position) - k(key.position) < window
    return allowed

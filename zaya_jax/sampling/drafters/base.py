"""What every drafter is: an observer of the text that proposes what may come next, and a registry of them.

A step of mode "drafter" (`strategies.propose_and_verify`) calls `propose`, verifies the proposal in one causal forward
of the target, commits what was accepted, and shows it to `observe`. How a proposal is verified follows from it alone:

| the proposal has           | rule                            | a draft d is accepted with |
|----------------------------|---------------------------------|----------------------------|
| `logits` that drew it      | ratio and residual (`verify`)   | min(1, p(d) / q(d))        |
| no logits, no parents      | sample, compare (`walk`)        | p(d)                       |
| parents: a tree            | sample, walk down (`walk`)      | the sum of p over children |

All three leave the target's distribution as it is, whatever is proposed (docs/method.md#why-it-is-lossless), as long as
a proposal depends on the text, its own noise (`Purpose.DRAFT`) and nothing else.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from flax import struct

from zaya_jax.architecture import Cache, ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller
from zaya_jax.sampling.strategies.base import Setup

Array = jax.Array


class Needs(NamedTuple):
    """What `observe` wants to see of the target's forwards; nothing else is exported."""

    hidden: bool = False  # the normed hidden states, which the head reads
    taps: tuple[int, ...] = ()  # the streams that enter these layers (`Zaya.features`)


class Rows(NamedTuple):
    """Text that the target has read and that is final, [B, n]; of each sequence the first `count` rows alone are real.

    In the order of the text, whatever they were verified as. The rows after `count` hold anything.
    """

    tokens: Array  # int32 [B, n]
    following: Array  # int32 [B, n]: the text's token after each
    first: Array  # int32 [B]: position of tokens[:, 0]; what stands before it has been observed
    count: Array  # int32 [B], 0 .. n
    hidden: Array | None = None  # [B, n, M], if needed
    taps: Array | None = None  # [B, n, taps, M], if needed


class Proposal(struct.PyTreeNode):
    """Drafts of the positions after a pending token."""

    tokens: Array  # int32 [B, m]
    exists: Array  # bool [B, m]: False for a draft that stands there for nothing; never accepted
    # [B, m, V] in at least float32: what drew the tokens, by `Setup.options.draft_processing` and Purpose.DRAFT; -inf
    # for tokens that are never drafted. None: the tokens are fixed, given the text.
    logits: Array | None = None
    # int32 [B, m]: a tree's edges, each draft's parent: 0 the pending token, i draft i - 1; smaller than its own number
    # (draft i has number i + 1). None: a chain.
    parent: Array | None = None


class NoState(struct.PyTreeNode):
    """Of a drafter that remembers nothing."""

    def grow(self, capacity: int) -> "NoState":
        return self


@dataclasses.dataclass(frozen=True)
class Drafter:
    """A way to propose. A subclass overrides what differs; its fields are its static options.

    What it learned stands in the model's variables under `DRAFTERS` and its name (`Setup.drafter_variables`). What it
    remembers of a text is its state: a pytree with leading axis B (but for a `Cache` in it), with a method
    `grow(capacity)`. It lies in `Cache.drafter`: repeated, refilled and kept in sessions as keys and values are.

    Attributes:
      name: what `SamplerConfig.drafter` says.
      words: a sentence for the report's readers.
    """

    name: str
    words: str

    masks = False  # does it read mask tokens of the target? Then the model needs one
    trees = False  # can it propose a tree?
    ngrams = False  # does its tree read `ngram_weight`?

    def needs(self, config: ZayaConfig) -> Needs:
        """Of a target with this config; static."""
        return Needs()

    def target_forwards(self, draft_length: int) -> tuple[int, ...]:
        """Query tokens of each of the target's forwards that `propose` itself makes; none, as a rule."""
        return ()

    def require(self, config: ZayaConfig, variables: Any) -> None:
        """Raises UserError, in one line, where this model or its variables cannot be drafted for."""

    def init(self, setup: Setup, batch: int, capacity: int) -> Any:
        """The state of empty texts, with room for `capacity` tokens each."""
        return NoState()

    def observe(self, setup: Setup, state: Any, rows: Rows) -> Any:
        """The state after more text: the same whether rows come one by one or all at once.

        Nothing may be left of the rows after `rows.count`; with a count of 0 the state stays (what is written beyond
        the text and never read is nobody's). Rows come without gaps from position 0 on, each once; a text
        that is read again begins with `init`'s state.
        """
        return state

    def propose(self, setup: Setup, state: Any, pending_token: Array, cache: Cache) -> Proposal:
        """Drafts after the pending token (int32 [B]), which stands at position cache.length. It has been observed as
        what follows the newest row, but not as a row.

        At most plan.draft_length after one another, and exactly plan.block_size - 1 in all. Changes no state: what it
        writes into its own keys and values while it proposes is forgotten. The cache is the target's, for a drafter
        that drafts by the target itself (`Setup.forward`).
        """
        raise NotImplementedError


_REGISTERED: Registry[Drafter] = Registry("drafter")


def register_drafter(drafter: Drafter) -> Drafter:
    """Adds a drafter and returns it. The same file, read again, replaces its drafter.

    Raises:
      UserError: the name is one of this package's drafters, or another file has registered it.
    """
    if not (isinstance(drafter.words, str) and drafter.words.strip()):
        raise UserError(f"Drafter.words: got {drafter.words!r}, may be a sentence")
    before = dict(_REGISTERED).get(drafter.name)
    _REGISTERED.add(drafter.name, drafter, caller())
    if before not in (None, drafter):
        jax.clear_caches()  # compiled programs know a drafter by its name
    return drafter


def find_drafter(name: str) -> Drafter:
    """The drafter of a name; UserError for none."""
    return _REGISTERED[name]


def all_drafters() -> tuple[Drafter, ...]:
    """In the order of registration."""
    return tuple(_REGISTERED.values())

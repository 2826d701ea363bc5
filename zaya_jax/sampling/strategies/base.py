"""What the ways of decoding share: their static and run-time settings, the target's distribution, verification.

A method is four functions (`Method`): `read` runs the prompt, `begin` decides the first token from what was read,
`step` makes one step, `drafts` shows what is proposed but not verified. The loop around them (`loop.py`) knows nothing
else of a method. One of them, `propose_and_verify`, has drafters of many kinds beneath it (`sampling.drafters`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import Cache, Layout, Zaya
from zaya_jax.architecture.config import DRAFTERS
from zaya_jax.architecture.draft_vocabulary import DraftVocabulary
from zaya_jax.sampling.core.distributions import (
    LogitsProcessing,
    at_token,
    log_acceptance,
    log_distribution,
    log_residual,
    penalise,
)
from zaya_jax.sampling.core.random_streams import Noise, Purpose
from zaya_jax.sampling.core.targets import Target, find_target

Array = jax.Array


class Plan(NamedTuple):
    """The static part of a SamplerConfig (hashable: it keys the compilation)."""

    mode: str
    block_size: int
    anchors: tuple[int, ...]
    target: str  # of `zaya_jax.sampling.core.targets`
    # For mode "drafter", whose block_size is the rows that a step verifies: the pending token and what is proposed.
    drafter: str = ""  # of `zaya_jax.sampling.drafters`
    draft_length: int = 0  # drafts after one another, at most
    tree_size: int = 0  # drafts in all, where they form a tree; 0: they form a chain
    lookup: int = 0  # of single_pass: see SamplerConfig

    @property
    def observer(self) -> str:
        """The drafter whose state the cache holds; "" for none."""
        return "ngram" if self.lookup else self.drafter


class Options(NamedTuple):
    """The run-time part, scalars; changing them compiles nothing."""

    processing: LogitsProcessing  # of the target
    draft_processing: LogitsProcessing
    beta: Array
    repetition_penalty: Array
    min_new_tokens: Array  # int32
    threshold: Array
    reveal: Array  # int32
    stop: Array  # int32 [stops]: stop tokens, padded with -1
    ngram_weight: Array  # of the text's own statistics in a tree's scores

    @property
    def edits(self) -> Array:
        """bool []: do logits depend on which tokens the row holds, or how many?"""
        return (self.repetition_penalty != 1) | (self.min_new_tokens > 0)


@dataclasses.dataclass
class Tally:
    """What a step computes for each sequence, counted while it is traced: no method counts itself."""

    target: list[int] = dataclasses.field(default_factory=list)  # query tokens of each of the target's forwards
    draft: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # of a drafter's passes: (rows, parameters)


class Setup(NamedTuple):
    """Everything a step reads and does not change."""

    model: Zaya
    variables: Any
    plan: Plan
    options: Options
    noise: Noise
    vocabulary: DraftVocabulary | None = None  # of the drafts; None: any token is drafted
    tally: "Tally | None" = None  # counts what is traced

    @property
    def target(self) -> Target:
        return find_target(self.plan.target)

    @property
    def drafter_variables(self) -> Any:
        """What the plan's drafter learned; {} where it learns nothing."""
        return self.variables.get(DRAFTERS, {}).get(self.plan.observer, {})

    def draft_pass(self, rows: int, read: Any) -> None:
        """A drafter says so wherever it runs a network of its own.

        Args:
          rows: of each sequence.
          read: a pytree of the weights that the pass reads, the head's among them.
        """
        if self.tally is not None:
            self.tally.draft.append((rows, sum(int(np.prod(x.shape)) for x in jax.tree.leaves(read))))

    def forward(self, layout: Layout, cache: Cache) -> tuple[Array, Cache]:
        """(hidden states [B, T, M], pending cache)."""
        if self.tally is not None:
            self.tally.target.append(layout.tokens.shape[1])
        hidden, cache, _ = cast(tuple, self.model.apply(self.variables, layout, cache, method="backbone"))
        return hidden, cache

    def forward_with_taps(self, layout: Layout, cache: Cache, taps: tuple[int, ...]) -> tuple[Array, Array, Cache]:
        """`forward` with the streams that enter the layers `taps`: [B, T, taps, M] after the hidden states."""
        if self.tally is not None:
            self.tally.target.append(layout.tokens.shape[1])
        found = self.model.apply(self.variables, layout, cache, taps, method="features")
        features, cache, _ = cast(tuple, found)
        return features.hidden, features.taps, cache

    def head(self, hidden: Array) -> Array:
        """Logits [..., V]."""
        return cast(Array, self.model.apply(self.variables, hidden, method="head"))

    def draft_head(self, hidden: Array) -> Array:
        """The drafts' logits [..., K]."""
        return self.head(hidden) if self.vocabulary is None else self.vocabulary.logits(hidden)


def make_setup(
    model: Zaya, variables: Any, plan: Plan, options: Options, noise: Noise, tally: Tally | None = None
) -> Setup:
    """Drafts are over the model's draft vocabulary, if it has one; not where a target reads their logits or shows them
    unverified, nor where a drafter has its own.
    """
    target = find_target(plan.target)
    whole = target.combine is not None or target.reveal is not None or bool(plan.drafter)
    vocabulary = None if whole else cast(Any, model.apply(variables, method="draft_vocabulary"))
    return Setup(model, variables, plan, options, noise, vocabulary, tally)


class Progress(struct.PyTreeNode):
    """What the target's distribution may depend on besides the text's hidden states."""

    count: Array  # int32 [B]: new tokens so far
    seen: Array  # bool [B, V]: tokens of the prompt and the new ones


class StepResult(NamedTuple):
    """What one step decided for each row."""

    produced: Array  # int32 [B, n]: the first `amount` are new tokens
    log_target: Array  # [B, n]: their log-probabilities under the target
    amount: Array  # int32 [B], 0 .. n
    healthy: Array  # bool [B]: False if the model gave NaN logits


class Drafted(struct.PyTreeNode):
    """Drafts of the positions after a pending token."""

    tokens: Array  # int32 [B, drafts]
    index: Array  # int32 [B, drafts]: where the tokens stand in the drafts' vocabulary
    logits: Array  # [B, drafts, K]: what drew them, over that vocabulary
    exists: Array  # bool [B, drafts]: False where no slot was left to draw from
    fixed: Array | None = None  # bool [B, drafts]: drafts that nothing drew, whose logits and index mean nothing


class Verdict(NamedTuple):
    """What verification found out about a pending token's drafts."""

    accepted: Array  # int32 [B], 0 .. drafts: drafts that are now text
    pending_token: Array  # int32 [B]: the token after them
    result: StepResult  # drafts[:accepted], then pending_token


# active [B] and how many of the produced tokens were kept [B] -> (carry, cache). Fewer are kept than produced
# where a row ended; the cache must then hold no token beyond the kept ones.
Follow = Callable[[Array, Array], tuple[Any, Cache]]


class Method(NamedTuple):
    """A way of decoding. `carry` is the method's own state between steps, a pytree with leading axis batch."""

    read: Callable[..., tuple[Any, Cache]]  # (setup, tokens, count, cache) -> (readout, cache), batch = prompts
    # (setup, readout, cache, progress) -> (result, carry, cache), batch = rows
    begin: Callable[..., tuple[StepResult, Any, Cache]]
    step: Callable[..., tuple[StepResult, Follow]]  # (setup, carry, cache, active, progress)
    drafts: Callable[[Any], tuple[Array, Array]]  # carry -> unverified tokens and whether they exist [B, n]
    forwards: int = 1  # in a step


def target_distribution(
    setup: Setup, logits: Array, following: Array, progress: Progress, above: Array | None = None
) -> Array:
    """The target's distribution at consecutive positions, or after each token of a tree.

    Args:
      logits: [B, n, V], of the next new token and the n - 1 after it.
      following: int32 [batch, n - 1], the tokens assumed at all of these positions but the last.
      progress: before the first of them.
      above: bool [B, n, n], for a tree, whose nodes are `following` (`constructors.ancestors`).

    Returns:
      log-probabilities [B, n, V], at least float32.
    """
    options = setup.options
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def edit(logits: Array) -> Array:
        batch, n, vocab = logits.shape
        tokens = jax.nn.one_hot(following, vocab, dtype=jnp.int32)
        if above is None:
            added, depth = jnp.cumsum(tokens, axis=1) > 0, jnp.arange(n)
            added = jnp.concatenate([jnp.zeros((batch, 1, vocab), bool), added], axis=1)
        else:
            counts = jnp.einsum("bra,bav->brv", above[:, :, 1:].astype(jnp.float32), tokens.astype(jnp.float32))
            added, depth = counts > 0, above.sum(-1, dtype=jnp.int32) - 1
        logits = penalise(logits, progress.seen[:, None] | added, options.repetition_penalty)
        early = progress.count[:, None] + depth < options.min_new_tokens
        stops = (jnp.arange(vocab)[:, None] == options.stop).any(-1)
        return jnp.where(early[..., None] & stops, -jnp.inf, logits)

    return log_distribution(jax.lax.cond(options.edits, edit, lambda logits: logits, logits), options.processing)


def draft(setup: Setup, logits: Array, exists: Array, first: Array) -> Drafted:
    """Draws drafts of the positions first, first + 1, ... from logits [B, drafts, K]; first int32 [B]."""
    position = first[:, None] + jnp.arange(logits.shape[1], dtype=jnp.int32)
    distribution = log_distribution(logits, setup.options.draft_processing)
    index = setup.noise.draw(Purpose.DRAFT, position, distribution, setup.options.draft_processing.warm)
    return Drafted(index if setup.vocabulary is None else setup.vocabulary.tokens[index], index, logits, exists)


def with_tested(setup: Setup, logits: Array, drafted: Drafted) -> Array:
    """The target's logits [B, drafts + 1, V], of a target that reads the logits of the drafts being tested.

    Where no draft is tested they are the AR ones; so they are everywhere for any other target.
    """
    target = setup.target
    if target.combine is None or target.draft != "tested":
        return logits
    tested = target.combine(logits[:, :-1], drafted.logits, setup.options.beta)
    tested = jnp.where(drafted.exists[..., None], tested, logits[:, :-1])
    return jnp.concatenate([tested, logits[:, -1:].astype(tested.dtype)], axis=1)


def with_next(setup: Setup, logits: Array, slots: Array) -> Array:
    """The target's logits [B, n, V], of a target that reads the block which starts at each position.

    Args:
      logits: the AR ones.
      slots: hidden states [B, m, M] of mask tokens, block by block; the first of each block is read,
        and there are n blocks. For any other target they are not looked at, and the logits stay as they are.
    """
    target = setup.target
    if target.combine is None or target.draft != "next":
        return logits
    return target.combine(logits, setup.head(slots[:, :: setup.plan.block_size]), setup.options.beta)


def verify(setup: Setup, logits: Array, drafted: Drafted, first: Array, progress: Progress) -> Verdict:
    """Accepts a run of drafts and draws the token after it (arXiv 2211.17192, algorithm 1).

    Args:
      logits: the target's [B, drafts + 1, V], at the drafts' positions and the one after them.
      first: int32 [B], position of the first draft.
      progress: before the first draft.
    """
    _, n, vocab = logits.shape
    log_p = target_distribution(setup, logits, drafted.tokens, progress)
    log_q = jnp.where(
        drafted.exists[..., None], log_distribution(drafted.logits, setup.options.draft_processing), -jnp.inf
    )
    position = first[:, None] + jnp.arange(n - 1, dtype=jnp.int32)
    log_accept = log_acceptance(log_p[:, :-1], log_q, drafted.tokens, drafted.index)
    if drafted.fixed is not None:  # q is one-hot
        log_accept = jnp.where(drafted.fixed, at_token(log_p[:, :-1], drafted.tokens), log_accept)
    log_accept = jnp.where(drafted.exists, log_accept, -jnp.inf)
    survives = setup.noise.accept(position, log_accept)
    accepted = jnp.cumprod(survives, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)

    distribution = log_p[:, 0]
    if n > 1:  # after all drafts nothing was drafted: q = 0 there, and the residual is p itself
        at = accepted[:, None, None]
        within = jnp.minimum(at, n - 2)
        rejected = jnp.take_along_axis(log_q, within, axis=1)[:, 0]
        rejected = rejected if setup.vocabulary is None else setup.vocabulary.whole(rejected, vocab)
        if drafted.fixed is not None:
            token, fixed = (jnp.take_along_axis(x, within[:, 0], axis=1) for x in (drafted.tokens, drafted.fixed))
            one_hot = jnp.where(jnp.arange(vocab) == token, 0.0, -jnp.inf).astype(rejected.dtype)
            rejected = jnp.where(fixed, one_hot, rejected)
        rejected = jnp.where(accepted[:, None] < n - 1, rejected, -jnp.inf)
        distribution = log_residual(jnp.take_along_axis(log_p, at, axis=1)[:, 0], rejected)
    pending_token = setup.noise.draw(Purpose.PENDING, first + accepted, distribution, setup.options.processing.warm)

    last = jnp.arange(n, dtype=jnp.int32) == accepted[:, None]
    produced = jnp.where(
        last, pending_token[:, None], jnp.concatenate([drafted.tokens, pending_token[:, None]], axis=1)
    )
    result = StepResult(produced, at_token(log_p, produced), accepted + 1, is_healthy(logits))
    return Verdict(accepted, pending_token, result)


def is_healthy(logits: Array) -> Array:
    """bool [B]: no NaN and no +inf among logits [B, ...]."""
    top = jnp.max(logits, axis=tuple(range(1, logits.ndim)))  # a maximum passes NaN on
    return top < jnp.inf

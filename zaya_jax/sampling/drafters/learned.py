"""The drafters of `zaya_jax.architecture.drafters` at work: a model whose config names one can be sampled with it.

Blocks (DFlash, Medusa) propose all drafts in one pass; chains (EAGLE-3, MTP) one after the other, each drawn before the
next pass. All draw from their own distribution by default, whose logits verification needs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from zaya_jax.architecture import Cache, ZayaConfig
from zaya_jax.architecture.drafters.parts import DraftCache
from zaya_jax.architecture.features import Features
from zaya_jax.errors import UserError
from zaya_jax.sampling.core.distributions import log_distribution
from zaya_jax.sampling.drafters.base import Drafter, Needs, Proposal, Rows, register_drafter
from zaya_jax.sampling.drafters.ngram import Text
from zaya_jax.sampling.drafters.trees import Prior, best_first
from zaya_jax.sampling.strategies.base import Setup, draft

Array = jax.Array
BEAMS = 10  # nodes of each depth of a chain's tree that are looked behind, as EAGLE has them


@dataclasses.dataclass(frozen=True)
class Learned(Drafter):
    """What the four share."""

    def needs(self, config: ZayaConfig) -> Needs:
        assert config.drafter is not None  # `require` has seen to it
        taps = config.drafter.taps_of(config.num_hidden_layers)
        return Needs(hidden=not taps, taps=taps)

    def require(self, config: ZayaConfig, variables: Any) -> None:
        got = None if config.drafter is None else config.drafter.kind
        if got != self.name:
            may_be = f"{got!r}, which it has" if got else "a drafter that needs no training, such as 'ngram'"
            raise UserError(
                f"SamplerConfig.drafter: got {self.name!r}, which this model has not been trained with; may be {may_be}"
            )

    def _absorbing(self, setup: Setup) -> Any:
        """The weights that `observe` reads."""
        return setup.variables["params"]["drafter"]


class BlockState(struct.PyTreeNode):
    """A block drafter's keys and values, and the text, whose statistics a tree may use."""

    text: Text
    cache: DraftCache

    def grow(self, capacity: int) -> "BlockState":
        return BlockState(self.text.grow(capacity), self.cache.grow(capacity))


class Blocks(Learned):
    """Drafts that know nothing of each other's draws: marginals, which may also become a tree (`trees`)."""

    trees = True
    ngrams = True

    def init(self, setup: Setup, batch: int, capacity: int) -> BlockState:
        text = Text(jnp.zeros((batch, capacity), jnp.int32))
        return BlockState(text, _part(setup, "empty", batch, capacity))

    def observe(self, setup: Setup, state: BlockState, rows: Rows) -> BlockState:
        setup.draft_pass(rows.tokens.shape[1], self._absorbing(setup))
        text = state.text.write(rows.tokens, rows.first, rows.count)
        return BlockState(text, _part(setup, "observe", state.cache, _features(rows), rows.count))

    def propose(self, setup: Setup, state: BlockState, pending_token: Array, cache: Cache) -> Proposal:
        plan = setup.plan
        logits = _logits(setup, self._hidden(setup, state.cache, pending_token, plan.draft_length))
        exists = jnp.broadcast_to(jnp.arange(plan.draft_length) < self._most(setup), logits.shape[:2])
        if not plan.tree_size:
            return Proposal(draft(setup, logits, exists, cache.length + 1).tokens, exists, logits)
        text = state.text.write(pending_token[:, None], cache.length, jnp.ones_like(pending_token)).tokens
        log_q = log_distribution(logits, setup.options.draft_processing)
        log_q = jnp.where(exists[..., None], log_q, -jnp.inf)
        return best_first(log_q, plan.tree_size, Prior(text, cache.length + 1, setup.options.ngram_weight))

    def _most(self, setup: Setup) -> int:
        """Drafts that it can make in a step; those after them do not exist."""
        return setup.plan.draft_length

    def _hidden(self, setup: Setup, state: DraftCache, pending_token: Array, drafts: int) -> Array:
        """[B, drafts, M], which the head reads."""
        raise NotImplementedError


class DFlash(Blocks):
    """`architecture.drafters.dflash`; more drafts than it was trained for are slots it never saw."""

    def _hidden(self, setup: Setup, state: DraftCache, pending_token: Array, drafts: int) -> Array:
        setup.draft_pass(drafts + 1, (setup.variables["params"]["drafter"], _head(setup)))
        return _part(setup, "propose", state, _embed(setup, pending_token), drafts)

    def _absorbing(self, setup: Setup) -> Any:
        params = setup.variables["params"]["drafter"]
        layers = [part["self_attn"] for name, part in params.items() if name.startswith("layers_")]
        return params["fc"], [(attention["k_proj"], attention["v_proj"]) for attention in layers]


class Medusa(Blocks):
    """`architecture.drafters.medusa`; it drafts as many tokens as it has heads."""

    def _most(self, setup: Setup) -> int:
        assert setup.model.config.drafter is not None
        return setup.model.config.drafter.drafts

    def _hidden(self, setup: Setup, state: DraftCache, pending_token: Array, drafts: int) -> Array:
        heads = min(drafts, self._most(setup))
        setup.draft_pass(1, jax.tree.map(lambda x: x[:heads], setup.variables["params"]["drafter"]))
        setup.draft_pass(heads, _head(setup))
        hidden = _part(setup, "propose", state, heads)
        return jnp.pad(hidden, ((0, 0), (0, drafts - heads), (0, 0)))

    def _absorbing(self, setup: Setup) -> Any:
        return ()


class Chains(Learned):
    """`architecture.drafters.chain`: EAGLE-3 and MTP; as a tree EAGLE-2's (arXiv 2406.16858)."""

    trees = True

    def init(self, setup: Setup, batch: int, capacity: int) -> DraftCache:
        return _part(setup, "empty", batch, capacity)

    def observe(self, setup: Setup, state: DraftCache, rows: Rows) -> DraftCache:
        setup.draft_pass(rows.tokens.shape[1], self._absorbing(setup))
        return _part(setup, "observe", state, _features(rows), _embed(setup, rows.following), rows.count)

    def propose(self, setup: Setup, state: DraftCache, pending_token: Array, cache: Cache) -> Proposal:
        if setup.plan.tree_size:
            return self._tree(setup, state)
        tokens, all_logits = [], []
        exists = jnp.ones((pending_token.shape[0], 1), bool)
        setup.draft_pass(1, _head(setup))  # the pass over the newest pair was `observe`'s
        hidden, so_far = _part(setup, "first", state)
        for step in range(setup.plan.draft_length):
            if step:
                setup.draft_pass(1, (setup.variables["params"]["drafter"], _head(setup)))
                hidden, so_far = _part(setup, "next", state, so_far, _embed(setup, tokens[-1]))
            all_logits.append(_logits(setup, hidden))
            tokens.append(draft(setup, all_logits[-1], exists, cache.length + 1 + step).tokens)
        drafts = jnp.concatenate(tokens, axis=1)
        return Proposal(drafts, jnp.ones(drafts.shape, bool), jnp.concatenate(all_logits, axis=1))

    def _tree(self, setup: Setup, state: DraftCache) -> Proposal:
        """The BEAMS best nodes of each depth are looked behind; of all that were looked at, the best are proposed."""
        size, beams = setup.plan.tree_size, min(BEAMS, setup.plan.tree_size)
        batch = state.length.shape[0]
        setup.draft_pass(1, _head(setup))
        hidden, so_far = _part(setup, "first", state)
        score = jnp.zeros((batch, 1))
        token = number = jnp.zeros((batch, 1), jnp.int32)  # of the nodes that are looked behind; number 0 is pending
        found: list[tuple[Array, Array, Array]] = []  # tokens, scores and parents, as many a depth as were looked at
        for depth in range(setup.plan.draft_length):
            if depth:
                setup.draft_pass(number.shape[1], (setup.variables["params"]["drafter"], _head(setup)))
                hidden, so_far = _part(setup, "next", state, so_far, _embed(setup, token))
            log_q = log_distribution(_logits(setup, hidden), setup.options.draft_processing)
            gain, children = jax.lax.top_k(log_q, min(beams, log_q.shape[-1]))  # [B, N, children]
            total = (score[..., None] + gain).reshape(batch, -1)
            behind = 1 + sum(each[0].shape[1] for each in found)
            parent = jnp.repeat(number, gain.shape[-1], axis=1)
            found.append((children.reshape(batch, -1), total, parent))
            score, at = jax.lax.top_k(total, min(beams, total.shape[1]))
            token, number = jnp.take_along_axis(found[-1][0], at, axis=1), behind + at
            so_far = so_far.of(at // gain.shape[-1])
        tokens, scores, parents = (jnp.concatenate(x, axis=1) for x in zip(*found, strict=True))
        return _best(tokens, scores, parents, size)


def _best(tokens: Array, scores: Array, parents: Array, size: int) -> Proposal:
    """The `size` nodes of the highest scores [B, n], of which none is above its parent's.

    Args:
      parents: numbers of nodes, as in `Proposal`; a parent stands before its children.
    """
    short = max(0, size - scores.shape[1])
    tokens, parents = (jnp.pad(x, ((0, 0), (0, short))) for x in (tokens, parents))
    scores = jnp.pad(scores, ((0, 0), (0, short)), constant_values=-jnp.inf)
    _, chosen = jax.lax.top_k(scores, size)  # of equals the first: no node without its parent
    chosen = jnp.sort(chosen, axis=1)

    def of(x: Array) -> Array:
        return jnp.take_along_axis(x, chosen, axis=1)

    exists, parent = of(scores) > -jnp.inf, of(parents)
    mine = jax.vmap(lambda numbers, parent: jnp.searchsorted(numbers, parent))(chosen + 1, parent).astype(jnp.int32)
    return Proposal(of(tokens), exists, parent=jnp.where(exists & (parent > 0), mine + 1, 0))


def _part(setup: Setup, part: str, *args: Any) -> Any:
    """A method of the model's drafter's."""
    return setup.model.apply(setup.variables, part, *args, method="draft")


def _embed(setup: Setup, tokens: Array) -> Array:
    return setup.model.apply(setup.variables, tokens, method="embed")  # pyrefly: ignore[bad-return]


def _features(rows: Rows) -> Features:
    hidden, taps = rows.hidden, rows.taps
    if taps is None:
        assert hidden is not None
        taps = jnp.zeros((*hidden.shape[:2], 0, hidden.shape[-1]), hidden.dtype)
    return Features(taps[:, :, 0] if hidden is None else hidden, taps)


def _logits(setup: Setup, hidden: Array) -> Array:
    """[B, n, M] of the drafts from the first on, or of one depth of a chain or tree -> [B, n, V].

    With a draft vocabulary (`architecture.draft_vocabulary`) the target's head is read for its tokens alone.
    """
    own = setup.model.config.drafter
    assert own is not None
    vocabulary = setup.model.apply(setup.variables, method="draft_vocabulary")
    if vocabulary is not None and not own.own_head:
        logits = vocabulary.logits(hidden)  # pyrefly: ignore[missing-attribute]
        return vocabulary.whole(logits, setup.model.config.vocab_size)  # pyrefly: ignore[missing-attribute]
    if own.own_head and own.heads > 1:
        slots = [
            setup.model.apply(setup.variables, hidden[:, s], min(s, own.heads - 1), method="draft_head")
            for s in range(hidden.shape[1])
        ]
        return jnp.stack(slots, axis=1)  # pyrefly: ignore[bad-argument-type]
    return setup.model.apply(setup.variables, hidden, method="draft_head")  # pyrefly: ignore[bad-return]


def _head(setup: Setup) -> Any:
    """The weights that the drafts' logits read, as one matrix: what is added to the target's head is not read twice."""
    vocabulary, own = setup.model.apply(setup.variables, method="draft_vocabulary"), setup.model.config.drafter
    if vocabulary is not None and own is not None and not own.own_head:
        return vocabulary.rows  # pyrefly: ignore[missing-attribute]
    params = setup.variables["params"]
    return params["embed_tokens"] if setup.model.config.tie_word_embeddings else params["lm_head"]


EAGLE3 = register_drafter(
    Chains("eagle3", "One layer over the target's fused hidden states drafts token by token (EAGLE-3).")
)
MTP = register_drafter(Chains("mtp", "One module after the target's last layer drafts token by token (DeepSeek-V3)."))
DFLASH = register_drafter(
    DFlash(
        "dflash", "A block of masks reads the target's hidden states as keys and values and drafts at once (DFlash)."
    )
)
MEDUSA = register_drafter(Medusa("medusa", "One head for each later token reads the target's last hidden state."))

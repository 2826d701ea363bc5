"""What is trained: next tokens, and for TiDAR also whole blocks of masks in the same forward pass."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.architecture.kept import COLLECTION
from zaya_jax.architecture.layout import PADDING
from zaya_jax.architecture.parts import share
from zaya_jax.architecture.training_layouts import LAYOUTS, blocks_of_drawn_size
from zaya_jax.checks import Choice, Integer, Number, check_fields, no_such
from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller, kind_drafts

Array = jax.Array
LOGITS_AT_ONCE = 2**26  # logits that exist at once: 256 MiB in float32
# Tokens whose logits exist at once at least: every piece reads the head's weights and adds up their gradient, which are
# as large as the logits of `hidden_size` tokens each, 2 GB for ZAYA1-8B.
TOKENS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective. Another kind is a subclass (`register_objective`), which may override any method here.

    Attributes:
      kind: "autoregressive" (next token), "tidar" ([alpha * CE_AR + CE_diff] / (1 + alpha); arXiv 2511.08923, eq. 3),
        or what `register_objective` adds.
      block_size: slots a draft block (tidar).
      alpha: weight of the autoregressive loss (tidar); 0: drafts alone are trained, that loss is a mere metric.
      masking: "full" (every mask token is MASK, as at inference), "random" (each slot shows its token with a drawn
        probability, and then has no loss), or "complementary": random, and every row is run twice, the second time
        with exactly the other slots masked, so that each has a loss once (Fast-dLLM v2).
      rate_of: what shares a mask rate, drawn uniformly: each "block" (the ablation of TiDAR's table 4; BD3-LM) or a
        "row" (SBD, SDAR, LLaDA).
      least_rate, most_rate: between which it is drawn; BD3-LM clips it to .45 and .95.
      weight: of a masked token's loss. "none": 1; "inverse": 1 / its mask rate, a likelihood bound's (BD3-LM, LLaDA).
      average: what the draft loss is divided by: the "masked" tokens, or all "tokens" that could have been.
      smallest_block: above 0, every step draws its block size in smallest_block .. block_size (SBD). Rows then hold up
        to twice as many mask tokens, of which those that are left over are padding.
      loss_on: "all" tokens, or "answers": only those that a task asks for (text without a prompt is all answer).
      distill: share of the draft loss whose target is not the token but the model's own AR distribution of its
        position, held constant. Its gradient has the same mean where that distribution is the data's, and less noise
        (tidar).
      distance: of the two, for `distill`. "kl": KL(p || q) of AR's p and the draft's q, up to p's entropy.
        "tv": total variation, 1 - sum of min(p, q), which is the share of drafts that verification refuses at
        temperature 1. "lk": lambda KL + (1 - lambda) TV with lambda = exp(-3 a), a the share that it accepts, held
        constant (arXiv 2602.23881): TV alone learns nothing where p and q do not overlap.
      slot_decay: the draft loss of slot s + 1 weighs this much of slot s's: a refused draft ends the run (tidar).
      row_layout: where a row's draft blocks stand: "tidar" (a grid), "whole" (every document is one block), or what
        `register_layout` adds (tidar).
      blocks_per_row: so many draft blocks a row in place of a layout's, drawn so that each starts at a token that has
        a loss, about as many tokens apart; 0: the layout's (tidar).
    """

    kind: str = "tidar"
    block_size: Annotated[int, Integer(1, 65_536)] = 8
    alpha: Annotated[float, Number(0, 1e6)] = 1.0
    masking: Annotated[str, Choice(("full", "random", "complementary"))] = "full"
    rate_of: Annotated[str, Choice(("block", "row"))] = "block"
    least_rate: Annotated[float, Number(0, 1)] = 0.0
    most_rate: Annotated[float, Number(0, 1)] = 1.0
    weight: Annotated[str, Choice(("none", "inverse"))] = "none"
    average: Annotated[str, Choice(("masked", "tokens"))] = "masked"
    smallest_block: Annotated[int, Integer(0, 65_536)] = 0
    loss_on: Annotated[str, Choice(("all", "answers"))] = "all"
    distill: Annotated[float, Number(0, 1)] = 0.0
    distance: Annotated[str, Choice(("kl", "tv", "lk"))] = "kl"
    slot_decay: Annotated[float, Number(0, 1)] = 1.0
    row_layout: str = "tidar"
    blocks_per_row: Annotated[int, Integer(0, 65_536)] = 0

    def __post_init__(self) -> None:
        own = objective_type("Objective.kind", self.kind)
        if type(self) is not own:
            raise UserError(
                f"Objective.kind: got {self.kind!r}, which is the kind of {own.__name__}, not of {type(self).__name__}"
            )
        check_fields("Objective", self)
        if self.row_layout not in LAYOUTS:
            raise no_such("Objective.row_layout", self.row_layout, LAYOUTS)
        self._check_masking()

    def _check_masking(self) -> None:
        """UserError for a field that would change nothing, or that the layout has no place for."""
        layout, full = LAYOUTS[self.row_layout], self.masking == "full"

        def require(right: bool, field: str, may_be: str) -> None:
            if not right:
                raise UserError(f"Objective.{field}: got {getattr(self, field)!r}, may be {may_be}")

        where = f"where row_layout is {self.row_layout!r}"
        require(full or layout.random_masking, "masking", f"'full' {where}")
        for field in ("rate_of", "least_rate", "most_rate", "weight"):
            default = getattr(type(self), field)
            require(not full or getattr(self, field) == default, field, f"{default!r} where masking is 'full'")
        require(full or self.rate_of == "row" or not layout.documents, "rate_of", f"'row' {where}")
        require(self.least_rate <= self.most_rate, "least_rate", f"at most most_rate ({self.most_rate})")
        require(
            self.weight == "none" or self.least_rate > 0, "least_rate", "above 0 where weight is 'inverse' (1 / rate)"
        )
        grid = self.row_layout == "tidar"
        may_be = f"0, or 1 .. block_size ({self.block_size}) where row_layout is 'tidar'"
        require(self.smallest_block <= self.block_size * grid, "smallest_block", may_be)
        may_be = "0 where row_layout is not 'tidar', masking not 'full' or smallest_block above 0"
        require(not self.blocks_per_row or (grid and full and not self.smallest_block), "blocks_per_row", may_be)

    @property
    def drafts(self) -> bool:
        """Whether it trains something that drafts: mask tokens in its rows, or a drafter beside the model."""
        return kind_drafts(self.kind)

    @property
    def drafter(self) -> DrafterConfig | None:
        """What it trains beside the model, if anything."""
        return None

    @property
    def masks(self) -> bool:
        """Whether rows hold draft blocks of mask tokens."""
        return self.drafts and self.drafter is None

    @property
    def unshared(self) -> str | None:
        """The field because of which devices cannot share rows; None: they can."""
        for field in ("blocks_per_row", "smallest_block"):
            if getattr(self, field):
                return field
        return None if LAYOUTS[self.row_layout].splits else "row_layout"

    def draw(self, key: Array, batch: int, row: int, *, mask_key: Array | None = None) -> dict[str, Array]:
        """The random part of a step for the whole batch, so that it does not depend on how the batch is sharded.

        Args:
          mask_key: decides which tokens are masked, in place of `key`, which still decides the rest: where blocks
            stand, and at which rates their tokens are masked.

        Returns:
          {} or {"offset": int32 [B], "reveal": bool [B, T]}: see `Layout.tidar`; other layouts may draw
          {"first": int32 [B, N]} (`TrainingLayout.draw`); with it {"size": int32 [B]} (`Layout.blocks_at`); {"share":
          float32 [B, blocks_per_row]}, sorted, which share of a row's tokens with a loss stands before each block;
          {"rate": float32 [B, T]}, the mask rate of each token, where losses are weighted by it.
        """
        if not self.drafts:
            return {}
        where_key, rate_key, reveal_key = jax.random.split(key, 3)
        if self.blocks_per_row:
            within = jax.random.uniform(where_key, (batch, self.blocks_per_row))
            return {"share": (jnp.arange(self.blocks_per_row) + within) / self.blocks_per_row}
        if self.smallest_block:
            drawn = blocks_of_drawn_size(where_key, batch, row, self.smallest_block, self.block_size)
        else:
            drawn = LAYOUTS[self.row_layout].drawn(where_key, batch, row, self.block_size)
        if self.masking == "full":
            return drawn
        blocks = row // (self.smallest_block or self.block_size) + 2 if self.rate_of == "block" else 1
        uniform = jax.random.uniform(rate_key, (batch, blocks))
        shown = (1 - self.most_rate) + (self.most_rate - self.least_rate) * uniform
        if self.rate_of == "block":
            start = drawn["first"][:, :1] if "first" in drawn else drawn["offset"][:, None]
            size = drawn["size"][:, None] if "size" in drawn else self.block_size
            shown = jnp.take_along_axis(shown, (jnp.arange(row) - start) // size + 1, axis=1)
        reveal_key = reveal_key if mask_key is None else mask_key
        drawn["reveal"] = jax.random.uniform(reveal_key, (batch, row)) < shown
        if self.weight == "inverse":
            drawn["rate"] = jnp.broadcast_to(1 - shown, (batch, row))
        return drawn

    def weights(self, drawn: dict[str, Array], batch: int, row: int) -> Array:
        """float32 [B, T]: what each token's draft loss weighs under these draws, 0 where it is shown.

        Of a complementary pair both rows together.
        """
        weight = jnp.ones((batch, row), jnp.float32)
        if "reveal" in drawn and self.masking != "complementary":
            weight = jnp.where(drawn["reveal"], 0, weight / drawn.get("rate", 1.0))
        elif "rate" in drawn:
            weight = 1 / jnp.where(drawn["reveal"], 1 - drawn["rate"], drawn["rate"])
        return weight

    def _paired(self, batch: dict[str, Array], drawn: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The rows that are run: of "complementary" each twice, the second time with the other slots masked."""
        if not self.drafts or self.masking != "complementary":
            return batch, drawn
        other = drawn | {"reveal": ~drawn["reveal"]}
        if "rate" in drawn:
            other["rate"] = 1 - drawn["rate"]
        first, second = (batch, drawn), (batch, other)
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), first, second)

    def layout(self, batch: dict[str, Array], drawn: dict[str, Array]) -> Layout:
        """The rows to run; batch as `zaya_jax.data.pipeline` makes it, int32 [B, T]."""
        if not self.drafts:
            return Layout.causal(batch["tokens"], document=batch["document"])
        where, layout = self._where(batch, drawn), LAYOUTS[self.row_layout]
        build = Layout.blocks_at if self.blocks_per_row or self.smallest_block else layout.build
        more = {name: drawn[name] for name in ("reveal", "size") if name in drawn}
        scored = self._scored(batch)
        if layout.documents and scored is not None:
            more["reveal"] = more.get("reveal", False) | ~scored
        return build(batch["tokens"], block_size=self.block_size, document=batch["document"], **where, **more)

    def _where(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        """Where the blocks stand: what `TrainingLayout.draw` gives, {"offset"} or {"first"}."""
        if "share" not in drawn:
            return {name: drawn[name] for name in ("offset", "first") if name in drawn}
        has_loss = batch["document"] != PADDING
        if (scored := self._scored(batch)) is not None:
            has_loss &= scored
        so_far = jnp.cumsum(has_loss, axis=1)
        before = jnp.floor(drawn["share"] * so_far[:, -1:]).astype(so_far.dtype)
        # the first token that has a loss and so many of them before it; the row's length where no token has one
        return {"first": (so_far[:, None] <= before[..., None]).sum(-1).astype(jnp.int32)}

    def _scored(self, batch: dict[str, Array]) -> Array | None:
        """bool [B, T], the tokens that may have a loss; None for all."""
        return batch["answer"] != 0 if self.loss_on == "answers" else None

    def context_is_constant(self, model: Zaya, frozen: Any) -> bool:
        """Whether nothing that is trained acts on context tokens: adapters on mask tokens alone, and no other loss.

        Args:
          frozen: see `optimizer.frozen_parameters`.
        """
        trained = [path for path, held in jax.tree_util.tree_leaves_with_path(frozen) if held is not True]
        alone = all(any("lora" in part.key for part in path) for path in trained)
        own = type(self).sums is Objective.sums
        return own and self.drafts and not self.alpha and model.config.lora_rows == "drafts" and alone

    def sums(
        self,
        model: Zaya,
        variables,
        batch: dict[str, Array],
        drawn: dict[str, Array],
        axis: tuple[str, ...] = (),
        constant_context: bool = False,
    ) -> dict[str, Array]:
        """Runs the model; everything returned is a sum over tokens, so that shards add up.

        Args:
          axis: inside `jax.shard_map`, the names along which devices share rows: each runs its own part (`Layout.part`)
            of the whole rows that it is given.
          constant_context: context tokens are run first, without a gradient (`architecture.kept`); their loss is that
            of the tokens that have a draft loss, too. For rows that no devices share.

        Returns:
          ar_nll, ar_count (float32 []); load (int32 [L, 2, E + 1]); for tidar also draft_nll, draft_correct,
          draft_count and, if it distills, draft_soft_nll, each float32 [block_size], by slot; draft_weighted_nll and
          draft_asked where `weight` and `average` need them. Complementary rows count twice.
        """
        self._check_shared(axis)
        batch, drawn = self._paired(batch, drawn)
        whole = self.layout(batch, drawn)
        index, count = (jax.lax.axis_index(axis), jax.lax.axis_size(axis)) if axis else (0, 1)
        layout = whole.part(index, count, axis) if axis else whole

        def mine(x: Array) -> Array:
            """This part's share of something along the whole row's context tokens, or its mask tokens."""
            return share(x, index, count, layout.stretches) if axis else x

        clean, drafts, load = run_layout(model, variables, layout, constant_context)
        scored, where = self._scored(batch), self._where(batch, drawn)
        out = {"load": load}
        if not constant_context:
            ids, has = map(mine, whole.clean_targets(scored))
            nll, _ = cross_entropy(model, variables, clean, ids, has)
            out |= {"ar_nll": nll.sum(), "ar_count": has.sum().astype(jnp.float32)}
        if not self.drafts:
            return out
        ids, has = map(mine, whole.draft_targets(scored=scored, **where))
        source, has_teacher = map(mine, whole.draft_teachers(**where))
        rows, teachers = layout.gather(jax.lax.stop_gradient(clean)), (source, has_teacher)
        by_slot, more = self._draft_sums(model, variables, drafts, (ids, has), rows, teachers, constant_context)
        if self.weight == "inverse":
            rate = jnp.take_along_axis(drawn["rate"], whole.draft_sources(**where), axis=1)
            loss = by_slot["draft_nll"]
            if self.distill:
                loss = (1 - self.distill) * loss + self.distill * by_slot["draft_soft_nll"]
            by_slot["draft_weighted_nll"] = jnp.where(has, loss / mine(rate), 0)
        if self.average == "tokens":
            by_slot["draft_asked"] = mine(self._asked(batch, drawn))
        return out | more | {name: self._by_slot(value, layout) for name, value in by_slot.items()}

    def _asked(self, batch: dict[str, Array], drawn: dict[str, Array]) -> Array:
        """bool [B, N * block_size]: mask tokens that have a loss, or would have one if they did not show theirs."""
        hidden = {name: value for name, value in drawn.items() if name != "reveal"}
        layout = self.layout(batch, hidden)
        return layout.draft_targets(scored=self._scored(batch), **self._where(batch, drawn))[1]

    def _by_slot(self, value: Array, layout: Layout) -> Array:
        """Sums over a row's mask tokens [B, N * block_size] by their place in their block: float32 [block_size]."""
        if not self.smallest_block and layout.block_size == self.block_size:
            return value.reshape(-1, self.block_size).sum(0).astype(jnp.float32)
        rows = layout.draft_rows()
        slot = (rows.position - rows.horizon) % self.block_size  # of a document's block, as a sampler will cut it
        return jax.ops.segment_sum(value.astype(jnp.float32).reshape(-1), slot.reshape(-1), self.block_size)

    def _check_shared(self, axis: tuple[str, ...]) -> None:
        """Raises UserError for rows that devices along `axis` cannot share."""
        if axis and self.drafts and (field := self.unshared):
            raise UserError(f"Objective.{field}: got {getattr(self, field)!r}, whose rows devices cannot share")

    def _draft_sums(
        self,
        model: Zaya,
        variables,
        drafts: Array,
        targets: tuple[Array, Array],
        rows: Array,
        teachers: tuple[Array, Array],
        constant_context: bool,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What mask tokens add to `sums`, each [B, N]; and with constant context the AR loss of their tokens.

        Args:
          drafts: hidden states [B, N, M] of the mask tokens.
          targets: their tokens and whether they have a loss, [B, N].
          rows: hidden states [B, S, M] of the whole rows' context tokens, constants.
          teachers: which of them predicts the same token, and whether there is one, [B, N].
        """
        (ids, has), (source, has_teacher) = targets, teachers
        nll, correct = cross_entropy(model, variables, drafts, ids, has)
        by_slot = {"draft_nll": nll, "draft_correct": correct, "draft_count": has}
        teacher = jnp.take_along_axis(rows, source[..., None], axis=1)
        out = {}
        if constant_context:
            held = jax.lax.stop_gradient(variables)
            out["ar_count"] = (has & has_teacher).sum().astype(jnp.float32)
            out["ar_nll"] = cross_entropy(model, held, teacher, ids, has & has_teacher)[0].sum()
        if self.distill:
            # a document's first token has no AR distribution
            soft, _ = cross_entropy(model, variables, drafts, ids, has & has_teacher, teacher, self.distance)
            by_slot["draft_soft_nll"] = jnp.where(has_teacher, soft, nll)
        return by_slot, out

    def counts(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        """The entries of `sums` that the loss divides by; they need no model."""
        batch, drawn = self._paired(batch, drawn)
        layout, scored = self.layout(batch, drawn), self._scored(batch)
        out = {"ar_count": layout.clean_targets(scored)[1].sum().astype(jnp.float32)}
        if self.drafts:
            has = layout.draft_targets(scored=scored, **self._where(batch, drawn))[1]
            out["draft_count"] = self._by_slot(has, layout)
            if self.average == "tokens":
                out["draft_asked"] = self._by_slot(self._asked(batch, drawn), layout)
        return out

    def loss(self, sums: dict[str, Array], counts: dict[str, Array]) -> Array:
        """The loss from (possibly one shard's) sums and the whole batch's counts."""
        ar = sums["ar_nll"] / jnp.maximum(counts["ar_count"], 1)
        if not self.drafts:
            return ar
        draft = self._draft_loss(sums, counts)
        if not self.alpha:  # 0 * ar would be differentiated all the same
            return draft
        return (self.alpha * ar + draft) / (1 + self.alpha)

    def _draft_loss(self, sums: dict[str, Array], counts: dict[str, Array]) -> Array:
        """The mask tokens' part of `loss`."""
        nll = sums["draft_nll"]
        if self.weight == "inverse":
            nll = sums["draft_weighted_nll"]
        elif self.distill:
            nll = (1 - self.distill) * nll + self.distill * sums["draft_soft_nll"]
        weight = self.slot_decay ** jnp.arange(nll.shape[0])
        count = counts["draft_asked" if self.average == "tokens" else "draft_count"]
        return (weight * nll).sum() / jnp.maximum((weight * count).sum(), 1e-9)

    def metrics(self, sums: dict[str, Array]) -> dict[str, Array]:
        """What a step's metrics say besides `training.state.summarise`."""
        return {}


OBJECTIVES: Registry[type[Objective]] = Registry("objective")
_Kind = TypeVar("_Kind", bound=type[Objective])


def register_objective(objective: _Kind) -> _Kind:
    """Makes a kind of objective known by its field `kind`'s default; a class decorator, above `dataclasses.dataclass`.

    A kind whose name begins with "autoregressive" trains no draft blocks; all others do. The same file, read again,
    replaces its kind.

    Raises:
      UserError: no frozen dataclass below `Objective`, or a kind that is this package's or another file's.
    """
    if not (
        isinstance(objective, type) and issubclass(objective, Objective) and "__dataclass_fields__" in vars(objective)
    ):
        raise UserError(f"objective: got {objective!r}, may be a frozen dataclass that is a subclass of Objective")
    OBJECTIVES.add(_kind_of(objective), objective, caller())
    return objective


def objective_type(field: str, kind: Any) -> type[Objective]:
    """The class of a kind. UserError, naming `field`, for an unknown one."""
    if kind not in OBJECTIVES:
        raise no_such(field, kind, OBJECTIVES)
    return OBJECTIVES[kind]


def _kind_of(objective: type[Objective]) -> Any:
    return next(field.default for field in dataclasses.fields(objective) if field.name == "kind")


for _kind in ("autoregressive", "tidar"):
    OBJECTIVES.add(_kind, Objective, __file__)


def run_layout(model: Zaya, variables, layout: Layout, constant_context: bool) -> tuple[Array, Array, Array]:
    """(hidden states of the context tokens, of the mask tokens, load); see `Objective.sums`."""
    if not constant_context:
        hidden, _, load = cast(tuple[Array, None, Array], model.apply(variables, layout, method="backbone"))
        return hidden[:, : layout.clean_size], hidden[:, layout.clean_size :], load
    held = jax.lax.stop_gradient(variables)
    first = model.apply(held, layout.clean_rows(), method="backbone", mutable=[COLLECTION])
    (clean, _, load), kept = cast(tuple[tuple[Array, None, Array], dict], first)
    after = model.apply({**variables, **kept}, layout, method="backbone", drafts_alone=True)
    drafts, _, of_drafts = cast(tuple[Array, None, Array], after)
    return clean, drafts, load + of_drafts


def distance_of(kind: str, p: Array, logits: Array) -> Array:
    """`Objective.distance` of constant probabilities p [..., V] and the softmax q of `logits`, float32 [...]."""
    cross = jax.nn.logsumexp(logits, axis=-1) - (p * logits).sum(-1)
    if kind == "kl":
        return cross
    accepted = jnp.minimum(p, jax.nn.softmax(logits, axis=-1)).sum(-1)
    if kind == "tv":
        return 1 - accepted
    share = jnp.exp(-3 * jax.lax.stop_gradient(accepted))
    return share * cross + (1 - share) * (1 - accepted)


def cross_entropy(
    model: Zaya, variables, hidden: Array, ids: Array, has: Array, teacher: Array | None = None, distance: str = "kl",
    head: Callable[[Array], Any] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Negative log-likelihood in float32 and whether the likeliest token is right, both 0 where `has` is False.

    Logits exist for a piece of the tokens at a time (`piece_size`), in the backward pass too: a row of ZAYA1-8B's
    vocabulary would otherwise take 8.6 GB (docs/method.md#training).

    Args:
      hidden: [B, T, M].
      ids, has: int32 and bool [B, T].
      teacher: like hidden: in place of the first, the `distance` from the distribution that the head gives these.
      head: of `hidden`: [..., M] -> logits [..., V]; None: the model's.
    """

    def models(hidden: Array) -> Array:
        return cast(Array, model.apply(variables, hidden, method="head"))

    def logits_of(hidden: Array, head: Callable[[Array], Any] = models) -> Array:
        return head(hidden).astype(jnp.float32)

    def chunk(hidden: Array, ids: Array, teacher: Array | None) -> tuple[Array, Array]:
        logits = logits_of(hidden, head or models)
        target = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        right = target >= logits.max(-1)
        if teacher is not None:
            return distance_of(
                distance, jax.nn.softmax(jax.lax.stop_gradient(logits_of(teacher)), axis=-1), logits
            ), right
        return jax.nn.logsumexp(logits, axis=-1) - target, right

    nll, right = in_pieces(chunk, (hidden, ids, teacher), ids.size, model.config.vocab_size)
    return jnp.where(has, nll.reshape(ids.shape), 0), right.reshape(ids.shape) & has


def in_pieces(f: Callable[..., tuple[Array, ...]], arrays: tuple, size: int, vocab_size: int) -> tuple[Array, ...]:
    """f over tokens, `piece_size` of them at a time, in the backward pass too.

    Args:
      f: arrays of leading axis "tokens" -> arrays [tokens].
      arrays: each [B, T, ...], or None; B * T is `size`.

    Returns:
      What f gives for all of them, [size] each.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
    rows = piece_size(vocab_size)
    if size <= rows:
        return f(*flat)
    pieces = jax.tree.map(
        lambda x: jnp.pad(x, ((0, -size % rows), *[(0, 0)] * (x.ndim - 1))).reshape(-1, rows, *x.shape[1:]), flat
    )
    return tuple(x.reshape(-1)[:size] for x in jax.lax.map(jax.checkpoint(lambda piece: f(*piece)), pieces))


def piece_size(vocab_size: int) -> int:
    """Tokens whose logits exist at once, of more."""
    return max(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size)

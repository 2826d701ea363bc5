"""What is trained: next tokens, and for TiDAR also whole blocks of masks in the same forward pass."""

import dataclasses
from typing import Annotated, Any, TypeVar, cast

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.kept import COLLECTION
from zaya_jax.architecture.layout import PADDING
from zaya_jax.architecture.parts import share
from zaya_jax.architecture.training_layouts import LAYOUTS
from zaya_jax.checks import Choice, Integer, Number, check_fields, no_such
from zaya_jax.errors import UserError
from zaya_jax.registry import Registry, caller, kind_drafts

Array = jax.Array
LOGITS_AT_ONCE = 2**26  # logits that exist at once: 256 MiB in float32


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective. Another kind is a subclass (`register_objective`), which may override any method here.

    Attributes:
      kind: "autoregressive" (next token), "tidar" ([alpha * CE_AR + CE_diff] / (1 + alpha); arXiv 2511.08923, eq. 3),
        or what `register_objective` adds.
      block_size: slots a draft block (tidar).
      alpha: weight of the autoregressive loss (tidar); 0: drafts alone are trained, that loss is a mere metric.
      masking: "full" (every mask token is MASK, as at inference) or "random" (each block reveals a uniformly drawn
        share of its slots, which then have no loss: the ablation of TiDAR's table 4).
      loss_on: "all" tokens, or "answers": only those that a task asks for (text without a prompt is all answer).
      distill: share of the draft loss whose target is not the token but the model's own AR distribution of its
        position, held constant. Its gradient has the same mean where that distribution is the data's, and less noise
        (tidar).
      distance: of the two, for `distill`. "kl": KL(p || q) of AR's p and the draft's q, up to p's entropy.
        "tv": total variation, 1 - sum of min(p, q), which is the share of drafts that verification refuses at
        temperature 1. "lk": lambda KL + (1 - lambda) TV with lambda = exp(-3 a), a the share that it accepts, held
        constant (arXiv 2602.23881): TV alone learns nothing where p and q do not overlap.
      slot_decay: the draft loss of slot s + 1 weighs this much of slot s's: a refused draft ends the run (tidar).
      row_layout: where a row's draft blocks stand: "tidar" (a grid), or what `register_layout` adds (tidar).
      blocks_per_row: so many draft blocks a row in place of a layout's, drawn so that each starts at a token that has
        a loss, about as many tokens apart; 0: the layout's (tidar).
    """

    kind: str = "tidar"
    block_size: Annotated[int, Integer(1, 65_536)] = 8
    alpha: Annotated[float, Number(0, 1e6)] = 1.0
    masking: Annotated[str, Choice(("full", "random"))] = "full"
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
        if self.masking == "random" and not LAYOUTS[self.row_layout].random_masking:
            raise UserError(f"Objective.masking: got 'random', may be 'full' where row_layout is {self.row_layout!r}")
        if self.blocks_per_row and (self.row_layout != "tidar" or self.masking != "full"):
            may_be = "0 where row_layout is not 'tidar' or masking not 'full'"
            raise UserError(f"Objective.blocks_per_row: got {self.blocks_per_row}, may be {may_be}")

    @property
    def drafts(self) -> bool:
        """Whether rows hold draft blocks."""
        return kind_drafts(self.kind)

    def draw(self, key: Array, batch: int, row: int) -> dict[str, Array]:
        """The random part of a step for the whole batch, so that it does not depend on how the batch is sharded.

        Returns:
          {} or {"offset": int32 [B], "reveal": bool [B, T]}: see `Layout.tidar`; other layouts may draw
          {"first": int32 [B, N]} (`TrainingLayout.draw`); {"share": float32 [B, blocks_per_row]}, sorted, which share
          of a row's tokens with a loss stands before each block.
        """
        if not self.drafts:
            return {}
        where_key, rate_key, reveal_key = jax.random.split(key, 3)
        if self.blocks_per_row:
            within = jax.random.uniform(where_key, (batch, self.blocks_per_row))
            return {"share": (jnp.arange(self.blocks_per_row) + within) / self.blocks_per_row}
        drawn = LAYOUTS[self.row_layout].drawn(where_key, batch, row, self.block_size)
        if self.masking == "random":
            blocks = row // self.block_size + 2
            rate = jax.random.uniform(rate_key, (batch, blocks))
            grid = (jnp.arange(row) - drawn["offset"][:, None]) // self.block_size + 1
            rate = jnp.take_along_axis(rate, grid, axis=1)
            drawn["reveal"] = jax.random.uniform(reveal_key, (batch, row)) < rate
        return drawn

    def layout(self, batch: dict[str, Array], drawn: dict[str, Array]) -> Layout:
        """The rows to run; batch as `zaya_jax.data.pipeline` makes it, int32 [B, T]."""
        if not self.drafts:
            return Layout.causal(batch["tokens"], document=batch["document"])
        where = self._where(batch, drawn)
        build = Layout.blocks_at if self.blocks_per_row else LAYOUTS[self.row_layout].build
        reveal = {name: value for name, value in drawn.items() if name == "reveal"}
        return build(batch["tokens"], block_size=self.block_size, document=batch["document"], **where, **reveal)

    def _where(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        """Where the blocks stand: what `TrainingLayout.draw` gives, {"offset"} or {"first"}."""
        if "share" not in drawn:
            return {name: value for name, value in drawn.items() if name != "reveal"}
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
          draft_count and, if it distills, draft_soft_nll, each float32 [block_size], by slot.
        """
        self._check_shared(axis)
        whole = self.layout(batch, drawn)
        index, count = (jax.lax.axis_index(axis), jax.lax.axis_size(axis)) if axis else (0, 1)
        layout = whole.part(index, count, axis) if axis else whole

        def mine(x: Array) -> Array:
            """This part's share of something along the whole row's context tokens, or its mask tokens."""
            return share(x, index, count, layout.stretches) if axis else x

        clean, drafts, load = _run(model, variables, layout, constant_context)
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
        return out | self._draft_sums(model, variables, drafts, (ids, has), rows, teachers, constant_context)

    def _check_shared(self, axis: tuple[str, ...]) -> None:
        """Raises UserError for rows that devices along `axis` cannot share."""
        if axis and self.drafts and (self.blocks_per_row or not LAYOUTS[self.row_layout].splits):
            field, value = (
                ("blocks_per_row", self.blocks_per_row) if self.blocks_per_row else ("row_layout", self.row_layout)
            )
            raise UserError(f"Objective.{field}: got {value!r}, whose rows devices cannot share")

    def _draft_sums(
        self,
        model: Zaya,
        variables,
        drafts: Array,
        targets: tuple[Array, Array],
        rows: Array,
        teachers: tuple[Array, Array],
        constant_context: bool,
    ) -> dict[str, Array]:
        """The part of `sums` that mask tokens have, by slot; with constant context the AR loss of their tokens too.

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
        for name, value in by_slot.items():
            out[name] = value.reshape(-1, self.block_size).sum(0).astype(jnp.float32)
        return out

    def counts(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        """The entries of `sums` that the loss divides by; they need no model."""
        layout, scored = self.layout(batch, drawn), self._scored(batch)
        out = {"ar_count": layout.clean_targets(scored)[1].sum().astype(jnp.float32)}
        if self.drafts:
            has = layout.draft_targets(scored=scored, **self._where(batch, drawn))[1]
            out["draft_count"] = has.reshape(-1, self.block_size).sum(0).astype(jnp.float32)
        return out

    def loss(self, sums: dict[str, Array], counts: dict[str, Array]) -> Array:
        """The loss from (possibly one shard's) sums and the whole batch's counts."""
        ar = sums["ar_nll"] / jnp.maximum(counts["ar_count"], 1)
        if not self.drafts:
            return ar
        nll = sums["draft_nll"]
        if self.distill:
            nll = (1 - self.distill) * nll + self.distill * sums["draft_soft_nll"]
        weight = self.slot_decay ** jnp.arange(self.block_size)
        draft = (weight * nll).sum() / jnp.maximum((weight * counts["draft_count"]).sum(), 1e-9)
        if not self.alpha:  # 0 * ar would be differentiated all the same
            return draft
        return (self.alpha * ar + draft) / (1 + self.alpha)


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


def _run(model: Zaya, variables, layout: Layout, constant_context: bool) -> tuple[Array, Array, Array]:
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
    model: Zaya, variables, hidden: Array, ids: Array, has: Array, teacher: Array | None = None, distance: str = "kl"
) -> tuple[Array, Array]:
    """Negative log-likelihood in float32 and whether the likeliest token is right, both 0 where `has` is False.

    Logits exist for at most LOGITS_AT_ONCE entries at a time, in the backward pass too: a row of ZAYA1-8B's vocabulary
    would otherwise take 8.6 GB (docs/method.md#training).

    Args:
      hidden: [B, T, M].
      ids, has: int32 and bool [B, T].
      teacher: like hidden: in place of the first, the `distance` from the distribution that the head gives these.
    """

    def logits_of(hidden: Array) -> Array:
        return cast(Array, model.apply(variables, hidden, method="head")).astype(jnp.float32)

    def chunk(hidden: Array, ids: Array, teacher: Array | None) -> tuple[Array, Array]:
        logits = logits_of(hidden)
        target = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
        right = target >= logits.max(-1)
        if teacher is not None:
            return distance_of(
                distance, jax.nn.softmax(jax.lax.stop_gradient(logits_of(teacher)), axis=-1), logits
            ), right
        return jax.nn.logsumexp(logits, axis=-1) - target, right

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (hidden, ids, teacher))
    size, rows = ids.size, max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if size <= rows:
        nll, right = chunk(*flat)
    else:
        pieces = jax.tree.map(
            lambda x: jnp.pad(x, ((0, -size % rows), *[(0, 0)] * (x.ndim - 1))).reshape(-1, rows, *x.shape[1:]), flat
        )
        nll, right = jax.lax.map(jax.checkpoint(lambda piece: chunk(*piece)), pieces)
        nll, right = (x.reshape(-1)[:size] for x in (nll, right))
    return jnp.where(has, nll.reshape(ids.shape), 0), right.reshape(ids.shape) & has

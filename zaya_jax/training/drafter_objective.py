"""Training a drafter beside its target: its own slots' losses, over features that the target gives once a step.

The target is frozen (alpha 0, and `optimizer.freeze` ("*", "!drafter*")) or trained along (alpha above 0: gradients of
the drafts' loss reach it through the features). What a slot reads is what it reads at inference
(`zaya_jax.architecture.drafters`), from the text as it is: teacher forcing.
"""

import dataclasses
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.drafters.config import KINDS, DrafterConfig
from zaya_jax.architecture.features import Features
from zaya_jax.architecture.layout import PADDING
from zaya_jax.checks import COUNT, SWITCH, Integer, Items, Number
from zaya_jax.errors import UserError
from zaya_jax.training.objective import OBJECTIVES, Objective, cross_entropy

Array = jax.Array
FROZEN_TARGET = ("*", "!drafter*")  # `OptimizerConfig.freeze` of a drafter whose target is frozen


@dataclasses.dataclass(frozen=True)
class DrafterObjective(Objective):
    """Trains a drafter. Of `Objective`'s fields it reads kind, block_size, alpha, loss_on, distill, distance,
    slot_decay and blocks_per_row.

    Attributes:
      kind: "dflash", "eagle3", "mtp" or "medusa".
      block_size: the pending token and the drafts that are trained: steps of recursion (eagle3, mtp), heads (medusa).
      alpha: weight of the target's own loss, which is then trained, too; 0: the target is frozen. DeepSeek's lambda of
        the drafts' loss beside the target's is 1 / alpha.
      slot_decay: .6 a step for FastMTP, .8 for EAGLE-3, exp(-1 / gamma) for DFlash.
      distill: share of the loss whose target is the target model's distribution after the text so far (1 for EAGLE-3).
      blocks_per_row: dflash: blocks a row, drawn so that each begins with a token that has a loss, about as many
        tokens apart; 0: a quarter of the row's tokens.
      layers, taps, causal, own_head: see `DrafterConfig`.
    """

    kind: str = "dflash"
    alpha: Annotated[float, Number(0, 1e6)] = 0.0
    layers: Annotated[int, COUNT] = 1
    taps: Annotated[tuple[int, ...], Items(Integer(0, 10_000))] = ()
    causal: Annotated[bool, SWITCH] = False
    own_head: Annotated[bool, SWITCH] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "taps", tuple(self.taps))  # JSON gives lists, which do not hash
        for name, default in (("masking", "full"), ("row_layout", "tidar")):
            if getattr(self, name) != default:
                may_be = f"{default!r} where kind is {self.kind!r}"
                raise UserError(f"Objective.{name}: got {getattr(self, name)!r}, may be {may_be}")
        if self.block_size < 2:
            raise UserError(
                f"Objective.block_size: got {self.block_size}, may be at least 2 where kind is {self.kind!r}"
            )
        if self.blocks_per_row and not self._anchored:
            may_be = f"0 where kind is {self.kind!r}"
            raise UserError(f"Objective.blocks_per_row: got {self.blocks_per_row}, may be {may_be}")
        try:
            assert self.drafter is not None
        except UserError as error:
            raise UserError(str(error).replace("DrafterConfig.", "Objective.")) from None

    @property
    def drafter(self) -> DrafterConfig:
        drafts = self.block_size - 1
        return DrafterConfig(self.kind, drafts, self.layers, self.taps, self.causal, self.own_head)

    @property
    def _anchored(self) -> bool:
        """Whether slots belong to blocks that stand in some places, not to every token."""
        return self.kind == "dflash"

    def blocks(self, row: int) -> int:
        """Groups of slots in a row of so many tokens: blocks, or tokens."""
        return (self.blocks_per_row or max(1, row // 4)) if self._anchored else row

    def draw(self, key: Array, batch: int, row: int, *, mask_key: Array | None = None) -> dict[str, Array]:
        """{} or {"share": float32 [B, blocks]}; see `Objective.draw`. Nothing is masked at random."""
        if not self._anchored:
            return {}
        blocks = self.blocks(row)
        return {"share": (jnp.arange(blocks) + jax.random.uniform(key, (batch, blocks))) / blocks}

    def layout(self, batch: dict[str, Array], drawn: dict[str, Array]) -> Layout:
        """The rows that the target runs."""
        return Layout.causal(batch["tokens"], document=batch["document"])

    def slots(self, batch: dict[str, Array], drawn: dict[str, Array]) -> tuple[Array, Array, Array]:
        """(first, index, has): where each group of slots begins int32 [B, N], the row index of each slot's token and
        whether it has a loss, [B, N, drafts].

        A group begins with a block's pending token, or with a chain's or a head's last committed one; the first slot
        predicts one, or two, tokens after it. All of a group's tokens are of one document.
        """
        document, row = batch["document"], batch["tokens"].shape[1]
        if self._anchored:
            first, shift = self._where(batch, drawn)["first"], 1
        else:
            first, shift = jnp.broadcast_to(jnp.arange(row, dtype=jnp.int32), document.shape), 2
        index = first[..., None] + shift + jnp.arange(self.block_size - 1, dtype=jnp.int32)
        inside, at = index < row, jnp.minimum(index, row - 1)
        of_first = jnp.take_along_axis(document, jnp.minimum(first, row - 1), axis=1)[..., None]
        has = inside & (_along(document, at) == of_first) & (of_first != PADDING)
        if (scored := self._scored(batch)) is not None:
            has &= _along(scored, at)
        return first, at, has

    def sums(
        self,
        model: Zaya,
        variables,
        batch: dict[str, Array],
        drawn: dict[str, Array],
        axis: tuple[str, ...] = (),
        constant_context: bool = False,
    ) -> dict[str, Array]:
        """As `Objective.sums`; by slot are the drafts."""
        if axis:
            raise UserError(f"Objective.kind: got {self.kind!r}, whose rows devices cannot share")
        layout, drafter = self.layout(batch, drawn), self.drafter
        params = variables["params"]
        if not self.alpha:
            params = {name: leaf if name.startswith("drafter") else _held(leaf) for name, leaf in params.items()}
        variables = {**variables, "params": params}

        def call(*args: Any, method: str = "draft") -> Any:
            return model.apply(variables, *args, method=method)

        taps = drafter.taps_of(model.config.num_hidden_layers)
        features, _, load = cast(tuple[Features, None, Array], call(layout, None, taps, method="features"))
        scored = self._scored(batch)
        ids, has = layout.clean_targets(scored)
        nll, _ = cross_entropy(model, variables, features.hidden, ids, has)
        out = {"load": load, "ar_nll": nll.sum(), "ar_count": has.sum().astype(jnp.float32)}
        first, index, has = self.slots(batch, drawn)
        hidden = call("training", features, call(batch["tokens"], method="embed"), layout, first)
        teachers = _held(features.hidden)
        pieces = [slice(None)] if drafter.heads == 1 or not drafter.own_head else range(drafter.heads)
        parts = [
            self._slot_sums(model, variables, hidden, (batch["tokens"], index, has), teachers, piece)
            for piece in pieces
        ]  # fmt: skip
        return out | jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def _slot_sums(
        self,
        model: Zaya,
        variables,
        hidden: Array,
        targets: tuple[Array, Array, Array],
        teachers: Array,
        piece: slice | int,
    ) -> dict[str, Array]:
        """Sums by slot, float32 [slots], of some slots.

        Args:
          hidden: [B, N, drafts, M].
          targets: the rows' tokens [B, T], and `slots`' index and has.
          teachers: the target's hidden states [B, T, M], constants.
          piece: which slots: all of them, or one that has a head of its own.
        """
        tokens, *rest = targets
        one = isinstance(piece, int)
        some = slice(piece, piece + 1) if isinstance(piece, int) else piece
        hidden, index, has = (x[:, :, some] for x in (hidden, *rest))
        shape = index.shape
        batch, slots = shape[0], shape[2]
        hidden, index, has = (x.reshape(batch, -1, *x.shape[3:]) for x in (hidden, index, has))
        ids = jnp.where(has, jnp.take_along_axis(tokens, index, axis=1), 0)

        def head(hidden: Array) -> Any:
            return model.apply(variables, hidden, piece if one else 0, method="draft_head")

        def by_slot(x: Array) -> Array:
            return x.reshape(-1, slots).sum(0).astype(jnp.float32)

        nll, correct = cross_entropy(model, variables, hidden, ids, has, head=head)
        out = {"draft_nll": by_slot(nll), "draft_correct": by_slot(correct), "draft_count": by_slot(has)}
        if self.distill:
            teacher = jnp.take_along_axis(teachers, (index - 1)[..., None], axis=1)
            soft, _ = cross_entropy(model, _held(variables), hidden, ids, has, teacher, self.distance, head)
            out["draft_soft_nll"] = by_slot(soft)
        return out

    def counts(self, batch: dict[str, Array], drawn: dict[str, Array]) -> dict[str, Array]:
        has = self.layout(batch, drawn).clean_targets(self._scored(batch))[1]
        slots = self.slots(batch, drawn)[2]
        return {
            "ar_count": has.sum().astype(jnp.float32),
            "draft_count": slots.sum((0, 1)).astype(jnp.float32),
        }


def _held(tree: Any) -> Any:
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _along(x: Array, at: Array) -> Array:
    """x [B, T] at [B, N, slots]."""
    return jnp.take_along_axis(x, at.reshape(at.shape[0], -1), axis=1).reshape(at.shape)


for _kind in KINDS:
    OBJECTIVES.add(_kind, DrafterObjective, __file__)

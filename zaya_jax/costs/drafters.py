"""FLOPs of training a drafter beside its target, and its parameters (`zaya_jax.architecture.drafters`).

Matrix products of the training form, 2 a multiply-add; a frozen target's forward counts once, and its head only where
its distribution is a target of the loss (elsewhere its loss is a mere metric).
"""

import dataclasses

from zaya_jax.architecture import ZayaConfig
from zaya_jax.costs.flops import ALL, Trained, forward_flops, training_flops
from zaya_jax.training.drafter_objective import DrafterObjective
from zaya_jax.training.objective import Objective


@dataclasses.dataclass(frozen=True)
class DrafterFlops:
    """Of one forward of a drafter over training rows."""

    products: int  # with its own weights
    attention: int  # pairs that see each other
    head: int  # logits of every slot


def drafter_flops(config: ZayaConfig, batch: int, row_length: int, groups: int) -> DrafterFlops:
    """The training form of `config.drafter`.

    Args:
      groups: of slots in a row (`DrafterObjective.blocks`).
    """
    c, d = config, config.drafter
    assert d is not None
    width, inner, queries, values = c.hidden_size, c.moe_intermediate_size, *_head_widths(c)
    taps = len(d.taps_of(c.num_hidden_layers))
    layer = width * (queries + 2 * values) + queries * width + 3 * width * inner
    slots = groups * d.drafts
    if d.kind == "dflash":
        rows, size = groups * (d.drafts + 1), d.drafts + 1
        context = row_length * (taps * width**2 + d.layers * 2 * width * values)
        products, own = context + rows * d.layers * layer, (size + 1) / 2 if d.causal else size
        before = sum(group * row_length // groups for group in range(groups)) * size
        pairs = d.layers * (before + rows * own)
    elif d.kind == "medusa":
        products, pairs = slots * width**2, 0
    else:
        fused = d.kind == "eagle3"  # projections read both halves of a pair; MTP joins them first
        step = layer + (width * (queries + 2 * values) if fused else 2 * width**2)
        products = slots * step + (row_length * taps * width**2 if fused else 0)
        pairs = d.drafts * row_length * (row_length + 1) / 2 + row_length * d.drafts * (d.drafts - 1) / 2
    return DrafterFlops(
        products=2 * batch * products,
        attention=int(2 * batch * pairs * 2 * queries),
        head=2 * batch * slots * c.vocab_size * width,
    )


def objective_flops(
    config: ZayaConfig, objective: Objective, batch: int, row_length: int, remat: str = "none", trained: Trained = ALL
) -> int:
    """One training step of any of this package's objectives; see `training_flops`.

    Args:
      config: with the drafter that the objective trains, if any.
    """
    if not isinstance(objective, DrafterObjective):
        return training_flops(config, batch, row_length, objective.masks, objective.block_size, remat, trained)
    mine = drafter_flops(config, batch, row_length, objective.blocks(row_length))
    joint = objective.alpha > 0
    target = training_flops(config, batch, row_length, remat=remat, trained=Trained(context=3 if joint else 1))
    if not joint and not objective.distill:
        target -= forward_flops(config, batch * row_length, 0).head
    return target + 3 * (mine.products + mine.attention) + (3 if joint or objective.own_head else 2) * mine.head


def _head_widths(config: ZayaConfig) -> tuple[int, int]:
    """Channels of all query heads, and of all key heads."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

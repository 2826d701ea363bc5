"""A forward's time on a GPU that is not here: the larger of arithmetic and memory traffic, from published peaks.

Assumes perfect overlap, every byte read once, uniform routing and no overhead: a bound to compare shapes by, not a
forecast. Sources: tidar.md section 3 (AMD and NVIDIA data sheets, dense bf16, HBM).
"""

import dataclasses

import jax.numpy as jnp

from zaya_jax.analysis.flops import forward_flops, parameter_count
from zaya_jax.architecture import ZayaConfig


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Peaks of one device."""

    flops: float  # dense bf16, FLOP/s
    bandwidth: float  # of its memory, bytes/s


HARDWARE = {
    "mi300x": Hardware(1307.4e12, 5.3e12),
    "mi355x": Hardware(2516.6e12, 8.0e12),
    "h100": Hardware(989.4e12, 3.35e12),
    "h200": Hardware(989.4e12, 4.8e12),
}


def experts_touched(experts: int, tokens: int) -> float:
    """Distinct experts among `tokens` uniform top-1 choices, expected: E (1 - (1 - 1/E)^n) (tidar.md section 3)."""
    return experts * (1 - (1 - 1 / experts) ** tokens)


def forward_seconds(
    config: ZayaConfig, hardware: Hardware, rows: int, batch: int = 1, context: int = 4096, head_rows: int | None = None
) -> float:
    """Seconds of one decoding forward.

    Args:
      rows: rows of each of `batch` sequences, behind `context` cached tokens each.
      head_rows: rows of a sequence whose logits are computed; None for all.
    """
    width = jnp.dtype(config.dtype).itemsize
    count = parameter_count(config)
    tokens = rows * batch
    touched = count.experts * experts_touched(config.num_experts, tokens) / config.num_experts
    weights = count.total_without_embedding - count.experts + touched + count.head_active
    seen = [min(context, config.sliding_window or context) if "sliding" in k else context for k in config.layer_kinds]
    cache = sum(seen) * batch * 2 * config.num_key_value_heads * config.head_dim
    read = rows if head_rows is None else head_rows
    flops = forward_flops(config, tokens, context + rows, read * batch).total
    return max(flops / hardware.flops, (weights + cache) * width / hardware.bandwidth)

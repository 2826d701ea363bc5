"""A forward's time on a GPU that is not here: the larger of arithmetic and memory traffic, from published peaks.

Assumes perfect overlap, every byte read once, uniform routing and no overhead: a bound to compare shapes by, not a
forecast. Two questions: how long a forward takes (`forward_seconds`), and how many tokens of a sequence it may hold
before arithmetic, not memory, sets that time: for attention over a cache alone (`free_query_tokens`), and for a whole
model with its weights and the experts that so many tokens touch (`ridge_rows`, `free_rows`).
Sources of the peaks: docs/hardware.md#peaks (AMD and NVIDIA data sheets, dense bf16, HBM).
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from zaya_jax.architecture import ZayaConfig
from zaya_jax.costs.flops import forward_flops, parameter_count

MOST_ROWS = 4096  # of a sequence in one forward; far beyond any block


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Peaks of one device."""

    flops: float  # dense bf16, FLOP/s
    bandwidth: float  # of its memory, bytes/s
    memory: float = float("inf")  # bytes

    @property
    def ridge(self) -> float:
        """FLOP a byte at which arithmetic takes as long as memory traffic."""
        return self.flops / self.bandwidth


HARDWARE = {
    "mi300x": Hardware(1307.4e12, 5.3e12, 192e9),
    "mi355x": Hardware(2516.6e12, 8.0e12, 288e9),
    "h100": Hardware(989.4e12, 3.35e12, 80e9),
    "h200": Hardware(989.4e12, 4.8e12, 141e9),
}


# How JAX names these devices (`device_kind`, in part) and what the names must not hold: boards of other peaks.
_KINDS = {
    "mi300x": ("MI300X", ()),
    "mi355x": ("MI355X", ()),
    "h100": ("H100", ("PCIe", "NVL")),
    "h200": ("H200", ("NVL",)),
}


def hardware_name(device_kind: str) -> str | None:
    """A JAX `device_kind` ("NVIDIA H100 80GB HBM3") as a key of `HARDWARE`; None for what is not there."""
    kind = device_kind.lower()
    for name, (part, others) in _KINDS.items():
        if part.lower() in kind and not any(other.lower() in kind for other in others):
            return name
    return None


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of a JAX `device_kind`; None for what is not in `HARDWARE`."""
    name = hardware_name(device_kind)
    return None if name is None else HARDWARE[name].flops


@dataclasses.dataclass(frozen=True)
class CachedAttention:
    """Attention over a bf16 cache, for one layer and one cached token."""

    flops: float  # of one query token: scores and mixing, 2 a multiply-add
    bytes: float  # that are read, once for all query tokens

    @property
    def intensity(self) -> float:
        """FLOP a byte and query token."""
        return self.flops / self.bytes


def grouped_attention(query_heads: int, key_value_heads: int, head_dim: int) -> CachedAttention:
    """Keys and values a head, each shared by a group of query heads; intensity = query_heads / key_value_heads."""
    return CachedAttention(flops=2 * 2 * query_heads * head_dim, bytes=2 * 2 * key_value_heads * head_dim)


def absorbed_mla(query_heads: int, latent: int, rotary: int) -> CachedAttention:
    """Multi-head latent attention with absorbed projections: all heads score and mix one cached latent vector."""
    return CachedAttention(flops=2 * query_heads * (latent + rotary + latent), bytes=2 * (latent + rotary))


ATTENTIONS = {
    "CCGQA 4:1": grouped_attention(8, 2, 128),  # ZAYA1-8B (docs/architecture.md)
    "MHA": grouped_attention(16, 16, 128),  # ZAYA1-8B's width, 2048, without compression
    "absorbed MLA": absorbed_mla(128, 512, 64),  # DeepSeek-V2 (arXiv 2405.04434, section 3.1.2)
}


def free_query_tokens(attention: CachedAttention, hardware: Hardware) -> float:
    """Query tokens a sequence up to which the cache's traffic takes longer than the arithmetic over it.

    The hardware's ridge over the attention's intensity. The first of them is the token that autoregressive decoding
    feeds too, so a value below 2 leaves no free slot.
    """
    return hardware.ridge / attention.intensity


def experts_touched(experts: int, tokens: int) -> float:
    """Distinct experts among `tokens` uniform top-1 choices, expected: E (1 - (1 - 1/E)^n).

    See docs/hardware.md#free-token-slots.
    """
    return experts * (1 - (1 - 1 / experts) ** tokens)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one forward computes and reads."""

    flops: float
    weights: float  # bytes: shared ones, the experts touched, the head
    cache: float  # bytes

    def seconds(self, hardware: Hardware) -> float:
        return max(self.flops / hardware.flops, (self.weights + self.cache) / hardware.bandwidth)

    def bound_by_memory(self, hardware: Hardware) -> bool:
        return self.flops / hardware.flops <= (self.weights + self.cache) / hardware.bandwidth


def forward_traffic(
    config: ZayaConfig, rows: int, batch: int = 1, context: int = 4096, head_rows: int | None = None
) -> Traffic:
    """One decoding forward.

    Args:
      rows: query tokens of each of `batch` sequences, after `context` cached tokens each.
      head_rows: query tokens of a sequence whose logits are computed; None for all.
    """
    width = jnp.dtype(config.dtype).itemsize
    count = parameter_count(config)
    tokens = rows * batch
    experts = config.num_experts if config.feed_forward == "moe" else 1
    touched = count.experts * experts_touched(experts, tokens) / experts
    weights = count.total_without_embedding - count.experts + touched + count.head_active
    read = rows if head_rows is None else head_rows
    flops = forward_flops(config, tokens, context + rows, read * batch).total
    return Traffic(flops=flops, weights=weights * width, cache=cache_bytes(config, batch, context))


def cache_bytes(config: ZayaConfig, batch: int, context: int) -> int:
    """Keys and values of `batch` sequences after `context` tokens each."""
    width = jnp.dtype(config.dtype).itemsize
    seen = [min(context, config.sliding_window or context) if "sliding" in k else context for k in config.layer_kinds]
    return sum(seen) * batch * 2 * config.num_key_value_heads * config.head_dim * width


def forward_seconds(
    config: ZayaConfig, hardware: Hardware, rows: int, batch: int = 1, context: int = 4096, head_rows: int | None = None
) -> float:
    """Seconds of one decoding forward; arguments as those of `forward_traffic`."""
    return forward_traffic(config, rows, batch, context, head_rows).seconds(hardware)


def resident_bytes(config: ZayaConfig, batch: int, context: int) -> int:
    """All weights, every expert among them, and the caches: what the device's memory must hold at least."""
    weights = parameter_count(config).total * jnp.dtype(config.dtype).itemsize
    return weights + cache_bytes(config, batch, context)


def drafting_seconds(config: ZayaConfig, hardware: Hardware, rows: int, batch: int, context: int, block: int) -> float:
    """A forward that verifies a block and drafts others in `rows` query tokens a sequence.

    Logits are computed for the verified block and for the one proposal that is kept (docs/method.md#one-step).
    """
    return forward_seconds(config, hardware, rows, batch, context, head_rows=min(rows, 2 * block))


def ridge_rows(config: ZayaConfig, hardware: Hardware, batch: int, context: int, block: int) -> int:
    """Most query tokens of a drafting forward whose time memory traffic still sets; 0 where not even one's is."""

    def bound(rows: int) -> bool:
        return forward_traffic(config, rows, batch, context, min(rows, 2 * block)).bound_by_memory(hardware)

    return _last(bound)


def free_rows(
    config: ZayaConfig, hardware: Hardware, batch: int, context: int, block: int, tolerance: float = 0.1
) -> int:
    """Most query tokens of a drafting forward that takes at most 1 + `tolerance` times a forward of one."""
    most = (1 + tolerance) * forward_seconds(config, hardware, 1, batch, context)
    return _last(lambda rows: drafting_seconds(config, hardware, rows, batch, context, block) <= most)


def _last(holds: Callable[[int], bool]) -> int:
    """The last of 1 .. MOST_ROWS at which `holds`, which is true up to somewhere and false from there; 0 for none."""
    low, high = 0, MOST_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low

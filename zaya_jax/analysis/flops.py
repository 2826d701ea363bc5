"""Analytic counts of a ZAYA1 model: parameters, FLOPs, bytes. No arrays, nothing compiled.

XLA's cost analysis counts the body of a scan once, whatever the number of layers, so it cannot answer these questions.
"""

import dataclasses

import jax.numpy as jnp

from zaya_jax.architecture import ZayaConfig
from zaya_jax.training.objective import LOGITS_AT_ONCE


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of all layers, by what they belong to; the balancing biases are state and count nowhere.

    A dense feed-forward counts as a single expert.
    """

    embedding: int
    head: int  # 0 where the embedding serves as the head, but for its bias
    attention: int  # projections, convolutions, temperatures
    router: int
    experts: int
    active_experts: int  # one expert a layer
    other: int  # norms and residual scales
    head_active: int  # what the output projection reads: the tied embedding or its own matrix, and its bias

    @property
    def total(self) -> int:
        return self.total_without_embedding + self.embedding + self.head

    @property
    def total_without_embedding(self) -> int:
        """Without both vocabulary matrices."""
        return self.attention + self.router + self.experts + self.other

    @property
    def active_without_embedding(self) -> int:
        """What one token's forward reads, vocabulary matrices aside."""
        return self.total_without_embedding - self.experts + self.active_experts

    @property
    def active_with_head(self) -> int:
        return self.active_without_embedding + self.head_active


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of matrix products, 2 a multiply-add; norms, softmax and the like are left out."""

    projections: int
    convolutions: int
    attention: int  # scores and mixing
    router: int
    experts: int  # one a row; a block-padded batch computes some padding on top, the dense twin every expert
    head: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes a training step holds at least; activations come on top (keep them small with remat and query_chunk)."""

    parameters: int
    gradients: int
    optimizer: int  # two moments a parameter (AdamW)
    logits: int  # the chunk that exists at once, float32, with its gradient

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def parameter_count(config: ZayaConfig) -> ParameterCount:
    """Counts the parameters that `Zaya(config).init` makes."""
    c, layers = config, config.num_hidden_layers
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    convolutions = c.conv_channels * ((c.cca_time0 + 1) * c.has("depthwise"))
    convolutions += c.conv_channels * (c.head_dim * c.cca_time1 + 1) * c.has("grouped")
    biases = (queries + 2 * keys + c.hidden_size) * c.attention_bias
    attention = _projections(c) + biases + convolutions + c.num_key_value_heads * bool(c.qk_norm)
    router = _router(c) + 4 * c.router_hidden_size * (c.router_classes > 0)  # three biases and the norm
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    vocabulary = c.vocab_size * c.hidden_size
    head_bias = c.vocab_size * c.lm_head_bias
    return ParameterCount(
        embedding=vocabulary,
        head=(0 if c.tie_word_embeddings else vocabulary) + head_bias,
        attention=layers * attention,
        router=layers * router + (layers - 1) * c.state_size,  # the first layer has no state to scale
        experts=layers * max(1, c.router_classes - 1) * expert,
        active_experts=layers * expert,
        # 2 norms, 8 residual vectors; the last norm, input scale and bias
        other=(layers * (2 + 8 * c.residual_scaling) + 1 + 2 * c.residual_scaling) * c.hidden_size,
        head_active=vocabulary + head_bias,
    )


def forward_flops(config: ZayaConfig, rows: int, context: float, head_rows: int | None = None) -> Flops:
    """One forward over `rows` token rows.

    Args:
      rows: token rows, all sequences of the batch together.
      context: keys each row is scored against (its own included, masked ones too if they are computed); sliding layers
        see no more than their window.
      head_rows: rows whose logits are computed; None for all.
    """
    c = config
    windows = [c.sliding_window if "sliding" in kind else None for kind in c.layer_kinds]
    seen = sum(context if window is None else min(context, window) for window in windows)
    layer_rows = 2 * rows * c.num_hidden_layers
    return Flops(
        projections=layer_rows * _projections(c),
        convolutions=layer_rows
        * c.conv_channels
        * (c.cca_time0 * c.has("depthwise") + c.head_dim * c.cca_time1 * c.has("grouped")),
        attention=int(2 * rows * seen * 2 * c.num_attention_heads * c.head_dim),
        router=layer_rows * _router(c),
        experts=layer_rows * 3 * c.hidden_size * c.moe_intermediate_size,
        head=2 * (rows if head_rows is None else head_rows) * c.vocab_size * c.hidden_size,
    )


def training_flops(config: ZayaConfig, batch: int, row_length: int, tidar: bool = False, block_size: int = 8) -> int:
    """One training step: forward, and a backward of twice that; with remat "full" the layers' forward runs twice.

    Every clean or draft slot is scored against all clean slots of its row (hidden pairs are computed, then masked),
    draft slots also against their block.
    """
    drafts = -(-row_length // block_size) * block_size if tidar else 0
    clean = forward_flops(config, batch * row_length, row_length)
    draft = forward_flops(config, batch * drafts, row_length + block_size)
    layers = clean.total + draft.total - clean.head - draft.head
    return 3 * (clean.total + draft.total) + layers * (config.remat == "full")


def training_memory(
    config: ZayaConfig, batch: int, row_length: int, tidar: bool = False, block_size: int = 8
) -> TrainingMemory:
    """A lower estimate, in bytes, for AdamW on one device."""
    state = parameter_count(config).total * jnp.dtype(config.param_dtype).itemsize
    drafts = -(-row_length // block_size) * block_size if tidar else 0
    rows = batch * max(row_length, drafts)  # the clean and the draft half take turns
    logits = min(rows, max(1, LOGITS_AT_ONCE // config.vocab_size)) * config.vocab_size * 4
    return TrainingMemory(parameters=state, gradients=state, optimizer=2 * state, logits=2 * logits)


def describe(config: ZayaConfig, batch_size: int, row_length: int, tidar: bool, block_size: int = 8) -> str:
    """What a run is about to compile, in four lines: parameters, FLOPs a step, bytes."""
    count = parameter_count(config)
    drafts = -(-row_length // block_size) * block_size if tidar else 0
    flops = training_flops(config, batch_size, row_length, tidar, block_size)
    memory = training_memory(config, batch_size, row_length, tidar, block_size)
    halves = f"{row_length} clean" + (f" + {drafts} draft slots (block size {block_size})" if tidar else " tokens")
    return (
        f"parameters  {count.total:,} total ({count.total_without_embedding:,} without embedding); one token uses "
        f"{count.active_without_embedding:,}, with the head {count.active_with_head:,}\n"
        f"model       {config.num_hidden_layers} layers x {config.hidden_size} wide, {_feed_forward(config)}, "
        f"vocabulary {config.vocab_size}, {config.param_dtype} parameters, {config.dtype} compute\n"
        f"step        {batch_size} rows x {halves}: {si(flops)}FLOP forward and backward\n"
        f"memory      at least {binary(memory.total)}: parameters {binary(memory.parameters)}, gradients "
        f"{binary(memory.gradients)}, AdamW {binary(memory.optimizer)}, logits {binary(memory.logits)}; "
        "activations come on top"
    )


def si(value: float) -> str:
    """1234567 -> '1.23 M', ready for a unit."""
    for exponent, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}"
    return f"{value:.3g} "


def binary(size: float) -> str:
    """Bytes -> '1.5 MiB'."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**exponent:
            return f"{size / 2**exponent:.3g} {unit}"
    return f"{size:.0f} B"


def _feed_forward(config: ZayaConfig) -> str:
    return f"{config.num_experts} experts (top 1)" if config.feed_forward == "moe" else "dense"


def _projections(config: ZayaConfig) -> int:
    """Weights of a layer's query, key, both value and output projections."""
    c = config
    return c.hidden_size * 2 * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim


def _router(config: ZayaConfig) -> int:
    """Weights of a layer's router: down projection, two hidden layers, experts + skip; 0 without one."""
    c = config
    if not c.router_classes:
        return 0
    return c.router_hidden_size * (c.hidden_size + 2 * c.router_hidden_size + c.num_experts + 1)

"""Analytic counts of a ZAYA1 model: parameters, FLOPs, bytes. No arrays, nothing compiled.

XLA's cost analysis counts the body of a scan once, whatever the number of layers, so it cannot answer these questions.
"""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.attention.direct import PIECES, is_small
from zaya_jax.architecture.attention.tiled import tile_sizes
from zaya_jax.architecture.moe.experts import blocks_of
from zaya_jax.interop.editing.adapters import is_adapter, is_drafter
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.memory import binary
from zaya_jax.training.objective import piece_size


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of all layers, by what they belong to; the balancing biases are state and count nowhere.

    A dense feed-forward counts as a single expert.
    """

    embedding: int
    head: int  # 0 where the embedding serves as the head, but for its bias
    attention: int  # projections, convolutions, norms of queries and keys
    router: int
    experts: int
    active_experts: int  # one expert a layer
    other: int  # norms, residual scales, biases of a dense feed-forward
    adapters: int  # `ZayaConfig.lora_rank`
    head_active: int  # what the output projection reads: the tied embedding or its own matrix, and its bias
    drafter: int = 0  # `ZayaConfig.drafter`, which the model's own forward does not read

    @property
    def total(self) -> int:
        return self.total_without_embedding + self.embedding + self.head + self.drafter

    @property
    def total_without_embedding(self) -> int:
        """Without both vocabulary matrices, and without what drafts beside the model."""
        return self.attention + self.router + self.experts + self.other + self.adapters

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
    experts: int  # one a row; a block-padded batch computes some padding on top, the dense reference every expert
    head: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Split:
    """Into how many parts things are cut, each device holding one; 1: every device holds (or computes) all of it."""

    parameters: int = 1  # every parameter, with its gradient and optimizer state
    experts: int = 1  # expert weights, on top of `parameters`
    batch: int = 1  # rows
    sequence: int = 1  # tokens of a row


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes a training step holds on a device. All but activations are exact; those are an estimate (`activations`)."""

    parameters: int
    gradients: int
    optimizer: int  # moments: AdamW's two a parameter, Muon's one a matrix
    average: int  # moving average of the parameters, if one is kept
    activations: int
    logits: int  # the chunk that exists at once, float32, with its gradient

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a step trains of a model, and in how many passes' worth of matrix products.

    Attributes:
      parameters: that have gradients and optimizer state; None for all.
      context, drafts: passes over context tokens and over mask tokens: forward, gradients of what goes from layer to
        layer, gradients of weights. 3; 2 where weights are frozen; 1 where nothing flows back.
      blocks: draft blocks a row, evenly spread; 0: a grid over all of it.
      moving: parameters that a step changes, fewer where it is some layers that are frozen; None for `parameters`.
    """

    parameters: int | None = None
    context: int = 3
    drafts: int = 3
    blocks: int = 0
    moving: int | None = None


ALL = Trained()


def parameter_count(config: ZayaConfig) -> ParameterCount:
    """Counts the parameters that `Zaya(config).init` makes."""
    c, layers = config, config.num_hidden_layers
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    convolutions = c.conv_channels * ((c.cca_time0 + 1) * c.has("depthwise"))
    convolutions += c.conv_channels * (c.head_dim * c.cca_time1 + 1) * c.has("grouped")
    biases = (queries + 2 * keys + c.hidden_size * c.output_bias) * c.attention_bias
    qk_norm = {"unit": c.num_key_value_heads, "rms": 2 * c.head_dim, "none": 0}[str(c.qk_norm)]
    attention = _projections(c) + biases + convolutions + qk_norm
    router = _router(c) + 4 * c.router_hidden_size * (c.router_classes > 0)  # three biases and the norm
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    mlp_biases = layers * (2 * c.moe_intermediate_size + c.hidden_size) * c.mlp_bias
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
        other=(layers * (2 + 8 * c.residual_scaling) + 1 + 2 * c.residual_scaling) * c.hidden_size + mlp_biases,
        adapters=adapter_count(c),
        head_active=vocabulary + head_bias,
        drafter=drafter_count(c),
    )


def adapter_count(config: ZayaConfig) -> int:
    """Parameters of `ZayaConfig.lora_rank`."""
    if not config.lora_rank:
        return 0
    return sum(leaf.size for path, leaf in abstract_variables(config).items() if is_adapter(path))


def drafter_count(config: ZayaConfig) -> int:
    """Parameters of `ZayaConfig.drafter`."""
    if config.drafter is None:
        return 0
    return sum(leaf.size for path, leaf in abstract_variables(config).items() if is_drafter(path))


def forward_flops(config: ZayaConfig, rows: int, context: float, head_rows: int | None = None) -> Flops:
    """One forward over `rows` query tokens.

    Args:
      rows: query tokens, all sequences of the batch together.
      context: keys each query token is scored against (its own included, masked ones too if they are computed); sliding
        layers see no more than their window.
      head_rows: query tokens whose logits are computed; None for all.
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


def training_flops(
    config: ZayaConfig, batch: int, row_length: int, tidar: bool = False, block_size: int = 8, remat: str = "none",
    trained: Trained = ALL,
) -> int:  # fmt: skip
    """One training step: forward, and a backward of twice that; with remat "full" the layers' forward runs twice.

    Where part of the model is frozen, the backward is shorter (`Trained`); adapters themselves are not counted.

    Attention counts the pairs that see each other in a row of one document (`visible_pairs`): what the step needs, as
    in MFU. Attention that computes hidden pairs to mask them does more; packed documents need less.
    """
    windows = collections.Counter(config.sliding_window if "sliding" in kind else None for kind in config.layer_kinds)
    per_pair = 2 * 2 * config.num_attention_heads * config.head_dim
    clean = {window: visible_pairs(row_length, window=window) for window in windows}
    all_pairs = {w: visible_pairs(row_length, tidar, block_size, w, trained.blocks) for w in windows}
    total = 0
    for rows, pairs, passes in (
        (row_length, clean, trained.context),
        (
            _drafts(row_length, tidar, block_size, trained.blocks),
            {w: all_pairs[w] - clean[w] for w in windows},
            trained.drafts,
        ),
    ):
        products = forward_flops(config, batch * rows, 0)
        attention = per_pair * batch * sum(pairs[window] * layers for window, layers in windows.items())
        layers = products.total - products.head + attention
        total += passes * (layers + products.head) + layers * (remat == "full" and passes > 1)
    return total


def visible_pairs(
    row_length: int, tidar: bool = False, block_size: int = 8, window: int | None = None, blocks: int = 0
) -> int:
    """(query, key) pairs of a layer that see each other in a training row of one document.

    Clean tokens see themselves and all before them; mask tokens all clean tokens before their block, and their block;
    both no further back than a window of so many positions, their own included. Blocks start at offset 0, and slots
    beyond the row count. `blocks`: so many, evenly spread, in place of a grid.
    """
    drafts = _drafts(row_length, tidar, block_size, blocks)
    window = row_length + drafts if window is None else window
    clean = np.minimum(np.arange(1, row_length + 1), window).sum(dtype=np.int64)
    slot = np.arange(block_size)
    start = (
        np.arange(0, drafts, block_size)[:, None] if not blocks else np.arange(blocks)[:, None] * row_length // blocks
    )
    before = np.minimum(start, np.maximum(0, window - slot - 1))
    block = block_size - np.maximum(0, slot - window + 1)
    return int(clean + (before + block).sum(dtype=np.int64))


def training_memory(
    config: ZayaConfig, batch: int, row_length: int, tidar: bool = False, block_size: int = 8,
    optimizer: str = "adamw", average: bool = False, split: Split | None = None, execution: Execution | None = None,
    trained: Trained = ALL,
) -> TrainingMemory:  # fmt: skip
    """Bytes on each device.

    Args:
      optimizer: "adamw" or "muon", as `OptimizerConfig.name`.
      average: whether a moving average of the parameters is kept.
      split: how parameters and tokens are laid over devices; None for one device.
      execution: how it computes; None for the defaults.
    """
    split = split or Split()
    width, count = jnp.dtype(config.param_dtype).itemsize, parameter_count(config)

    def held(parameters: int, of_experts: int) -> int:
        return width * -(-(parameters - of_experts + of_experts // split.experts) // split.parameters)

    state = held(count.total, count.experts)
    share = 1 if trained.parameters is None else trained.parameters / count.total
    matrices = matrix_count(config)
    second = state if optimizer == "adamw" else state - held(matrices, count.experts)  # moments beyond the first
    rows, drafts = rows_of_a_step(batch, row_length, tidar, block_size, split, trained)
    # the clean and the draft half take turns at the head
    logits = min(max(rows, drafts), piece_size(config.vocab_size)) * config.vocab_size * 4
    return TrainingMemory(
        parameters=state,
        gradients=int(state * share),
        optimizer=int((state + second) * share),
        average=state * average,
        activations=activations(
            config, rows * (trained.context > 1) + drafts, row_length // split.sequence, split.experts, execution
        ),
        logits=2 * logits,
    )


def rows_of_a_step(
    batch: int, row_length: int, tidar: bool, block_size: int, split: Split, trained: Trained
) -> tuple[int, int]:
    """(context tokens, mask tokens) of a training step on each device; arguments as `training_memory` takes them."""
    here = -(-batch // split.batch)
    drafts = _drafts(row_length, tidar, block_size, trained.blocks)
    return here * -(-row_length // split.sequence), here * -(-drafts // split.sequence)


def matrix_count(config: ZayaConfig) -> int:
    """Parameters that Muon takes: the layers' projections and experts."""
    return config.num_hidden_layers * _projections(config) + parameter_count(config).experts


def activations(
    config: ZayaConfig, rows: int, keys: int, expert_ways: int = 1, execution: Execution | None = None
) -> int:
    """Bytes that a training step keeps between its forward and its backward pass, estimated.

    With remat "full": what goes from layer to layer, and all of one layer while it is computed again; else: all of
    every layer. Linear in `rows`; scores exist for a tile at a time, or for short rows (`is_small`) for a quarter of
    the row. The experts' blocks each have a copy of their weights (`block_padded`).
    """
    how = execution or Execution()
    c, width, stream = config, jnp.dtype(config.dtype).itemsize, jnp.dtype(config.stream_dtype).itemsize
    queries, values = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    carried = rows * (stream * c.hidden_size + width * c.state_size)
    attention = 4 * (queries + values) + 2 * values + queries + 2 * c.hidden_size
    routed = 3 * c.hidden_size + 3 * c.moe_intermediate_size + 5 * c.router_hidden_size * (c.router_classes > 0)
    layer = rows * (3 * stream * c.hidden_size + width * (attention + routed))
    direct = how.attention_backend != "tiled" and is_small(2 * keys, keys, how.query_chunk)
    at_once = rows * keys // PIECES if direct else tile_sizes(how.query_chunk)[0] ** 2
    scores = 3 * 4 * c.num_attention_heads * at_once  # scaled and masked ones, and weights
    copies = 0
    if c.router_classes and how.expert_backend in ("auto", "block_padded"):
        copies = 3 * c.hidden_size * c.moe_intermediate_size * width * blocks_of(rows, c.num_experts // expert_ways)
    working = 2 * (layer + scores + copies)  # with the gradients
    return (
        c.num_hidden_layers * carried + working
        if how.remat == "full"
        else c.num_hidden_layers * (layer + copies) + working
    )


def describe(
    config: ZayaConfig, batch_size: int, row_length: int, tidar: bool, block_size: int = 8, optimizer: str = "adamw",
    average: bool = False, split: Split | None = None, execution: Execution | None = None, accumulate: int = 1,
    trained: Trained = ALL, flops: int | None = None,
) -> str:  # fmt: skip
    """What a run is about to compile, in four lines: parameters, FLOPs a step and a token, bytes a device.

    Args:
      accumulate: micro-batches of a step, as `OptimizerConfig.accumulate`: one's activations exist at a time.
      flops: of a step, where they are not `training_flops`.
    """
    how = execution or Execution()
    count = parameter_count(config)
    drafts = _drafts(row_length, tidar, block_size, trained.blocks)
    if flops is None:
        flops = training_flops(config, batch_size, row_length, tidar, block_size, how.remat, trained)
    memory = training_memory(
        config, batch_size // accumulate, row_length, tidar, block_size, optimizer, average, split, how, trained
    )
    pieces = f", in {accumulate} micro-batches" if accumulate > 1 else ""
    halves = f"{row_length} clean" + (f" + {drafts} mask tokens (block size {block_size})" if tidar else " tokens")
    ways = f" ({_ways(split)})" if split and split != Split() else ""
    return (
        f"parameters  {count.total:,} total ({count.total_without_embedding:,} without embedding)"
        + _frozen(count.total, trained)
        + "; one token uses "
        f"{count.active_without_embedding:,}, with the head {count.active_with_head:,}\n"
        f"model       {config.num_hidden_layers} layers x {config.hidden_size} wide, {_feed_forward(config)}, "
        f"vocabulary {config.vocab_size}, {config.param_dtype} parameters, {config.dtype} compute\n"
        f"step        {batch_size} rows x {halves}{pieces}: {si(flops)}FLOP forward and backward, "
        f"{si(flops / (batch_size * row_length))}FLOP a clean token\n"
        f"memory      about {binary(memory.total)} a device{ways}: parameters {binary(memory.parameters)}, gradients "
        f"{binary(memory.gradients)}, {optimizer} {binary(memory.optimizer)}"
        + (f", moving average {binary(memory.average)}" if average else "")
        + f", logits {binary(memory.logits)}, activations {binary(memory.activations)} (estimated, "
        + f"remat {how.remat})"
    )


def _frozen(total: int, trained: Trained) -> str:
    moving = trained.parameters if trained.moving is None else trained.moving
    return "" if moving is None else f", {moving:,} trained, {total - moving:,} frozen"


def _ways(split: Split) -> str:
    return ", ".join(f"{name} / {ways}" for name, ways in dataclasses.asdict(split).items() if ways > 1)


def _drafts(row_length: int, tidar: bool, block_size: int, blocks: int = 0) -> int:
    """Mask tokens of a training row."""
    if tidar and blocks:
        return blocks * block_size
    return -(-row_length // block_size) * block_size if tidar else 0


def si(value: float) -> str:
    """1234567 -> '1.23 M', ready for a unit."""
    for exponent, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**exponent:
            return f"{value / 10**exponent:.3g} {prefix}"
    return f"{value:.3g} "


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

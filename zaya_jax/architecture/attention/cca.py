"""Compressed convolutional attention (arXiv 2510.04476; docs/architecture.md#forward-pass) over a `Layout`.

CCA looks backward in time twice: two short convolutions mix each token's queries and keys with those of the tokens
before it, and half of the values are the previous token's. Both follow succession (`Layout.predecessor`). A convolution
over the row as it lies in memory would leave the clean half of [clean ‖ blocks] perfect and ruin every draft.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from zaya_jax.architecture.attention.direct import attend, attend_dense
from zaya_jax.architecture.cache import cached_keys
from zaya_jax.architecture.config import ZayaConfig
from zaya_jax.architecture.execution import Execution
from zaya_jax.architecture.kept import ContextTokens, keep, read_kept
from zaya_jax.architecture.layers import ARRANGED, Linear, RMSNorm, project, rotate, rotate_by_product
from zaya_jax.architecture.layout import CONTEXT, START, Layout
from zaya_jax.architecture.parameters import parameter
from zaya_jax.architecture.parts import before_stretches
from zaya_jax.architecture.precision import product, rounded_once, wide_dtype
from zaya_jax.architecture.visibility import SECOND_CONTEXT
from zaya_jax.errors import UserError

Array = jax.Array
# Attention's input projections, in the order in which their kernels stand side by side where they are joined.
PROJECTIONS = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "v_proj")


def history_columns(layout: Layout, context: int) -> Array:
    """Succession as indices into [start ‖ context columns, oldest first ‖ row].

    Column 0 is the start of a document: it precedes itself. The oldest context column is preceded by column 0; nobody
    looks past it, since the context holds as many columns as any token needs.

    Args:
      layout: a layout with fields [B, T].
      context: cached columns before the row; before each of its stretches as many, where it has two.

    Returns:
      int32 [B, 1 + S + T]: each column's predecessor column.
    """
    each = context // layout.stretches
    fixed = jnp.maximum(jnp.arange(1 + context, dtype=jnp.int32) - 1, 0)
    if layout.stretches == 2 and context:
        fixed = fixed.at[1 + each].set(0)
    fixed = jnp.broadcast_to(fixed, (layout.tokens.shape[0], 1 + context))
    row = layout.predecessor + 1 + context
    row = jnp.where(layout.predecessor == START, 0, row)
    row = jnp.where(layout.predecessor == CONTEXT, each, row)
    row = jnp.where(layout.predecessor == SECOND_CONTEXT, context, row)
    return jnp.concatenate([fixed, row], axis=1)


def _take(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index[:, :, None], axis=1, mode="promise_in_bounds")


def convolve_along_text(
    columns: Array, before: Array, row: int, depthwise, grouped, heads: int, unroll: bool = False
) -> Array:
    """Both of CCA's convolutions along succession, for the last `row` columns.

    They share one left pad of zero *pre-convolution* columns: where the text starts, the second convolution sees the
    first one's bias, not zero (docs/architecture.md#forward-pass, step 2).

    Args:
      columns: [B, column, channels], column 0 zero; raw [queries | keys].
      before: int32 [B, column], see `history_columns`.
      row: columns that are wanted.
      depthwise: (kernel [taps, channels], bias [channels]), tap -1 meets the token itself; None to leave it out.
      grouped: (kernel [taps, H + K, D, D], bias [channels]), or None.
      heads: groups of the second convolution.
      unroll: one matrix product a head.

    Returns:
      [B, T, channels].
    """
    taps, head_taps = (1 if part is None else len(part[0]) for part in (depthwise, grouped))
    # Raw columns of the token itself, of its predecessor, ... The first convolution is then done over for each tap of
    # the second, which is cheaper than doing it for all columns and gathering its result.
    seen, at = [columns[:, -row:]], before[:, -row:]  # [B, T, channels] each; [B, T]
    for _ in range(taps + head_taps - 2):
        seen.append(_take(columns, at))
        at = jnp.take_along_axis(before, at, axis=1, mode="promise_in_bounds")
    mixed = seen
    if depthwise is not None:
        mixed = [rounded_once(_depthwise, *seen[late : late + taps], *depthwise) for late in range(head_taps)]
    if grouped is None:
        return mixed[0]
    kernel, bias = grouped
    if unroll:
        return (_product_by_head(mixed, kernel) + bias).astype(columns.dtype)
    split = [x.reshape(*x.shape[:2], heads, -1) for x in mixed]  # [B, T, H + K, D] each
    out = sum(product("bnhi,hio->bnho", x, kernel[-1 - late]) for late, x in enumerate(split))
    return (jnp.reshape(out, mixed[0].shape) + bias).astype(columns.dtype)


def _depthwise(*columns_kernel_bias: Array) -> Array:
    """Columns [B, T, channels] by age, youngest first; then the kernel, oldest tap first, and the bias."""
    *columns, kernel, bias = columns_kernel_bias
    return bias + sum(column * kernel[-1 - age] for age, column in enumerate(columns))


def _product_by_head(mixed: list[Array], kernel: Array) -> Array:
    """The grouped convolution as one product of matrices for each head, all of its taps at once.

    As one product batched over heads XLA's CPU copies every factor into another order, forward and backward.
    """
    flat = [jnp.split(x.reshape(-1, x.shape[-1]), kernel.shape[1], axis=-1) for x in mixed]
    by_head = [jnp.concatenate(taps, axis=-1) for taps in zip(*flat, strict=True)]  # [token, taps * D]
    weights = jnp.concatenate(kernel[::-1], axis=1)  # [H + K, taps * D, D], youngest tap first
    out = [product("@", x, weight) for x, weight in zip(by_head, weights, strict=True)]
    return jnp.concatenate(out, axis=-1).reshape(mixed[0].shape)


class Attention(nn.Module):
    """One attention sublayer: CCA, or as much of it as the config asks for ("gqa": none of it).

    Parameter names follow transformers' ZayaAttention, the norms of queries and keys Qwen3Attention's.
    """

    config: ZayaConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, x: Array, layout: Layout, window: Array | None, angle: tuple[Array, Array], past):
        """x [B, T, M] -> ([B, T, M], new past).

        `angle` is the `rotation` of the row's positions, `past` None (the row is all there is) or a `LayerPast`.
        x may be the mask tokens' alone: what they read of the context tokens is then kept (`architecture.kept`).
        """
        cfg, how, rows = self.config, self.execution, layout.rows_of(x.shape[1])
        kept = None if rows is layout else read_kept(self)
        conv_past, delayed_past = (None, None) if past is None else (past.conv, past.delayed)
        raw, projected = self._project(x, rows, past is None)
        query, key, pending_conv = self._queries_and_keys(raw, layout, conv_past, kept)  # [B, T, H, D], [B, T, K, D]
        value, pending_delayed = self._values(projected, layout, delayed_past, kept)  # [B, T, K, D]
        if cfg.qk_norm != "none":
            query, key = self._normalise(query, key) if cfg.qk_norm == "unit" else self._rms_norm(query, key)
        turn = rotate_by_product if how.qkv_backend == "fused" else rotate
        query, key = turn(query, angle), turn(key, angle)

        keep(self, ContextTokens(key, value, raw if cfg.conv_history else raw[..., :0], pending_delayed))
        clean = rows.clean_size
        own = (key[:, clean:], value[:, clean:])
        if kept is not None:
            context, context_keys = (kept.key, kept.value), layout.clean_keys
        elif past is None:
            context, context_keys = (layout.gather(key[:, :clean]), layout.gather(value[:, :clean])), layout.clean_keys
        else:
            past = past.write(key[:, :clean], value[:, :clean]).replace(conv=pending_conv, delayed=pending_delayed)
            context, context_keys = past.read(), cached_keys(past.capacity, past.length + clean, layout)
        if how.attention_backend == "dense" and past is None and kept is None:
            mixed = attend_dense(query, key, value, layout, window)
        else:
            cached = past is not None
            tiles = how.attention_backend == "tiled" and not cached
            mixed = attend(query, rows, context, context_keys, own, window, how.query_chunk, tiles, cached)
        out = self._linear("o_proj", cfg.hidden_size)
        return out(mixed.reshape(*mixed.shape[:2], -1), cfg.adapted_from(clean)), past

    def _linear(self, name: str, features: int) -> Linear:
        cfg = self.config
        return Linear(
            features,
            use_bias=cfg.attention_bias and (cfg.output_bias or name != "o_proj"),
            stddev=cfg.initializer_range,
            dtype=jnp.dtype(cfg.dtype),
            param_dtype=jnp.dtype(cfg.param_dtype),
            adapted=cfg if cfg.lora_rank else None,
            name=name,
        )

    def _project(self, x: Array, layout: Layout, whole: bool) -> tuple[Array, list[Array]]:
        """x -> (raw [queries | keys], values).

        Values are [all of them], or [the own half, the half to be delayed, what stands before a document's start].
        `whole`: there is no past. With one rows are few, and joining the kernels would cost more than it saves.
        """
        cfg, first = self.config, self.config.adapted_from(layout.clean_size)
        kv_dim = cfg.num_key_value_heads * cfg.head_dim
        features = {"q_proj": cfg.num_attention_heads * cfg.head_dim, "k_proj": kv_dim}
        if cfg.has("delayed_value"):
            features |= {"v_proj_current": cfg.delayed_dim, "v_proj_delayed": cfg.delayed_dim}
        else:
            features["v_proj"] = kv_dim
        linears = [self._linear(name, size) for name, size in features.items()]
        joined = self.get_variable(ARRANGED, "qkv") if self.has_variable(ARRANGED, "qkv") else None
        if joined is not None or (self.execution.qkv_backend == "fused" and whole):
            query, key, *value = project(x, linears, first, joined)
        else:
            query, key, *value = (linear(x, first) for linear in linears)
        if cfg.has("delayed_value"):
            value.append(linears[-1].of_zero(x[:, :1]))
        return jnp.concatenate([query, key], axis=-1), value

    def _queries_and_keys(self, raw: Array, layout: Layout, past: Array | None, kept: "ContextTokens | None"):
        """Convolved, with the q-k mean added: queries and keys by head, and the pending raw columns."""
        cfg, row = self.config, raw.shape[1]
        start = jnp.zeros_like(raw[:, :1])
        if past is None:
            past = self._halo(jnp.concatenate([start, raw], axis=1), layout) if layout.axis else raw[:, :0]
        if kept is not None and cfg.conv_history:  # the row's own context tokens: `layout` counts them as such
            raw = jnp.concatenate([kept.raw, raw], axis=1)
        columns = jnp.concatenate([start, past, raw], axis=1)
        mixed = self._convolutions(columns, history_columns(layout, past.shape[1]), row)
        query, key = self._heads(mixed)
        pending = columns[:, 1 : 1 + past.shape[1] + layout.clean_size]
        if cfg.has("mean"):
            query, key = _add_mean(query, key, *self._heads(raw[:, -row:]))
        return query, key, pending

    def _heads(self, channels: Array) -> tuple[Array, Array]:
        """[B, T, queries | keys] -> [B, T, H, D] and [B, T, K, D]."""
        cfg = self.config
        by_head = channels.reshape(*channels.shape[:2], -1, cfg.head_dim)
        query, key = jnp.split(by_head, [cfg.num_attention_heads], axis=2)
        return query, key

    def _halo(self, columns: Array, layout: Layout) -> Array:
        """The conv_history columns before each stretch of this part of a row: the newest of what stands before it.

        Along the text there, not the row: after a document's start there is nothing but the zero column.
        """
        history, size = self.config.conv_history, layout.clean_size // layout.stretches
        if size < history:
            raise UserError(f"row: got parts of {size} tokens, may be of at least {history}")
        before, newest = history_columns(layout, 0), []
        for stretch in range(1, 1 + layout.stretches):
            at = jnp.full((columns.shape[0], 1), stretch * size)  # [B, 1]; column 0 is the start
            chain = []
            for _ in range(history):
                chain.append(_take(columns, at))
                at = jnp.take_along_axis(before, at, axis=1, mode="promise_in_bounds")
            newest.append(jnp.concatenate([columns[:, :0], *reversed(chain)], axis=1))
        return jnp.concatenate(before_stretches(newest, layout.axis), axis=1)

    def _convolutions(self, columns: Array, before: Array, row: int) -> Array:
        cfg = self.config
        heads, dim = cfg.num_attention_heads + cfg.num_key_value_heads, cfg.head_dim
        shapes = {"depthwise": (cfg.cca_time0, cfg.conv_channels), "grouped": (cfg.cca_time1, heads, dim, dim)}
        params: list[tuple[Array, Array] | None] = []
        for part, shape in shapes.items():
            if not cfg.has(part):
                params.append(None)
                continue
            name, dtype = f"conv_qk_{part}", jnp.dtype(cfg.param_dtype)
            kernel = parameter(self, f"{name}_kernel", nn.initializers.normal(cfg.initializer_range), shape, dtype)
            bias = parameter(self, f"{name}_bias", nn.initializers.zeros, (cfg.conv_channels,), dtype)
            params.append((kernel.astype(columns.dtype), bias.astype(columns.dtype)))
        unroll = self.execution.qkv_backend == "fused"
        return convolve_along_text(columns, before, row, *params, heads=heads, unroll=unroll)

    def _values(self, projected: list[Array], layout: Layout, past: Array | None, kept: "ContextTokens | None"):
        """[own half | predecessor's half] reshaped to heads: [B, T, K, D], and pending columns.

        With two key-value heads the first is wholly the token's own, the second wholly its predecessor's.
        """
        cfg, (batch, row, _) = self.config, projected[0].shape
        heads = (batch, row, cfg.num_key_value_heads, cfg.head_dim)
        if not cfg.has("delayed_value"):
            (value,) = projected
            pending = jnp.zeros((batch, (0 if past is None else 1) + layout.clean_size, 0), value.dtype)
            return value.reshape(heads), pending
        current, delayed, start = projected
        if past is None:
            past = delayed[:, :0]
            if layout.axis:
                size = layout.clean_size // layout.stretches
                newest = [delayed[:, (i + 1) * size - 1 : (i + 1) * size] for i in range(layout.stretches)]
                past = jnp.concatenate(before_stretches(newest, layout.axis), axis=1)
        if kept is not None:
            delayed = jnp.concatenate([kept.delayed, delayed], axis=1)
        columns = jnp.concatenate([start, past, delayed], axis=1)
        before = history_columns(layout, past.shape[1])[:, -row:]
        value = jnp.concatenate([current, _take(columns, before)], axis=-1).reshape(heads)
        return value, columns[:, 1 : 1 + past.shape[1] + layout.clean_size]

    def _rms_norm(self, query: Array, key: Array) -> tuple[Array, Array]:
        """Each head normed by its root mean square: a weight [D] for all query heads, one for all key heads."""
        cfg = self.config
        q_norm, k_norm = (
            RMSNorm(cfg.rms_norm_eps, jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype), name=name)
            for name in ("q_norm", "k_norm")
        )
        return q_norm(query), k_norm(key)

    def _normalise(self, query: Array, key: Array) -> tuple[Array, Array]:
        """Each head to length sqrt(head_dim); keys times the linear temperature, which starts at 1.

        transformers initialises it at 0, which makes attention uniform and starves q and k of gradient at step 0.
        """
        cfg = self.config
        temp = parameter(self, "temp", nn.initializers.ones, (cfg.num_key_value_heads,), jnp.dtype(cfg.param_dtype))
        eps = jnp.finfo(query.dtype).eps

        def unit(x: Array) -> Array:
            wide = x.astype(wide_dtype(x.dtype))
            # sqrt of a clamped square: the same number as clamping the norm, with a finite gradient at zero
            norm = jnp.sqrt(jnp.maximum(jnp.sum(wide * wide, axis=-1, keepdims=True), float(eps) ** 2))
            return wide * (cfg.head_dim**0.5 / norm)

        scaled = unit(key) * temp.astype(wide_dtype(key.dtype))[:, None]
        return unit(query).astype(query.dtype), scaled.astype(key.dtype)


def _add_mean(query: Array, key: Array, raw_query: Array, raw_key: Array) -> tuple[Array, Array]:
    """Adds the q-k mean of the raw projections: each query's with its key, each key's over its group of queries.

    All are `Attention._heads`; sums are rounded once.
    """
    raw_query, raw_key = (x.astype(wide_dtype(x.dtype)) for x in (raw_query, raw_key))
    grouped = raw_query.reshape(*raw_key.shape[:3], -1, raw_key.shape[3])
    mean = (grouped + raw_key[:, :, :, None]) * 0.5
    return (query + mean.reshape(query.shape)).astype(query.dtype), (key + mean.mean(axis=3)).astype(key.dtype)

"""The ZAYA1 model: embedding, scanned layers, head. It reads a `Layout` and has no modes."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from zaya_jax.architecture.attention.cca import Attention
from zaya_jax.architecture.cache import Cache
from zaya_jax.architecture.config import FULL_ATTENTION, NO_MASK, SLIDING_ATTENTION, ZayaConfig
from zaya_jax.architecture.draft_vocabulary import COLLECTION as DRAFTED
from zaya_jax.architecture.draft_vocabulary import DraftVocabulary
from zaya_jax.architecture.drafters.table import make_drafter
from zaya_jax.architecture.execution import Execution
from zaya_jax.architecture.features import Features
from zaya_jax.architecture.kept import COLLECTION
from zaya_jax.architecture.layers import (
    Linear,
    ResidualScaling,
    RMSNorm,
    inverse_frequencies,
    rotation,
    scale_frequencies,
)
from zaya_jax.architecture.layout import MASK, Layout
from zaya_jax.architecture.moe.router import BALANCING, ExpertStack, FeedForward, MixtureOfExperts
from zaya_jax.architecture.parameters import parameter
from zaya_jax.architecture.precision import lookup, on_rows, product
from zaya_jax.architecture.sharding import Shards
from zaya_jax.errors import UserError

Array = jax.Array


class ZayaOutput(struct.PyTreeNode):
    """What a forward pass returns."""

    logits: Array  # [B, T, V], in at least float32 (`ZayaConfig.stream_dtype`)
    cache: Cache | None  # pending: `commit` it before the next forward
    load: Array  # int32 [L, 2, E + 1]: tokens per expert, context tokens and mask tokens


class LayerPast(struct.PyTreeNode):
    """One layer's share of the cache; keys and values stay in the whole stack, which is updated in place."""

    key: Array  # [L, B, K, S, D]
    value: Array
    layer: Array  # int32 []
    length: Array  # int32 [B]
    conv: Array  # [B, conv_history (+ pending), conv_channels]
    delayed: Array  # [B, 1 (+ pending), delayed_dim]

    @property
    def capacity(self) -> int:
        return self.key.shape[3]

    def write(self, key: Array, value: Array) -> "LayerPast":
        """Puts the row's clean keys and values, [B, T, K, D], at slots length, length + 1, ..."""
        batch, rows, heads = key.shape[:3]
        slot = self.length[:, None] + jnp.arange(rows, dtype=jnp.int32)  # [B, T]
        at = (self.layer, jnp.arange(batch)[:, None, None], jnp.arange(heads)[:, None], slot[:, None])
        key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, K, T, D], as `at` indexes the stack
        # "drop": a slot beyond capacity must never clamp onto a valid one; callers size the cache (`init_cache`).
        return self.replace(
            key=self.key.at[at].set(key, mode="drop", unique_indices=True),
            value=self.value.at[at].set(value, mode="drop", unique_indices=True),
        )

    def read(self) -> tuple[Array, Array]:
        """This layer's keys and values, [B, S, K, D]."""
        return jnp.swapaxes(self.key[self.layer], 1, 2), jnp.swapaxes(self.value[self.layer], 1, 2)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each on the normed stream and added back through learned scales."""

    config: ZayaConfig
    execution: Execution = Execution()
    shards: Shards = Shards()

    @nn.compact
    def __call__(self, carry, per_layer, layout: Layout, angles, experts) -> tuple[tuple, tuple]:
        """One layer, as `nn.scan` calls it.

        Args:
          carry: (stream [B, T, M], router state [B, T, state_size], key stack, value stack [L, B, K, S, D], taps
            [taps, B, T, M] so far, or None where none are asked for).
          per_layer: this layer's constants and cache columns.
          angles: the row's `rotation` for each of the model's kinds of layer.
          experts: all layers' (gate_up, down), or None without a cache.
        """
        cfg = self.config
        stream, state, key, value, taps = carry
        if taps is not None:
            taps = jnp.where(per_layer["tapped"][:, None, None, None], stream, taps)
        rows = layout.rows_of(stream.shape[1])
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        past = None
        if per_layer["conv"] is not None:
            past = LayerPast(
                key, value, per_layer["layer"], per_layer["length"], per_layer["conv"], per_layer["delayed"]
            )

        angle = jax.tree.map(lambda x: x[0] if per_layer["kind"] is None else x[per_layer["kind"]], angles)
        x = RMSNorm(cfg.rms_norm_eps, dtype, param_dtype, name="input_layernorm")(stream)
        branch, past = Attention(cfg, self.execution, name="self_attn")(x, layout, per_layer["window"], angle, past)
        stream = self._add("post_attention_residual_scale", branch, stream)

        x = RMSNorm(cfg.rms_norm_eps, dtype, param_dtype, name="post_attention_layernorm")(stream)
        if cfg.feed_forward == "dense":
            branch, load = (
                FeedForward(cfg, name="mlp")(x, rows.clean_size),
                jnp.zeros((2, cfg.router_classes), jnp.int32),
            )
        else:
            stack = None if experts is None else ExpertStack(experts[0], experts[1], per_layer["layer"])
            branch, state, load = MixtureOfExperts(cfg, self.execution, self.shards, name="mlp")(
                x, rows, state, per_layer["router_states_scale"], stack
            )
        stream = self._add("post_mlp_residual_scale", branch, stream)

        if past is None:
            return (stream, state, None, None, taps), (None, None, load)
        return (stream, state, past.key, past.value, taps), (past.conv, past.delayed, load)

    def _add(self, name: str, branch: Array, stream: Array) -> Array:
        """A sublayer's output onto the stream."""
        if not self.config.residual_scaling:
            return branch.astype(stream.dtype) + stream
        return ResidualScaling(jnp.dtype(self.config.param_dtype), name=name)(branch, stream)


@functools.partial(jax.jit, static_argnames=("config", "execution"))
def _separate_layer(
    variables: Any, carry: tuple, per_layer: dict, layout: Layout, angles: Any, stack: Any,
    *, config: ZayaConfig, execution: Execution,
) -> tuple[tuple, tuple]:  # fmt: skip
    """One of `SeparateLayers`, whose first layer is all that its arrays hold: traced and lowered once for all layers,
    each of which is a call that XLA inlines.
    """
    layer = DecoderLayer(config, execution)
    return cast(tuple, layer.apply(variables, carry, per_layer | {"layer": 0}, layout, angles, stack))


class SeparateLayers(nn.Module):
    """`DecoderLayer`s one after the other, each with arrays of its own; called as the scan over stacked ones is."""

    config: ZayaConfig
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, carry, per_layer, layout: Layout, angles, experts) -> tuple[tuple, tuple]:
        """carry's key and value and per_layer's conv and delayed: tuples of one array a layer, or None."""
        stream, state, keys, values, taps = carry
        written = self.is_initializing() or any(map(self.is_mutable_collection, (*self.variables, COLLECTION)))
        kept = []
        for i in range(self.config.num_hidden_layers):
            past = (None, None) if keys is None else (keys[i], values[i])
            mine = {name: None if part is None else part[i] for name, part in per_layer.items() if name != "layer"}
            columns = {name: per_layer[name] for name in ("conv", "delayed")}
            mine |= {name: None if part is None else part[i][0] for name, part in columns.items()}
            stack = None if experts is None else tuple(weights[None] for weights in experts[i])
            carried, rest = (stream, state, *past, taps), (layout, angles, stack)
            if written:
                layer = DecoderLayer(self.config, self.execution, name=str(i))
                carried, columns = layer(carried, mine | {"layer": 0}, *rest)
            else:
                own = {name: layers[str(i)] for name, layers in self.variables.items() if str(i) in layers}
                how = dict(config=self.config, execution=self.execution)
                carried, columns = _separate_layer(own, carried, mine, *rest, **how)
            stream, state, *past, taps = carried
            kept.append((*past, *columns))
        keys, values, convs, delays, loads = zip(*kept, strict=True)
        if carry[2] is None:
            return (stream, state, None, None, taps), (None, None, jnp.stack(loads))
        columns = tuple(tuple(x[None] for x in parts) for parts in (convs, delays))
        return (stream, state, keys, values, taps), (*columns, jnp.stack(loads))


class Zaya(nn.Module):
    """`Zaya(config, execution).apply(variables, layout)` -> ZayaOutput.

    Variables: "params" (layers stacked along a leading axis) and "balancing" (the router's balancing biases).

    Attributes:
      config: what it computes.
      execution: how.
      shards: inside `jax.shard_map`, how its devices share the weights. Each layer's are gathered when it is computed;
        the caller gathers the few that stand outside the layers (`Shards.gather`).
      separate: each layer's weights and cache are arrays of their own, as `architecture.separate.separate` makes them.
    """

    config: ZayaConfig
    execution: Execution = Execution()
    shards: Shards = Shards()
    separate: bool = False

    def setup(self) -> None:
        cfg = self.config
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        width = (cfg.hidden_size,)
        normal = nn.initializers.normal(cfg.initializer_range)
        self.embed_tokens = parameter(self, "embed_tokens", normal, (cfg.vocab_size, *width), param_dtype)
        if cfg.lora_rank and cfg.mask_token_id != NO_MASK:
            self.mask_lora = parameter(self, "mask_lora", nn.initializers.zeros, width, param_dtype)
        if cfg.residual_scaling:
            self.input_scale = parameter(self, "input_hidden_states_scale", nn.initializers.ones, width, param_dtype)
            self.input_bias = parameter(self, "input_hidden_states_bias", nn.initializers.zeros, width, param_dtype)
        if cfg.state_size:
            # The first layer has no state to scale, hence one row fewer than layers; it stands here, not in the scan.
            shape = (cfg.num_hidden_layers - 1, cfg.state_size)
            self.router_states_scale = parameter(self, "router_states_scale", nn.initializers.ones, shape, param_dtype)
        self.layers = SeparateLayers(cfg, self.execution) if self.separate else self._scanned()
        self.norm = RMSNorm(cfg.rms_norm_eps, dtype, param_dtype)
        if not cfg.tie_word_embeddings:
            self.lm_head = Linear(cfg.vocab_size, False, cfg.initializer_range, dtype, param_dtype, wide=True)
        if cfg.lm_head_bias:
            self.lm_head_bias = parameter(self, "lm_head_bias", nn.initializers.zeros, (cfg.vocab_size,), param_dtype)
        if cfg.drafter is not None:
            self.drafter = make_drafter(cfg)
            if cfg.drafter.own_head:
                shape = (cfg.drafter.heads, *width, cfg.vocab_size)
                self.drafter_head = parameter(self, "drafter_head", nn.initializers.zeros, shape, param_dtype)

    def _scanned(self) -> nn.Module:
        """All layers as a scan over weights that are stacked along a leading axis."""
        cfg, layer = self.config, DecoderLayer
        if self.shards.rules:
            layer = nn.map_variables(layer, "params", self.shards.gather_layer)
        if self.execution.remat != "none":
            dots = self.execution.remat == "dots"
            keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if dots else None
            layer = nn.remat(layer, prevent_cse=False, policy=keep)
        return nn.scan(
            layer,
            variable_axes={"params": 0, BALANCING: 0, COLLECTION: 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_hidden_layers,
            check_constancy_invariants=False,
            unroll=cfg.num_hidden_layers if self.execution.unroll_layers else 1,
        )(cfg, self.execution, self.shards)

    def __call__(self, layout: Layout, cache: Cache | None = None) -> ZayaOutput:
        """Logits for every row of the layout.

        Args:
          layout: see `Layout`; with a cache, built with start = cache.length.
          cache: the committed past, or None.
        """
        hidden, cache, load = self.backbone(layout, cache)
        if self.is_initializing() and self.config.drafter is not None:
            nowhere = jnp.zeros((layout.tokens.shape[0], 1), jnp.int32)
            embedded = self.embed(layout.tokens)
            taps = self.config.drafter.taps_of(self.config.num_hidden_layers)
            taps = jnp.zeros((*hidden.shape[:2], len(taps), hidden.shape[-1]), embedded.dtype)
            self.drafter.training(Features(hidden, taps), embedded, layout, nowhere)
        return ZayaOutput(self.head(hidden), cache, load)

    def draft(self, part: str, *args: Any) -> Any:
        """A method of the drafter's: `model.apply(variables, "propose", cache, ..., method="draft")`."""
        return getattr(self.drafter, part)(*args)

    def draft_head(self, hidden: Array, slot: int = 0) -> Array:
        """The drafter's hidden states [..., M] -> its logits [..., V]; `slot` is read where each draft has a head."""
        drafter, logits = self.config.drafter, self.head(hidden)
        if drafter is None or not drafter.own_head:
            return logits
        change = self.drafter_head[slot if drafter.heads > 1 else 0]
        return logits + product("@", hidden, change.astype(hidden.dtype))

    def embed(self, tokens: Array) -> Array:
        """Token ids (MASK included) -> the residual stream [B, T, M]."""
        cfg = self.config
        assert cfg.mask_token_id is not None  # ZayaConfig fills it in
        ids = jnp.where(tokens == MASK, cfg.mask_token_id, tokens)
        h = lookup(self.embed_tokens, ids, cfg.dtype).astype(cfg.stream_dtype)
        if cfg.lora_rank and cfg.mask_token_id != NO_MASK:
            masks = tokens == MASK if cfg.lora_rows == "drafts" else ids == cfg.mask_token_id
            h = jnp.where(masks[..., None], h + self.mask_lora.astype(cfg.stream_dtype), h)
        if cfg.residual_scaling:
            h = (h + self.input_bias.astype(cfg.stream_dtype)) * self.input_scale.astype(cfg.stream_dtype)
        return h

    def backbone(
        self, layout: Layout, cache: Cache | None = None, stream: Array | None = None, drafts_alone: bool = False
    ) -> tuple[Array, Cache | None, Array]:
        """Everything but the head: (normed hidden states [B, T, M], pending cache, load).

        Args:
          stream: embedded tokens to use instead of the layout's (Jacobians, soft prompts).
          drafts_alone: compute the layout's mask tokens only; its context tokens were kept (`architecture.kept`).
        """
        features, cache, load = self._run(layout, cache, stream, drafts_alone)
        return features.hidden, cache, load

    def features(
        self, layout: Layout, cache: Cache | None = None, taps: tuple[int, ...] = ()
    ) -> tuple[Features, Cache | None, Array]:
        """`backbone` with what a drafter reads: (`Features`, pending cache, load).

        Args:
          taps: layers whose input is wanted, static, in the order in which `Features.taps` has them; 0 is the embedded
            token, num_hidden_layers what leaves the last layer, before the norm.

        Raises:
          UserError: a layer that the model has not.
        """
        layers = self.config.num_hidden_layers
        if wrong := [tap for tap in taps if not 0 <= tap <= layers]:
            raise UserError(f"taps: got {wrong[0]}, may be in 0 .. {layers} (the model's layers)")
        return self._run(layout, cache, taps=tuple(taps))

    def _run(
        self, layout: Layout, cache: Cache | None, stream: Array | None = None, drafts_alone: bool = False,
        taps: tuple[int, ...] = (),
    ) -> tuple[Features, Cache | None, Array]:  # fmt: skip
        """See `backbone` and `features`."""
        cfg = self.config
        if layout.num_blocks and cfg.mask_token_id == NO_MASK:
            may_be = "an id where blocks are drafted (`interop.mask` adds one; mode 'autoregressive' needs none)"
            raise UserError(f"ZayaConfig.mask_token_id: got none, may be {may_be}")
        layout = layout.layout_unaware() if cfg.succession == "row" else layout
        rows = layout.draft_rows() if drafts_alone else layout
        stream = self.embed(rows.tokens) if stream is None else stream
        state = jnp.zeros((*rows.tokens.shape, cfg.state_size), cfg.dtype)
        key, value = (None, None) if cache is None else (cache.key, cache.value)
        tapped = jnp.zeros((len(taps), *stream.shape), stream.dtype) if taps else None
        (stream, _, key, value, tapped), (conv, delayed, load) = self.layers(
            (stream, state, key, value, tapped),
            self._per_layer(cache, taps),
            layout,
            self._angles(rows),
            None if cache is None else self._experts(),
        )
        if cache is not None:
            cache = cache.replace(key=key, value=value, conv=conv, delayed=delayed)
        return Features(self.norm(stream), self._tapped(tapped, stream, taps)), cache, load

    def _tapped(self, tapped: Array | None, last: Array, taps: tuple[int, ...]) -> Array:
        """[taps, B, T, M] of the layers -> [B, T, taps, M], with what left the last layer where that is asked for."""
        if tapped is None:
            return jnp.zeros((*last.shape[:2], 0, last.shape[-1]), last.dtype)
        after = np.array([tap == self.config.num_hidden_layers for tap in taps])
        return jnp.moveaxis(jnp.where(after[:, None, None, None], last, tapped) if after.any() else tapped, 0, 2)

    def head(self, hidden: Array) -> Array:
        """Hidden states [..., M] -> logits [..., V]. Call it for the rows somebody reads.

        In at least float32: in bfloat16 logits near 20 are 1/8 apart or equal, and argmax takes the lower id.
        """
        if self.config.tie_word_embeddings:
            table = self.embed_tokens.astype(hidden.dtype)
            logits = on_rows(hidden, table) if self.separate else product("@", hidden, table.T)
            if self._ties_mask_lora:  # so that the sum of the two is one embedding again
                added = product("@", hidden, self.mask_lora.astype(hidden.dtype))
                logits = logits.at[..., self.config.mask_token_id].add(added)
        else:
            logits = self.lm_head(hidden)
        return logits + self.lm_head_bias.astype(logits.dtype) if self.config.lm_head_bias else logits

    def draft_vocabulary(self) -> DraftVocabulary | None:
        """What `with_draft_vocabulary` gave it; None where any token may be drafted. Its part of the head is a copy."""
        if not self.has_variable(DRAFTED, "tokens"):
            return None
        tokens = self.get_variable(DRAFTED, "tokens")
        if self.config.tie_word_embeddings:
            rows = self.embed_tokens[tokens]
        else:
            kernel, *_ = self.lm_head.parts(self.config.hidden_size)
            assert kernel is not None  # it was asked for
            rows = kernel[:, tokens].T
        return DraftVocabulary(tokens, rows, self.lm_head_bias[tokens] if self.config.lm_head_bias else None)

    @property
    def _ties_mask_lora(self) -> bool:
        cfg = self.config
        return bool(cfg.lora_rank) and cfg.lora_rows == "all" and cfg.mask_token_id != NO_MASK

    def _angles(self, layout: Layout) -> tuple[Array, Array]:
        """`rotation` of the row by kind of layer, [kind, B, T, rotary_dim // 2]: computed once for all layers."""
        cfg = self.config
        thetas = {FULL_ATTENTION: cfg.rope_theta, SLIDING_ATTENTION: cfg.sliding_rope_theta}
        kinds = [kind for kind in thetas if kind in cfg.layer_kinds]
        frequencies = jnp.stack([inverse_frequencies(thetas[kind], cfg.rotary_dim) for kind in kinds])
        frequencies = scale_frequencies(frequencies, cfg)
        return rotation(layout.position, frequencies[:, None, None])

    def _experts(self) -> tuple | None:
        """All layers' (gate_up, down) as they are stored together; None where they are not, or not yet (`init`)."""
        if self.is_initializing() or self.config.feed_forward == "dense":
            return None
        layers = self.variables["params"]["layers"]
        if self.separate:
            each = [layers[str(i)]["mlp"] for i in range(self.config.num_hidden_layers)]
            if "gate_up_proj" not in each[0]:  # every expert has arrays of its own
                return None
            return tuple((experts["gate_up_proj"], experts["down_proj"]) for experts in each)
        return layers["mlp"]["gate_up_proj"], layers["mlp"]["down_proj"]

    def _per_layer(self, cache: Cache | None, taps: tuple[int, ...] = ()) -> dict:
        """What differs from layer to layer, stacked along the scanned axis."""
        cfg = self.config
        layers = cfg.num_hidden_layers
        sliding = np.array([kind == SLIDING_ATTENTION for kind in cfg.layer_kinds])
        unlimited = np.iinfo(np.int32).max
        scale = None
        if cfg.state_size:
            first = jnp.zeros((1, cfg.state_size), self.router_states_scale.dtype)
            scale = jnp.concatenate([first, self.router_states_scale])
        return {
            "layer": jnp.arange(layers, dtype=jnp.int32),
            "length": None if cache is None else jnp.broadcast_to(cache.length, (layers, *cache.length.shape)),
            "conv": None if cache is None else cache.conv,
            "delayed": None if cache is None else cache.delayed,
            "window": jnp.asarray(np.where(sliding, cfg.sliding_window or 0, unlimited), jnp.int32)
            if sliding.any()
            else None,
            "kind": jnp.asarray(sliding, jnp.int32) if sliding.any() and not sliding.all() else None,
            "router_states_scale": scale,
            "tapped": jnp.arange(layers)[:, None] == jnp.asarray(taps) if taps else None,
        }

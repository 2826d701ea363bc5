"""The shape of a ZAYA1 model: one frozen dataclass, its checks, and named presets.

Field names follow transformers' `ZayaConfig` (5.23.0) wherever the two mean the same thing, so that a Hugging Face
`config.json` maps field by field (`zaya_jax.interop`). Sizes in the comments are ZAYA1-8B's.
"""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp

from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.checks import COUNT, SWITCH, Choice, Integer, Number, Unset, check, check_fields, shown
from zaya_jax.errors import UserError

FULL_ATTENTION = "hybrid"
SLIDING_ATTENTION = "hybrid_sliding"
DRAFTERS = "drafters"  # collection of a model's variables: {a drafter's name: what it learned}
NO_MASK = -1  # `mask_token_id` of a model without a mask token: it reads and writes text and cannot draft
# The fields that choose which parts a model has; at their defaults it is ZAYA1.
PARTS = (
    "attention", "cca_depthwise", "cca_grouped", "cca_mean", "cca_delayed_value", "succession", "qk_norm",
    "output_bias", "rope_scaling", "feed_forward", "mlp_bias", "router_state", "residual_scaling",
)  # fmt: skip
QK_NORMS = ("unit", "rms", "none")
LORA_ROWS = ("all", "drafts")

DTYPES = ("float32", "bfloat16", "float64")

# The largest values are beyond any model, and keep what follows from them small.
WIDTH = Integer(1, 2**24)
TAPS = Integer(1, 64)  # each is a product of its own in the compiled program
THETA = Number(0, 1e30, above=True)
TOKEN = Integer(-1)  # some published configurations have -1 for none


@dataclasses.dataclass(frozen=True)
class ZayaConfig:
    """Everything that fixes a ZAYA1 model's parameters and what its forward pass computes (how: `Execution`).

    Raises UserError, naming the field, on any combination the model cannot run.
    """

    vocab_size: Annotated[int, COUNT] = 262_272
    hidden_size: Annotated[int, WIDTH] = 2048  # width of the residual stream
    num_hidden_layers: Annotated[int, Integer(1, 10_000)] = 40
    num_attention_heads: Annotated[int, WIDTH] = 8
    num_key_value_heads: Annotated[int, WIDTH] = 2
    head_dim: Annotated[int, WIDTH] = 128
    moe_intermediate_size: Annotated[int, WIDTH] = 2048  # width of an expert, or of the dense feed-forward
    num_experts: Annotated[int, Integer(1, 65_536)] = 16  # without the skip expert, which is the router's last class
    router_hidden_size: Annotated[int, WIDTH] = 256
    cca_time0: Annotated[int, TAPS] = 2  # taps of the depthwise convolution over queries and keys
    cca_time1: Annotated[int, TAPS] = 2  # taps of the grouped convolution after it
    rms_norm_eps: Annotated[float, Number(0, 1)] = 1e-5
    rope_theta: Annotated[float, THETA] = 5_000_000.0
    sliding_rope_theta: Annotated[float, THETA] = 10_000.0
    partial_rotary_factor: Annotated[float, Number(0, 1, above=True)] = 0.5  # share of head_dim that is rotated
    layer_types: tuple[str, ...] | None = None  # None: every layer attends fully
    # keys a sliding layer sees, the token itself included
    sliding_window: Annotated[int | None, Unset(Integer(0))] = None
    max_position_embeddings: Annotated[int, COUNT] = 131_072
    tie_word_embeddings: Annotated[bool, SWITCH] = True
    attention_bias: Annotated[bool, SWITCH] = False  # on all of attention's projections, but see output_bias
    lm_head_bias: Annotated[bool, SWITCH] = False
    # "zero": transformers'; "identity" (p * x): Zyphra's legacy code
    skip_expert: Annotated[str, Choice(("zero", "identity"))] = "zero"
    initializer_range: Annotated[float, Number(0, 1000)] = 0.02
    bos_token_id: Annotated[int | None, Unset(TOKEN)] = 2
    eos_token_id: int | tuple[int, ...] | None = 106  # some chat models have several
    pad_token_id: Annotated[int | None, Unset(TOKEN)] = 0
    mask_token_id: int | None = None  # None: the vocabulary's last row; NO_MASK: there is none

    # Which parts there are. The defaults are ZAYA1; the others are for ablations and for models of other families
    # (`zaya_jax.interop.families.llama`), and take their parameters with them.
    # "gqa": plain projections, whatever the cca_* fields below would add
    attention: Annotated[str, Choice(("cca", "gqa"))] = "cca"
    cca_depthwise: Annotated[bool, SWITCH] = True  # the depthwise convolution
    cca_grouped: Annotated[bool, SWITCH] = True  # the grouped convolution
    cca_mean: Annotated[bool, SWITCH] = True  # the q-k mean
    cca_delayed_value: Annotated[bool, SWITCH] = True  # half of the values are the predecessor's
    # "row": CCA looks back along the row in memory, the pitfall; a negative control
    succession: Annotated[str, Choice(("text", "row"))] = "text"
    # "unit": queries and keys of unit length, a temperature a key head; "rms": an RMSNorm of each head, one weight for
    # all query and one for all key heads (Qwen3); "none". None: "unit" with cca, "none" with gqa.
    qk_norm: Annotated[str | None, Choice(QK_NORMS)] = None
    # with attention_bias, attention's output projection has one too (not in Qwen2)
    output_bias: Annotated[bool, SWITCH] = True
    # "none"; "linear": angles are divided by rope_factor; "llama3": only those that turn less than
    # rope_high_freq_factor times in rope_original_max_positions positions, and wholly below rope_low_freq_factor times.
    rope_scaling: Annotated[str, Choice(("none", "linear", "llama3"))] = "none"
    rope_factor: Annotated[float, THETA] = 1.0
    rope_low_freq_factor: Annotated[float, THETA] = 1.0
    rope_high_freq_factor: Annotated[float, THETA] = 4.0
    rope_original_max_positions: Annotated[int, COUNT] = 8192
    # "dense": one SwiGLU of moe_intermediate_size, no router
    feed_forward: Annotated[str, Choice(("moe", "dense"))] = "moe"
    mlp_bias: Annotated[bool, SWITCH] = False  # on the dense feed-forward's projections
    router_state: Annotated[bool, SWITCH] = True  # the router's state is carried across depth
    residual_scaling: Annotated[bool, SWITCH] = True

    # Adapters (LoRA): low-rank additions to attention's projections and the dense feed-forward's, and a vector to the
    # mask token's embedding. They start as nothing.
    lora_rank: Annotated[int, Integer(0, 2**24)] = 0  # 0: none
    lora_alpha: Annotated[float, THETA] = 16.0  # additions are scaled by lora_alpha / lora_rank
    # "drafts": mask tokens alone, so that clean rows stay the model's without adapters
    lora_rows: Annotated[str, Choice(LORA_ROWS)] = "all"

    # A network beside the model that drafts for it (`architecture.drafters`); None: there is none.
    drafter: DrafterConfig | None = None

    # of activations and matrix products; parameters stay as they are stored
    dtype: Annotated[str, Choice(DTYPES)] = "float32"
    param_dtype: Annotated[str, Choice(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):  # as JSON has them
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        if self.qk_norm is None:
            object.__setattr__(self, "qk_norm", _default_qk_norm(self.attention))
        if isinstance(self.qk_norm, bool):  # as stored configurations have it that knew no third choice
            object.__setattr__(self, "qk_norm", "unit" if self.qk_norm else "none")
        if isinstance(self.drafter, dict):  # as JSON has it
            object.__setattr__(self, "drafter", DrafterConfig(**self.drafter))
        check_fields("ZayaConfig", self)
        may_be = "a DrafterConfig or None"
        _require(self.drafter is None or isinstance(self.drafter, DrafterConfig), "drafter", self.drafter, may_be)
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for end in ends:
            check("ZayaConfig.eos_token_id", end, Unset(TOKEN))
        given = self.layer_types or ()
        named = isinstance(given, (list, tuple)) and all(isinstance(kind, str) for kind in given)
        _require(named, "layer_types", given, f"a tuple of {FULL_ATTENTION!r} or {SLIDING_ATTENTION!r}")
        if self.mask_token_id is None:
            object.__setattr__(self, "mask_token_id", self.vocab_size - 1)
        layer_types = self.layer_types or (FULL_ATTENTION,) * self.num_hidden_layers
        object.__setattr__(self, "layer_types", tuple(layer_types))
        self._check()

    def _check(self) -> None:
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            self.num_attention_heads,
            f"a multiple of num_key_value_heads ({self.num_key_value_heads})",
        )
        _require(
            self.num_key_value_heads * self.head_dim % 2 == 0,
            "head_dim",
            self.head_dim,
            "such that num_key_value_heads * head_dim is even (half of the values are delayed)",
        )
        rotary = self.rotary_dim
        _require(
            rotary % 2 == 0 and rotary > 0,
            "partial_rotary_factor",
            self.partial_rotary_factor,
            "in (0, 1] with an even, non-zero number of rotated channels",
        )
        _require(
            TOKEN.allows(self.mask_token_id) and int(self.mask_token_id or 0) < self.vocab_size,
            "mask_token_id",
            self.mask_token_id,
            f"in [0, {self.vocab_size}), or {NO_MASK} for none",
        )
        _require(
            len(self.layer_kinds) == self.num_hidden_layers
            and set(self.layer_kinds) <= {FULL_ATTENTION, SLIDING_ATTENTION},
            "layer_types",
            self.layer_kinds,
            f"num_hidden_layers ({self.num_hidden_layers}) of {FULL_ATTENTION!r} or {SLIDING_ATTENTION!r}",
        )
        if SLIDING_ATTENTION in self.layer_kinds:
            window = self.sliding_window
            _require(window is not None and window >= 1, "sliding_window", window, "an integer of at least 1")
        taps = () if self.drafter is None else self.drafter.taps_of(self.num_hidden_layers)
        may_be = f"of 0 .. num_hidden_layers ({self.num_hidden_layers})"
        _require(max(taps, default=0) <= self.num_hidden_layers, "drafter.taps", taps, may_be)
        self._check_parts()
        self._check_rope_scaling()

    def _check_parts(self) -> None:
        """Refuses a choice that would change nothing: it would pass for an ablation."""
        for name in ("cca_depthwise", "cca_grouped", "cca_mean", "cca_delayed_value"):
            may_be = "True with attention 'gqa', which has none of it"
            _require(self.attention == "cca" or getattr(self, name), name, getattr(self, name), may_be)
        looks_back = self.cca_delayed_value or self.conv_history > 0
        _require(
            self.succession == "text" or (self.attention == "cca" and looks_back),
            "succession",
            self.succession,
            "'text' where attention does not look back",
        )
        _require(
            self.router_state or self.feed_forward == "moe",
            "router_state",
            self.router_state,
            "True with feed_forward 'dense', which has no router",
        )
        _require(
            self.output_bias or self.attention_bias,
            "output_bias",
            self.output_bias,
            "True where attention_bias is False",
        )
        _require(
            not self.mlp_bias or self.feed_forward == "dense",
            "mlp_bias",
            self.mlp_bias,
            "False with feed_forward 'moe', whose experts have none",
        )

    def _check_rope_scaling(self) -> None:
        """Refuses numbers that the scaling would not use."""
        kind = self.rope_scaling
        used = {"none": 0, "linear": 1, "llama3": 4}[kind]
        names = ("rope_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_max_positions")
        for number, name in enumerate(names):
            value, default = getattr(self, name), getattr(type(self), name)
            if number >= used:
                _require(
                    value == default, name, value, f"{default} with rope_scaling {kind!r}, which has no use for it"
                )
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        _require(low < high, "rope_high_freq_factor", high, f"above rope_low_freq_factor ({low})")

    def has(self, part: str) -> bool:
        """Whether a part of CCA ("depthwise", "grouped", "mean", "delayed_value") is there."""
        return self.attention == "cca" and getattr(self, f"cca_{part}")

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """`layer_types` as it is after construction: never None, one for each layer."""
        assert self.layer_types is not None
        return self.layer_types

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that carry the rotary angle."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def conv_channels(self) -> int:
        """Channels of [queries | keys], which both convolutions run over."""
        return (self.num_attention_heads + self.num_key_value_heads) * self.head_dim

    @property
    def conv_history(self) -> int:
        """Pre-convolution columns a token needs from before it: the two convolutions share one left pad."""
        return (self.cca_time0 - 1) * self.has("depthwise") + (self.cca_time1 - 1) * self.has("grouped")

    @property
    def delayed_dim(self) -> int:
        """Channels of the delayed value: half of all key-value channels."""
        return self.num_key_value_heads * self.head_dim // 2 * self.has("delayed_value")

    @property
    def router_classes(self) -> int:
        """Experts and skip; 0 without a router."""
        return self.num_experts + 1 if self.feed_forward == "moe" else 0

    @property
    def state_size(self) -> int:
        """Channels of the router state that layers hand on; 0 if they hand on none."""
        return self.router_hidden_size if self.feed_forward == "moe" and self.router_state else 0

    def adapted_from(self, clean_size: int) -> int:
        """The first slot of a row that adapters act on; a row begins with its context tokens."""
        return clean_size if self.lora_rows == "drafts" else 0

    @property
    def stream_dtype(self) -> Any:
        """The residual stream's dtype: never below float32 (float64 when the model computes in float64)."""
        return jnp.promote_types(jnp.float32, self.dtype)

    def replace(self, **changes: Any) -> "ZayaConfig":
        """A copy with `changes`; layer_types, mask_token_id and qk_norm follow other fields unless they are given."""
        if "vocab_size" in changes and self.mask_token_id == self.vocab_size - 1:
            changes.setdefault("mask_token_id", None)
        if "num_hidden_layers" in changes and set(self.layer_kinds) == {FULL_ATTENTION}:
            changes.setdefault("layer_types", None)
        if "attention" in changes and self.qk_norm == _default_qk_norm(self.attention):
            changes.setdefault("qk_norm", None)
        return dataclasses.replace(self, **changes)


def _default_qk_norm(attention: str) -> str:
    return "unit" if attention == "cca" else "none"


def _require(condition: bool, field: str, got: Any, may_be: str) -> None:
    if not condition:
        raise UserError(f"ZayaConfig.{field}: got {shown(got)}, may be {may_be}")


def preset(name: str, **changes: Any) -> ZayaConfig:
    """A named configuration, with `changes` applied.

    Args:
      name: a key of `PRESETS`.
      **changes: ZayaConfig fields to override (a tokenizer's vocab_size, most often).

    Raises:
      UserError: unknown preset or field.
    """
    if name not in PRESETS:
        raise UserError(f"preset: got {name!r}, may be one of {sorted(PRESETS)}")
    unknown = set(changes) - {f.name for f in dataclasses.fields(ZayaConfig)}
    if unknown:
        raise UserError(f"ZayaConfig: unknown field {sorted(unknown)[0]!r}")
    return ZayaConfig(**{**PRESETS[name], **changes})


_BYTES = dict(vocab_size=260, bos_token_id=256, eos_token_id=257, pad_token_id=258, max_position_embeddings=4096)
# The small models keep ZAYA1's proportions where they can: 4 query heads a key-value head, half-width queries.
PRESETS: dict[str, dict[str, Any]] = {
    # unit tests and doc examples: compiles in a second or two
    "tiny": dict(
        _BYTES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        moe_intermediate_size=32, num_experts=4, router_hidden_size=16, initializer_range=0.1, rope_theta=10_000.0,
    ),
    # the quickstart: a few 100k parameters, minutes on two CPU cores
    "zaya1_300k": dict(
        _BYTES, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        moe_intermediate_size=64, num_experts=8, router_hidden_size=32, initializer_range=0.1, rope_theta=10_000.0,
    ),
    "zaya1_1m": dict(
        _BYTES, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=32,
        moe_intermediate_size=64, num_experts=8, router_hidden_size=32, initializer_range=0.08, rope_theta=10_000.0,
    ),
    "zaya1_25m": dict(
        _BYTES, hidden_size=320, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, head_dim=32,
        moe_intermediate_size=192, num_experts=16, router_hidden_size=64, initializer_range=0.05,
    ),
    "zaya1_200m": dict(
        _BYTES, hidden_size=768, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
        moe_intermediate_size=448, num_experts=16, router_hidden_size=128,
    ),
    # SmolLM2-135M with a row for the mask token after its 49,152 (`zaya_jax.interop.families.llama`)
    "smollm2_135m": dict(
        vocab_size=49_153, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, attention="gqa", partial_rotary_factor=1.0, rope_theta=100_000.0, sliding_rope_theta=100_000.0,
        feed_forward="dense", moe_intermediate_size=1536, residual_scaling=False, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.041666666666666664,
    ),
    # the released model (docs/architecture.md#parameters-and-names): 8,840,488,784 parameters in 1,283 tensors
    "zaya1_8b": dict(param_dtype="bfloat16", dtype="bfloat16"),
}  # fmt: skip

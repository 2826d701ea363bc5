"""Llama and its relatives as transformers (5.23.0) keeps them: Llama (SmolLM2 is one), Mistral, Qwen2 and Qwen3.

They are our model by its choices: plain grouped-query attention ("gqa"), a dense feed-forward, a residual stream
without scales, the whole head rotated. What tells them apart is which biases they have, whether queries and keys are
normed, and which layers slide. A field that is missing has transformers' default for that family; what this code does
not compute exactly is refused, never ignored.

None of these models has a mask token. A config.json that does not say one under "zaya_jax" is read with
mask_token_id = NO_MASK: the model reads and writes text, and refuses to draft. `mask.add_mask_token` gives it one.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import FULL_ATTENTION, NO_MASK, SLIDING_ATTENTION
from zaya_jax.interop.families.configuration import DTYPES, EXTRA, OURS, SHARED, read_dtype, refuse_quantized, require
from zaya_jax.interop.formats.names import EMBEDDING, HEAD, LINEAR, SAME, Entry, Lay, layered, whole

_INT, _BOOL, _TOKEN = (SHARED[name] for name in ("vocab_size", "attention_bias", "bos_token_id"))
_NUMBER = ("a number above 0", lambda x: type(x) in (int, float) and 0 < x < 1e30)
_LAYERS = ("an integer from 1 to 10,000", lambda x: _INT[1](x) and 1 <= x <= 10_000)
_OPTIONAL = ("an integer of at least 1, or null", lambda x: x is None or (_INT[1](x) and x >= 1))
# config.json's name -> (ours, what it may hold).
_FIELDS = {
    "vocab_size": ("vocab_size", _INT),
    "hidden_size": ("hidden_size", _INT),
    "intermediate_size": ("moe_intermediate_size", _INT),
    "num_hidden_layers": ("num_hidden_layers", _LAYERS),
    "num_attention_heads": ("num_attention_heads", _INT),
    "num_key_value_heads": ("num_key_value_heads", _OPTIONAL),
    "head_dim": ("head_dim", _OPTIONAL),
    "rms_norm_eps": ("rms_norm_eps", _NUMBER),
    "max_position_embeddings": ("max_position_embeddings", _INT),
    "initializer_range": ("initializer_range", ("a number", lambda x: _NUMBER[1](x) or x == 0)),
    "tie_word_embeddings": ("tie_word_embeddings", _BOOL),
    "bos_token_id": ("bos_token_id", _TOKEN),
    "eos_token_id": ("eos_token_id", SHARED["eos_token_id"]),
    "pad_token_id": ("pad_token_id", _TOKEN),
}
# Fields that would change the forward pass and that we compute in one way only (some no transformers' Llama reads).
_ONLY = {
    "hidden_act": "silu",
    "attention_dropout": 0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "num_experts": None,
    "num_local_experts": None,
    "is_causal": True,
}
_COMMON = dict(
    initializer_range=0.02, rms_norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, head_dim=None, vocab_size=151_936, hidden_size=4096, intermediate_size=22_016,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=32_768,
)  # fmt: skip
_LLAMA = dict(vocab_size=32_000, bos_token_id=1, eos_token_id=2)
_THETA = 10_000.0
_ROPE_TYPES = ("default", "linear", "llama3")
_SCALED = {  # rope_parameters' name -> ours
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_max_positions",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_KINDS = {_FULL: FULL_ATTENTION, _SLIDING: SLIDING_ATTENTION}
# What all of these models are of ours.
_PLAIN: dict[str, Any] = dict(
    attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0, lm_head_bias=False
)
_BIASES = ("attention_bias", "mlp_bias")


@dataclasses.dataclass(frozen=True)
class Relative:
    """One of the models of this file: what its config.json leaves out, and what its code fixes.

    Attributes:
      model_type, architecture: transformers' names.
      defaults: transformers' for fields that a file does not have.
      biases: which of attention_bias and mlp_bias a file may choose; the others are as in `fixed`, or False.
      fixed: fields of ours.
      slides: how a file says which layers slide: "never", "all" (sliding_window alone) or "layers" (layer_types).
    """

    model_type: str
    architecture: str
    defaults: dict[str, Any]
    biases: tuple[str, ...] = ()
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    slides: str = "never"

    def reads(self, values: dict[str, Any]) -> bool:
        return values.get("model_type") == self.model_type

    def writes(self, config: ZayaConfig) -> bool:
        """Whether transformers' model of this type computes what ours of this config does."""
        fixed = {**_PLAIN, "qk_norm": "none", "output_bias": True, **dict.fromkeys(_BIASES, False), **self.fixed}
        if any(getattr(config, name) != value for name, value in fixed.items() if name not in self.biases):
            return False
        slides = {kind == SLIDING_ATTENTION for kind in config.layer_kinds}
        may_slide = {"never": ({False},), "all": ({True},), "layers": ({False}, {True}, {False, True})}[self.slides]
        return slides in may_slide and (slides == {False} or config.sliding_rope_theta == config.rope_theta)

    def config_from_huggingface(self, values: dict[str, Any]) -> ZayaConfig:
        """config.json -> ours; UserError in one line that names the field."""
        refuse_quantized(values)
        for name, only in _ONLY.items():
            require(values.get(name, only) == only, name, values.get(name), f"{only!r}, the only one supported")
        fields: dict[str, Any] = {**_PLAIN, **self.fixed}
        for name, (ours, (may_be, accepts)) in _FIELDS.items():
            value = values.get(name, self.defaults[name])
            require(accepts(value), name, value, may_be)
            fields[ours] = value
        for name in _BIASES:
            value = values.get(name, False)
            require(_BOOL[1](value), name, value, _BOOL[0])
            if name in self.biases:
                fields[name] = value
        heads = fields["num_attention_heads"]
        require(heads >= 1, "num_attention_heads", heads, "an integer of at least 1")
        fields["num_key_value_heads"] = fields["num_key_value_heads"] or heads
        fields["head_dim"] = fields["head_dim"] or fields["hidden_size"] // heads
        fields.update(self._sliding(values, fields["num_hidden_layers"]))
        fields.update(_rope(values, fields["max_position_embeddings"]))
        fields.update(read_dtype(values))
        fields.update(_extra(values.get(OURS, {})))
        return ZayaConfig(**fields)

    def _sliding(self, values: dict[str, Any], layers: int) -> dict[str, Any]:
        """layer_types and sliding_window, ours."""
        kinds, used = values.get("layer_types"), self.slides == "all"
        if self.slides == "layers":
            used = values.get("use_sliding_window", False)
            require(_BOOL[1](used), "use_sliding_window", used, _BOOL[0])
        window = values.get("sliding_window", 4096) if used else None
        require(_OPTIONAL[1](window), "sliding_window", window, _OPTIONAL[0])
        if kinds is None:
            first = values.get("max_window_layers", 28) if self.slides == "layers" else 0
            require(_INT[1](first), "max_window_layers", first, _INT[0])
            kinds = [_SLIDING if window is not None and layer >= first else _FULL for layer in range(layers)]
        else:
            may_be = f"a list of {layers} of " + ("'full_attention'" if self.slides == "never" else f"{tuple(_KINDS)}")
            allowed = (_FULL,) if self.slides == "never" else tuple(_KINDS)
            fits = isinstance(kinds, list) and len(kinds) == layers and all(kind in allowed for kind in kinds)
            fits = fits and (self.slides != "all" or set(kinds) == {_FULL if window is None else _SLIDING})
            require(fits, "layer_types", kinds, may_be)
        if _SLIDING not in kinds:
            window = None
        else:
            require(window is not None, "sliding_window", values.get("sliding_window"), "a number where layers slide")
        return {"layer_types": tuple(_KINDS[kind] for kind in kinds), "sliding_window": window}

    def config_to_huggingface(self, config: ZayaConfig) -> dict[str, Any]:
        """Ours -> a config.json that transformers loads; back again it is `config`, but for fields without a meaning.

        Such are, in a model without experts and convolutions, their numbers and sizes. The mask token stands under
        "zaya_jax"; to transformers its row is one more of the vocabulary.
        """
        require(config.param_dtype in DTYPES, "param_dtype", config.param_dtype, f"one of {DTYPES}", "ZayaConfig")
        eos = config.eos_token_id
        values = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": config.param_dtype,
            **{name: getattr(config, ours) for name, (ours, _) in _FIELDS.items()},
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            **{name: getattr(config, name) for name in self.biases},
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            **_rope_to_huggingface(config),
        }
        if self.slides != "never":
            values["sliding_window"] = config.sliding_window
        if self.slides == "layers":
            theirs = {ours: theirs for theirs, ours in _KINDS.items()}
            values["layer_types"] = [theirs[kind] for kind in config.layer_kinds]
            values["use_sliding_window"] = SLIDING_ATTENTION in config.layer_kinds
        mask = None if config.mask_token_id == NO_MASK else config.mask_token_id
        return values | {OURS: {**{name: getattr(config, name) for name in EXTRA}, "mask_token_id": mask}}

    def entries(self, config: ZayaConfig) -> list[Entry]:
        """Every parameter; together they are all of the model's."""
        return [*_whole(config), *_layers(config)]


LLAMA = Relative(
    "llama", "LlamaForCausalLM", {**_COMMON, **_LLAMA, "intermediate_size": 11_008, "num_key_value_heads": None,
    "max_position_embeddings": 2048}, biases=_BIASES,
)  # fmt: skip
# A Mistral without a window is a Llama, and is written as one.
MISTRAL = Relative(
    "mistral", "MistralForCausalLM", {**_COMMON, **_LLAMA, "intermediate_size": 14_336, "num_key_value_heads": 8,
    "max_position_embeddings": 131_072}, slides="all",
)  # fmt: skip
QWEN2 = Relative(
    "qwen2", "Qwen2ForCausalLM", _COMMON, fixed=dict(attention_bias=True, output_bias=False), slides="layers"
)
QWEN3 = Relative(
    "qwen3", "Qwen3ForCausalLM", {**_COMMON, "head_dim": 128}, biases=("attention_bias",), fixed=dict(qk_norm="rms"),
    slides="layers",
)  # fmt: skip
RELATIVES = (LLAMA, MISTRAL, QWEN2, QWEN3)


def _rope(values: dict[str, Any], positions: int) -> dict[str, Any]:
    """Rotary bases and scaling, ours. Older files' `rope_scaling` goes before `rope_parameters`, as in transformers."""
    where = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    given = values.get(where) or {}
    require(isinstance(given, dict), where, given, "null or an object")
    kind = given.get("rope_type", given.get("type", "default"))
    require(kind in _ROPE_TYPES, f"{where}.rope_type", kind, f"one of {_ROPE_TYPES}")
    used = {"default": (), "linear": ("factor",), "llama3": tuple(_SCALED)}[kind]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALED}
    for name in given:
        require(name in known, where, name, f"an object with some of the keys {sorted(known)}")
    share = given.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    require(share in (None, 1), f"{where}.partial_rotary_factor", share, "1, the only one supported")
    theta = given.get("rope_theta", values.get("rope_theta", _THETA))
    require(_NUMBER[1](theta), f"{where}.rope_theta", theta, _NUMBER[0])
    fields: dict[str, Any] = {"rope_theta": float(theta), "sliding_rope_theta": float(theta)}
    fields["rope_scaling"] = "none" if kind == "default" else kind
    for name in used:
        value = given.get(name)
        if name == "original_max_position_embeddings":
            value = values.get(name, given.get(name, positions))
        require(_NUMBER[1](value), f"{where}.{name}", value, _NUMBER[0])
        fields[_SCALED[name]] = value
    return fields


def _rope_to_huggingface(config: ZayaConfig) -> dict[str, Any]:
    """rope_parameters as transformers 5 reads them, rope_theta and rope_scaling as the versions before it do."""
    kind = "default" if config.rope_scaling == "none" else config.rope_scaling
    used = {"default": 0, "linear": 1, "llama3": 4}[kind]
    scaled = {theirs: getattr(config, ours) for theirs, ours in list(_SCALED.items())[:used]}
    parameters = {"rope_type": kind, "rope_theta": config.rope_theta, **scaled}
    flat = {"rope_parameters": parameters, "rope_theta": config.rope_theta}
    return flat | ({"rope_scaling": {"rope_type": kind, **scaled}} if scaled else {})


def _extra(ours: Any) -> dict[str, Any]:
    """Our own fields of a config.json."""
    require(isinstance(ours, dict), OURS, ours, "an object")
    for name in ours:
        require(name in EXTRA, OURS, name, f"an object with the keys {EXTRA}")
    mask = ours.get("mask_token_id")
    return {**ours, "mask_token_id": NO_MASK if mask is None else mask}


def _whole(config: ZayaConfig) -> Iterator[Entry]:
    yield whole("embed_tokens", EMBEDDING)
    yield whole("norm/weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        yield whole("lm_head/kernel", HEAD, LINEAR)


def _layers(config: ZayaConfig) -> Iterator[Entry]:
    def entry(path: str, name: str, lay: Lay = SAME, part: tuple[int, int] = (0, 1)) -> Entry:
        return layered(config, path, "model.layers.{}." + name, lay, part=part)

    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield entry(f"{norm}/weight", f"{norm}.weight")
    if config.qk_norm == "rms":
        for norm in ("q_norm", "k_norm"):
            yield entry(f"self_attn/{norm}/weight", f"self_attn.{norm}.weight")
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield entry(f"self_attn/{projection}/kernel", f"self_attn.{projection}.weight", LINEAR)
        if config.attention_bias and (config.output_bias or projection != "o_proj"):
            yield entry(f"self_attn/{projection}/bias", f"self_attn.{projection}.bias")
    for number, projection in enumerate(("gate_proj", "up_proj")):  # the halves of our gate_up_proj
        yield entry("mlp/gate_up_proj", f"mlp.{projection}.weight", LINEAR, (number, 2))
        if config.mlp_bias:
            yield entry("mlp/gate_up_bias", f"mlp.{projection}.bias", part=(number, 2))
    yield entry("mlp/down_proj", "mlp.down_proj.weight", LINEAR)
    if config.mlp_bias:
        yield entry("mlp/down_bias", "mlp.down_proj.bias")

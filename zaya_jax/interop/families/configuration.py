"""transformers' `config.json` of a ZAYA model <-> our `ZayaConfig`.

A field that is missing has transformers' default, which is ours too: transformers leaves defaults out of what it saves.
What this code cannot compute exactly is refused, never ignored.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import FULL_ATTENTION, PARTS, SLIDING_ATTENTION
from zaya_jax.errors import UserError

OURS = "zaya_jax"  # the key our own fields stand under; transformers keeps it and makes nothing of it

_INT = ("an integer of at most 2^31", lambda x: type(x) is int and abs(x) <= 1 << 31)
_LAYERS = ("an integer from 1 to 10000", lambda x: type(x) is int and 1 <= x <= 10_000)
_NUMBER = ("a number above 0", lambda x: type(x) in (int, float) and 0 < x < 1e30)
_BOOL = ("true or false", lambda x: isinstance(x, bool))
_TOKEN = ("a token id or null", lambda x: x is None or _INT[1](x))
EOS = (
    "a token id, a list of them, or null",
    lambda x: all(map(_TOKEN[1], x if isinstance(x, list) else [x])),
)
# Fields with the same name and meaning on both sides, and what config.json may hold there.
SHARED = {
    "vocab_size": _INT,
    "hidden_size": _INT,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _INT,
    "num_key_value_heads": _INT,
    "head_dim": _INT,
    "moe_intermediate_size": _INT,
    "num_experts": _INT,
    "router_hidden_size": _INT,
    "cca_time0": _INT,
    "cca_time1": _INT,
    "rms_norm_eps": _NUMBER,
    "sliding_window": ("an integer or null", lambda x: x is None or _INT[1](x)),
    "max_position_embeddings": _INT,
    "tie_word_embeddings": _BOOL,
    "attention_bias": _BOOL,
    "lm_head_bias": _BOOL,
    "initializer_range": _NUMBER,
    "bos_token_id": _TOKEN,
    "eos_token_id": EOS,
    "pad_token_id": _TOKEN,
}
# Fields that would change the forward pass and that we compute in one way only.
ONLY = {
    "model_type": "zaya",
    "hidden_act": "silu",
    "num_experts_per_tok": 1,
    "attention_dropout": 0,
}
_ZAYA1 = ZayaConfig()
DTYPES = ("float32", "bfloat16")  # dtypes we store and compute in
# What a config.json may call its dtype -> ours: torch's names. float32 holds every float16 exactly.
TORCH_DTYPES = {
    "float32": "float32", "float": "float32", "bfloat16": "bfloat16", "float16": "float32", "half": "float32",
}  # fmt: skip
# What transformers has no word for.
EXTRA = (
    "mask_token_id", "skip_expert", "dtype", "param_dtype", "expert_backend", "attention_backend", "query_chunk",
    "remat", "unroll_layers", "qkv_backend",
)  # fmt: skip
_ROPE_DEFAULTS = {FULL_ATTENTION: 5_000_000.0, SLIDING_ATTENTION: 10_000.0}


def config_from_huggingface(values: dict[str, Any]) -> ZayaConfig:
    """Reads the dict of a `config.json`.

    Args:
      values: as transformers 5.23.0 writes it. Also read: the flat `rope_theta` and `partial_rotary_factor` of older
        files, `torch_dtype`, and the stray `rope_parameters.rope_type` of the released ZAYA1-8B. Keys that do not touch
        the forward pass are ignored.

    Returns:
      A ZayaConfig. `dtype` and `param_dtype` are the file's dtype (float32 where it names none).

    Raises:
      UserError: one line naming the field, what it got and what it may be.
    """
    require(isinstance(values, dict), "the whole file", values, "a JSON object")
    refuse_quantized(values)
    for name, only in ONLY.items():
        require(values.get(name, only) == only, name, values.get(name), f"{only!r}, the only one supported")
    fields = {}
    fields.update(read_shared(values, SHARED))
    layers = fields.get("num_hidden_layers", ZayaConfig.num_hidden_layers)
    fields["layer_types"] = _layer_types(values.get("layer_types"), layers)
    fields.update(_rope(values, set(fields["layer_types"])))
    fields.update(read_dtype(values))
    fields.update(read_extra(values))
    return ZayaConfig(**fields)


def config_to_huggingface(config: ZayaConfig) -> dict[str, Any]:
    """The `config.json` transformers 5.23.0 loads; `config_from_huggingface` of it is `config` again.

    transformers computes a skipped token's expert output as zero: a config with skip_expert="identity" loads there but
    computes something else. That field, the mask token and how we compute stand under "zaya_jax".

    Raises:
      UserError: a param_dtype that no checkpoint of ours stores; an ablation, which transformers' ZAYA cannot be.
    """
    refuse_parts(config, "ZAYA's format")
    thetas = {FULL_ATTENTION: config.rope_theta, SLIDING_ATTENTION: config.sliding_rope_theta}
    return {
        "architectures": ["ZayaForCausalLM"],
        "model_type": "zaya",
        "dtype": config.param_dtype,
        **{name: getattr(config, name) for name in SHARED},
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
        "hidden_act": "silu",
        "num_experts_per_tok": 1,
        "layer_types": list(config.layer_kinds),
        "rope_parameters": {
            kind: {
                "rope_type": "default",
                "rope_theta": theta,
                "partial_rotary_factor": config.partial_rotary_factor,
            }
            for kind, theta in thetas.items()
        },
        OURS: {name: getattr(config, name) for name in EXTRA},
    }


def refuse_parts(config: ZayaConfig, where: str) -> None:
    """Raises UserError where a config is not ZAYA's architecture, or of a dtype that no file of ours has."""
    for name in PARTS:
        zaya = getattr(_ZAYA1, name)
        require(getattr(config, name) == zaya, name, getattr(config, name), f"{zaya!r} in {where}", "ZayaConfig")
    require(config.param_dtype in DTYPES, "param_dtype", config.param_dtype, f"one of {DTYPES}", "ZayaConfig")


def read_shared(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The fields of these names that a file has; they mean the same there and here."""
    fields = {}
    for name in names:
        if name in values:
            value = _single(values[name]) if name == "eos_token_id" else values[name]
            may_be, accepts = SHARED[name]
            require(accepts(value), name, value, may_be)
            fields[name] = value
    return fields


def read_dtype(values: dict[str, Any]) -> dict[str, str]:
    """dtype and param_dtype, from either spelling of the field and of its values."""
    given = values.get("dtype") or values.get("torch_dtype") or "float32"
    known = isinstance(given, str) and given.removeprefix("torch.") in TORCH_DTYPES
    require(known, "dtype", given, f"one of {tuple(TORCH_DTYPES)}")
    dtype = TORCH_DTYPES[given.removeprefix("torch.")]
    return dict(dtype=dtype, param_dtype=dtype)


def refuse_quantized(values: dict[str, Any]) -> None:
    """Raises UserError for a config.json of quantized weights."""
    for name in ("quantization_config", "compression_config"):
        given = values.get(name)
        method = given.get("quant_method", given) if isinstance(given, dict) else given
        may_be = "null: quantized weights are not supported; may be dequantized with transformers first"
        require(given is None, name, str(method)[:100], may_be)


def require(condition: bool, field: str, got: Any, may_be: str, where: str = "config.json") -> None:
    if not condition:
        raise UserError(f"{where}: {field}: got {got!r}, may be {may_be}")


def _single(token: Any) -> Any:
    """A list of one end token is that token."""
    return token[0] if isinstance(token, list) and len(token) == 1 else token


def _layer_types(kinds: Any, layers: int) -> tuple[str, ...]:
    if kinds is None:
        return (FULL_ATTENTION,) * layers
    allowed = (FULL_ATTENTION, SLIDING_ATTENTION)
    require(isinstance(kinds, list), "layer_types", kinds, f"null or a list of {allowed}")
    for kind in kinds:
        require(kind in allowed, "layer_types", kind, f"one of {allowed}")
    return tuple(kinds)


def _rope(values: dict[str, Any], used: set[str]) -> dict[str, float]:
    """rope_theta, sliding_rope_theta and partial_rotary_factor."""
    nested = _rope_by_kind(values, used)
    for kind in sorted(used):
        require(isinstance(nested.get(kind), dict), f"rope_parameters.{kind}", nested.get(kind), "an object")
    thetas, shares = dict(_ROPE_DEFAULTS), {}
    for kind, parameters in nested.items():
        # transformers reads the entries of kinds that occur; one that does not may hold anything
        where = f"rope_parameters.{kind}"
        if kind not in used and not isinstance(parameters, dict):
            continue
        theta: Any = parameters.get("rope_theta")
        share: Any = parameters.get("partial_rotary_factor", 1.0)
        if kind in used:
            rope_type = parameters.get("rope_type", "default")
            require(rope_type == "default", f"{where}.rope_type", rope_type, "'default', the only one supported")
            require(_NUMBER[1](theta), f"{where}.rope_theta", theta, _NUMBER[0])
            require(_NUMBER[1](share), f"{where}.partial_rotary_factor", share, _NUMBER[0])
            shares[kind] = float(share)
        thetas[kind] = float(theta) if _NUMBER[1](theta) else thetas[kind]
    factors = set(shares.values())
    require(len(factors) == 1, "rope_parameters.*.partial_rotary_factor", shares, "the same for both layer types")
    return {
        "rope_theta": thetas[FULL_ATTENTION],
        "sliding_rope_theta": thetas[SLIDING_ATTENTION],
        "partial_rotary_factor": factors.pop(),
    }


def _rope_by_kind(values: dict[str, Any], used: set[str]) -> dict[str, Any]:
    """rope_parameters by layer type, from whichever form the file has."""
    parameters = values.get("rope_parameters")
    require(parameters is None or isinstance(parameters, dict), "rope_parameters", parameters, "null or an object")
    parameters = parameters or {}
    kinds = {kind: parameters[kind] for kind in _ROPE_DEFAULTS if kind in parameters}
    scaling = values.get("rope_scaling") or {}
    for name, rope_type in (
        ("rope_parameters.rope_type", parameters.get("rope_type", "default")),
        ("rope_scaling", scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling),
    ):
        require(rope_type in (None, "default"), name, rope_type, "'default', the only one supported")
    if kinds:
        return kinds
    older = {name: values.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    flat = {name: value for name, value in {**older, **parameters}.items() if value is not None}
    if "rope_theta" in flat:
        may_be = f"given by layer type (rope_parameters.{SLIDING_ATTENTION}.rope_theta) when there are sliding layers"
        require(SLIDING_ATTENTION not in used, "rope_theta", flat["rope_theta"], may_be)
    share = flat.get("partial_rotary_factor", 0.5)
    kinds = {kind: {"rope_theta": theta, "partial_rotary_factor": share} for kind, theta in _ROPE_DEFAULTS.items()}
    kinds[FULL_ATTENTION]["rope_theta"] = flat.get("rope_theta", _ROPE_DEFAULTS[FULL_ATTENTION])
    return kinds


def read_extra(values: dict[str, Any], names: Sequence[str] = EXTRA) -> dict[str, Any]:
    """Our own fields of a file."""
    ours = values.get(OURS, {})
    require(isinstance(ours, dict), OURS, ours, "an object")
    for name in ours:
        require(name in names, OURS, name, f"an object with the keys {tuple(names)}")
    return ours

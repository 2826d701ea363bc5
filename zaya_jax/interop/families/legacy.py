"""Zyphra's own layout of ZAYA1, that of checkpoints from before June 2026: ZAYA1-base, -reasoning-base, -8B-legacy.

Their code counts sublayers: layer 2N is our layer N's attention, layer 2N+1 its experts; one tensor an expert; and
`res_scale` stands at the *input* of a sublayer, where transformers' and ours stand after one. The 8B has 2,483
tensors.

What was checked: the names of all tensors, their shapes, the order of gate and up, the skip expert (identity: the
normed input times its probability), and the configuration's fields, against Zyphra/transformers at 2d6c3a2
(`models/zaya/{configuration,modeling}_zaya.py`: scalar fields) and 00f929e (fields that list one value a layer); the
count of tensors against the released index (docs/architecture.md#parameters-and-names); the released 8B's config.json
as SGLang's tests quote it. The two differ in how they count heads: in 2d6c3a2 `num_attention_heads` fill the width and
`cca_num_q_heads` of them query; the released 8B has the query heads themselves, and `head_dim`. Both are read, the
latter is written.

Not checked, for lack of the file: a released legacy checkpoint itself. `swa_layers` (ZAYA1-74B) counts the tokens
before the current one, so 4096 there is a window of 4097 here; SGLang reads it as the whole window. `residual_in_fp32`
changes how Zyphra's code rounds and is ignored: our stream is float32 always.
"""

from collections.abc import Iterator
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import FULL_ATTENTION, SLIDING_ATTENTION
from zaya_jax.interop.families.configuration import (  # fmt: skip
    EXTRA,
    OURS,
    SHARED,
    read_dtype,
    read_extra,
    read_shared,
    refuse_parts,
    refuse_quantized,
    require,
)
from zaya_jax.interop.formats.names import (  # fmt: skip
    DEPTHWISE,
    EMBEDDING,
    GROUPED,
    HEAD,
    LINEAR,
    SAME,
    Entry,
    Lay,
    whole,
)

# What only their config.json has, one of which every such file has.
MARKS = ("zaya_mlp_expansion", "ffn_hidden_size", "ffn_hidden_size_list", "num_query_groups", "zaya_layers")
# Fields of the same name and meaning as ours.
_SAME = (
    "vocab_size", "hidden_size", "num_experts", "head_dim", "cca_time0", "cca_time1", "max_position_embeddings",
    "tie_word_embeddings", "attention_bias", "lm_head_bias", "initializer_range", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip
_DEFAULTS = {"eos_token_id": 1, "max_position_embeddings": 4096}  # where theirs are not ours
# Fields that would change the forward pass and that we compute in one way only.
_ONLY = {
    "model_type": "zaya", "cca": True, "activation_func": "swiglu", "gated_linear_unit": True, "add_bias_linear": False,
    "normalization": "RMSNorm", "moe_router_topk": 1, "zaya_use_mod": True, "zaya_use_eda": True,
    "scale_residual_merge": True, "clamp_temp": False, "attention_dropout": 0,
}  # fmt: skip
# Ours; the window too, which a model without sliding layers may have and their fields then cannot say.
_EXTRA = (*EXTRA, "sliding_window", "sliding_rope_theta")


def reads(values: dict[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return values.get("model_type", "zaya") == "zaya" and any(name in values for name in MARKS)


def config_from_huggingface(values: dict[str, Any]) -> ZayaConfig:
    """Reads a config.json of Zyphra's code: scalars, or lists of one value a sublayer.

    Returns:
      A ZayaConfig whose skip_expert is "identity", unless the file's "zaya_jax" says otherwise.

    Raises:
      UserError: one line naming the field, what it got and what it may be.
    """
    refuse_quantized(values)
    for name, only in _ONLY.items():
        require(values.get(name, only) == only, name, values.get(name), f"{only!r}, the only one supported")
    fields: dict[str, Any] = {**_DEFAULTS, **read_shared(values, _SAME)}
    sublayers = _sublayers(values)
    fields["num_hidden_layers"] = sublayers // 2
    if "zaya_layers" in values:
        fields["num_experts"] = _one(values, "zaya_layers", sublayers, 1)
    heads = _one(values, "num_attention_heads", sublayers, 0, default=16 if "cca_num_q_heads" in values else 8)
    fields["num_attention_heads"] = _one(values, "cca_num_q_heads", sublayers, 0, default=heads)
    if "head_dim" not in fields:
        width = fields.get("hidden_size", ZayaConfig.hidden_size)
        require(width % heads == 0, "num_attention_heads", heads, f"a divisor of hidden_size ({width})")
        fields["head_dim"] = _one(values, "kv_channels", sublayers, 0, default=width // heads)
    groups = "num_query_groups_list" if "num_query_groups_list" in values else "num_query_groups"
    fields["num_key_value_heads"] = _one(values, groups, sublayers, 0, default=2)
    given = _one(values, "num_key_value_heads", sublayers, 0, default=fields["num_key_value_heads"])
    require(given == fields["num_key_value_heads"], "num_key_value_heads", given, f"{groups}, where both are given")
    width = "ffn_hidden_size_list" if "ffn_hidden_size_list" in values else "ffn_hidden_size"
    both = _one(values, width, sublayers, 1, default=4096)
    require(both % 2 == 0, width, both, "even (gate and up together)")
    fields["moe_intermediate_size"] = both // 2
    fields["router_hidden_size"] = _one(values, "zaya_mlp_expansion", sublayers, 1, default=256)
    eps = values.get("norm_epsilon", 1e-5)
    may_be, accepts = SHARED["rms_norm_eps"]
    require(accepts(eps), "norm_epsilon", eps, may_be)
    fields["rms_norm_eps"] = eps
    fields.update(**_windows(values, sublayers), **_rope(values), **read_dtype(values))
    fields.update({"skip_expert": "identity", **read_extra(values, _EXTRA)})
    return ZayaConfig(**fields)


def config_to_huggingface(config: ZayaConfig) -> dict[str, Any]:
    """A config.json in the form of the released ZAYA1-8B-legacy; `config_from_huggingface` of it is `config` again.

    Their code computes a skipped token as identity: a config with skip_expert="zero" loads there and computes something
    else (where the skip expert is ever chosen). That field stands under "zaya_jax".

    Raises:
      UserError: what that layout has no words for: an ablation, a window of one token.
    """
    refuse_parts(config, "Zyphra's format")
    window = (config.sliding_window or 1) - 1
    sliding = [kind == SLIDING_ATTENTION for kind in config.layer_kinds]
    require(window > 0 or not any(sliding), "sliding_window", config.sliding_window, "at least 2", "ZayaConfig")
    swa = {
        "swa_layers": [value for here in sliding for value in (window if here else 0, 0)],
        "swa_rotary_base": config.sliding_rope_theta,
    }
    return {
        "architectures": ["ZayaForCausalLM"],
        "model_type": "zaya",
        "dtype": config.param_dtype,
        **{name: getattr(config, name) for name in _SAME},
        **_ONLY,
        "num_hidden_layers": 2 * config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "kv_channels": config.head_dim,
        "num_query_groups": config.num_key_value_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "ffn_hidden_size": 2 * config.moe_intermediate_size,
        "zaya_mlp_expansion": config.router_hidden_size,
        "norm_epsilon": config.rms_norm_eps,
        "residual_in_fp32": True,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "partial_rotary_factor": config.partial_rotary_factor,
        "sliding_window": None,
        **(swa if any(sliding) else {}),
        OURS: {name: getattr(config, name) for name in _EXTRA},
    }


def _sublayers(values: dict[str, Any]) -> int:
    """How many layers their code counts: twice ours."""
    layers = values.get("zaya_layers")
    if layers is None:
        count = values.get("num_hidden_layers", 80)
        require(type(count) is int and 2 <= count <= 20_000 and count % 2 == 0, "num_hidden_layers", count,
                "even: attention and experts in turn")  # fmt: skip
        return count
    regular = isinstance(layers, list) and layers and len(layers) % 2 == 0 and set(map(str, layers[::2])) == {"a"}
    require(bool(regular), "zaya_layers", str(layers)[:60], "a list of 'a' and a number of experts in turn")
    return len(layers)


def _one(values: dict[str, Any], name: str, sublayers: int, kind: int, default: int = 0) -> int:
    """A number, or the one number that a list has for every sublayer of a kind (0 attention, 1 experts)."""
    value = values.get(name, default)
    found = value[kind:sublayers:2] if isinstance(value, list) and len(value) >= sublayers else [value]
    number = found[0]
    same = type(number) is int and all(type(other) is int and other == number for other in found)
    require(same and 1 <= number <= 1 << 24, name, str(value)[:60], "a number of at least 1, the same for every layer")
    return number


def _rope(values: dict[str, Any]) -> dict[str, float]:
    scaling = values.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    require(rope_type in (None, "default"), "rope_scaling", rope_type, "'default', the only one supported")
    may_be, accepts = SHARED["rms_norm_eps"]
    fields: dict[str, float] = {}
    sliding = any(values.get("swa_layers") or ())
    for name, ours, default in (
        ("rope_theta", "rope_theta", values.get("rotary_base", 10_000)),
        ("swa_rotary_base", "sliding_rope_theta", None if sliding else 10_000),
        ("partial_rotary_factor", "partial_rotary_factor", values.get("rope_pct", 0.5)),
    ):
        value = default if values.get(name) is None else values[name]
        require(accepts(value), name, value, may_be)
        fields[ours] = float(value)  # pyrefly: ignore[bad-argument-type] (None is not accepted)
    return fields


def _windows(values: dict[str, Any], sublayers: int) -> dict[str, Any]:
    """layer_types and sliding_window."""
    require(values.get("sliding_window") is None, "sliding_window", values.get("sliding_window"), "null (swa_layers)")
    windows = values.get("swa_layers") or [0] * sublayers
    fits = isinstance(windows, list) and len(windows) >= sublayers and all(type(w) is int and w >= 0 for w in windows)
    require(fits, "swa_layers", str(windows)[:60], f"a list of {sublayers} windows, 0 for none")
    windows = windows[0:sublayers:2]
    sizes = {window for window in windows if window}
    require(len(sizes) <= 1, "swa_layers", sorted(sizes), "one window")
    kinds = tuple(SLIDING_ATTENTION if window else FULL_ATTENTION for window in windows)
    return {"layer_types": kinds, "sliding_window": sizes.pop() + 1 if sizes else None}


# --- tensors ----------------------------------------------------------------------------------------------------------


def entries(config: ZayaConfig) -> list[Entry]:
    """Every parameter and buffer of a model of this config; together they are all of its variables."""
    return [*_whole(config), *_attention(config), *_mixture(config), *_vectors(config)]


def _whole(config: ZayaConfig) -> Iterator[Entry]:
    yield whole("embed_tokens", EMBEDDING)
    for vector in ("scale", "bias"):
        yield whole(f"input_hidden_states_{vector}", f"model.layers.0.res_scale.hidden_states_{vector}")
    yield whole("norm/weight", "model.final_norm.weight")
    router = "model.layers.{}.zaya_block.router."
    scales = tuple(router.format(2 * n + 1) + "router_states_scale" for n in range(1, config.num_hidden_layers))
    yield Entry(("params", "router_states_scale"), scales, stacked=1)
    if not config.tie_word_embeddings:
        yield whole("lm_head/kernel", HEAD, LINEAR)
    if config.lm_head_bias:
        yield whole("lm_head_bias", "lm_head.bias")


def _sublayer(config: ZayaConfig, kind: int, path: str, name: str, lay: Lay = SAME, to: str = "params") -> Entry:
    """An array of every layer's attention (kind 0) or experts (1)."""
    names = tuple(f"model.layers.{2 * n + kind}.{name}" for n in range(config.num_hidden_layers))
    return Entry((to, "layers", *path.split("/")), names, lay, stacked=1)


def _attention(config: ZayaConfig) -> Iterator[Entry]:
    projections = {
        "q_proj": "qkv.linear_q", "k_proj": "qkv.linear_k", "v_proj_current": "qkv.val_proj1",
        "v_proj_delayed": "qkv.val_proj2", "o_proj": "o_proj",
    }  # fmt: skip
    for ours, theirs in projections.items():
        yield _sublayer(config, 0, f"self_attn/{ours}/kernel", f"self_attn.{theirs}.weight", LINEAR)
        if config.attention_bias:
            yield _sublayer(config, 0, f"self_attn/{ours}/bias", f"self_attn.{theirs}.bias")
    for number, (ours, lay) in enumerate((("conv_qk_depthwise", DEPTHWISE), ("conv_qk_grouped", GROUPED))):
        theirs = f"self_attn.qkv.conv_qk.{number}"
        yield _sublayer(config, 0, f"self_attn/{ours}_kernel", f"{theirs}.weight", lay)
        yield _sublayer(config, 0, f"self_attn/{ours}_bias", f"{theirs}.bias")
    yield _sublayer(config, 0, "self_attn/temp", "self_attn.qkv.temp")


def _mixture(config: ZayaConfig) -> Iterator[Entry]:
    router = "zaya_block.router"
    yield _sublayer(config, 1, "mlp/gate/down_proj/kernel", f"{router}.down_proj.weight", LINEAR)
    yield _sublayer(config, 1, "mlp/gate/down_proj/bias", f"{router}.down_proj.bias")
    yield _sublayer(config, 1, "mlp/gate/norm/weight", f"{router}.rmsnorm_eda.weight")
    for number, linear in ((0, "fc1"), (2, "fc2")):  # 1 and 3 are activations
        yield _sublayer(config, 1, f"mlp/gate/{linear}/kernel", f"{router}.router_mlp.{number}.weight", LINEAR)
        yield _sublayer(config, 1, f"mlp/gate/{linear}/bias", f"{router}.router_mlp.{number}.bias")
    yield _sublayer(config, 1, "mlp/gate/out_proj/kernel", f"{router}.router_mlp.4.weight", LINEAR)
    yield _sublayer(config, 1, "mlp/gate/biases", f"{router}.balancing_biases", to="balancing")
    experts = "model.layers.{}.zaya_block.experts.local_experts.{}.{}.weight"
    for ours, theirs in (("gate_up_proj", "linear_fc1"), ("down_proj", "linear_fc2")):
        names = tuple(
            experts.format(2 * n + 1, expert, theirs)
            for n in range(config.num_hidden_layers)
            for expert in range(config.num_experts)
        )
        yield Entry(("params", "layers", "mlp", ours), names, LINEAR, stacked=2)


def _vectors(config: ZayaConfig) -> Iterator[Entry]:
    yield _sublayer(config, 0, "input_layernorm/weight", "input_norm.weight")
    yield _sublayer(config, 1, "post_attention_layernorm/weight", "input_norm.weight")
    last = config.num_hidden_layers - 1
    for vector in ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias"):
        yield _sublayer(config, 1, f"post_attention_residual_scale/{vector}", f"res_scale.{vector}")
        after = [f"model.layers.{2 * n + 2}.res_scale.{vector}" for n in range(last)]
        names = (*after, f"model.res_scale.{vector}")
        yield Entry(("params", "layers", "post_mlp_residual_scale", vector), names, stacked=1)

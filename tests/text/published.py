"""Small tokenizers as models publish theirs, made here with the `tokenizers` library."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["the cat sat on the mat; a dog did not", "héllo wörld, def add(a, b):\n    return a + b\n"] * 8
SPELLED = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": {"content": "</s>"}}


def publish(folder: Path, model: tokenizers.Tokenizer, **files: object) -> Path:
    """Writes tokenizer.json and, under their names, other JSON files. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def special(model: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return model


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's and SmolLM2's."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=alphabet)
    model.train_from_iterator(CORPUS, trainer)
    return special(model)


def unigram(prepend_scheme: str = "first") -> tokenizers.Tokenizer:
    """As T5's and XGLM's: SentencePiece's Unigram with byte fallback, its specials in the vocabulary."""
    words = [*"▁abcdeths;é\ufffd", "▁the", "▁cat", "at", "▁sat", "the", "▁▁▁"]
    pieces = [(token, 0.0) for token in SPECIALS] + [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(word, -2.0 - len(word) / 9) for word in words]
    model = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    model.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend_scheme), decoders.Fuse()]
    )
    return special(model)


def fallback_bpe() -> tokenizers.Tokenizer:
    """As Llama 2's and Gemma's: BPE with byte fallback over text whose spaces are spelled out."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for piece in [*"▁thecatsondg;é", "▁t", "▁th", "▁the", "at", "▁▁"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t"), ("▁", "▁")]
    model = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return special(model)


def word_piece() -> tokenizers.Tokenizer:
    """As BERT's: what is written between two tokens depends on both."""
    vocabulary = {w: i for i, w in enumerate([*SPECIALS, "the", "cat", "##s", "##at", "a", ".", "'", "m", "##m", "é"])}
    model = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece(cleanup=True)
    return special(model)


def ended_words() -> tokenizers.Tokenizer:
    """As GPT-1's and CLIP's: a word's last token says so, which becomes a space once there is a next one."""
    words = [*SPECIALS, *"thecas", "t</w>", "e</w>", "s</w>", "</w>"]
    model = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.decoder = decoders.BPEDecoder()
    return special(model)


def spaced_words() -> tokenizers.Tokenizer:
    """Every word and mark with a space in front, which transformers takes away where it is asked to tidy."""
    words = [".", "?", "!", ",", "'", "n't", "'m", "'s", "'ve", "'re", "s", "a", "the", "cat", ""]
    pieces = [(token, 0.0) for token in SPECIALS] + [("▁" + word, -2.0) for word in words]
    model = tokenizers.Tokenizer(models.Unigram([*pieces, ("'", -3.0), (".", -3.0), ("t", -3.0)], unk_id=0))
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    model.decoder = decoders.Metaspace(prepend_scheme="always")
    return special(model)


KINDS = {
    "byte_level": byte_level, "unigram": unigram, "unigram_always": lambda: unigram("always"),
    "fallback_bpe": fallback_bpe, "word_piece": word_piece, "ended_words": ended_words,
}  # fmt: skip

"""Tokenizers: raw bytes, a byte-level BPE trained here with the `tokenizers` library, or a published model's.

The first two share one layout of the vocabulary: ordinary tokens first, then BOS, EOS, PAD, MASK. The mask
token is therefore always the vocabulary's last row, so an autoregressive model without one can be
given one by appending a row to its embedding. Special tokens have no spelling: no text encodes to
one, and decoding skips them.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tokenizers

NUM_SPECIALS = 4  # BOS, EOS, PAD, MASK, in this order, behind the ordinary tokens.
NUM_BYTES = 256


class Tokenizer(Protocol):
    """Text to ids and back. Ids are ints in [0, vocab_size); `mask_id` is `vocab_size - 1`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def mask_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without any special token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are skipped, invalid UTF-8 becomes U+FFFD."""
        ...


class _SpecialsLast:
    """The shared layout: the last four of `vocab_size` rows are BOS, EOS, PAD, MASK."""

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    @property
    def bos_id(self) -> int:
        return self.vocab_size - 4

    @property
    def eos_id(self) -> int:
        return self.vocab_size - 3

    @property
    def pad_id(self) -> int:
        return self.vocab_size - 2

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def _ordinary(self, ids: Sequence[int]) -> list[int]:
        """`ids` without the special tokens; ValueError if one is outside the vocabulary."""
        values = [int(i) for i in ids]
        if values and not (min(values) >= 0 and max(values) < self.vocab_size):
            wrong = min(values) if min(values) < 0 else max(values)
            raise ValueError(f"ids: got {wrong}, must be in [0, {self.vocab_size})")
        return [i for i in values if i < self.bos_id]


@dataclass(frozen=True)
class ByteTokenizer(_SpecialsLast):
    """UTF-8 bytes 0..255, then BOS=256, EOS=257, PAD=258, MASK=259."""

    @property
    def vocab_size(self) -> int:
        return NUM_BYTES + NUM_SPECIALS

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`. UnicodeEncodeError (a ValueError) for lone surrogates."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes in `ids`. ValueError if an id is outside the vocabulary."""
        return bytes(self._ordinary(ids)).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class BPETokenizer(_SpecialsLast):
    """Lossless byte-level BPE. Build one with `train` or `load`."""

    model: tokenizers.Tokenizer  # Knows ordinary tokens only; the specials are ours.

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learns merges from `texts` until there are `vocab_size` rows, specials included.

        Raises ValueError if `vocab_size` is below 260 or more than `texts` can fill.
        """
        smallest = NUM_BYTES + NUM_SPECIALS
        if vocab_size < smallest:
            raise ValueError(f"vocab_size: got {vocab_size}, must be at least {smallest}")
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - NUM_SPECIALS,
            show_progress=False,
            # Every byte is a token, whether `texts` contain it or not: nothing is unencodable.
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        )
        model.train_from_iterator(texts, trainer=trainer)
        tokenizer = cls(model)
        if tokenizer.vocab_size != vocab_size:
            raise ValueError(
                f"vocab_size: got {vocab_size}, but these texts can fill only "
                f"{tokenizer.vocab_size}; give more text or a smaller vocab_size"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Reads what `save` wrote. FileNotFoundError or ValueError, in one line, otherwise."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"tokenizer: no such file: {path}")
        try:
            text = path.read_text(encoding="utf-8")
            description = json.loads(text)
            model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # `tokenizers` raises bare Exception for a bad file.
            reason = str(error).splitlines()[0]
            raise ValueError(f"tokenizer: {path} is not a tokenizer json ({reason})") from error
        _require_byte_level(description, path)
        return cls(model)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizers` json file; the parent directory is made if need be."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model.to_str(pretty=True), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return self.model.get_vocab_size(with_added_tokens=True) + NUM_SPECIALS

    def encode(self, text: str) -> list[int]:
        """BPE ids of `text`. UnicodeEncodeError (a ValueError) for lone surrogates."""
        text.encode("utf-8")  # `tokenizers` reports a lone surrogate as an unrelated TypeError.
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. ValueError if an id is outside the vocabulary."""
        return self.model.decode(self._ordinary(ids), skip_special_tokens=False)


@dataclass(frozen=True)
class PublishedTokenizer:
    """A published model's tokenizer.json, of any kind the `tokenizers` library reads; MASK is one id behind its last.

    Its special tokens are ids like ours: what spells one in a text is ordinary text, and decoding skips them.
    """

    model: tokenizers.Tokenizer
    bos_id: int
    eos_id: int
    pad_id: int

    @classmethod
    def load(cls, path: str | Path) -> "PublishedTokenizer":
        """Reads a tokenizer.json and, from the model's config.json beside it, which ids are BOS, EOS and PAD.

        Raises ValueError, in one line, for files that do not say so.
        """
        config = Path(path).with_name("config.json")
        try:
            values = json.loads(config.read_text(encoding="utf-8"))
            model = tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except Exception as error:  # `tokenizers` raises bare Exception for a bad file.
            raise ValueError(f"tokenizer: {path} or {config} cannot be read ({str(error).splitlines()[0]})") from error
        ids = []
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = values.get(name)
            value = value[0] if isinstance(value, list) and value else value
            if not isinstance(value, int) or model.id_to_token(value) is None:
                raise ValueError(f"tokenizer: {config}: {name}: got {value!r}, must be an id of {path}")
            ids.append(value)
        model.encode_special_tokens = True
        model.no_padding()
        model.no_truncation()
        return cls(model, *ids)

    @property
    def vocab_size(self) -> int:
        return max(self.model.get_vocab(with_added_tokens=True).values()) + 2

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. UnicodeEncodeError (a ValueError) for lone surrogates."""
        text.encode("utf-8")
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. ValueError if an id is outside the vocabulary."""
        values = [int(i) for i in ids]
        if any(not 0 <= i < self.vocab_size for i in values):
            raise ValueError(f"ids: must be in [0, {self.vocab_size})")
        kept = [i for i in values if i not in (self.bos_id, self.eos_id, self.pad_id, self.mask_id)]
        return self.model.decode(kept, skip_special_tokens=True)


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", or the path of a tokenizer json.

    That is what BPETokenizer saved, or a published model's, with special tokens and that model's config.json beside it.
    Raises FileNotFoundError if the path does not exist, ValueError if it is no such file.
    """
    if spec == "bytes":
        return ByteTokenizer()
    path = Path(spec)
    if not path.is_file():
        raise FileNotFoundError(f'tokenizer: got {str(spec)!r}, must be "bytes" or the path of a saved tokenizer json')
    published = path.with_name("config.json").is_file() and _has_added_tokens(path)
    return PublishedTokenizer.load(path) if published else BPETokenizer.load(path)


def _has_added_tokens(path: Path) -> bool:
    """Whether a json file lists some; False where it is none, which whoever reads it will say."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(description, dict) and bool(description.get("added_tokens"))


def _require_byte_level(description: dict, path: Path) -> None:
    """ValueError unless the file is a byte-level BPE over all 256 bytes with no added tokens."""
    pre_tokenizer = (description.get("pre_tokenizer") or {}).get("type")
    vocabulary = description.get("model", {}).get("vocab", {})
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if description.get("model", {}).get("type") != "BPE" or pre_tokenizer != "ByteLevel":
        raise ValueError(f"tokenizer: {path} is not a byte-level BPE as BPETokenizer.save writes")
    if description.get("added_tokens") or description.get("normalizer"):
        raise ValueError(f"tokenizer: {path} has added tokens or a normalizer: not lossless here")
    if not all(byte in vocabulary for byte in alphabet):
        raise ValueError(f"tokenizer: {path} lacks some of the 256 byte tokens: not lossless")

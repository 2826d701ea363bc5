"""Tokenizers: raw bytes, a byte-level BPE trained here with the `tokenizers` library, or a published model's.

The first two share one layout of the vocabulary: ordinary tokens first, then BOS, EOS, PAD, MASK; a published one has
its own (`zaya_jax.text.published`). No text encodes to a special token, and decoding skips them. Which id is the mask
is the model's business (`ZayaConfig.mask_token_id`); `may_be_mask` says whether a tokenizer can live with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import tokenizers

from zaya_jax.checks import natural, shown
from zaya_jax.errors import UserError
from zaya_jax.files import write_text
from zaya_jax.paths import absolute
from zaya_jax.text.published import TOKENIZER_FILE, PublishedTokenizer, read_description, require_unicode

NUM_SPECIALS = 4  # BOS, EOS, PAD, MASK, in this order, after the ordinary tokens.
NUM_BYTES = 256
OWN_BPE = "bpe:"  # and a number of ids: a tokenizer that a run trains


class Tokenizer(Protocol):
    """Text to ids and back. Ids are ints in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int:
        """The one to write after a text."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All that end a text, `eos_id` first."""
        ...

    @property
    def pad_id(self) -> int: ...
    @property
    def mask_id(self) -> int | None:
        """The id that it keeps for the model's mask token, if any."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Special tokens that have a spelling, which a chat template may write."""
        ...

    @property
    def template_tokens(self) -> Mapping[str, str]:
        """The spellings that a chat template sees as `eos_token` and so on; {} where there are none."""
        ...

    @property
    def opening(self) -> tuple[int, ...]:
        """Special tokens that belong in front of every text (a chat template writes its own)."""
        ...

    @property
    def closing(self) -> tuple[int, ...]:
        """Special tokens that belong after every text, prompts included, as some encoders' tokenizers have it."""
        ...

    @property
    def context(self) -> tuple[int, ...]:
        """What to decode a later part of a text after, where a beginning would lose its space; else ()."""
        ...

    @property
    def tidies(self) -> bool:
        """Whether decoding takes spaces out that later tokens may ask it to: see `published.tidied`."""
        ...

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Ids of `text`, without any special token; `start`: whether it begins a text."""
        ...

    def encode_written(self, parts: Sequence[str | int], start: bool = True) -> list[int]:
        """Ids of words (str) and special tokens (int) that stand in this order in a chat."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are skipped, invalid UTF-8 becomes U+FFFD."""
        ...

    def joins(self, id_: int) -> bool:
        """Whether tokens after it may change its text beyond completing a character."""
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
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    @property
    def pad_id(self) -> int:
        return self.vocab_size - 2

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    @property
    def special_ids(self) -> Mapping[str, int]:
        return {}

    @property
    def template_tokens(self) -> Mapping[str, str]:
        return {}

    @property
    def opening(self) -> tuple[int, ...]:
        return ()

    @property
    def closing(self) -> tuple[int, ...]:
        return ()

    @property
    def context(self) -> tuple[int, ...]:
        return ()

    @property
    def tidies(self) -> bool:
        return False

    def encode(self, text: str, start: bool = True) -> list[int]:
        raise NotImplementedError

    def encode_written(self, parts: Sequence[str | int], start: bool = True) -> list[int]:
        return [id_ for part in parts for id_ in (self.encode(part) if isinstance(part, str) else [part])]

    def joins(self, id_: int) -> bool:
        return False

    def _ordinary(self, ids: Sequence[int]) -> list[int]:
        """`ids` without the special tokens; UserError if one is outside the vocabulary."""
        values = [int(i) for i in ids]
        if values and not (min(values) >= 0 and max(values) < self.vocab_size):
            wrong = min(values) if min(values) < 0 else max(values)
            raise UserError(f"ids: got {wrong}, must be in [0, {self.vocab_size})")
        return [i for i in values if i < self.bos_id]


@dataclass(frozen=True)
class ByteTokenizer(_SpecialsLast):
    """UTF-8 bytes 0..255, then BOS=256, EOS=257, PAD=258, MASK=259."""

    @property
    def vocab_size(self) -> int:
        return NUM_BYTES + NUM_SPECIALS

    def encode(self, text: str, start: bool = True) -> list[int]:
        """The UTF-8 bytes of `text`. UserError for lone surrogates."""
        require_unicode(text)
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes in `ids`. UserError if an id is outside the vocabulary."""
        return bytes(self._ordinary(ids)).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class BPETokenizer(_SpecialsLast):
    """Lossless byte-level BPE. Build one with `train` or `load`."""

    model: tokenizers.Tokenizer  # Knows ordinary tokens only; the specials are ours.

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learns merges from `texts` until there are `vocab_size` rows, specials included.

        Raises UserError if `vocab_size` is below 260 or more than `texts` can fill.
        """
        smallest = NUM_BYTES + NUM_SPECIALS
        if vocab_size < smallest:
            raise UserError(f"vocab_size: got {vocab_size}, must be at least {smallest}")
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
            raise UserError(
                f"vocab_size: got {vocab_size}, but these texts can fill only "
                f"{tokenizer.vocab_size}; give more text or a smaller vocab_size"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Reads what `save` wrote. FileNotFoundError or UserError, in one line, otherwise."""
        path = absolute(path)
        if not path.exists():
            raise FileNotFoundError(f"tokenizer: no such file: {path}")
        description, model = read_description(path)
        if not _is_ours(description):
            raise UserError(f"tokenizer: {path} is not a lossless byte-level BPE as BPETokenizer.save writes it")
        return cls(model)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizers` json file; the parent directory is made if need be."""
        path = absolute(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.model.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        return self.model.get_vocab_size(with_added_tokens=True) + NUM_SPECIALS

    def encode(self, text: str, start: bool = True) -> list[int]:
        """BPE ids of `text`. UserError for lone surrogates."""
        require_unicode(text)  # `tokenizers` reports one as an unrelated TypeError
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. UserError if an id is outside the vocabulary."""
        return self.model.decode(self._ordinary(ids), skip_special_tokens=False)


@dataclass(frozen=True)
class UntrainedBPE(_SpecialsLast):
    """The ids of a `BPETokenizer` that a run will train on its own text: enough to check a config with."""

    size: int

    @property
    def vocab_size(self) -> int:
        return self.size

    def encode(self, text: str, start: bool = True) -> list[int]:
        raise UserError(
            f"tokenizer: {OWN_BPE}{self.size} is not trained yet; a run keeps its own in WORKDIR/tokenizer.json"
        )

    def decode(self, ids: Sequence[int]) -> str:
        raise UserError(f"tokenizer: {OWN_BPE}{self.size} is not trained yet")


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", the path of a tokenizer json, or a folder that holds one.

    "bpe:1024" names one of 1,024 ids that a run trains on its own text: an `UntrainedBPE`.

    A file is BPETokenizer's where it is as that writes it (bytes' where it has no merges), else a published model's,
    whose special tokens the files beside it name. Raises FileNotFoundError if there is none, UserError if it is no such
    file.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if str(spec).startswith(OWN_BPE):
        size = natural(str(spec).removeprefix(OWN_BPE))
        if size is None or not NUM_BYTES + NUM_SPECIALS <= size <= 2**20:
            raise UserError(
                f"tokenizer: got {shown(str(spec))}, may be {OWN_BPE}N, N ids of {NUM_BYTES + NUM_SPECIALS} .. {2**20}"
            )
        return UntrainedBPE(size)
    path = tokenizer_file(spec)
    description, model = read_description(path)
    if _is_ours(description):
        return ByteTokenizer() if description["model"]["vocab"] == byte_vocabulary() else BPETokenizer(model)
    return cast(Tokenizer, PublishedTokenizer.read(path, description, model))


def tokenizer_file(spec: str | Path) -> Path:
    """The json that `spec` names: the file itself, or the one in a folder. FileNotFoundError if there is none."""
    path = absolute(spec)
    if path.is_dir():
        path = path / TOKENIZER_FILE
    if not path.exists():
        may_be = f'"bytes", the path of a tokenizer json, or a folder with a {TOKENIZER_FILE}'
        raise FileNotFoundError(f"tokenizer: got {str(spec)!r}, must be {may_be}")
    return path


def byte_vocabulary() -> dict[str, int]:
    """The tokens of byte-level vocabularies that are one byte -> that byte.

    Printable characters of Latin-1 stand for themselves, the other bytes, in order, for the characters from 256 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(NUM_BYTES) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def ids_in_texts(tokenizer: Tokenizer) -> int:
    """One more than the largest id that a text, its beginning or its end may have.

    What lies beyond, in some vocabularies, are special tokens that nothing writes (a padding token added later): a
    model need not have a row for them.
    """
    model, needed = getattr(tokenizer, "model", None), tokenizer.vocab_size
    if not isinstance(model, tokenizers.Tokenizer) or not tokenizer.special_ids:
        return needed
    kept = {*tokenizer.opening, tokenizer.eos_id}
    special = {id_ for id_ in tokenizer.special_ids.values() if id_ not in kept}
    return max((id_ for id_ in model.get_vocab(with_added_tokens=True).values() if id_ not in special), default=-1) + 1


def may_be_mask(tokenizer: Tokenizer, id_: int) -> bool:
    """Whether a model's mask token may have this id: one that no text has and that says nothing else."""
    said = {tokenizer.bos_id, tokenizer.pad_id, *tokenizer.eos_ids}
    kept = tokenizer.mask_id is not None and id_ == tokenizer.mask_id
    return kept or id_ >= tokenizer.vocab_size or id_ in {*tokenizer.special_ids.values()} - said


def for_model(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer for a model of other ids than it has: what the model has beyond them is no text.

    Ids that the model has no row for (see `ids_in_texts`) neither fill rows nor end texts: EOS fills them then.
    """
    return tokenizer if tokenizer.vocab_size == vocab_size else cast(Tokenizer, _Fitted(tokenizer, vocab_size))


class _Fitted:
    """A tokenizer for a model that has other ids than it."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id < rows else tokenizer.eos_id
        self.eos_ids = tuple(id_ for id_ in tokenizer.eos_ids if id_ < rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i < self._tokenizer.vocab_size])


def _is_ours(description: dict) -> bool:
    """Whether a file is a byte-level BPE over all 256 bytes, without added tokens or a normalizer."""
    model = description.get("model") or {}
    pre_tokenizer = (description.get("pre_tokenizer") or {}).get("type")
    if model.get("type") != "BPE" or pre_tokenizer != "ByteLevel":
        return False
    if description.get("added_tokens") or description.get("normalizer"):
        return False
    vocabulary = model.get("vocab", {})
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):  # the specials' ids come after the last
        return False
    return all(byte in vocabulary for byte in tokenizers.pre_tokenizers.ByteLevel.alphabet())

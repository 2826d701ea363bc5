"""A published model's tokenizer: tokenizer.json, and which of its ids mean what from the files beside it.

Nothing of a folder runs: all files are JSON. What they say of special tokens is believed only where the tokenizer has
such ids.
"""

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from zaya_jax import paths
from zaya_jax.errors import UserError
from zaya_jax.paths import one_line, read_text

TOKENIZER_FILE = "tokenizer.json"
# Who says which ids begin, end and fill a text: by number, the model's files; by spelling, the tokenizer's own.
NUMBERED, SPELLED = ("config.json", "generation_config.json"), "tokenizer_config.json"
ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True)
class PublishedTokenizer:
    """Any tokenizer.json that the `tokenizers` library reads: byte-level or SentencePiece-like BPE, Unigram, WordPiece.

    What spells a special token in a text is ordinary text, and decoding skips special tokens. There need be no BOS
    (`bos_id` None) and no PAD (then EOS fills rows, where nobody looks). Mask tokens are the model's business
    (`mask_id` None). Not every such tokenizer is lossless: many normalise what they read.
    """

    model: tokenizers.Tokenizer
    bos_id: int | None
    eos_ids: tuple[int, ...]  # all that end a text; the first is the one to write
    pad_id: int
    opening: tuple[int, ...]  # special tokens that belong in front of every text
    special_ids: Mapping[str, int] = field(repr=False)  # by spelling
    mask_id: None = None

    @classmethod
    def read(cls, path: Path, description: dict[str, Any], model: tokenizers.Tokenizer) -> "PublishedTokenizer":
        """`read_description(path)` with what the files beside it say of special tokens.

        EOS are all that any of config.json, generation_config.json and tokenizer_config.json names; the last one's is
        the one to write, as chat templates mean it. For BOS and PAD the first file that names one is believed. A text
        begins as the tokenizer's post-processor begins it, or as tokenizer_config.json's add_bos_token says.

        Raises:
          UserError: one line: a file that cannot be read, ids or spellings that the tokenizer does not have as special
            tokens, no EOS.
        """
        added = model.get_added_tokens_decoder()
        for token in description.get("added_tokens") or ():
            got = added.get(token["id"])
            if got is None or got.content != token["content"]:
                raise UserError(f"tokenizer: {path}: added_tokens: {token['content']!r} cannot have id {token['id']}")
        named = _named_ids(path, model)
        if not named["eos"]:
            places = ", ".join((*NUMBERED, SPELLED))
            raise UserError(f"tokenizer: {path}: no EOS token: none of {places} beside it names one (eos_token_id)")
        special = {token.content: id_ for id_, token in added.items() if token.special}
        for role in ("bos", "eos"):
            wrong = next((id_ for id_ in named[role] if id_ not in special.values()), None)
            if wrong is not None:  # a text could say it
                got = f"{wrong} ({model.id_to_token(wrong)!r})"
                raise UserError(f"tokenizer: {path}: {role} token: got {got}, must be one of its special tokens")
        model.encode_special_tokens = True
        model.no_padding()
        model.no_truncation()
        first = {role: next(iter(ids), None) for role, ids in named.items()}
        pad = named["eos"][0] if first["pad"] is None else first["pad"]
        opening, add_bos = _opening(model), read_object(path.with_name(SPELLED)).get("add_bos_token")
        if isinstance(add_bos, bool):
            opening = (first["bos"],) if add_bos and first["bos"] is not None else ()
        return cls(model, first["bos"], tuple(named["eos"]), pad, opening, special)

    @property
    def eos_id(self) -> int:
        return self.eos_ids[0]

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.model.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Ids of `text`.

        Args:
          start: whether it begins a text: some tokenizers read a space in front of a text, but not in front of its
            later parts.

        Raises:
          UnicodeEncodeError (a ValueError): for lone surrogates.
          UserError: a text that the tokenizer has no tokens for.
        """
        text.encode("utf-8")
        try:
            ids = (self.model if start else self._inside).encode(text, add_special_tokens=False).ids
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(f"tokenizer: cannot encode {text[:40]!r}: {one_line(error)}") from error
        # a vocabulary may have the spelling among its pieces, too
        spelled = [s for s, id_ in self.special_ids.items() if id_ in ids and s in text and len(s) > 1]
        if not spelled:
            return ids
        before, _, after = text.partition(spelled[0])
        parts = [before + spelled[0][:1], spelled[0][1:] + after]
        return self.encode(parts[0], start) + self.encode(parts[1], False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. UserError if an id is outside the vocabulary."""
        values = [int(i) for i in ids]
        wrong = next((i for i in values if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"ids: got {wrong}, must be in [0, {self.vocab_size})")
        return self.model.decode([i for i in values if i not in self._silent], skip_special_tokens=True)

    def joins(self, id_: int) -> bool:
        """Whether it is a byte that decodes together with the bytes around it, so that later ones change its text."""
        return id_ in self._fallback_bytes

    @functools.cached_property
    def context(self) -> tuple[int, ...]:
        """A token of visible text to decode later parts of a text behind; () where none has any."""
        for id_ in range(self.vocab_size):
            if id_ not in self._silent and id_ not in self._fallback_bytes:
                text = self.model.decode([id_])
                if text.isascii() and text.isalnum():
                    return (id_,)
        return ()

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    @functools.cached_property
    def _fallback_bytes(self) -> frozenset[int]:
        if "ByteFallback" not in json.dumps(json.loads(self.model.to_str()).get("decoder")):
            return frozenset()
        ids = (self.model.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(id_ for id_ in ids if id_ is not None)

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The tokenizer without the space in front of a text where that stands at a text's beginning only."""
        description = json.loads(self.model.to_str())
        changed = copy.deepcopy(description)
        steps = changed.get("pre_tokenizer") or {}
        for step in steps.get("pretokenizers", [steps]):
            if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
        if changed == description:
            return self.model
        model = tokenizers.Tokenizer.from_str(json.dumps(changed))
        model.encode_special_tokens = True
        return model


def read_description(path: Path) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """A tokenizer.json as JSON and as a tokenizer. UserError, in one line, for anything else."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer: {one_line(error)}") from None
    try:
        description = json.loads(text)
        return description, tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and a panic is none
        raise UserError(f"tokenizer: {path} is not a tokenizer json ({one_line(error)})") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. UserError, in one line, for anything else."""
    if not path.exists():
        return {}
    try:
        return paths.read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer: {one_line(error)}") from None


def _opening(model: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The special tokens that a tokenizer's post-processor puts in front of a text."""
    try:
        alone, whole = (model.encode("a", add_special_tokens=special).ids for special in (False, True))
    except Exception:  # no token for an "a", so nothing to find
        return ()
    starts = (at for at in range(len(whole)) if alone and whole[at : at + len(alone)] == alone)
    return tuple(whole[: next(starts, 0)])


def _named_ids(path: Path, model: tokenizers.Tokenizer) -> dict[str, list[int]]:
    """What the files beside a tokenizer.json say: role -> ids, the most believed first."""
    named: dict[str, list[int]] = {role: [] for role in ROLES}
    for name in NUMBERED:
        values = read_object(path.with_name(name))
        for role in ROLES:
            given = values.get(f"{role}_token_id")
            for id_ in given if isinstance(given, list) else [given] * (given is not None):
                known = isinstance(id_, int) and not isinstance(id_, bool) and id_ < 2**31
                if known and (id_ < 0 or (role == "pad" and model.id_to_token(id_) is None)):
                    continue  # -1 is Meta's word for none; and nobody reads what fills a row
                if not known or model.id_to_token(id_) is None:
                    where = path.with_name(name)
                    raise UserError(f"tokenizer: {where}: {role}_token_id: got {id_!r}, must be an id of {path}")
                named[role] += [id_] * (id_ not in named[role])
    values = read_object(path.with_name(SPELLED))
    for role in ROLES:
        given = values.get(f"{role}_token")
        given = given.get("content") if isinstance(given, dict) else given
        if given is None:
            continue
        id_ = model.token_to_id(given) if isinstance(given, str) else None
        if id_ is None and role == "pad" and isinstance(given, str):
            continue
        if id_ is None:
            where = path.with_name(SPELLED)
            raise UserError(f"tokenizer: {where}: {role}_token: got {given!r}, must be a token of {path}")
        others = [other for other in named[role] if other != id_]
        named[role] = [id_, *others] if role == "eos" else [*named[role], *[id_] * (id_ not in named[role])]
    return named

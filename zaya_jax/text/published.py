"""A published model's tokenizer: tokenizer.json, and which of its ids mean what from the files beside it.

Nothing of a folder runs: all files are JSON. What they say of special tokens is believed only where the tokenizer has
such ids.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from zaya_jax.errors import UserError
from zaya_jax.files import read_text
from zaya_jax.paths import one_line
from zaya_jax.text.named_classes import Rebuilt, rebuilt
from zaya_jax.text.special_tokens import NUMBERED, SPELLED, SpecialTokens, check_added, named_ids, read_object

TOKENIZER_FILE = "tokenizer.json"
# What transformers' clean_up_tokenization replaces in a decoded text, in this order.
TIDIED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


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
    opening: tuple[int, ...]  # special tokens that belong in front of every text,
    closing: tuple[int, ...]  # and after it
    special_ids: Mapping[str, int] = field(repr=False)  # by spelling
    template_tokens: Mapping[str, str] = field(repr=False)  # spellings that chat templates see, as "eos_token"
    tidies: bool = field(default=False, compare=False)  # whether decoding replaces `TIDIED`; decides no ids
    mask_id: None = None

    @classmethod
    def read(cls, path: Path, description: dict[str, Any], model: tokenizers.Tokenizer) -> "PublishedTokenizer":
        """`read_description(path)` with what the files beside it say of special tokens.

        EOS are all that any of config.json, generation_config.json and tokenizer_config.json names; the last one's is
        the one to write, as chat templates mean it. For BOS and PAD the first file that names one is believed. As in
        transformers 5, a token that tokenizer_config.json names is a special token whatever tokenizer.json says, the
        flags there of those that it adds count, a text begins and ends as the post-processor has it (`add_bos_token`
        is for tokenizers without a tokenizer.json), and stored truncation and padding are ignored.

        Raises:
          UserError: one line: a file that cannot be read, ids or spellings that the tokenizer does not have as special
            tokens, no EOS.
        """
        values = read_object(path.with_name(SPELLED))
        named_class = _as_named(path, description, values)
        if named_class:
            model = _from_json(path, json.dumps(named_class.description))
        tokens = SpecialTokens.read(path, description, named_class.defaults if named_class else None)
        check_added(path, model, description.get("added_tokens") or ())
        tokens.give(path, model)
        if named_class and named_class.drops_flags:
            tokens.drop_flags(model)
        named = named_ids(path, model, tokens.spelled)
        if not named["eos"]:
            places = ", ".join((*NUMBERED, SPELLED))
            raise UserError(f"tokenizer: {path}: no EOS token: none of {places} beside it names one (eos_token_id)")
        special = {token.content: id_ for id_, token in model.get_added_tokens_decoder().items() if token.special}
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
        template_tokens = {"eos_token": str(model.id_to_token(named["eos"][0]))}
        template_tokens |= {name: token.content for name, token in tokens.own.items()}
        template_tokens |= {f"{role}_token": spelling for role, spelling in tokens.spelled.items()}
        ends, tidies = tuple(named["eos"]), _tidies(path, model, values)
        return cls(model, first["bos"], ends, pad, *_around(path, model), special, template_tokens, tidies)

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
          UserError: lone surrogates, or a text that the tokenizer has no tokens for.
        """
        return self._ids(self._reading if start else self._inside, text)

    def _takes(self, part: str | int, side: str) -> bool:
        """Whether a part is an added token that takes the white space on its "lstrip" or "rstrip" side."""
        return not isinstance(part, str) and getattr(self._added[part], side)

    def encode_written(self, parts: Sequence[str | int], start: bool = True) -> list[int]:
        """Ids of words (str) and special tokens (int) in their order, as transformers reads them written as one text.

        Added tokens may take the white space around them (lstrip, rstrip), and what comes after one may get a space as
        a text's beginning does, so the parts are not read one by one unless the words spell a special token.
        """
        special = [part for part in parts if not isinstance(part, str)]
        words = [part for part in parts if isinstance(part, str)]
        if not start and parts and isinstance(parts[0], str):  # up to the next special token nothing begins
            ends = len(parts) > 1 and self._takes(parts[1], "lstrip")
            head = self.encode(parts[0].rstrip() if ends else parts[0], start=False)
            return head + (self.encode_written(parts[1:]) if len(parts) > 1 else [])
        if not any(spelling in part for part in words for spelling in self.special_ids if len(spelling) > 1):
            whole = "".join(part if isinstance(part, str) else self._added[part].content for part in parts)
            ids = self._encoded(self._speaking, whole)
            left = iter(special)  # not all need be found: a normalizer may hide a token's spelling
            if all(id_ in left for id_ in ids if id_ in self._special):
                return ids
        ids = []
        for at, part in enumerate(parts):
            if not isinstance(part, str):
                ids.append(part)
                continue
            if at and self._takes(parts[at - 1], "rstrip"):
                part = part.lstrip()
            if at + 1 < len(parts) and self._takes(parts[at + 1], "lstrip"):
                part = part.rstrip()
            ids += self._ids(self._after if at else self._reading, part)
        return ids

    def _ids(self, model: tokenizers.Tokenizer, text: str) -> list[int]:
        """Ids of ordinary text by `model`, one of the three for different places; no special token's."""
        ids = self._encoded(model, text)
        # a vocabulary may have the spelling among its pieces, too
        spelled = [s for s, id_ in self.special_ids.items() if id_ in ids and s in text and len(s) > 1]
        if not spelled:
            return ids
        before, _, after = text.partition(spelled[0])
        return self._ids(model, before + spelled[0][:1]) + self._ids(self._inside, spelled[0][1:] + after)

    @staticmethod
    def _encoded(model: tokenizers.Tokenizer, text: str) -> list[int]:
        require_unicode(text)
        try:
            return model.encode(text, add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # `tokenizers` raises bare Exception, and a panic is none
            raise UserError(f"tokenizer: cannot encode {text[:40]!r}: {one_line(error)}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. UserError if an id is outside the vocabulary."""
        values = [int(i) for i in ids]
        wrong = next((i for i in values if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"ids: got {wrong}, must be in [0, {self.vocab_size})")
        ends = {self.bos_id, *self.eos_ids}
        text = self.model.decode([i for i in values if i not in ends], skip_special_tokens=True)
        return tidied(text) if self.tidies else text

    def joins(self, id_: int) -> bool:
        """Whether it is a byte that decodes together with the bytes around it, so that later ones change its text."""
        return id_ in self._fallback_bytes

    @functools.cached_property
    def context(self) -> tuple[int, ...]:
        """A token of visible text to decode later parts of a text after; () where none has any."""
        for id_ in range(self.vocab_size):
            if id_ not in self._special and id_ not in self._fallback_bytes:
                text = self.model.decode([id_])
                if text.isascii() and text.isalnum():
                    return (id_,)
        return ()

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    @functools.cached_property
    def _fallback_bytes(self) -> frozenset[int]:
        if "ByteFallback" not in json.dumps(json.loads(self.model.to_str()).get("decoder")):
            return frozenset()
        ids = (self.model.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(id_ for id_ in ids if id_ is not None)

    @functools.cached_property
    def _added(self) -> Mapping[int, tokenizers.AddedToken]:
        return self.model.get_added_tokens_decoder()

    @functools.cached_property
    def _reading(self) -> tokenizers.Tokenizer:
        """The tokenizer for ordinary text.

        Where one file calls a token special and another does not, the library (and so transformers) matches it as the
        last one says and skips it as the first one does.
        """
        skipped = {id_ for id_ in self._added if self.model.decode([id_]) != self.model.decode([id_], False)}
        written = {id_ for id_ in self._added if self.model.decode([id_], False)}
        if all(token.special == (id_ in skipped) for id_, token in self._added.items() if id_ in written):
            return self.model
        model = tokenizers.Tokenizer.from_str(self.model.to_str())
        model.encode_special_tokens = True
        return model

    @functools.cached_property
    def _speaking(self) -> tokenizers.Tokenizer:
        """The tokenizer that takes what spells a special token for one."""
        model = tokenizers.Tokenizer.from_str(self.model.to_str())
        model.encode_special_tokens = False
        return model

    @functools.cached_property
    def _after(self) -> tokenizers.Tokenizer:
        """The tokenizer for what comes after a special token: without a space that only a text's beginning gets."""
        return self._changed(_without_first_space)

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The tokenizer for what comes after ordinary text: without any space that it puts in front of a text."""
        return self._changed(_without_spaces)

    def _changed(self, change: Callable[[Any], Any]) -> tokenizers.Tokenizer:
        description = json.loads(self.model.to_str())
        changed = {name: change(description.get(name)) for name in ("normalizer", "pre_tokenizer")}
        if all(changed[name] == description.get(name) for name in changed):
            return self._reading
        model = tokenizers.Tokenizer.from_str(json.dumps(description | changed))
        model.encode_special_tokens = True
        return model


def _without_first_space(step: Any) -> Any:
    """A pre_tokenizer's or normalizer's description that reads every text as if it were not the first."""
    return _each(step, lambda s: s | {"prepend_scheme": "never"} if s.get("prepend_scheme") == "first" else s)


def _without_spaces(step: Any) -> Any:
    """The same that puts no space in front of any text, and takes none away there."""

    def change(step: dict[str, Any]) -> dict[str, Any] | None:
        if step["type"] == "Prepend":
            return None
        kind = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
        return step | (kind | {"Strip": {"strip_left": False}}).get(step["type"], {})

    return _each(step, change)


def _each(step: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """`step` with `change` made to it, or to each of a sequence's; None leaves one out."""
    if not isinstance(step, dict):
        return step
    inner = next((name for name in ("normalizers", "pretokenizers") if name in step), None)
    if inner is None:
        return change(step)
    return step | {inner: [new for new in (_each(one, change) for one in step[inner]) if new is not None]}


def read_description(path: Path) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """A tokenizer.json as JSON and as a tokenizer. UserError, in one line, for anything else."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer: {one_line(error)}") from None
    model = _from_json(path, text)
    return json.loads(text), model


def _from_json(path: Path, text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and a panic is none
        raise UserError(f"tokenizer: {path} is not a tokenizer json ({one_line(error)})") from error


def tidied(text: str) -> str:
    """A decoded text without the spaces that some vocabularies leave, as transformers' clean_up_tokenization does it.

    A text may be cut in front of a space, unless that follows an apostrophe: what its parts become adds up.
    """
    for spaced in TIDIED:
        text = text.replace(spaced, spaced.strip())
    return text


def _around(path: Path, model: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer's post-processor puts (in front of, after) a text.

    Raises UserError for one that does anything else to a text, or puts ids there that the tokenizer does not have.
    """
    text = 2**32 - 1  # stands for one: an id that no vocabulary has
    stand_in = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": text}, "a"))
    ids = [text] if model.post_processor is None else model.post_processor.process(stand_in.encode("a")).ids
    if ids.count(text) != 1:
        raise UserError(f"tokenizer: {path}: post_processor: writes a text {ids.count(text)} times, may write it once")
    at = ids.index(text)
    unknown = next((id_ for id_ in ids if id_ != text and model.id_to_token(id_) is None), None)
    if unknown is not None:
        raise UserError(f"tokenizer: {path}: post_processor: got {unknown}, must be an id of the tokenizer")
    return tuple(ids[:at]), tuple(ids[at + 1 :])


def require_unicode(text: str) -> None:
    """Raises UserError for a lone surrogate, which no encoding of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"text: holds a lone surrogate (U+{ord(text[error.start]):04X}) at {error.start}") from None


def _tidies(path: Path, model: tokenizers.Tokenizer, values: Mapping[str, Any]) -> bool:
    """Whether transformers 5 tidies what it decodes: not with BPE, whatever clean_up_tokenization_spaces says of it."""
    corrupts = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    given = {name: values.get(name) for name in ("clean_up_tokenization_spaces", corrupts)}
    for name, value in given.items():
        if value is not None and not isinstance(value, bool):
            raise UserError(f"tokenizer: {path.with_name(SPELLED)}: {name}: got {value!r:.60}, must be true or false")
    return bool(given["clean_up_tokenization_spaces"]) and (
        type(model.model).__name__ != "BPE" or bool(given[corrupts])
    )


def _as_named(path: Path, description: Mapping[str, Any], values: Mapping[str, Any]) -> Rebuilt | None:
    """The folder as transformers 5 builds it where the files name a class of its own; None: as tokenizer.json says."""
    where = path.with_name(SPELLED)
    if values.get("split_special_tokens"):
        raise UserError(f"tokenizer: {where}: split_special_tokens: got true, may be false")
    return rebuilt(where, description, values, read_object(path.with_name("config.json")))

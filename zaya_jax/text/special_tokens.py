"""Which special tokens the files beside a tokenizer.json name and add, read as transformers 5 reads them.

A token is a string, which is special and taken as it is, or an object, whose flags count: whether it takes the white
space around it (lstrip, rstrip), and, where it stands in a list, whether it is special at all. A token that decoding
does not skip is part of the text.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from zaya_jax import files
from zaya_jax.errors import UserError
from zaya_jax.paths import one_line

SPELLED = "tokenizer_config.json"  # names special tokens by their spelling,
SPELLED_BEFORE, ADDED_BEFORE = "special_tokens_map.json", "added_tokens.json"  # as older releases' files do
NUMBERED = ("config.json", "generation_config.json")  # the model's own, by their ids
ROLES = ("bos", "eos", "pad")
NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in the order in which transformers adds those that are new
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
MORE, MORE_BEFORE = "extra_special_tokens", "additional_special_tokens"
EXPLICIT = "model_specific_special_tokens"
SEVERAL = "must be a list of tokens, or an object of tokens by their roles"
TYPED = ("__type", "AddedToken")  # marks an object as a token


@dataclass(frozen=True)
class SpecialTokens:
    """What the files say.

    Attributes:
      roles: by the names of `NAMED`.
      defaults: by the same, what no file names and no vocabulary has, but the tokenizer's class adds.
      own: by a model's own names ("image_token").
      listed: without a name; the ones that are not special are text.
      numbered: by the ids that they should have.
      source: what says these ids, for messages.
    """

    roles: Mapping[str, AddedToken]
    defaults: Mapping[str, AddedToken]
    own: Mapping[str, AddedToken]
    listed: Sequence[AddedToken]
    numbered: Mapping[int, AddedToken]
    source: str

    @property
    def spelled(self) -> dict[str, str]:
        """Role -> spelling."""
        return {role: token.content for role, token in self.roles.items()}

    @classmethod
    def read(
        cls, path: Path, description: Mapping[str, Any], defaults: Mapping[str, str] | None = None
    ) -> "SpecialTokens":
        """Those of the files beside a tokenizer.json, at `path`, with its `description`.

        Args:
          defaults: spellings by roles, of the tokenizer's class.

        Raises:
          UserError: one line: a file that cannot be read, or a token that is none.
        """
        where, before = path.with_name(SPELLED), path.with_name(SPELLED_BEFORE)
        values = read_object(where)
        decoder = values.get("added_tokens_decoder")
        mapped = read_object(before) if decoder is None else {}  # else transformers does not look there
        roles = {}
        for name in (f"{role}_token" for role in NAMED):
            source, given = (before, mapped[name]) if name in mapped else (where, values.get(name))
            if given is not None:
                wrong = f"{name}: got {given!r:.200}, must be a token of {path}"
                roles[name.removesuffix("_token")] = _token(source, name, given, True, wrong)
        of_class = {
            role: AddedToken(spelling, special=True, normalized=False)
            for role, spelling in (defaults or {}).items()
            if f"{role}_token" not in values and f"{role}_token" not in mapped
        }
        there = _spellings(description)
        roles |= {role: token for role, token in of_class.items() if token.content in there}
        missing = {role: token for role, token in of_class.items() if token.content not in there}
        own, listed = _others(where, values, before, mapped)
        if decoder is not None:
            return cls(roles, missing, own, listed, _numbered(where, decoder), f"{where}: added_tokens_decoder")
        where = path.with_name(ADDED_BEFORE)
        numbered = _numbered_before(where, description, _known_special(values, mapped))
        return cls(roles, missing, own, listed, numbered, f"{where}")

    def give(self, path: Path, model: tokenizers.Tokenizer) -> None:
        """Adds all of them to the tokenizer, and makes those that have a name special.

        A padding token that the tokenizer does not have is left out, as nobody reads what fills a row, and so is what
        only its class adds, unless others would get their ids.

        Raises:
          UserError: one line: a beginning or an end that the tokenizer does not have, or a token that cannot have the
            id that a file gives it.
        """
        where = path.with_name(SPELLED)
        tokens = [token for _, token in sorted(self.numbered.items())]
        there = {token.content for token in (*model.get_added_tokens_decoder().values(), *tokens)}
        every = {**self.roles, **self.defaults}
        named = [*(every[role] for role in NAMED if role in every), *self.own.values()]
        new = [token for token in (*named, *self.listed) if token.content not in there]
        for token in new:
            if any(repr(other) != repr(token) for other in new if other.content == token.content):
                raise UserError(f"tokenizer: {where}: {token.content!r}: named twice, with other flags (lstrip, ...)")
        unknown = {token.content for token in new if model.token_to_id(token.content) is None}
        for role in {"bos", "eos"} & set(self.roles):
            if self.roles[role].content in unknown:
                got = f"got {self.roles[role].content!r}"
                raise UserError(f"tokenizer: {where}: {role}_token: {got}, must be a token of {path}")
        optional = [*self.defaults.values(), *(token for role, token in self.roles.items() if role == "pad")]
        while new and new[-1].content in unknown and any(new[-1] is token for token in optional):
            new.pop()
        names = {token.content for token in named}
        for token in (*tokens, *new):
            token.special = token.special or token.content in names
        model.add_tokens([*tokens, *new])
        for id_, token in self.numbered.items():
            if model.token_to_id(token.content) != id_:
                raise UserError(f"tokenizer: {self.source}: {token.content!r} cannot have id {id_}")

    def drop_flags(self, model: tokenizers.Tokenizer) -> None:
        """Makes each token that is named or listed, and that the tokenizer has, special and without other flags."""
        named = (*self.roles.values(), *self.defaults.values(), *self.own.values(), *self.listed)
        spellings = dict.fromkeys(token.content for token in named)
        model.add_tokens([AddedToken(word, special=True) for word in spellings if model.token_to_id(word) is not None])


def _spellings(description: Mapping[str, Any]) -> set[str]:
    """All tokens of a tokenizer.json's BPE, the only kind that a class of transformers' builds here."""
    vocabulary = (description.get("model") or {}).get("vocab")
    added = (token.get("content") for token in description.get("added_tokens") or ())
    return {*(vocabulary if isinstance(vocabulary, dict) else ()), *added}


def _token(where: Path, name: str, given: Any, special: bool | None, wrong: str) -> AddedToken:
    """A file's token.

    Args:
      special: whether it is special; None: as the object says, where it is marked as a token.
      wrong: the message for what is none.
    """
    if isinstance(given, str):
        return AddedToken(given, special=True, normalized=False)
    if not isinstance(given, dict) or not isinstance(given.get("content"), str):
        raise UserError(f"tokenizer: {where}: {wrong}")
    flags = {flag: given[flag] for flag in FLAGS if flag in given}
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"tokenizer: {where}: {name}: {flag}: got {value!r:.60}, must be true or false")
    if special is None and TYPED not in given.items():
        special = True
    return AddedToken(given["content"], **flags | ({} if special is None else {"special": special}))


def _others(
    where: Path, values: Mapping[str, Any], before: Path, mapped: Mapping[str, Any]
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """(by a model's own names, without a name) of one file and the other.

    A model's own names are strings and marked objects under "..._token", and an object under `MORE`; of a list under
    `MORE` or, where there is no `MORE`, `MORE_BEFORE` the tokens have none.
    """
    strings = {name: value for name, value in _own(values).items() if isinstance(value, str)}
    marked = {name: value for name, value in _own(values).items() if isinstance(value, dict) and TYPED in value.items()}
    objects = {name: value for name, value in _own(mapped).items() if isinstance(value, str | dict)}
    lists = {name: (where, name, values[name]) for name in (MORE, MORE_BEFORE) if name in values}
    if MORE_BEFORE in lists and not values.get(MORE):
        lists[MORE] = lists.pop(MORE_BEFORE)
    given = lists.pop(MORE) if isinstance(lists.get(MORE, ("", "", None))[2], dict) else (where, MORE, {})
    explicit = _by_name(where, strings, "") | _by_name(where, given[2], given[1])
    if not explicit:
        explicit = _by_name(where, values.get(EXPLICIT) or {}, EXPLICIT)
    if MORE_BEFORE in mapped:
        lists[MORE_BEFORE] = (before, MORE_BEFORE, mapped[MORE_BEFORE])
    if isinstance(mapped.get(MORE), dict):
        lists.pop(MORE, None)
        explicit |= _by_name(before, mapped[MORE], MORE)
    elif MORE in mapped:
        lists.setdefault(MORE, (before, MORE, []))
    if MORE not in lists and MORE_BEFORE in lists:
        lists[MORE] = lists[MORE_BEFORE]
    listed = _list(*lists[MORE], None) if MORE in lists else []
    if not isinstance(mapped.get(MORE), dict):
        listed += [token for token in _list(before, MORE, mapped.get(MORE), True) if token not in listed]
    return _by_name(where, marked, "") | _by_name(before, objects, "") | explicit, listed


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    standard = {f"{role}_token" for role in NAMED}
    return {name: value for name, value in values.items() if name.endswith("_token") and name not in standard}


def _by_name(where: Path, given: Any, field: str) -> dict[str, AddedToken]:
    """Name -> token of an object under `field`; "": of the file's own fields."""
    if not isinstance(given, dict):
        raise UserError(f"tokenizer: {where}: {field}: {SEVERAL}")
    found = {}
    for name, token in given.items():
        wrong = f"{field}: {SEVERAL}" if field else f"{name}: got {token!r:.200}, must be a token"
        found[name] = _token(where, field or name, token, True, wrong)
    return found


def _list(where: Path, field: str, given: Any, special: bool | None) -> list[AddedToken]:
    if not isinstance(given or [], list):
        raise UserError(f"tokenizer: {where}: {field}: {SEVERAL}")
    return [_token(where, field, token, special, f"{field}: {SEVERAL}") for token in given or ()]


def _known_special(values: Mapping[str, Any], mapped: Mapping[str, Any]) -> set[str]:
    """What transformers takes for special when it reads added_tokens.json: not yet the objects of the newer file."""
    more = () if isinstance(mapped.get(MORE), dict) else (values.get(MORE) or values.get(MORE_BEFORE) or ())
    words = [*(values.get(f"{role}_token") for role in NAMED), *more]
    named = [*(mapped.get(f"{role}_token") for role in NAMED), *(mapped.get(MORE) or ())]
    spelled = [token.get("content") if isinstance(token, dict) else token for token in named]
    return {word for word in (*words, *spelled) if isinstance(word, str)}


def _numbered_before(where: Path, description: Mapping[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Id -> token of added_tokens.json, at `where`, and tokenizer.json, which is believed where both name an id."""
    numbered = {}
    for spelling, id_ in read_object(where).items():
        if not isinstance(id_, int) or isinstance(id_, bool):
            raise UserError(f"tokenizer: {where}: {spelling[:60]!r}: got {id_!r:.60}, must be an id")
        numbered[id_] = AddedToken(spelling, special=spelling in special, normalized=spelling not in special)
    for token in description.get("added_tokens") or ():
        numbered[token["id"]] = AddedToken(**{name: value for name, value in token.items() if name != "id"})
    return numbered


def _numbered(where: Path, decoder: Any) -> dict[int, AddedToken]:
    try:
        return {int(id_): AddedToken(**token) for id_, token in decoder.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"tokenizer: {where}: added_tokens_decoder: {one_line(error)}") from None


def check_added(path: Path, model: tokenizers.Tokenizer, tokens: Iterable[Mapping[str, Any]]) -> None:
    """Raises UserError for an added token of tokenizer.json that the library gave another id."""
    added = model.get_added_tokens_decoder()
    for token in tokens:
        got = added.get(token["id"])
        if got is None or got.content != token["content"]:
            raise UserError(f"tokenizer: {path}: added_tokens: {token['content']!r} cannot have id {token['id']}")


def named_ids(path: Path, model: tokenizers.Tokenizer, spelled: Mapping[str, str]) -> dict[str, list[int]]:
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
    for role in set(ROLES) & set(spelled):
        id_ = model.token_to_id(spelled[role])
        if id_ is None:
            continue  # a padding token that it does not have
        others = [other for other in named[role] if other != id_]
        named[role] = [id_, *others] if role == "eos" else [*named[role], *[id_] * (id_ not in named[role])]
    return named


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of text that UTF-8 can hold, {} where there is no such file.

    Raises UserError, in one line, for anything else: `tokenizers` takes no lone surrogate ("\\ud800" is JSON) anywhere;
    and a link that leads nowhere is a download that is not finished, not a file that is not there.
    """
    if not os.path.lexists(path):
        return {}
    try:
        values = files.read_object(path)
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"tokenizer: {path}: holds a lone surrogate, which is no text") from None
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer: {one_line(error)}") from None
    return values

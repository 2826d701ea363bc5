"""What a user's values may be: rules that a field's value obeys, or a UserError that names the field, value and rule.

A dataclass declares its rules where it declares its fields, `steps: Annotated[int, COUNT] = 100`, and `check_fields`
holds it to them.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from zaya_jax.errors import UserError

INT32 = 2**31 - 1  # the largest token id, position, seed and size: what arrays of int32 hold
FLOAT32 = float(np.finfo(np.float32).max)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}")
NEAR = 3  # names that an unknown one is told, at most

T = TypeVar("T")


class Rule(Protocol):
    """What one field may be."""

    @property
    def words(self) -> str:
        """Completes "may be ..."."""
        ...

    def allows(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Integer:
    """An integer in [least, most]; a bool is none."""

    least: int = 0
    most: int = INT32

    @property
    def words(self) -> str:
        return f"an integer of at least {self.least} and at most {self.most}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in [least, most], both finite; with `above` (`below`) not `least` (`most`) itself."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    @property
    def words(self) -> str:
        low = f"{'above' if self.above else 'of at least'} {self.least:g}"
        if self.most == FLOAT32:
            return f"a finite number {low} that float32 holds"
        return f"a number {low} and {'below' if self.below else 'at most'} {self.most:g}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        try:
            value = float(value)
        except OverflowError:  # an integer of hundreds of digits
            return False
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few values."""

    of: tuple[Any, ...]

    @property
    def words(self) -> str:
        names = [repr(one) for one in self.of]
        return " or ".join(names) if len(names) < 3 else f"one of {self.of}"

    def allows(self, value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in self.of)


@dataclasses.dataclass(frozen=True)
class Name:
    """One of the names that a table has when it is asked."""

    of: Collection[str]

    @property
    def words(self) -> str:
        return f"one of {', '.join(self.of)}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.of


@dataclasses.dataclass(frozen=True)
class Unset:
    """None, or what another rule allows."""

    rule: Rule

    @property
    def words(self) -> str:
        return f"{self.rule.words}, or None"

    def allows(self, value: Any) -> bool:
        return value is None or self.rule.allows(value)


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that is not empty."""

    words: str = "a text"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value)


@dataclasses.dataclass(frozen=True)
class Items:
    """A tuple or list, each of whose items a rule allows."""

    of: Rule
    least: int = 0

    @property
    def words(self) -> str:
        return f"a tuple{f' of at least {self.least}' if self.least else ''}, each {self.of.words}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, (tuple, list)) and len(value) >= self.least and all(map(self.of.allows, value))


@dataclasses.dataclass(frozen=True)
class Spelled:
    """A text that a pattern fits as a whole."""

    pattern: str
    words: str

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None


@dataclasses.dataclass(frozen=True)
class Values:
    """An object of JSON, each of whose values a rule allows."""

    of: Rule

    @property
    def words(self) -> str:
        return f"an object whose values are each {self.of.words}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, dict) and all(map(self.of.allows, value.values()))


SWITCH = Choice((True, False))
COUNT = Integer(1)
SEED = Integer(0)
KEY = Integer(0, 2**32 - 1)  # what a random key is made of: a seed and what is added to it
ROWS = Integer(1, 1_000_000)  # of a batch, and problems of an evaluation: more is not a choice but a mistake


def check(field: str, value: T, rule: Rule) -> T:
    """`value`. UserError unless `rule` allows it."""
    if not rule.allows(value):
        raise UserError(f"{field}: got {shown(value)}, may be {rule.words}")
    return value


def check_object(where: str, value: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """`value`, an object of JSON that has these fields at least. UserError, naming the field, where it is not.

    Args:
      where: what stands before a field's name, such as "manifest.json: ".
    """
    if not isinstance(value, dict):
        raise UserError(f"{where.rstrip(': .')}: got {shown(value)}, may be an object of {', '.join(rules)}")
    for name, rule in rules.items():
        check(f"{where}{name}", value.get(name), rule)
    return value


def rules_of(kind: type) -> dict[str, Rule]:
    """The rules that a dataclass's fields are annotated with; a field without one has checks of its own."""
    declared = ((field.name, getattr(field.type, "__metadata__", ())) for field in dataclasses.fields(kind))
    return {name: rule for name, metadata in declared for rule in metadata if hasattr(rule, "allows")}


def check_fields(where: str, values: Any) -> None:
    """`check` of every field of a dataclass that has a rule.

    Args:
      where: what stands before a field's name and a dot.
    """
    for name, rule in rules_of(type(values)).items():
        check(f"{where}.{name}", getattr(values, name), rule)


def folder_name(field: str, value: Any) -> str:
    """`value`, if it can name a folder and leads nowhere else. UserError if not."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        may_be = "at most 100 letters, digits and . _ = + -, the first a letter or digit"
        raise UserError(f"{field}: got {shown(value)}, may be {may_be}")
    return value


def natural(text: str) -> int | None:
    """The number that a word of decimal digits spells; None for any other word, and for one beyond any size of ours."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def unknown(field: str, name: str, known: Iterable[str]) -> UserError:
    """The mistake of a name that is none of `known`: says the nearest ones, or all where none is near.

    Args:
      field: the name as the user knows it, such as "model.hiden_size".
      name: the part of it that is unknown.
    """
    return UserError(f"{field}: unknown, {_meant(name, known)}")


def no_such(field: str, got: Any, known: Iterable[str], when: str = "") -> UserError:
    """The mistake of a value that is none of the names `known`: says the nearest ones, or all where none is near.

    Args:
      when: what else made them all that there is: "when mode is 'two_pass'".
    """
    return UserError(f"{field}: got {shown(got)}, {_meant(str(got), known, when)}")


def _meant(name: str, known: Iterable[str], when: str = "") -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, NEAR)
    return f"did you mean {' or '.join(near)}?" if near else f"may be one of {', '.join(known)} {when}".rstrip()


def shown(value: Any) -> str:
    """repr on one line of bounded length. What is too long to be converted at all has its type's name."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"an {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."

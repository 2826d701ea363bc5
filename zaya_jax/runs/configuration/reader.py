"""Sections of a config made into the dataclasses that declare their fields, with errors in the config's own words."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from zaya_jax import checks, moved
from zaya_jax.checks import shown
from zaya_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Made:
    """In a field's annotation: what the config has there is made into the field's value by a function.

    Attributes:
      by: (value, where it stands) -> the field's value; raises UserError.
      unset: whether None stays None.
    """

    by: Callable[[Any, str], Any]
    unset: bool = False


def section(where: str, value: Any, known: Iterable[str], needed: Iterable[str] = ()) -> ConfigDict:
    """`value`. UserError unless it is a section of a config with fields that are known, and with all that are needed.

    Args:
      where: its name; "" is the config itself.
    """
    if not isinstance(value, ConfigDict):
        raise UserError(f"{where}: got {shown(value)}, may be a section (a ConfigDict)")
    before, known = f"{where}." if where else "", set(known)
    for name in value:
        if now := moved.FIELDS.get(f"{before}{name}"):
            raise UserError(f"{before}{name}: is {now} now")
        if name not in known:
            raise checks.unknown(f"{before}{name}", str(name), known)
    for name in needed:
        if name not in value:
            raise UserError(f"{before}{name}: missing, may be a field of {where or 'the config'}")
    return value


def read(kind: type[T], given: Any, where: str, known: Iterable[str] = (), **made: Any) -> T:
    """A section as the dataclass that declares its fields, those that are sections themselves read likewise.

    A field whose type is a dataclass is a section; one that is annotated with `Made` is what that makes; all others are
    the config's values. What a value may be the dataclass says when it is made (`checks.check_fields`).

    Args:
      given: the section, or a dict.
      where: its name, dotted; "" is the config itself.
      known: names that it may have besides, which are read elsewhere.
      made: fields that are not the section's.

    Raises:
      UserError: in one line that names the field: an unknown one, one that is missing, or a bad value.
    """
    fields = [field for field in dataclasses.fields(kind) if field.name not in made]  # pyrefly: ignore[bad-argument-type]
    needed = [field.name for field in fields if not has_default(field)]
    given = ConfigDict(given) if isinstance(given, dict) else given
    values = section(where, given, [*known, *(field.name for field in fields)], needed)
    before = f"{where}." if where else ""
    for field in fields:
        if field.name in values:
            made[field.name] = _value(field.type, values[field.name], f"{before}{field.name}")
    try:
        return kind(**made)
    except UserError as error:
        raise UserError(named(error, kind, where)) from error


def has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def names_of(kind: type) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]


def named(error: UserError, kind: type, where: str) -> str:
    """A dataclass's mistake in the config's words: "OptimizerConfig.b1: ..." as "convert.optimizer.b1: ..."."""
    text, before = str(error), f"{where}." if where else ""
    if before and text.startswith(before):
        return text
    for each in kind.__mro__:
        if text.startswith(f"{each.__name__}."):
            return before + text.removeprefix(f"{each.__name__}.")
    first = re.match(r"\w*", text)
    return before + text if first and first[0] in names_of(kind) else f"{where}: {text}" if where else text


def _value(kind: Any, given: Any, where: str) -> Any:
    for made in getattr(kind, "__metadata__", ()):
        if isinstance(made, Made):
            return None if made.unset and given is None else made.by(given, where)
    return read(kind, given, where) if dataclasses.is_dataclass(kind) else given

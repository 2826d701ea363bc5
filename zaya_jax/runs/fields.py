"""Values of a config file made into the types that check them, with errors in the config's own words."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from zaya_jax import checks
from zaya_jax.checks import shown
from zaya_jax.errors import UserError


def section(where: str, value: Any, known: Iterable[str], needed: Iterable[str] = ()) -> ConfigDict:
    """`value`. UserError unless it is a section of a config with fields that are known, and with all that are needed.

    Args:
      where: its name; "" is the config itself.
    """
    if not isinstance(value, ConfigDict):
        raise UserError(f"{where}: got {shown(value)}, may be a section (a ConfigDict)")
    before, known = f"{where}." if where else "", set(known)
    for name in value:
        if name not in known:
            raise checks.unknown(f"{before}{name}", str(name), known)
    for name in needed:
        if name not in value:
            raise UserError(f"{before}{name}: missing, may be a field of {where or 'the config'}")
    return value


def build(kind: type, values: Any, where: str) -> Any:
    """kind(**values), values of a section or dict.

    Raises:
      UserError: in one line that names the field: an unknown one, one that is missing, or a bad value.
    """
    declared = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    needed = [each.name for each in declared if each.default is missing and each.default_factory is missing]
    values = section(where, ConfigDict(values) if isinstance(values, dict) else values, names_of(kind), needed)
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(named(error, kind, where)) from error


def names_of(kind: type) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]


def named(error: UserError, kind: type, where: str) -> str:
    """A dataclass's mistake in the config's words: "OptimizerConfig.b1: ..." as "convert.optimizer.b1: ..."."""
    text = str(error)
    if text.startswith(f"{where}."):
        return text
    if text.startswith(f"{kind.__name__}."):
        return where + text.removeprefix(kind.__name__)
    first = re.match(r"\w*", text)
    return f"{where}.{text}" if first and first[0] in names_of(kind) else f"{where}: {text}"


def choice(field: str, value: Any, choices: Any) -> str:
    """`value`. UserError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{field}: got {shown(value)}, may be one of {', '.join(choices)}")
    return value

"""Values of a config file made into the types that check them, with errors in the config's own words."""

import dataclasses
from typing import Any

from zaya_jax import checks
from zaya_jax.errors import UserError


def build(kind: type, values: Any, where: str) -> Any:
    """kind(**values). UserError, in one line that names the field, for an unknown one or a bad value."""
    values = dict(values)
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise checks.unknown(f"{where}.{unknown[0]}", unknown[0], known)
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def choice(field: str, value: Any, choices: Any) -> str:
    """`value`. UserError unless it is one of `choices`."""
    if value not in choices:
        raise UserError(f"{field}: got {value!r}, may be one of {', '.join(choices)}")
    return value

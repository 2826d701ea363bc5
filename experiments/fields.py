"""Values of a config file made into the types that check them, with errors in the config's own words."""

import dataclasses
from typing import Any


def build(kind: type, values: Any, where: str) -> Any:
    """kind(**values). ValueError, in one line that names the field, for an unknown one or a bad value."""
    values = dict(values)
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}.{unknown[0]}: unknown, may be one of {sorted(known)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def positive(field: str, value: Any) -> int:
    """`value`. ValueError unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field}: got {value!r}, may be an integer of at least 1")
    return value


def choice(field: str, value: Any, choices: Any) -> str:
    """`value`. ValueError unless it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}: got {value!r}, may be one of {', '.join(choices)}")
    return value

"""Arguments as Python's own values: what is plainly a number or a collection is taken as one, whoever's type it has."""

from collections.abc import Collection, Mapping, Set
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """A NumPy or JAX scalar, or another library's number, as int, float or bool; a str as str; all else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return str(value) if isinstance(value, str) else value


def plain_tuple(value: Any, ordered: bool = True) -> Any:
    """A list, tuple, range, set or array as a tuple of `plain` values, and so the collections in it; all else as it is.

    Args:
      ordered: whether order matters: a set then stays as it is, which is none of what the caller wants. Without, it is
        sorted, so that equal sets give equal tuples.
    """
    shape = getattr(value, "shape", None)
    if shape == () or isinstance(
        value, (str, bytes, bytearray, Mapping)
    ):  # an array without axes claims to be iterable
        return plain(value)
    if shape is not None and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Set):
        if ordered:
            return value
        items = [plain(item) for item in value]
        alike = len({type(item) for item in items}) < 2
        return tuple(sorted(items) if alike else items)  # pyrefly: ignore[bad-argument-type]
    if not isinstance(value, Collection):
        return plain(value)
    return tuple(plain_tuple(item, ordered) for item in value)

"""Result files of JSON: what one lacks is told in a line that names the file and the place in it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.files import read_object, remedy
from zaya_jax.paths import absolute, one_line

# What arithmetic, formats and look-ups answer to a number that is a text, a list that is empty, and the like.
_ODD = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


class Record(dict[str, Any]):
    """An object of a result file. UserError for `record[key]` where it has no such key."""

    def __init__(self, values: dict[str, Any], file: Path, place: str):
        self.file, self.place = file, place
        super().__init__({key: _named(value, file, f"{place}.{key}".lstrip(".")) for key, value in values.items()})

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.file}: {f'{self.place}.{key}'.lstrip('.')}: missing")


def read_record(path: Path) -> Record:
    """A plain file's JSON object, whose missing keys are named when they are looked up.

    Raises:
      FileNotFoundError, UserError: as `read_object`.
    """
    return Record(read_object(path), path, "")


def begun(path: Path | str | None, read: Callable[[Record], object]) -> Record | None:
    """What an earlier command of a benchmark left in its --output, to be continued; None where there is nothing.

    Args:
      read: looks at everything in it that the benchmark will read, so that damage is noticed before anything is timed.

    Raises:
      UserError: another file, or a damaged one; says its name and the place in it.
    """
    if path is None or not os.path.lexists(there := absolute(path)):
        return None
    with remedy("choose another --output, or delete it"), made_of(f"--output {there}"):
        record = read_record(there)
        read(record)
    return record


@contextlib.contextmanager
def made_of(what: str) -> Iterator[None]:
    """Turns whatever an odd value in result files leads to into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except _ODD as error:
        raise UserError(f"{what}: holds other values than it should ({type(error).__name__}: {one_line(error)})") from (
            error
        )


def _named(value: Any, file: Path, place: str) -> Any:
    if isinstance(value, dict):
        return Record(value, file, place)
    if isinstance(value, list):
        return [_named(item, file, f"{place}[{i}]") for i, item in enumerate(value)]
    return value

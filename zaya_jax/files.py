"""JSON that a user, a full disk or a killed process may have damaged: read whole, or one line that names the file."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError

MAX_JSON = 100_000_000  # bytes
MAX_LINES = 1 << 30  # bytes of a file of lines


def one_line(error: BaseException) -> str:
    """An error's message on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """A JSON file in which no key occurs twice.

    Raises:
      FileNotFoundError: no such file.
      UserError: not a plain file, not JSON, not UTF-8, too long, nested too deeply, or with a key twice in one object.
    """
    text = _read(path, limit)
    try:
        return parse_json(text)
    except ValueError as error:  # of which UserError, JSONDecodeError and UnicodeDecodeError are kinds
        raise UserError(f"{path}: not valid JSON ({one_line(error)})") from None


def read_object(path: Path, remedy: str = "") -> dict[str, Any]:
    """`read_json` of what must be an object; `remedy` ends the line of what it raises."""
    try:
        value = read_json(path)
        if not isinstance(value, dict):
            raise UserError(f"{path}: got {_kind(value)}, should be a JSON object")
    except UserError as error:
        raise UserError(f"{error}{remedy and '; '}{remedy}") from None
    return value


def read_json_lines(path: Path, remedy: str = "", numbers_only: bool = False) -> list[dict[str, Any]]:
    """A JSON object a line; a last line that a kill cut short, and that therefore has no end, is left out.

    Args:
      remedy: ends the line of what is raised.
      numbers_only: refuse NaN and Infinity, which JSON has not and Python writes.

    Raises:
      FileNotFoundError: no such file.
      UserError: any other line is damaged; names file and line.
    """
    ending = f"{remedy and '; '}{remedy}"
    try:
        data = _read(path, MAX_LINES)
    except UserError as error:
        raise UserError(f"{error}{ending}") from None
    values = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            value = parse_json(line, numbers_only)
        except ValueError as error:
            raise UserError(f"{path} line {number}: not valid JSON ({one_line(error)}){ending}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path} line {number}: got {_kind(value)}, should be a JSON object{ending}")
        values.append(value)
    return values


def drop_cut_line(path: Path) -> None:
    """Removes a last line that has no end, so that the next one begins a line of its own. No file: nothing."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position:
            step = min(position, 1 << 16)
            file.seek(position - step)
            found = file.read(step).rfind(b"\n")
            if found >= 0:
                position = position - step + found + 1
                break
            position -= step
        if position < end:
            file.truncate(position)


def parse_json(text: bytes, numbers_only: bool = True) -> Any:
    """The value; UserError or another ValueError where it is none.

    Args:
      numbers_only: refuse NaN and Infinity, which JSON has not and Python writes.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise UserError(f"the key {twice[:200]!r} occurs twice")
        return found

    def constant(name: str) -> Any:
        raise UserError(f"{name} is not JSON")

    try:
        refused = {"parse_constant": constant} if numbers_only else {}
        return json.loads(text.decode("utf-8"), object_pairs_hook=once, **refused)
    except RecursionError:
        raise UserError("nested too deeply") from None


def _read(path: Path, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UserError(f"{path}: not a plain file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(f"{path}: {size} bytes, may be at most {limit}")
            return file.read(size)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "an object", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

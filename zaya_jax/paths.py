"""Files and folders that a user names: what "~" and ".." mean, and reading a plain file or saying why not in one line.

A pipe or a device may never end, and opening one may wait forever, so nothing but plain files is read.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError

MAX_TEXT = 1 << 30  # bytes of a file that is read whole
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how a file begins that Windows' PowerShell or Notepad saved so


def absolute(path: str | os.PathLike[str]) -> Path:
    """An absolute path, "~" expanded (a shell leaves it alone behind "=") and without "..".

    What ".." leads to is what the system would find: links before it are followed, links behind it are kept.

    Raises:
      UserError: no such user's home; a name that no path can have.
    """
    try:
        full = Path(path).expanduser().absolute()
        if ".." in full.parts:
            last = len(full.parts) - full.parts[::-1].index("..")
            full = Path(*full.parts[:last]).resolve().joinpath(*full.parts[last:])
    except (RuntimeError, ValueError) as error:  # no home; a zero byte; before Python 3.13, a loop of links
        raise UserError(f"{str(path)[:200]!r}: not a path ({one_line(error)})") from None
    return full


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> bytes:
    """A plain file's contents.

    Raises:
      FileNotFoundError: no such file.
      UserError: a folder, a pipe (a shell's <(...) is one), a device; more than `limit` bytes; one that cannot be read.
    """
    path = absolute(path)
    try:
        # A pipe without a writer would keep `open` waiting.
        with open(path, "rb", opener=lambda name, mode: os.open(name, mode | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path}: not a plain file, may be no folder, pipe or device")
            if found.st_size > limit:
                raise UserError(f"{path}: {found.st_size} bytes, may be at most {limit}")
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, may be a plain file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> str:
    """A plain file's text, in UTF-8 with or without a byte order mark; line ends stay as they are.

    Raises:
      FileNotFoundError, UserError: as `read_bytes`; and for what is not UTF-8.
    """
    return decode(read_bytes(path, limit), str(absolute(path)))


def decode(data: bytes, where: str) -> str:
    """Text of UTF-8 with or without a byte order mark. UserError, in one line that begins with `where`, otherwise."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = "UTF-16, may be saved as UTF-8" if data.startswith(UTF_16) else f"byte {error.start}"
        raise UserError(f"{where}: not UTF-8 ({what})") from None


def lines_of(text: str) -> list[str]:
    """Lines without their ends, which may be Windows' too; none for what follows the last end.

    Unlike str.splitlines it keeps U+2028 and its like, which a JSON string may hold.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_object(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> dict[str, Any]:
    """A plain file that holds one JSON object.

    Raises:
      FileNotFoundError, UserError: as `read_text`; and for what is not JSON, or no object.
    """
    try:
        values = json.loads(read_text(path, limit))
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({one_line(error)})") from None
    except UserError:
        raise
    except ValueError as error:  # an integer of more digits than Python takes
        raise UserError(f"{path}: not valid JSON ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: got {str(values)[:60]!r}, may be a JSON object")
    return values


def one_line(error: BaseException) -> str:
    """An error's message on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__

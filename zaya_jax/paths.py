"""Paths that a user names: what "~" and ".." mean; and an error's message on one line."""

import errno
import os
from pathlib import Path

from zaya_jax.errors import UserError

MAX_NAME, MAX_PATH = 255, 4095  # bytes, of Linux and macOS: what is longer, the system refuses wherever it is asked


def absolute(path: str | os.PathLike[str]) -> Path:
    """An absolute path, "~" expanded (a shell leaves it alone after "=") and without "..".

    What ".." leads to is what the system would find: links before it are followed, links after it are kept.

    Raises:
      UserError: no such user's home; a name that no path can have; links before ".." that lead in a circle.
    """
    try:
        full = Path(path).expanduser().absolute()
        if ".." in full.parts:
            last = len(full.parts) - full.parts[::-1].index("..")
            full = resolved(Path(*full.parts[:last])).joinpath(*full.parts[last:])
        longest = max(map(len, map(os.fsencode, full.parts)))
        if longest > MAX_NAME or len(os.fsencode(full)) > MAX_PATH:
            raise ValueError(f"names may be at most {MAX_NAME} bytes, and all of it {MAX_PATH}")
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:  # no home; a zero byte; too long
        raise UserError(f"{str(path)[:80]!r}: not a path ({one_line(error)})") from None
    return full


def resolved(path: str | os.PathLike[str]) -> Path:
    """A path with all links followed, and whatever of it does not exist. UserError for links that lead in a circle."""
    try:
        os.stat(path)  # `Path.resolve` says it of some such paths, or of none since Python 3.13
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: not a path (its links lead in a circle)") from None
    return Path(path).resolve()


def one_line(error: BaseException) -> str:
    """An error's message on one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__

"""Files that are written whole or not at all: a full disk or a killed process leaves what was there before.

Python, matplotlib and the writers in C++ all say a full disk in words of their own and leave half a file; here it is
one line with the file's name, and nothing half-written.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class WriteError(OSError):
    """A file that could not be written, which is as it was before (not there, mostly)."""

    def __init__(self, path: Path | str, reason: str, number: int = 0):
        super().__init__(number, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path beside `path` to write to; at the end it is flushed to the disk and takes the place of `path`.

    Where `path` is no plain file (a device), it is `path` itself.

    Raises:
      WriteError: the system refuses; `path` stays as it was and nothing stays beside it.
    """
    path = Path(path).resolve()  # a link keeps leading where it led
    if path.exists() and not path.is_file():  # /dev/stdout
        yield path
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with refused_in_one_line(path):
            yield partial
            flush(partial)
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """A text file in UTF-8, line ends as they are; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8"))


def append(path: Path | str, text: str) -> None:
    """Adds whole lines to a text file, in UTF-8.

    A last line without its end, which a killed run left, goes first: the new ones would continue it.

    Raises:
      WriteError: the system refuses; the file holds the lines it held before.
    """
    path = Path(path)
    new = not path.exists()
    with refused_in_one_line(path), path.open("ab", buffering=0) as file:
        whole = _whole_lines(path)
        if whole != file.tell():
            file.truncate(whole)
        left = memoryview(text.encode("utf-8"))
        try:
            while left:  # a disk that is nearly full takes a part, and refuses the next
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink() if new else file.truncate(whole)
            raise


def flush(path: Path) -> None:
    """Waits until a file, or every file below a folder, is on the disk; some disks say only then that they are full."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def refused_in_one_line(path: Path | str) -> Iterator[None]:
    """Turns the system's refusal (no space left, read-only, no such folder) into a WriteError that names `path`."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise WriteError(path, reason, error.errno or 0) from error


def _whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
        if not size or file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1

"""Files read whole, or why not in one line; files written whole or not at all; and files of JSON lines, which grow.

A pipe or a device may never end, and opening one may wait for ever, so nothing but plain files is read. Python,
matplotlib and the writers in C++ all say a full disk in words of their own and leave half a file; here it is one line
with the file's name, and nothing half-written: a full disk or a killed process leaves what was there before.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from zaya_jax.errors import UserError
from zaya_jax.paths import absolute, one_line, resolved

MAX_TEXT = 1 << 30  # bytes of a file that is read whole
MAX_JSON = 100_000_000
MAX_LINES = 1 << 40  # of a file of JSON lines, which a long run's may well be
MAX_DEPTH = 100  # of JSON: deeper than any file's, and far from where Python's own comparisons and prints give up
UNHELD = "backslashreplace"  # how a lone surrogate is written, which UTF-8 cannot hold
UTF_8 = b"\xef\xbb\xbf"  # how a file begins that a Windows editor saved as UTF-8,
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # and one that PowerShell or Notepad saved as UTF-16


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> bytes:
    """A plain file's contents.

    Raises:
      FileNotFoundError: no such file.
      UserError: a folder, a pipe (a shell's <(...) is one), a device; more than `limit` bytes; one that cannot be read.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{absolute(path)}: {size} bytes, may be at most {limit}")
        return file.read()


@contextlib.contextmanager
def open_plain(path: str | os.PathLike[str], buffering: int = -1) -> Iterator[BinaryIO]:
    """A plain file, opened to read its bytes; what the system refuses while it is open becomes a line, too.

    Args:
      buffering: as of `open`.

    Raises:
      FileNotFoundError, UserError: as `read_bytes`.
    """
    path = absolute(path)
    try:
        with open(path, "rb", buffering, opener=at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: not a plain file, may be no folder, pipe or device")
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, may be a plain file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from None


def at_once(name: str, flags: int) -> int:
    """An `opener` for `open` that no pipe without another end keeps waiting; to write to one is refused."""
    return os.open(name, flags | os.O_NONBLOCK, 0o666)


def blake2b_of(path: str | os.PathLike[str]) -> str:
    """A plain file's BLAKE2b in 32 hex digits. FileNotFoundError, UserError: as `read_bytes`."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()  # pyrefly: ignore[no-matching-overload]


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
        raise UserError(f"{where}: {_not_utf_8(error)}") from None


def _not_utf_8(error: UnicodeDecodeError) -> str:
    what = "UTF-16, may be saved as UTF-8" if error.object.startswith(UTF_16) else f"byte {error.start}"
    return f"not UTF-8 ({what})"


def lines_of(text: str) -> list[str]:
    """Lines without their ends, which may be Windows' too; none for what follows the last end.

    Unlike str.splitlines it keeps U+2028 and its like, which a JSON string may hold.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]


# --- JSON -------------------------------------------------------------------------------------------------------------


def parse_json(text: bytes | str, strict: bool = False) -> Any:
    """A JSON value.

    Args:
      text: bytes are UTF-8.
      strict: refuse NaN, infinities, and a key that occurs twice in one object, which other readers take otherwise.

    Raises:
      UserError: what is wrong with it, in one line that does not name the file.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _once, "parse_constant": _no_constant} if strict else {}
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text  # json would also take UTF-16 and UTF-32
        value = json.loads(text, **hooks)
    except UnicodeDecodeError as error:
        raise UserError(_not_utf_8(error)) from None
    except RecursionError:
        raise UserError("nested too deeply") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise UserError(f"{error.msg.removesuffix(' at')} at {line}column {error.colno}") from None
    except UserError:
        raise
    except ValueError as error:  # an integer of more digits than Python takes
        raise UserError(one_line(error)) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise UserError("nested too deeply")
    return value


def read_json(path: str | os.PathLike[str], limit: int = MAX_JSON, strict: bool = False) -> Any:
    """A plain file's JSON value; `strict` as of `parse_json`.

    Raises:
      FileNotFoundError, UserError: as `read_bytes`; and for what is not JSON.
    """
    data = read_bytes(path, limit).removeprefix(UTF_8)
    try:
        return parse_json(data, strict)
    except UserError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def read_object(path: str | os.PathLike[str], limit: int = MAX_JSON) -> dict[str, Any]:
    """A plain file that holds one JSON object.

    Raises:
      FileNotFoundError, UserError: as `read_json`; and for another value.
    """
    values = read_json(path, limit)
    if not isinstance(values, dict):
        raise UserError(f"{path}: got {str(values)[:60]!r}, may be a JSON object")
    return values


@contextlib.contextmanager
def remedy(words: str) -> Iterator[None]:
    """Puts what to do about it at the end of a UserError's line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {words}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"the key {twice[:200]!r} occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise UserError(f"{name} is not JSON")


def _is_deep(value: Any) -> bool:
    """Whether a JSON value has more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


# --- lines of JSON ----------------------------------------------------------------------------------------------------


def read_lines(path: str | os.PathLike[str], begins: str = '{"', grows: bool = True) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; the file is left as it is.

    A last line without its end, which a killed process or a full disk left unfinished, does not count. Nothing of ours
    leaves a damaged line anywhere else, so what it held is not guessed.

    Args:
      begins: how every line begins; without it a last line without its end is damaged, not unfinished.
      grows: by `append_lines`; otherwise the file was written whole, and its last line may lack its end.

    Raises:
      FileNotFoundError, UserError: as `read_bytes`; a line that is no JSON object, named with its number.
    """
    *lines, rest = read_bytes(path, MAX_LINES).removeprefix(UTF_8).split(b"\n")
    if rest and not (grows and _is_unfinished(rest, begins.encode())):
        lines.append(rest)
    return [_object_of(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def append_lines(path: Path | str, lines: Iterable[Mapping[str, Any]], sync: bool = False) -> None:
    """Adds objects to a file of JSON lines; see `append`."""
    append(path, _text_of(lines), sync)


def write_lines(path: Path | str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines anew, at once or not at all."""
    write_text(path, _text_of(lines))


def append(path: Path | str, text: str, sync: bool = False) -> None:
    """Adds whole lines to a text file, in UTF-8.

    A last line without its end, which a killed run left, goes first: the new ones would continue it.

    Args:
      sync: wait until they are on the disk.

    Raises:
      WriteError: the system refuses; the file holds the lines it held before.
    """
    path = Path(path)
    new = not path.exists()
    with refused_in_one_line(path), path.open("ab", buffering=0) as file:
        whole = _whole_lines(path)
        if whole != file.tell():
            file.truncate(whole)
        left = memoryview(text.encode("utf-8", UNHELD))
        try:
            while left:  # a disk that is nearly full takes a part, and refuses the next
                left = left[file.write(left) :]
            if sync:
                os.fsync(file.fileno())
        except (OSError, KeyboardInterrupt):
            with contextlib.suppress(OSError):
                path.unlink() if new else file.truncate(whole)
            raise


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


def _text_of(lines: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _is_unfinished(rest: bytes, begins: bytes) -> bool:
    """Whether a last line without its end is the beginning of one of ours."""
    begun = rest.rstrip(b"\0")  # the end of a file that a power cut lengthened, but did not fill
    return begun.startswith(begins) or begins.startswith(begun)


def _object_of(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except UserError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: got {str(value)[:60]!r}, may be a JSON object")
    return value


# --- writing whole ---------------------------------------------------------------------------------------------------


class WriteError(OSError):
    """A file that could not be written, which is as it was before (not there, mostly)."""

    def __init__(self, path: Path | str, reason: str, number: int = 0):
        super().__init__(number, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}"


@contextlib.contextmanager
def replacing(path: Path | str, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; at the end it is flushed to the disk and takes the place of `path`.

    Where `path` is no plain file (a device), it is `path` itself.

    Args:
      shared: other processes may write `path` at the same time; the last of them wins. Otherwise whoever comes after a
        killed process writes over what that left beside `path`.

    Raises:
      WriteError: the system refuses; `path` stays as it was and nothing stays beside it.
    """
    path = resolved(path)  # a link keeps leading where it led
    if path.exists() and not path.is_file():  # /dev/stdout
        yield path
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        with refused_in_one_line(path):
            yield partial
            flush(partial)
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: Path | str, text: str, shared: bool = False) -> None:
    """A text file in UTF-8, line ends as they are; see `replacing`. Lone surrogates, which UTF-8 cannot hold (names of
    files that are no text, odd names in JSON), are written as escapes.
    """
    with replacing(path, shared) as partial:
        partial.write_bytes(text.encode("utf-8", UNHELD))


def copy_file(source: Path | str, path: Path | str) -> None:
    """A plain file's bytes under another name; see `replacing`. What cannot be read raises as `read_bytes` does."""
    with replacing(path) as partial:
        partial.write_bytes(read_bytes(source))


@contextlib.contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` to fill; at the end it takes the name, and on any error nothing of it stays.

    Raises:
      UserError: `directory` is a file, or holds files.
      WriteError: the system refuses; it names `directory`, or the file in it.
    """
    check_new(directory)
    make_folder(directory.parent)
    partial = directory.with_name(f".{directory.name}.partial-{uuid.uuid4().hex}")
    try:
        with named_as(partial, directory):
            partial.mkdir()
            yield partial
            os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def named_as(partial: Path, directory: Path) -> Iterator[None]:
    """What the system refuses in `partial` is told by the name that it was to have in `directory` (WriteError)."""
    try:
        yield
    except OSError as error:
        refused = Path(os.fsdecode(error.filename or b""))
        if not refused.is_relative_to(partial):
            raise
        name = directory / refused.relative_to(partial)
        raise WriteError(name, error.strerror or one_line(error), error.errno or 0) from error


def make_folder(folder: Path, field: str = "") -> Path:
    """A folder, made with those above it where they are not there.

    Args:
      field: the flag that names it, for messages.

    Raises:
      UserError: something else stands there, the system refuses, or one that is there cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"{field}{': got ' if field else ''}{folder}: cannot be made as a folder ({reason})") from None
    check_writable(folder, field)
    return folder


def check_new(directory: Path) -> None:
    """Raises UserError unless a folder can be put there."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory}: got a path that is taken, may be a new or an empty directory")
    check_writable(directory)


def check_writable(path: Path, field: str = "") -> None:
    """Refuses a read-only disk before anything is computed for it; a full one shows only when it is written to.

    Args:
      path: a file or folder, or one that is still to be made.
      field: the flag that names it, for messages.

    Raises:
      UserError: the system lets nobody, or not this user, write to it, or to the nearest folder above it that exists.
    """
    there = next((each for each in (path, *path.parents) if each.exists()), path)
    if not os.access(there, os.W_OK):
        got = f"{field}{': got ' if field else ''}{path}: cannot be written to"
        raise UserError(f"{got} ({there}: on a read-only disk, or not this user's), may be a path elsewhere")


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

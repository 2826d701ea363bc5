"""A prepared corpus on disk: it appears whole or not at all, and is checked before it is read.

tfds and ArrayRecord notice a full disk late or not at all, and damage as whatever their parsers make of it. So a corpus
is written to a folder of its own, read back, flushed and renamed; and beside it stands manifest.json, with every file's
size and checksum, which is compared whenever a process first opens it. All of it: to know whether a source has
changed, whoever opens it has just read the source, which is no smaller.
"""

import contextlib
import fcntl
import io
import json
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from zaya_jax.errors import UserError
from zaya_jax.files import WriteError, at_once, blake2b_of, flush, read_object, refused_in_one_line, write_text

MANIFEST = "manifest.json"
_checked: dict[Path, list[tuple[str, int, int]]] = {}  # folder -> its files' names, sizes and times when they were read


class Written(Protocol):
    """What a builder knows once it has generated its documents."""

    @property
    def contents(self) -> dict[str, tuple[int, int]]:
        """Of each split: documents, and the sum of their `digest`s."""
        ...

    @property
    def division(self) -> dict[str, Any]:
        """How the documents came to their splits, for manifest.json."""
        ...


def prepare(kind: Any, options: dict[str, Any], data_dir: Path) -> Path:
    """The folder of a corpus, made if it is not there, and checked.

    Args:
      kind: a tfds builder class that is also `Written`.
      options: its arguments but for data_dir.

    Raises:
      UserError: damaged files (which, and what to delete); whatever `kind` says of its source.
      WriteError: the disk refuses; nothing is left of it.
    """
    base = data_dir / kind.name
    scratch = base / ".partial"
    builder = kind(**options, data_dir=scratch)  # writes nothing yet
    target = data_dir / Path(builder.data_dir).relative_to(scratch)
    if not (target / MANIFEST).exists():
        with refused_in_one_line(base), contextlib.ExitStack() as stack:
            base.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(base / ".lock", "w", opener=at_once))
            # The kernel drops the lock of a killed process, so whoever holds it may sweep up what an earlier one left;
            # other processes of a multi-process run wait here and find it done.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / MANIFEST).exists():
                shutil.rmtree(scratch, ignore_errors=True)
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
                _write(builder, scratch, target)
    check(target)
    return target


def check(folder: Path) -> None:
    """Raises UserError, one line, unless the folder's files are as they were written; once a process, if unchanged."""
    now = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    if _checked.get(folder) == now:
        return
    for name, known in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            raise _damaged(path, "missing")
        if path.stat().st_size != known["bytes"]:
            raise _damaged(path, f"damaged ({path.stat().st_size} bytes, {known['bytes']} were written)")
        if blake2b_of(path) != known["blake2b"]:
            raise _damaged(path, "damaged (not the bytes that were written)")
    _checked[folder] = now


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json: files, documents of each split, and how they were divided. UserError if it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = read_object(path)
        files = {
            name: {"bytes": known["bytes"], "blake2b": known["blake2b"]} for name, known in manifest["files"].items()
        }
        return {**manifest, "files": files, "documents": dict(manifest["documents"]), "split": dict(manifest["split"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path, "missing or damaged") from None


def digest(name: str, text: str) -> int:
    """A document as a number; a sum of them tells whether two sets of documents are the same, in any order."""
    return int.from_bytes(blake2b(json.dumps([name, text]).encode(), digest_size=8).digest(), "little")


def _write(builder: Any, scratch: Path, target: Path) -> None:
    """Generates a corpus in `scratch`, reads it back and moves it to `target`."""
    with refused_in_one_line(target):
        # tfds says "Downloading ... Unknown size" of files that lie here already
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                builder.download_and_prepare(download_dir=scratch / "unused", file_format="array_record")
            except RuntimeError as error:  # ArrayRecord's writer: no space left, a disk that fails
                raise WriteError(target, " ".join(str(error).split())[:200]) from error
        folder = Path(builder.data_dir)
        _read_back(builder, folder, target)
        files = {
            path.name: {"bytes": path.stat().st_size, "blake2b": blake2b_of(path)} for path in sorted(folder.iterdir())
        }
        documents = {split: count for split, (count, _) in builder.contents.items()}
        manifest = {"files": files, "documents": documents, "split": builder.division}
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        flush(folder)
        shutil.rmtree(target, ignore_errors=True)  # without a manifest: from before there was one, or half there
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(target)


def _read_back(written: Written, folder: Path, target: Path) -> None:
    """Raises WriteError unless the folder's documents are those that were generated."""
    try:
        sources: Any = tfds.builder_from_directory(folder).as_data_source()
        found = {
            split: (
                len(records),
                sum(digest(*(records[i][key].decode() for key in ("name", "text"))) for i in range(len(records))),
            )
            for split, records in sources.items()
        }
    except Exception as error:  # tfds, protobuf and ArrayRecord raise what they like of a file that was cut short
        raise WriteError(target, f"what was written cannot be read back ({type(error).__name__})") from error
    if found != written.contents:
        raise WriteError(target, "what was written reads back otherwise")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; delete the folder {path.parent}, and the same command makes it again")

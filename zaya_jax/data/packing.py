"""Tokenises and packs a corpus once, in many processes: `prepare_rows`, for `packed.PackedRows` to read.

Two passes over units of the corpus (`documents.find`). The first reads: a hash of every document, so that equal ones
are kept once wherever they stand, and of every byte, so that a file which changes on the way is noticed. The second
tokenises, packs and writes a unit's rows, a shard for each split. What a unit gives depends on nothing but the corpus
and the options, never on which process does it or when.

A unit's note (a small JSON file) is written when its shards are whole and on the disk, so that whatever is killed at
whatever moment loses the units in work and no others: the same command does the rest. Any number of the same command,
on as many hosts as see the folder, share the units out by locks on it.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import fcntl
import functools
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tqdm import tqdm

from zaya_jax.checks import Integer, Text, Values, check, check_object
from zaya_jax.data import packed
from zaya_jax.data.builders import PART_PERCENTS, SPLIT_BY, SPLIT_PERCENTS
from zaya_jax.data.chat import ChatSource
from zaya_jax.data.contents import of_tokenizer
from zaya_jax.data.documents import Piece, Reader, find
from zaya_jax.data.pipeline import PACKINGS, encode_document, pack
from zaya_jax.data.splits import SPLITS, divide, split_of, stable_hash
from zaya_jax.errors import UserError
from zaya_jax.files import (
    WriteError,
    at_once,
    blake2b_of,
    flush,
    make_folder,
    read_bytes,
    read_object,
    refused_in_one_line,
    remedy,
    replacing,
    write_text,
)
from zaya_jax.paths import one_line
from zaya_jax.text.templates import BESIDE_TOKENIZER, ChatTemplate, beside_tokenizer, load_template
from zaya_jax.text.tokenizers import Tokenizer, load_tokenizer

GROUP_TOKENS, GROUP_ROWS = 1 << 20, 64  # at least so much is packed together: an unfilled row more weighs nothing
# units' notes
SCANNED = {"source": Text(), "documents": Integer(0, 2**40)}
WRITTEN = {"source": Text(), "dropped": Values(packed.NATURAL), "counts": Values(Values(packed.NATURAL))}
BUSY = 0.2  # seconds between looks at units that other processes have


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What rows are made of. Everything here but `paths` decides what they hold; files' contents do the rest.

    Attributes:
      paths: files, directories, globs, folders of tfds.
      tokenizer: "bytes" or a tokenizer json, see `load_tokenizer`.
      row_length: tokens in a row.
      packing: of `pipeline.PACKINGS`.
      chats: whether the texts are .jsonl files of chats.
      key: where a text stands in a .jsonl line or a tfds record.
      split: of `SPLIT_BY`.
      template, date: what chats are written with, as `data.chat_template` and `data.chat_date`.
    """

    paths: tuple[str, ...]
    tokenizer: str
    row_length: int
    packing: str = "first_fit"
    chats: bool = False
    key: str = "text"
    split: str = "documents"
    tfds_split: str = "train"
    template: str = "plain"
    date: str | None = None

    def __post_init__(self) -> None:
        check("row_length", self.row_length, Integer(2, 2**24))
        for name, may_be in (("packing", tuple(PACKINGS)), ("split", SPLIT_BY)):
            if getattr(self, name) not in may_be:
                raise UserError(f"{name}: got {getattr(self, name)!r}, may be one of {', '.join(may_be)}")
        if self.chats and self.split == "parts":
            raise UserError("split: got 'parts', may be 'documents' for chats: a part of a chat is none")
        if not self.chats and (self.template, self.date) != ("plain", None):
            name = "chat_date" if self.template == "plain" else "chat_template"
            raise UserError(f"{name}: may be given for chats only")


def prepare_rows(what: Preparation, output: Path, processes: int = 1, quiet: bool = False) -> dict[str, Any]:
    """Makes, or finishes, a folder of packed rows; returns its manifest.

    Args:
      processes: of this host.
      quiet: no progress bars.

    Raises:
      UserError: malformed or changing texts; a folder that holds something else; a process that was killed.
      WriteError: the disk refuses; what was finished stays.
    """
    make_folder(output, "output")
    tokenizer, template = _tools(what)
    units = find(what.paths, what.chats, what.tfds_split)
    _claim(what, output, units, tokenizer, template)
    if not (output / packed.MANIFEST).exists():
        try:
            _both_passes(what, output, units, processes, quiet)
        except (UserError, OSError):
            _leave(output)
            raise
        _finish(what, output, units, tokenizer, template)
    return packed.read_manifest(output)


def _both_passes(what: Preparation, output: Path, units: list[list[Piece]], processes: int, quiet: bool) -> None:
    for folder in ("scan", "units", packed.ROWS):
        make_folder(output / folder)
    with _workers(processes) as run:
        scan, write = (functools.partial(job, what, output) for job in (_scan, _write))
        _all_units(run, scan, [(i, unit) for i, unit in enumerate(units)], "reading", quiet)
        keep = _first_ones(output, len(units))
        jobs = [(i, unit, kept) for i, (unit, kept) in enumerate(zip(units, keep, strict=True))]
        _all_units(run, write, jobs, "packing", quiet)


def _leave(output: Path) -> None:
    """Removes what was begun, if no unit was even read: a command whose mistake is mended then finds an empty place."""
    with contextlib.suppress(OSError), open(output / ".lock", "a", opener=at_once) as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else is at work here
        if any((output / "scan").glob("*.json")):
            return
        for folder in ("scan", "units", packed.ROWS):
            shutil.rmtree(output / folder, ignore_errors=True)
        for file in ("plan.json", ".lock"):
            (output / file).unlink()
        output.rmdir()


def _tools(what: Preparation) -> tuple[Tokenizer, ChatTemplate | None]:
    tokenizer = load_tokenizer(what.tokenizer)
    tokenizer.encode("")  # one that a run is to train refuses
    template = _template(what, tokenizer) if what.chats else None
    if template is not None and what.date is not None:
        try:
            template = template.on(datetime.date.fromisoformat(what.date))
        except ValueError:
            raise UserError(f"date: got {what.date!r}, may be a date such as '2026-11-28'") from None
    if template is not None and template.asks_date and template.date is None:
        raise UserError("date: got None, may be a date such as '2026-11-28': the chat template writes the day's date")
    return tokenizer, template


def _template(what: Preparation, tokenizer: Tokenizer) -> ChatTemplate:
    if what.template != BESIDE_TOKENIZER:
        return load_template(what.template, tokenizer)
    if (found := beside_tokenizer(what.tokenizer, tokenizer)) is None:
        raise UserError(f"template: got {what.template!r}, but there is none beside {what.tokenizer}")
    return found


def _claim(
    what: Preparation, output: Path, units: list[list[Piece]], tokenizer: Tokenizer, template: ChatTemplate | None
) -> None:
    """Writes plan.json, or checks that the folder holds a preparation of the same.

    A file that was written to since is another, whatever its size; nothing of it is read to say so.
    """
    times = {path: os.stat(path).st_mtime_ns for path in sorted({piece.path for unit in units for piece in unit})}
    pieces = json.dumps([[dataclasses.astuple(piece) for piece in unit] for unit in units] + [list(times.items())])
    plan = {name: value for name, value in dataclasses.asdict(what).items() if name not in ("paths", "tokenizer")}
    plan |= {
        "tokenizer": of_tokenizer(tokenizer), "template": None if template is None else template.source,
        "files": blake2b(pieces.encode(), digest_size=16).hexdigest(), "units": len(units),
    }  # fmt: skip
    path = output / "plan.json"
    if path.exists():
        with remedy(packed.REMEDY):
            theirs = read_object(path)
        if wrong := next((name for name in plan if plan[name] != theirs.get(name)), None):
            raise UserError(f"output: {output} holds rows of other {wrong}; choose another, or delete it")
    elif any(entry.name != ".lock" for entry in output.iterdir()):
        raise UserError(f"output: got {output}, may be a new or an empty folder")
    else:
        write_text(path, json.dumps(plan, indent=2) + "\n", shared=True)


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[Callable]:
    """A `map` over jobs that gives results as they come: in this process, or in as many as asked."""
    if processes == 1:
        yield map
        return
    # "spawn": a fork would inherit the threads of whatever this process has started
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context, _die_with_parent) as pool:

        def run(job: Callable, jobs: Sequence) -> Iterator:
            waiting = {pool.submit(job, each) for each in jobs}
            try:
                for done in concurrent.futures.as_completed(waiting):
                    yield done.result()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError("a process was killed (out of memory?); the same command does what is left") from None
            finally:
                for left in waiting:
                    left.cancel()

        yield run


def _die_with_parent() -> None:
    """Ends this process when the one that started it ends, however."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core is parallel enough

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _all_units(run: Callable, job: Callable, jobs: list[tuple], label: str, quiet: bool) -> None:
    """Runs a job for each unit, those in other hosts' hands later, until every one is done."""
    sizes = {each[0]: sum(piece.size for piece in each[1]) for each in jobs}
    bar = tqdm(total=sum(sizes.values()), desc=label, unit="B", unit_scale=True, disable=quiet)
    left = {each[0]: each for each in jobs}
    with bar:
        while left:
            for number, refused in run(job, list(left.values())):
                if refused:
                    raise UserError(refused)
                if refused is None:
                    bar.update(sizes[number])
                    del left[number]
            if left:
                time.sleep(BUSY)


def _unit_job(work: Callable, what: Preparation, output: Path, folder: str, job: tuple) -> tuple[int, str | None]:
    """(number, None) when the unit's note is there, (number, "") when another process has it, (number, refusal)."""
    number = job[0]
    note = output / folder / f"{number:05}.json"
    try:
        if note.exists():
            return number, None
        with open(output / ".lock", "a", opener=at_once) as lock:
            try:  # the kernel drops a killed process's lock; NFS 4 and Lustre know these
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):
                return number, ""
            if not note.exists():
                write_text(note, json.dumps(work(what, output, *job)) + "\n", shared=True)
        return number, None
    except (UserError, OSError) as error:
        return number, one_line(error)


# --- first pass -------------------------------------------------------------------------------------------------------


def _scan(what: Preparation, output: Path, job: tuple) -> tuple[int, str | None]:
    return _unit_job(_scan_unit, what, output, "scan", job)


def _scan_unit(what: Preparation, output: Path, number: int, unit: list[Piece]) -> dict[str, Any]:
    """Hashes of a unit's documents, uint64 (little-endian), 0 for a blank one, beside its note."""
    reader = Reader(what.key, what.chats)
    hashes = np.array([_hash(text) for text in reader.documents(unit)], "<u8")
    with replacing(output / "scan" / f"{number:05}.hashes", shared=True) as path:
        path.write_bytes(hashes.tobytes())
    return {"source": reader.digest, "documents": len(hashes)}


def _hash(text: str) -> int:
    return (stable_hash(text) or 1) if text.strip() else 0


def _first_ones(output: Path, units: int) -> list[bytes]:
    """For each unit a bit a document, 1 where it is not blank and equal to none before it."""
    hashes = [_hashes(output, i) for i in range(units)]
    everything = np.concatenate([*hashes, np.zeros(0, np.uint64)])
    values, first = np.unique(everything, return_index=True)
    keep = np.zeros(len(everything), bool)
    keep[first[values != 0]] = True
    ends = np.cumsum([len(each) for each in hashes])
    return [np.packbits(part).tobytes() for part in np.split(keep, ends[:-1])]


def _hashes(output: Path, unit: int) -> np.ndarray:
    path, documents = output / "scan" / f"{unit:05}.hashes", _note(output / "scan" / f"{unit:05}.json")["documents"]
    try:
        data = read_bytes(path, limit=8 * documents)
    except (OSError, UserError) as error:
        raise UserError(f"{one_line(error)}; {packed.REMEDY}") from None
    if len(data) != 8 * documents:
        raise packed.damaged(path, f"{len(data)} bytes, {8 * documents} were written")
    return np.frombuffer(data, "<u8")


def _note(path: Path) -> dict[str, Any]:
    """What `_unit_job` wrote of a unit. UserError, naming the file, for one that is damaged."""
    try:
        note = read_object(path)
    except (OSError, UserError) as error:
        raise UserError(f"{one_line(error)}; {packed.REMEDY}") from None
    with remedy(packed.REMEDY):
        if path.parent.name == "scan":
            return check_object(f"{path}: ", note, SCANNED)
        check_object(f"{path}: ", note, WRITTEN)
        packed.check_shards(path, note.get("shards"))
        if unknown := set(note["counts"]) - set(SPLITS):
            raise UserError(f"{path}: counts: got {min(unknown)!r:.60}, may be of {', '.join(SPLITS)}")
    return note


# --- second pass ------------------------------------------------------------------------------------------------------


def _write(what: Preparation, output: Path, job: tuple) -> tuple[int, str | None]:
    return _unit_job(_write_unit, what, output, "units", job)


@functools.lru_cache(maxsize=1)
def _worker_tools(what: Preparation) -> tuple[Tokenizer, ChatTemplate | None]:
    return _tools(what)


def _write_unit(what: Preparation, output: Path, number: int, unit: list[Piece], kept: bytes) -> dict[str, Any]:
    """Shards of a unit's rows, one for each split that has any; returns its note."""
    tokenizer, template = _worker_tools(what)
    source = ChatSource(None, template) if template is not None else None
    counts: dict[str, Counter] = {split: Counter() for split in SPLITS}
    reader, scanned = Reader(what.key, what.chats), _note(output / "scan" / f"{number:05}.json")
    keep = np.unpackbits(np.frombuffer(kept, np.uint8), count=scanned["documents"])
    dropped, seen = Counter(), 0
    with contextlib.ExitStack() as stack:
        shards = {split: _Shard(output, split, number, what, tokenizer) for split in SPLITS}
        for shard in shards.values():
            stack.callback(shard.abandon)
        for index, text in enumerate(reader.documents(unit)):
            seen += 1
            if index >= len(keep) or not keep[index]:
                dropped["duplicate or blank"] += 1
                continue
            for split, part in _splits(text, what.split):
                document = encode_document({"text": part}, source, tokenizer, what.row_length)
                if document is None:
                    dropped["too long, or refused by the template"] += 1
                    continue
                ids = np.asarray(document[0], np.int32)
                counts[split].update(documents=1, tokens=len(ids), answers=sum(document[1]), bytes=len(part.encode()))
                shards[split].add(ids, np.asarray(document[1], np.int32))
        if reader.digest != scanned["source"] or seen != scanned["documents"]:
            raise UserError(f"paths: {unit[0].path} or a file after it has changed; delete {output} and begin anew")
        written = [shard.close() for shard in shards.values()]
    for shard in filter(None, written):
        counts[shard["split"]]["rows"] = shard["rows"]
    return {
        "shards": [shard for shard in written if shard], "source": scanned["source"], "dropped": dropped,
        "counts": {split: dict(count) for split, count in counts.items() if count},
    }  # fmt: skip


def _splits(text: str, by: str) -> list[tuple[str, str]]:
    if by == "documents":
        return [(split_of(text.encode("utf-8"), SPLIT_PERCENTS), text)]
    return list((divide(text, PART_PERCENTS) or {"train": text}).items())


class _Shard:
    """Rows of one split of one unit, in a file that appears whole; none where there is no row."""

    def __init__(self, output: Path, split: str, number: int, what: Preparation, tokenizer: Tokenizer):
        self._path = output / packed.ROWS / f"{split}-{number:05}.array_record"
        self._partial = self._path.with_suffix(".partial")  # the lock is this unit's, so nobody else writes it
        self._split, self._what, self._tokenizer = split, what, tokenizer
        self._group: list[tuple[Any, Any]] = []
        self._tokens = self._rows = 0
        self._content = blake2b(digest_size=16)
        self._writer: Any = None

    def add(self, ids: np.ndarray, answer: np.ndarray) -> None:
        self._group.append((ids, answer))
        self._tokens += len(ids)
        if self._tokens >= max(GROUP_TOKENS, GROUP_ROWS * self._what.row_length):
            self._pack()

    def _pack(self) -> None:
        rows = pack(self._group, self._what.row_length, self._tokenizer.pad_id, self._what.packing)
        self._group, self._tokens = [], 0
        for number in range(len(rows["tokens"])):
            record = packed.encode_row({k: v[number] for k, v in rows.items()}, _token_bytes(self._tokenizer))
            self._content.update(record)
            self._rows += 1
            with _array_record_errors(self._path):
                if self._writer is None:
                    self._writer = array_record_module.ArrayRecordWriter(str(self._partial), "group_size:1")
                self._writer.write(record)

    def close(self) -> dict[str, Any] | None:
        """The shard's entry in the manifest; it is on the disk."""
        if self._group:
            self._pack()
        if self._writer is None:
            return None
        with refused_in_one_line(self._path), _array_record_errors(self._path):
            writer, self._writer = self._writer, None
            writer.close()
            flush(self._partial)
            found = array_record_module.ArrayRecordReader(str(self._partial))  # a full disk is noticed late or never
            if found.num_records() != self._rows:
                raise WriteError(self._path, "what was written reads back otherwise")
            found.close()
            self._partial.replace(self._path)
        return {
            "file": self._path.name, "split": self._split, "rows": self._rows, "bytes": self._path.stat().st_size,
            "content": self._content.hexdigest(), "blake2b": blake2b_of(self._path),
        }  # fmt: skip

    def abandon(self) -> None:
        with contextlib.suppress(Exception):
            if self._writer is not None:
                self._writer.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _array_record_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # no space left, a disk that fails
        raise WriteError(path, one_line(error)) from error


def _token_bytes(tokenizer: Tokenizer) -> int:
    return 2 if tokenizer.vocab_size <= 1 << 16 else 4


def _finish(
    what: Preparation, output: Path, units: list[list[Piece]], tokenizer: Tokenizer, template: ChatTemplate | None
) -> None:
    """Writes manifest.json of all units' notes."""
    notes = [_note(output / "units" / f"{i:05}.json") for i in range(len(units))]
    counts: dict[str, Counter] = {split: Counter() for split in SPLITS}
    dropped: Counter = Counter()
    for note in notes:
        dropped.update(note["dropped"])
        for split, count in note["counts"].items():
            counts[split].update(count)
    if not any(count["documents"] for count in counts.values()):
        raise UserError("paths: hold no text")
    percents = SPLIT_PERCENTS if what.split == "documents" else PART_PERCENTS
    manifest = {
        "format": packed.FORMAT,
        "kind": "chat" if what.chats else "text",
        "row_length": what.row_length,
        "packing": what.packing,
        "tokenizer": of_tokenizer(tokenizer),
        "tokenizer_name": what.tokenizer,
        "token_bytes": _token_bytes(tokenizer),
        "template": None if template is None else template.source,
        "split": {"by": what.split, "percents": dict(zip(SPLITS, percents, strict=True))},
        "counts": {split: {name: count[name] for name in ("documents", "rows", "tokens", "answers", "bytes")}
                   for split, count in counts.items()},
        "dropped": dict(dropped),
        "source": {"paths": list(what.paths), "bytes": sum(piece.size for unit in units for piece in unit),
                   "pieces": sum(map(len, units)), "blake2b": [note["source"] for note in notes]},
        "shards": sorted((shard for note in notes for shard in note["shards"]), key=lambda shard: shard["file"]),
    }  # fmt: skip
    manifest["digest"] = packed.digest(manifest)
    for left in (
        *(output / "scan").glob("*.partial"),
        *(output / packed.ROWS).glob("*.partial"),
    ):  # by killed processes
        left.unlink(missing_ok=True)
    flush(output / packed.ROWS)
    write_text(output / packed.MANIFEST, json.dumps(manifest, indent=1) + "\n", shared=True)

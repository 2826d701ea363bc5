"""Rows that were tokenised and packed once (`packing.prepare_rows`), and are read one by one from ArrayRecord.

A folder of them: manifest.json, which says what they were made of and with, and holds every shard's rows and checksum;
and rows/SPLIT-NNNNN.array_record. Opening one reads the manifest and no row. What a shard holds is covered by
ArrayRecord's own checksums when it is read; `verify` compares whole files with the manifest's.

A record is little-endian: uint32 n, whose top bit says that not every token is an answer's; uint32 [n], the lengths of
the row's n documents; their tokens, uint16 or uint32 (the manifest's `token_bytes`); and where the top bit is set a bit
a token, 1 for an answer's.
"""

import bisect
import collections
import itertools
import json
import os
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from zaya_jax.checks import Choice, Integer, Spelled, Text, Unset, Values, check_object, shown
from zaya_jax.data.splits import SPLITS, require_split
from zaya_jax.errors import UserError
from zaya_jax.files import blake2b_of, read_object, remedy
from zaya_jax.paths import one_line

MANIFEST, ROWS, FORMAT = "manifest.json", "rows", 1
NATURAL = Integer(0, 2**62)
SHARD = {  # what a manifest says of each
    "file": Spelled(r"(train|validation|test)-\d{5,9}\.array_record", "SPLIT-NUMBER.array_record"),
    "split": Choice(SPLITS), "rows": Integer(1, 2**48), "bytes": NATURAL, "content": Text(), "blake2b": Text(),
}  # fmt: skip
RULES = {
    "kind": Choice(("text", "chat")), "row_length": Integer(2, 2**24), "packing": Text(), "tokenizer": Text(),
    "tokenizer_name": Text(), "token_bytes": Choice((2, 4)), "template": Unset(Text()),
    "dropped": Values(NATURAL),
}  # fmt: skip
COUNTS = dict.fromkeys(("documents", "rows", "tokens", "answers", "bytes"), NATURAL)  # of a split
REMEDY = "delete the folder that experiments.prepare made, and the same command makes it"
OPEN_SHARDS = 128  # files that are kept open
_SOME = 1 << 31
READ = "readahead_buffer_size:0"  # rows are read in no order


def encode_row(row: dict[str, np.ndarray], token_bytes: int) -> bytes:
    """A row of `pipeline.pack`, int32 [T] each, as a record."""
    used = int((row["document"] >= 0).sum())
    lengths = np.bincount(row["document"][:used]).astype("<u4")
    answer = row["answer"][:used]
    head = np.array([len(lengths) | (0 if answer.all() else _SOME)], "<u4")
    tokens = row["tokens"][:used].astype(f"<u{token_bytes}")
    bits = b"" if answer.all() else np.packbits(answer.astype(bool)).tobytes()
    return head.tobytes() + lengths.tobytes() + tokens.tobytes() + bits


def decode_row(record: bytes, token_bytes: int, row_length: int, pad_id: int) -> dict[str, np.ndarray]:
    """What `encode_row` was given: {"tokens", "document", "answer"}, int32 [row_length] each."""
    head = int(np.frombuffer(record, "<u4", 1)[0])
    count = head & ~_SOME
    lengths = np.frombuffer(record, "<u4", count, 4)
    used, at = int(lengths.sum()), 4 + 4 * count
    out = {
        name: np.full(row_length, fill, np.int32)
        for name, fill in (("tokens", pad_id), ("document", -1), ("answer", 0))
    }
    out["tokens"][:used] = np.frombuffer(record, f"<u{token_bytes}", used, at)
    out["document"][:used] = np.repeat(np.arange(count, dtype=np.int32), lengths)
    bits = np.frombuffer(record, np.uint8, offset=at + used * token_bytes)
    out["answer"][:used] = np.unpackbits(bits, count=used) if head & _SOME else 1
    return out


class PackedRows:
    """A split of a folder of packed rows; `rows.read(i, pad_id)` is row i, as int32 [row_length] arrays."""

    def __init__(self, folder: Path, split: str) -> None:
        """UserError for a folder that is unfinished or damaged, or without rows in this split."""
        require_split(split)
        self.folder, self.split, self.manifest = folder, split, read_manifest(folder)
        shards = [shard for shard in self.manifest["shards"] if shard["split"] == split]
        self._files = [shard["file"] for shard in shards]
        self._ends = list(itertools.accumulate(shard["rows"] for shard in shards))
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()  # training reads ahead in a thread of its own
        if not len(self):
            counts = {name: found["documents"] for name, found in self.manifest["counts"].items()}
            raise UserError(f"split: {split!r} of {folder} holds no document (documents: {counts}): give more text")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def row_length(self) -> int:
        return self.manifest["row_length"]

    def require(self, row_length: int, where: str) -> None:
        """UserError unless the rows are `row_length` tokens long."""
        if row_length != self.row_length:
            raise UserError(f"{where}: got rows of {self.row_length} tokens ({self.folder}), may be of {row_length}")

    def read(self, number: int, pad_id: int) -> dict[str, np.ndarray]:
        """Row `number`. UserError, naming the file, where it is damaged."""
        shard = bisect.bisect_right(self._ends, number)
        first = self._ends[shard - 1] if shard else 0
        path = self.folder / ROWS / self._files[shard]
        try:
            with self._lock:
                (record,) = self._reader(shard, path).read([number - first])
            return decode_row(record, self.manifest["token_bytes"], self.row_length, pad_id)
        except (RuntimeError, ValueError, IndexError) as error:  # ArrayRecord's reader; what numpy makes of other bytes
            raise damaged(path, f"row {number - first} cannot be read ({one_line(error)[:100]})") from error

    def _reader(self, shard: int, path: Path) -> Any:
        """Its file, opened."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        while len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        self._open[shard] = array_record_module.ArrayRecordReader(str(path), READ)
        return self._open[shard]


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder of packed rows, whose files are all there and as large as they were.

    Raises:
      UserError: it is unfinished, damaged, or something else.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        what = (
            "unfinished; the command that began it finishes it" if (folder / "plan.json").exists() else "no such file"
        )
        raise UserError(f"{path}: {what}; may be a folder that experiments.prepare wrote")
    with remedy(REMEDY):
        manifest = read_object(path)
    if manifest.get("format") != FORMAT or manifest.get("digest") != digest(manifest):
        raise damaged(path, "damaged, or not a manifest of packed rows")
    with remedy(REMEDY):
        check_object(f"{path}: ", manifest, RULES)
        counts = manifest.get("counts")
        for split in SPLITS:
            check_object(f"{path}: counts.{split}.", counts.get(split) if isinstance(counts, dict) else None, COUNTS)
        check_object(f"{path}: source.", manifest.get("source"), {"bytes": NATURAL})
        check_shards(path, manifest["shards"])
    for shard in manifest["shards"]:
        file = folder / ROWS / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            raise damaged(file, "missing" if size is None else f"{size} bytes, {shard['bytes']} were written")
    return manifest


def check_shards(path: Path, shards: Any) -> None:
    """UserError, naming the file that says so and the field, for what is no list of shards' entries."""
    if not isinstance(shards, list):
        raise UserError(f"{path}: shards: got {shown(shards)}, may be a list of objects")
    for number, shard in enumerate(shards):
        check_object(f"{path}: shards[{number}].", shard, SHARD)


def digest(manifest: dict[str, Any]) -> str | None:
    """What the rows hold, in 32 hex digits, wherever the folder and the texts lie; None for no manifest."""
    try:
        shards = [[shard[name] for name in ("file", "split", "rows", "content")] for shard in manifest["shards"]]
        said = [manifest[name] for name in ("row_length", "token_bytes", "tokenizer", "packing", "kind")]
    except (KeyError, TypeError):
        return None
    return blake2b(json.dumps([said, shards]).encode(), digest_size=16).hexdigest()


def verify(folder: Path) -> int:
    """Reads every shard of a folder, and returns how many. UserError, naming the first that is not as written."""
    shards = read_manifest(folder)["shards"]
    for shard in shards:
        path = folder / ROWS / shard["file"]
        if blake2b_of(path) != shard["blake2b"]:
            raise damaged(path, "not the bytes that were written")
    return len(shards)


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; {REMEDY}")

"""A corpus as pieces that many processes read, each by itself: text files, parts of .jsonl files, shards of tfds.

`find` looks at names and sizes alone. A unit is a list of pieces, of `UNIT_BYTES` or a little more; a single text file
or a TFRecord shard is never cut. A folder that holds a data set which tensorflow-datasets prepared (TFRecord or
ArrayRecord) is read as that, without TensorFlow.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from zaya_jax.data import builders, tfrecord
from zaya_jax.data.chat import chat_text, check_messages, check_tools
from zaya_jax.errors import UserError
from zaya_jax.files import open_plain
from zaya_jax.paths import absolute, one_line

UNIT_BYTES = 1 << 25  # of sources: so much work is lost when a process is killed
TFDS_INFO = "dataset_info.json"
RECORDS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a file: bytes start..end, or records.

    `kind`: "text", "lines" (.jsonl), "array_record" or "tfrecord".
    """

    path: str
    kind: str
    start: int
    end: int
    size: int  # bytes, roughly where it is records


def find(paths: Sequence[str | Path], chats: bool, tfds_split: str = "train") -> list[list[Piece]]:
    """The units of a corpus, in a fixed order.

    Args:
      paths: files, directories, globs, and folders of tfds.
      chats: whether only .jsonl files will do.
      tfds_split: which of tfds' splits is read.

    Raises:
      FileNotFoundError, UserError: a path that names nothing, or no text.
    """
    folders = [absolute(path) for path in paths if (absolute(path) / TFDS_INFO).is_file()]
    others = [path for path in paths if absolute(path) not in folders]
    if chats and folders:
        raise UserError(f"paths: {folders[0]} is no .jsonl file of chats")
    pieces = [piece for folder in folders for piece in _of_tfds(folder, tfds_split)]
    for path in builders._resolve(others) if others or not folders else []:
        lines = path.suffix.lower() == ".jsonl"
        if chats and not lines:
            raise UserError(f"paths: {path} is no .jsonl file of chats")
        size = path.stat().st_size
        cuts = _line_cuts(path, size) if lines else [(0, size)]
        pieces += [Piece(str(path), "lines" if lines else "text", a, b, b - a) for a, b in cuts]
    units: list[list[Piece]] = []
    held = UNIT_BYTES
    for piece in pieces:
        if held >= UNIT_BYTES:
            units.append([])
            held = 0
        units[-1].append(piece)
        held += piece.size
    if not units:  # tfds' splits may be empty
        raise UserError(f"paths: hold no record of split {tfds_split!r}")
    return units


def _line_cuts(path: Path, size: int) -> list[tuple[int, int]]:
    """Ranges of bytes that end at line ends."""
    cuts, start = [], 0
    with _source(path) as file:
        while size - start > UNIT_BYTES * 3 // 2:
            file.seek(start + UNIT_BYTES)
            file.readline()
            cuts.append((start, file.tell()))
            start = file.tell()
    return [*cuts, (start, size)] if size > start or not cuts else cuts


def _of_tfds(folder: Path, split: str) -> Iterator[Piece]:
    with _tfds_errors(folder):
        splits = tfds.builder_from_directory(folder).info.splits
        info = splits.get(split)
        files = [] if info is None else list(zip(map(Path, info.filepaths), info.shard_lengths, strict=True))
    if info is None:
        raise UserError(f"tfds_split: got {split!r}, may be of {folder}: {', '.join(splits)}")
    for path, count in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, but {folder / TFDS_INFO} names it")
        kind = "array_record" if "array_record" in path.name else "tfrecord" if "tfrecord" in path.name else ""
        size = path.stat().st_size
        if not kind:
            raise UserError(f"{path}: got a file format that is not read, may be array_record or tfrecord")
        if kind == "tfrecord":
            yield Piece(str(path), kind, 0, count, size)
            continue
        if (found := _records(path)) != count:
            raise _other_count(path, found, count)
        each = max(1, count * UNIT_BYTES // max(1, size))
        for start in range(0, count, each):
            end = min(count, start + each)
            yield Piece(str(path), kind, start, end, size * (end - start) // count)


@contextlib.contextmanager
def _source(path: Path | str) -> Iterator[BinaryIO]:
    """A plain file, opened. UserError, in the words of a corpus, for what is none or cannot be read."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_plain(path))
        except (FileNotFoundError, UserError) as error:
            raise UserError(f"paths: {error}") from None
        yield file


def _other_count(path: Path | str, found: int, count: int) -> UserError:
    return UserError(f"paths: {path}: holds {found} records, may hold {count} ({TFDS_INFO}); cut short, or another's")


def _records(path: Path) -> int:
    """How many an ArrayRecord file holds."""
    with _damaged_records(path):
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    return count


@contextlib.contextmanager
def _damaged_records(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:  # of ArrayRecord's reader and ours
        if isinstance(error, UserError):
            raise
        raise UserError(f"paths: {path}: another kind of file, or damaged ({one_line(error)[:100]})") from None


@contextlib.contextmanager
def _tfds_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tfds raises what it likes of a damaged folder
        raise UserError(f"paths: {folder}: not a folder that tensorflow-datasets reads ({one_line(error)})") from error


def _features(folder: Path) -> Any:
    with _tfds_errors(folder):
        return tfds.builder_from_directory(folder).info.features


class Reader:
    """Documents of pieces, with a digest of all that was read.

    Args:
      key: the field of a .jsonl line, or the feature of a tfds record, that holds a text.
      chats: whether lines are chats; their texts are then `chat.chat_text`.
    """

    def __init__(self, key: str = "text", chats: bool = False):
        self._key, self._chats = key, chats
        self._read = blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._read.hexdigest()

    def documents(self, pieces: Sequence[Piece]) -> Iterator[str]:
        """Every text, blank ones and duplicates included. UserError for what is no text or cannot be read."""
        for piece in pieces:
            yield from getattr(self, f"_{piece.kind}")(piece)

    def _bytes(self, piece: Piece) -> bytes:
        with _source(piece.path) as file:
            file.seek(piece.start)
            data = file.read(piece.end - piece.start)
        if len(data) != piece.end - piece.start:
            raise UserError(f"paths: {piece.path}: has become shorter")
        self._read.update(data)
        return data

    def _text(self, piece: Piece) -> Iterator[str]:
        yield builders._decode(Path(piece.path), self._bytes(piece))

    def _lines(self, piece: Piece) -> Iterator[str]:
        data, path = self._bytes(piece), Path(piece.path)
        if piece.start:  # lines are counted from there
            path = Path(f"{piece.path}[from byte {piece.start}]")
        if not self._chats:
            for _, text in builders._jsonl_documents(path, data, self._key):
                yield text
            return
        for where, record in builders._jsonl_records(path, data):
            record = record if isinstance(record, dict) else {}
            messages = check_messages(record.get("messages"), where)
            yield builders._encodable(chat_text(messages, check_tools(record.get("tools"), where)), where)

    def _array_record(self, piece: Piece) -> Iterator[str]:
        features = _features(Path(piece.path).parent)
        with _damaged_records(piece.path):
            reader = array_record_module.ArrayRecordReader(piece.path)
            for start in range(piece.start, piece.end, RECORDS_AT_ONCE):
                for record in reader.read(start, min(start + RECORDS_AT_ONCE, piece.end)):
                    yield self._of_record(record, features, piece)
            reader.close()

    def _tfrecord(self, piece: Piece) -> Iterator[str]:
        features, found = _features(Path(piece.path).parent), 0
        with _source(piece.path) as file, _damaged_records(piece.path):
            for record in tfrecord.read(file, piece.size):
                found += 1
                yield self._of_record(record, features, piece)
        if found != piece.end:  # a file may be cut between two records
            raise _other_count(piece.path, found, piece.end)

    def _of_record(self, record: bytes, features: Any, piece: Piece) -> str:
        self._read.update(record)
        try:
            values = features.deserialize_example_np(record)
        except Exception as error:  # protobuf and tfds raise what they like
            raise UserError(f"paths: {piece.path}: a record that cannot be read ({one_line(error)[:100]})") from error
        values = values if isinstance(values, dict) else {}
        value = values.get(self._key)
        if not isinstance(value, bytes):
            texts = sorted(name for name, found in values.items() if isinstance(found, bytes))
            raise UserError(f"key: got {self._key!r}, may be a text of {piece.path}: {json.dumps(texts)}")
        return builders._decode(Path(piece.path), value)

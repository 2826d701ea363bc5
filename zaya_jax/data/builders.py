"""Text corpora as tfds builders that write ArrayRecord, without TensorFlow and without network.

`prepare_text` (and `prepare_chats`, for chats) is the entry point: it prepares a corpus once and opens one
split for random access. The prepared directory's name holds a hash of every byte that was read, so
changed files are prepared again and stale data is never reused. A document (a file, or a line of a
.jsonl) belongs to train, validation or test, 96/2/2, by a hash of its text. Where that would leave one of them empty
(one book, a dozen files), or where the source says {"split": "parts"}, each document is divided instead, 90/5/5: its
beginning is trained on, its end held back. manifest.json beside the data says which was done.
"""

import glob
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from zaya_jax.data.chat import chat_text, check_messages, check_tools
from zaya_jax.data.prepared import digest, prepare, read_manifest
from zaya_jax.data.splits import SPLITS, divide, require_split, split_of
from zaya_jax.errors import UserError
from zaya_jax.files import decode, parse_json, read_bytes
from zaya_jax.paths import absolute, resolved

SPLIT_PERCENTS = (96, 2, 2)  # of documents
PART_PERCENTS = (90, 5, 5)  # of each document's characters
SPLIT_BY = ("documents", "parts")
PROSE_SUFFIXES = (".txt", ".md", ".rst", ".tex")
CODE_SUFFIXES = (
    ".py",
    ".pyi",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".cu",
    ".rs",
    ".go",
    ".java",
    ".js",
    ".sh",
)
TEXT_SUFFIXES = frozenset({*PROSE_SUFFIXES, *CODE_SUFFIXES, ".jsonl"})  # Read from directories.
TEST_DIRECTORIES = frozenset({"test", "tests", "idle_test"})
INSTALLED_DIRECTORIES = frozenset({"site-packages", "dist-packages", "__pycache__"})

Document = tuple[str, str]  # (name, text)


class _LocalInfo(tfds.core.DatasetInfo):
    """Of a data set that exists here alone."""

    def initialize_from_bucket(self) -> None:
        """tfds' own makes an empty temporary folder, which stays, and may ask Google's servers for the data set."""


class _TextBuilder(tfds.core.GeneratorBasedBuilder):
    """Documents in, ArrayRecord out; subclasses say which documents there are."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # tfds cannot infer it outside its own package tree.
    skip_registering = True
    divisible = True  # whether a part of a document is one too
    name: str  # tfds makes it of the class's

    def __init__(self, *, fingerprint: str, split: str | None = None, **kwargs: Any):
        """`fingerprint` names the tfds config, hence the directory of the prepared data; `split`: of SPLIT_BY."""
        self._split_by = split
        self.contents: dict[str, tuple[int, int]] = {}
        self.division: dict[str, Any] = {}
        config = tfds.core.BuilderConfig(name=fingerprint, version=self.VERSION)
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"text": tfds.features.Text(), "name": tfds.features.Text()}
        return _LocalInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # Everything is local.
        texts = (text for _, text in self.documents() if text.strip())
        held = {split_of(text.encode("utf-8"), SPLIT_PERCENTS) for text in texts}
        if not held:
            raise UserError(f"source: {self.name} is empty: it holds no text")
        by = self._split_by or "documents"
        if by == "parts" or (self._split_by is None and self.divisible and held != set(SPLITS)):
            divided = {split for document in self._distinct() for split in _parts(document)}
            if by == "parts" or divided == set(SPLITS):
                by, held = "parts", divided
        percents = SPLIT_PERCENTS if by == "documents" else PART_PERCENTS
        self.division = {"by": by, "percents": dict(zip(SPLITS, percents, strict=True))}
        # tfds refuses to write a split without examples; prepare_text reports a missing one.
        return {split: self._generate_examples(split, by) for split in SPLITS if split in held}

    def _generate_examples(self, split: str, by: str) -> Iterator[tuple[str, dict[str, str]]]:
        self.contents[split] = (0, 0)
        # Equal texts hash to the same split, so looking for duplicates inside one is enough.
        for name, text in self._distinct(split if by == "documents" else None):
            if by == "parts":
                text, name = _parts((name, text)).get(split, ""), f"{name} ({split} part)"
                if not text:
                    continue
            count, total = self.contents[split]
            self.contents[split] = (count + 1, total + digest(name, text))
            # a part's key is its own and its document's: two documents may end alike
            yield _key(text) if by == "documents" else f"{_key(text)}{_key(name)}", {"text": text, "name": name}

    def _distinct(self, split: str | None = None) -> Iterator[Document]:
        """Documents that are not blank, each once; of the split that their hash names, or all."""
        seen: set[str] = set()
        for name, text in self.documents():
            key = _key(text)
            if key in seen or not text.strip() or split not in (None, split_of(text.encode("utf-8"), SPLIT_PERCENTS)):
                continue
            seen.add(key)
            yield name, text

    def documents(self) -> Iterator[Document]:
        """All (name, text) pairs in a fixed order, duplicates included."""
        raise NotImplementedError


class StdlibCode(_TextBuilder):
    """The *.py files of the running interpreter's standard library."""

    skip_registering = False

    def __init__(self, *, include_tests: bool = False, root: str | Path | None = None, **kwargs: Any):
        """`root` replaces the interpreter's own library; `include_tests` adds its test suites."""
        self._root = Path(root) if root is not None else Path(sysconfig.get_path("stdlib"))
        if not self._root.is_dir():
            raise FileNotFoundError(f"stdlib: no such directory: {self._root}")
        excluded = INSTALLED_DIRECTORIES | (frozenset() if include_tests else TEST_DIRECTORIES)
        contents = dict(_decodable_files(self._root, excluded))
        self._files = list(contents)
        tests = "-tests" if include_tests else ""
        python = f"{platform.python_implementation()}-{platform.python_version()}".lower()
        fingerprint = _fingerprint(contents.items())
        super().__init__(fingerprint=f"{python}{tests}-{fingerprint}", **kwargs)

    def documents(self) -> Iterator[Document]:
        """(path inside the library, text) of every file that is valid UTF-8."""
        for name in self._files:
            path = self._root / name
            yield name, _decode(path, _read(path))


class LocalText(_TextBuilder):
    """Text files, and .jsonl files with one document a line, from files, directories or globs."""

    skip_registering = False

    def __init__(self, *, paths: Sequence[str | Path], key: str = "text", split: str | None = None, **kwargs: Any):
        """`key`: the field of a .jsonl line that holds its text; `split`: of SPLIT_BY, None: what leaves none empty.

        Raises FileNotFoundError for a path that names nothing, UserError for an unreadable file.
        """
        self._files = _resolve(paths)
        self._key = key
        contents = ((str(path), _read(path)) for path in self._files)
        salt = key if split is None else f"{key}\0{split}"
        super().__init__(fingerprint=f"{_fingerprint(contents, salt)}", split=split, **kwargs)

    def documents(self) -> Iterator[Document]:
        """(path, text) of each text file and (path:line, text) of each .jsonl line."""
        for path in self._files:
            data = _read(path)
            if path.suffix.lower() == ".jsonl":
                yield from _jsonl_documents(path, data, self._key)
            else:
                yield str(path), _decode(path, data)


class LocalChats(LocalText):
    """.jsonl files of {"messages": [{"role", "content"}, ...], "tools": [...]} lines, tools where there are any.

    A document's text is the chat as JSON: see `chat_text`.
    """

    VERSION = tfds.core.Version("1.1.0")  # 1.0.0 left tools out
    skip_registering = False
    divisible = False

    def __init__(self, *, paths: Sequence[str | Path], **kwargs: Any):
        super().__init__(paths=paths, key="messages", **kwargs)
        for path in self._files:
            if path.suffix.lower() != ".jsonl":
                raise UserError(f"paths: {path} is no .jsonl file of chats")

    def documents(self) -> Iterator[Document]:
        """(path:line, chat as JSON) of each line."""
        for path in self._files:
            for where, record in _jsonl_records(path, _read(path)):
                record = record if isinstance(record, dict) else {}
                messages = check_messages(record.get("messages"), where)
                yield where, _encodable(chat_text(messages, check_tools(record.get("tools"), where)), where)


@dataclass(frozen=True)
class TextSource:
    """One prepared split: `source[i]` is {"text": str, "name": str}."""

    records: Any  # What tfds opens: a sequence of {"text": bytes, "name": bytes}.
    directory: Path  # Of the prepared data.
    split_by: str  # of SPLIT_BY: whether a record is a document or a part of one

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {key: value.decode("utf-8") for key, value in self.records[index].items()}


def text_source(name: str) -> str | list[str]:
    """What `prepare_text` and `check_text` are given for a flag's text: stdlib, a file, a folder or a glob."""
    return name if name == "stdlib" else [name]


def prepare_text(
    source: str | Sequence[str | Path] | Mapping[str, Any], data_dir: str | Path, split: str
) -> TextSource:
    """Opens a split of a text corpus, preparing it under `data_dir` if that was not yet done.

    Args:
      source: "stdlib", "stdlib+tests", a list of local paths (files, directories, globs), or a
        dict {"paths": [...], "key": field of the .jsonl lines (default "text"), "split": "documents" or "parts",
        what is held back (default: documents, or where those are too few, parts of them)}.
      data_dir: where prepared corpora are kept; made if need be.
      split: "train", "validation" or "test".

    Returns:
      A random-access sequence of {"text": str, "name": str}.

    Raises:
      UserError: unknown source or split, malformed file, empty corpus or split, prepared data that are damaged.
      FileNotFoundError: a path that names no file.
      WriteError: the disk refuses; nothing half-written stays.
    """
    local = _local_options(source)
    if local is None:
        return _open(StdlibCode, {"include_tests": source == "stdlib+tests"}, data_dir, source, split)
    return _open(LocalText, local, data_dir, source, split)


def prepare_chats(paths: Sequence[str | Path], data_dir: str | Path, split: str) -> TextSource:
    """As `prepare_text`, of .jsonl files with a chat a line; "text" is the chat as JSON (`chat.chat_text`).

    Raises:
      UserError, FileNotFoundError: as `prepare_text`, and for a line that is no chat.
    """
    return _open(LocalChats, {"paths": paths}, data_dir, paths, split)


def _open(
    kind: type[_TextBuilder], options: dict[str, Any], data_dir: str | Path, source: Any, split: str
) -> TextSource:
    """A split of a builder's data, prepared if need be."""
    require_split(split)
    folder = prepare(kind, options, Path(data_dir).expanduser())
    manifest = read_manifest(folder)
    counts, by = manifest["documents"], manifest["split"]["by"]
    if not counts.get(split):
        each = "a document is a file or a .jsonl line" if by == "documents" else "each document is divided"
        raise UserError(
            f"split: {split!r} of {_describe(source)} holds no document (documents: {counts}); {each}: give more text"
        )
    builder = tfds.builder_from_directory(folder)
    return TextSource(builder.as_data_source(split=split), folder, by)


def check_text(source: Any) -> None:
    """Raises what `prepare_text` would for a source that is malformed or names no file; reads no file's content."""
    local = _local_options(source)
    if local is not None:
        for path in _resolve(local["paths"]):
            if not os.access(path, os.R_OK):
                raise PermissionError(f"paths: {path} cannot be read")


def _local_options(source: Any) -> dict[str, Any] | None:
    """LocalText's paths (and key); None for the standard library."""
    if source in ("stdlib", "stdlib+tests"):
        return None
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - {"paths", "key", "split"})
        if unknown or "paths" not in source:
            raise UserError(f"source: got fields {sorted(source)}, must be paths and maybe key and split")
        if source.get("split") not in (None, *SPLIT_BY):
            raise UserError(f"source: split: got {source['split']!r}, must be one of {', '.join(SPLIT_BY)}")
        return dict(source)
    if isinstance(source, Sequence) and not isinstance(source, str):
        return {"paths": source}
    raise UserError(
        f'source: got {source!r}, must be "stdlib", "stdlib+tests", a list of paths or a dict with paths and maybe key '
        "and split"
    )


def _key(text: str) -> str:
    return blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def _parts(document: Document) -> dict[str, str]:
    """A document's parts by split; one too short to be divided is trained on."""
    return divide(document[1], PART_PERCENTS) or {"train": document[1]}


def _describe(source: Any) -> str:
    text = repr(source)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _fingerprint(contents: Iterable[tuple[str, bytes]], salt: str = "") -> str:
    """A hash of all (name, bytes) pairs, in order."""
    digest = blake2b(salt.encode("utf-8"), digest_size=8)
    for name, data in contents:
        digest.update(f"\0{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


def _resolve(paths: Sequence[str | Path]) -> list[Path]:
    """The sorted, distinct files that `paths` name."""
    if isinstance(paths, str | Path) or not paths:
        raise UserError(f"paths: got {paths!r}, must be a list of files, directories or globs")
    files: set[Path] = set()
    for entry in paths:
        if not isinstance(entry, str | Path) or not str(entry):
            raise UserError(f"paths: got {entry!r:.200}, must be a list of files, directories or globs")
        text = str(absolute(entry))
        # A path that exists is taken literally, even with a "[" in its name.
        matches = [text] if Path(text).exists() else glob.glob(text, recursive=True)
        if not matches:
            raise FileNotFoundError(f"paths: {text} is no file, directory or matching glob")
        for match in map(Path, matches):
            files.update(_text_files(match) if match.is_dir() else [resolved(match)])
    if not files:
        raise UserError(
            f"paths: {_describe(list(map(str, paths)))} hold no text file ({' '.join(sorted(TEXT_SUFFIXES))})"
        )
    return sorted(files)


def _text_files(directory: Path) -> list[Path]:
    """Files of a known suffix below `directory`, hidden ones (such as .git) left out."""
    root = resolved(directory)
    return [
        path
        for path in root.rglob("*")
        if path.suffix.lower() in TEXT_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    ]


def _decodable_files(root: Path, excluded: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """(relative path, bytes) of the UTF-8 *.py files outside directories named in `excluded`."""
    skipped = 0
    for path in sorted(root.rglob("*.py")):
        if excluded.intersection(path.relative_to(root).parts[:-1]):
            continue
        try:
            data = path.read_bytes()
            data.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            skipped += 1
            continue
        yield str(path.relative_to(root)), data
    if skipped:
        logging.warning("stdlib: skipped %d unreadable or non-UTF-8 files", skipped)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, limit=1 << 62)
    except (UserError, OSError) as error:
        raise UserError(f"paths: {error}") from None


def _decode(path: Path, data: bytes) -> str:
    return decode(data, f"paths: {path}")


def _jsonl_documents(path: Path, data: bytes, key: str) -> Iterator[Document]:
    for where, record in _jsonl_records(path, data):
        text = record.get(key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: must be an object whose field {key!r} is a string{_other_field(path, record)}")
        yield where, _encodable(text, f"{where}: field {key!r}")


def _other_field(path: Path, record: Any) -> str:
    """What to write in a config where a line's text stands in another field: its longest string."""
    texts = (
        {name: value for name, value in record.items() if isinstance(value, str)} if isinstance(record, dict) else {}
    )
    if not texts:
        return ""
    longest = max(texts, key=lambda name: len(texts[name]))
    source = json.dumps({"paths": [str(path)], "key": longest}, ensure_ascii=False)
    return f"; to read its field {longest!r}, the source may be {source}"


def _jsonl_records(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """(path:line, value) of every line that is not blank."""
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(_decode(path, data).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", parse_json(line)
            except UserError as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from None


def _encodable(text: str, where: str) -> str:
    """`text`; UserError if it has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds a lone surrogate") from error
    return text

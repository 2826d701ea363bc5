"""Digests of what inputs hold, wherever they lie: equal contents, equal digests."""

import contextlib
import dataclasses
import json
import sysconfig
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tokenizers

from zaya_jax.data import builders
from zaya_jax.errors import UserError
from zaya_jax.files import blake2b_of, read_object, write_text
from zaya_jax.text.tokenizers import Tokenizer

REMEMBERED = 8 << 20  # bytes: larger files are not read again while their size and times stay


class Digests:
    """Digests of files, of large ones kept in a JSON file between processes: jobs of a sweep share their inputs."""

    def __init__(self, memory: Path | None = None):
        """`memory`: where; None keeps nothing. It may be deleted, and is rewritten if damaged."""
        self._memory = memory
        self._known: dict[str, str] = {}
        if memory is not None:
            with contextlib.suppress(OSError, UserError):
                self._known = {key: value for key, value in read_object(memory).items() if isinstance(value, str)}

    def of_file(self, path: Path) -> str:
        """Of a file's bytes."""
        status = path.stat()
        # the change time cannot be set, so a file that was written to is seen whatever its other times say
        key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if key in self._known:
            return self._known[key]
        self._known[key] = blake2b_of(path)
        if self._memory is not None and status.st_size >= REMEMBERED:
            self._keep()
        return self._known[key]

    def of_folder(self, folder: Path) -> str:
        """Of all files below a folder and their names in it."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return _digest([[path.relative_to(folder).as_posix(), self.of_file(path)] for path in files])

    def of_texts(self, source: Any) -> str:
        """Of a text source of a mixture, or of a list of files of chats: see `prepare_text`, `prepare_chats`.

        Files' names and order are nothing that training sees, but whether a file is .jsonl is.

        Raises:
          UserError, FileNotFoundError: as `check_text`.
        """
        local = builders._local_options(source)
        if local is None:  # the standard library: another interpreter has another
            outside = builders.INSTALLED_DIRECTORIES
            outside |= frozenset() if source == "stdlib+tests" else builders.TEST_DIRECTORIES
            contents = builders._decodable_files(Path(sysconfig.get_path("stdlib")), outside)
            return builders._fingerprint(contents)
        options = {name: value for name, value in local.items() if name != "paths"}
        files = sorted(
            (path.suffix.lower() == ".jsonl", self.of_file(path)) for path in builders._resolve(local["paths"])
        )
        return _digest([options, files])

    def _keep(self) -> None:
        assert self._memory is not None
        with contextlib.suppress(OSError):  # then it is read again
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._memory, json.dumps(self._known), shared=True)


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """Of everything that decides which ids a tokenizer gives."""
    said: list[Any] = [type(tokenizer).__name__, tokenizer.vocab_size]
    fields = dataclasses.fields(tokenizer) if dataclasses.is_dataclass(tokenizer) else ()
    for field in [field for field in fields if field.compare]:
        value = getattr(tokenizer, field.name)
        said.append(value.to_str() if isinstance(value, tokenizers.Tokenizer) else repr(value))
    return _digest(said)


def _digest(said: Iterable[Any]) -> str:
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

"""A folder that is being filled: beside its final name, with a journal, so that a killed conversion resumes.

The journal (`journal.jsonl`) begins with what the conversion is and has a line for each finished piece: a file's size
and sha256, an array's checksum. Who comes back checks every finished piece against its line and keeps it; the folder
takes its name, without the journal, when all is there. A partial folder of another conversion, or of a source that has
changed, is refused. A mistake of the user's (a source that turns out damaged) leaves nothing: coming back could not
finish it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.files import append_lines, at_once, make_folder, read_lines, remedy

JOURNAL = "journal.jsonl"
REMEDY = "delete the folder to begin anew"


class Partial:
    """Use as a context manager: it holds the folder against a second process.

    Attributes:
      path: the folder to fill.
      kept: how many pieces of an earlier attempt were found whole.
    """

    def __init__(self, output: Path, identity: dict[str, Any]) -> None:
        self.output = output
        self.path = output.with_name(f".{output.name}.partial")
        self._identity = identity
        self._done: dict[str, Any] = {}
        self.kept = 0

    def __enter__(self) -> "Partial":
        """Raises UserError: another conversion stands or runs there."""
        make_folder(self.path)
        self._journal = open(self.path / JOURNAL, "ab", opener=at_once)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._journal.close()
            raise UserError(f"{self.path}: another process is converting into it") from None
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, UserError):  # but not what the disk refuses, nor a kill
            shutil.rmtree(self.path, ignore_errors=True)
        self._journal.close()

    def holds(self, piece: str, check: Callable[[], Any]) -> bool:
        """Whether an earlier attempt finished `piece` and `check()` finds what it noted then."""
        if piece not in self._done:
            return False
        try:
            whole = check() == self._done[piece]
        except (OSError, ValueError):
            whole = False
        self.kept += whole
        return whole

    def noted(self, piece: str) -> Any:
        """What an earlier attempt noted of a piece that `holds`."""
        return self._done[piece]

    def note(self, piece: str, what: Any) -> None:
        """Says that `piece` is on the disk."""
        self._write({"piece": piece, "is": what})

    def finish(self) -> None:
        """The folder takes its name."""
        (self.path / JOURNAL).unlink()
        os.replace(self.path, self.output)

    def _read(self) -> None:
        with remedy(REMEDY):
            lines = read_lines(self.path / JOURNAL)
        found = lines[0].get("conversion") if lines else None
        for number, line in enumerate(lines[1:], start=2):
            if set(line) != {"piece", "is"} or not isinstance(line["piece"], str):
                raise UserError(f"{self.path / JOURNAL} line {number}: not a piece of a conversion; {REMEDY}")
            self._done[line["piece"]] = line["is"]
        if lines and not isinstance(found, dict):
            raise UserError(f"{self.path / JOURNAL}: not a journal of ours; {REMEDY}")
        if found is None and any(path.name != JOURNAL for path in self.path.iterdir()):
            raise UserError(f"{self.path}: holds files but no journal; delete it to begin anew")
        if found is None:
            self._write({"conversion": self._identity})
        elif found != self._identity:
            differs = sorted(k for k in {*found, *self._identity} if found.get(k) != self._identity.get(k))
            raise UserError(
                f"{self.path}: a partial conversion with another {', '.join(differs)}; delete it to begin anew"
            )

    def _write(self, line: dict[str, Any]) -> None:
        append_lines(self.path / JOURNAL, [line])  # no fsync: what a power cut leaves is checked, or has no line

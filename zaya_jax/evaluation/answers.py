"""A file of answered problems, one JSON line each: an evaluation that was killed goes on behind its last whole line."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.writing import append


class Answers:
    """Lines of one arm, behind a first line that says what they are answers of and how they were made."""

    def __init__(self, path: Path | None, made_by: dict[str, Any]) -> None:
        """Reads what is there; None keeps the lines in memory alone.

        Args:
          path: need not exist, its folder must.
          made_by: everything that decides an answer (JSON-able); lines that were made otherwise are refused.

        Raises:
          UserError: the file is another evaluation's, or not ours.
        """
        self.path, self.lines = path, []
        self._made_by = json.loads(json.dumps(made_by))
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        # the last piece is empty, or what a killed run left unfinished
        data = path.read_bytes()
        whole = data.split(b"\n")[:-1]
        try:
            first, *lines = [json.loads(line) for line in whole] or [{"made_by": self._made_by}]
            there = first["made_by"]
            in_order = [line["problem"] for line in lines] == list(range(len(lines)))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not a file of answers; move it away or choose another folder") from None
        for key in sorted(there | self._made_by):
            if there.get(key) != self._made_by.get(key):
                raise UserError(
                    f"{path}: its answers were made otherwise: {key} was {there.get(key)!r:.80}, is "
                    f"{self._made_by.get(key)!r:.80}; move it away or choose another folder"
                )
        if not in_order:
            raise UserError(f"{path}: its problems are not in order; move it away")
        self.lines = lines
        if not data.endswith(b"\n"):
            os.truncate(path, sum(len(line) + 1 for line in whole))

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Appends answered problems and hands them to the system."""
        if self.path is not None:
            new = not self.path.exists() or not self.path.stat().st_size
            append(self.path, "".join(json.dumps(line) + "\n" for line in [{"made_by": self._made_by}] * new + lines))
        self.lines += lines


def fingerprint(variables: Any) -> int:
    """A checksum over shapes and the first 1,024 numbers of every array: tells checkpoints apart, cheaply."""
    check = 0
    for leaf in jax.tree.leaves(variables):
        check = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode(), check)
        check = zlib.crc32(np.asarray(leaf.reshape(-1)[:1024]).tobytes(), check)
    return check

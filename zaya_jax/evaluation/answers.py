"""A file of answered problems, one JSON line each: an evaluation that was killed resumes after its last whole line."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax.checks import INT32, shown
from zaya_jax.errors import UserError
from zaya_jax.files import append_lines, read_lines, remedy

LATER = ("first_prompt",)  # files of before do not say it
REMEDY = "remove this line and those after it (their problems are answered again), or the whole file"


class Answers:
    """Lines of one sampler, after a first line that says what they are answers of and how they were made."""

    def __init__(self, path: Path | None, made_by: dict[str, Any]) -> None:
        """Reads what is there; None keeps the lines in memory alone.

        Args:
          path: need not exist, its folder must.
          made_by: everything that decides an answer (JSON-able); lines that were made otherwise are refused.

        Raises:
          UserError: the file is another evaluation's, not ours, or damaged (says file, line and remedy); it stays as
            it is.
        """
        self.path, self.lines = path, []
        self._begun = False  # whether the file has its first line
        self._made_by = json.loads(json.dumps(made_by))
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        with remedy(REMEDY):
            found = read_lines(path)
        if not found:
            return  # killed while it wrote the first line
        first, *lines = found
        there = first.get("made_by")
        if not isinstance(there, dict):
            raise UserError(f"{path}: not a file of answers; move it away or choose another folder")
        for key in sorted(there | self._made_by):
            if key in LATER and key not in there:
                continue
            if there.get(key) != self._made_by.get(key):
                raise UserError(
                    f"{path}: its answers were made otherwise: {key} was {there.get(key)!r:.80}, is "
                    f"{self._made_by.get(key)!r:.80}; move it away or choose another folder"
                )
        samples = len(lines[0]["correct"]) if lines and isinstance(lines[0].get("correct"), list) else 0
        for problem, line in enumerate(lines):
            if wrong := _mistake(line, problem, samples):
                raise UserError(f"{path} line {problem + 2}: {wrong}; {REMEDY}")
        self.lines, self._begun = lines, True

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Appends answered problems and hands them to the system."""
        if self.path is not None:
            append_lines(self.path, lines if self._begun else [{"made_by": self._made_by}, *lines])
            self._begun = True
        self.lines += lines


def _mistake(line: dict[str, Any], problem: int, samples: int) -> str | None:
    """What is wrong with the line of a problem of so many samples; None if nothing is."""
    rules = {
        "problem": (lambda value: _natural(value) and value == problem, f"{problem}: they stand in order"),
        "correct": (lambda value: _each(value, lambda one: one is None or isinstance(one, bool)), "a list of booleans"),
        "tokens": (lambda value: _each(value, lambda one: _each(one, _natural)), "a list of lists of ids"),
        "accepted": (lambda value: _each(value, lambda one: _each(one, _natural)), "a list of lists of counts"),
        "seconds": (lambda value: _each([value], _duration), "a number above 0"),
        "log_target": (  # not in files of before
            lambda value: value is None or (_each(value, _logarithm) and len(value) == samples),
            f"a list of {samples} numbers of at most 0",
        ),
    }
    for field, (allows, may_be) in rules.items():
        if not allows(line.get(field)):
            return f"{field}: got {shown(line.get(field))}, may be {may_be}"
    if {len(line[field]) for field in ("correct", "tokens", "accepted")} != {samples}:
        return f"correct, tokens, accepted: may be lists of {samples}, as in the lines before"
    if list(map(sum, line["accepted"])) != list(map(len, line["tokens"])):
        return "accepted: may be counts that sum to the number of tokens"
    return None


def _each(value: Any, allows: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(allows, value))


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT32


def _logarithm(value: Any) -> bool:
    return type(value) in (int, float) and -math.inf < value <= 1e-3  # a sum of float32


def _duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e300


def fingerprint(variables: Any) -> int:
    """A checksum over shapes and the first 1,024 numbers of every array: tells checkpoints apart, cheaply."""
    check = 0
    for leaf in jax.tree.leaves(variables):
        check = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode(), check)
        check = zlib.crc32(np.asarray(_first(leaf, 1024)).tobytes(), check)
    return check


def _first(leaf: Any, count: int) -> Any:
    """The first so many numbers of an array, of which nothing else is copied."""
    left, places = leaf.size, []
    for size in leaf.shape:
        left //= max(1, size)
        places.append(slice(-(-count // max(1, left))))
    return leaf[tuple(places)].reshape(-1)[:count]

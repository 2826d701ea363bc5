"""Files of the `generate` command: prompts in, finished rows out, one JSON line each, kept across a killed job."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.files import append_lines, lines_of, parse_json, read_lines, read_text, remedy
from zaya_jax.runs.run_folder import first_difference

MEASURED = ("mode", "block_size", "anchors", "target")  # fields of a sampler that measuring may choose
LATER = ("weights", "chat_template")  # settings that files of before do not say
FIRST_KEY = '{"prompt": '  # how every line of ours begins
REMEDY = "remove this line (its row is then made again), or choose another file"


def read_prompts(path: Path) -> list[str]:
    """Prompts of a .txt file (one a line) or a .jsonl file ({"prompt": ...}, other keys are ignored).

    Blank lines of a .jsonl file are passed over, as in training data; of a .txt file those at its end.

    Raises:
      UserError, OSError: naming the file, and the line if one is bad.
    """
    plain = path.suffix.lower() == ".txt"
    if not plain and path.suffix.lower() != ".jsonl":
        raise UserError(f"--prompts-file: got {path}, may be a .txt (one prompt a line) or a .jsonl file")
    lines = list(enumerate(lines_of(read_text(path)), 1))
    if not plain:
        lines = [(number, line) for number, line in lines if line.strip()]
    while lines and not lines[-1][1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: empty, may be one or more prompts")
    found = ((line if plain else _prompt_of(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines)
    return [checked_prompt(*prompt) for prompt in found]


def checked_prompt(prompt: str, where: str) -> str:
    """The prompt, if it has any text and all of it can be encoded."""
    if not prompt:
        raise UserError(f"{where}: an empty prompt, may be some text")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"{where}: not a text that UTF-8 can hold (a lone surrogate)")
    return prompt


def _prompt_of(line: str, where: str) -> str:
    try:
        value = parse_json(line)
    except UserError:
        raise UserError(f'{where}: not JSON, may be {{"prompt": TEXT}}') from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise UserError(f'{where}: got {line[:60]!r}, may be {{"prompt": TEXT}}')
    return value["prompt"]


class Completions:
    """An output file: what earlier runs of the same command finished, and a place to add to.

    The file is touched when the first rows are added, never before.
    """

    def __init__(self, path: Path, prompts: Sequence[str], samples: int, settings: dict[str, Any]) -> None:
        """Reads what is there.

        Args:
          path: need not exist, its folder must.
          settings: what makes rows what they are; lines made with others are refused.

        Raises:
          UserError, OSError: the file is another command's, or no such folder.
        """
        self.path, self._prompts, self._samples = path, prompts, samples
        self._settings = json.loads(json.dumps(settings))
        self.done: set[tuple[int, int]] = set()  # (prompt, sample)
        self.ran: dict[str, Any] | None = None  # what was chosen by measuring when the first line was made
        cli.check_output(path)
        if path.exists():
            self._read()

    def _read(self) -> None:
        with remedy(REMEDY):
            rows = read_lines(self.path, FIRST_KEY)
        for number, row in enumerate(rows, 1):
            self._take(row, f"--output {self.path} line {number}:")

    def _take(self, row: dict[str, Any], where: str) -> None:
        try:
            index, sample, settings, ran = row["index"], row["sample"], row["settings"], row["ran"]
            known = row["prompt"] == self._prompts[index] if 0 <= index < len(self._prompts) else False
            known = known and 0 <= sample < self._samples
            if not isinstance(ran, dict) or not set(ran) <= set(MEASURED):
                raise TypeError("ran")
        except (KeyError, TypeError):
            raise UserError(f"{where} not written by this command; {REMEDY}") from None
        if isinstance(settings, dict):
            settings = {name: self._settings[name] for name in LATER if name in self._settings} | settings
        if difference := first_difference(settings, self._settings):
            raise UserError(f"{where} made with other settings: {difference}; choose another")
        if not known:
            raise UserError(f"{where} continues another prompt than this command's prompt {index}; choose another")
        self.done.add((index, sample))
        self.ran = self.ran or ran

    def missing(self, prompts: range) -> list[tuple[int, int]]:
        """(prompt, sample) of the rows that are not finished, in order."""
        rows = ((index, sample) for index in prompts for sample in range(self._samples))
        return [row for row in rows if row not in self.done]

    def add(self, rows: Sequence[dict[str, Any]], ran: dict[str, Any]) -> None:
        """Appends finished rows and sees them to the disk; on failure the file is as it was.

        Args:
          rows: each with prompt, index, sample and whatever else is worth keeping.
          ran: the fields of the sampler that measuring chooses.
        """
        append_lines(self.path, [row | {"settings": self._settings, "ran": ran} for row in rows], sync=True)
        self.done.update((row["index"], row["sample"]) for row in rows)
        self.ran = self.ran or ran

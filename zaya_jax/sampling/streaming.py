"""Text on a terminal while it is sampled: whole characters, a colour for each forward's run, drafts dim after them."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from zaya_jax.errors import UserError
from zaya_jax.text.detokenizer import Decoder, Detokenizer

QUIET, RESET = "\x1b[2m", "\x1b[0m"
RUNS = ("\x1b[36m", "\x1b[33m")  # of consecutive forwards
SAVE, RESTORE, ERASE = "\x1b7", "\x1b8", "\x1b[K"  # the cursor; the rest of its line
# Controls (but for newline and tab), line separators, marks that turn the direction of writing, and lone surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """Text that cannot command a terminal: what could is spelled as Python would, `\\x1b`."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class TerminalStreamer:
    """A `Streamer` for one row: final tokens in their forward's colour, drafts dim after them until the next step.

    The row resumes after a prompt. A character belongs to the forward that completes it. Nothing the model writes
    reaches the terminal as a command (`escape`).
    """

    def __init__(
        self, tokenizer: Decoder, write: Callable[[str], object], colour: bool = True, columns: int | None = None
    ) -> None:
        """Shows nothing yet.

        Args:
          tokenizer: decodes tokens.
          write: takes text that has to be seen at once (flush in it).
          colour: of runs; without it nothing but text is written, and no drafts.
          columns: the terminal's width, for drafts: they stay on the text's last line, so that they can be erased.
            None shows none.
        """
        self._text, self._write = Detokenizer(tokenizer, start=False), write
        self._pending = self._text.begin
        self._colour, self._columns = colour, columns if colour else None
        self._column = 0  # of the cursor, if the terminal is as wide as told
        self._runs = 0
        self._drafted = False

    def prompt(self, text: str) -> None:
        """Shows what the model resumes from."""
        self._show(escape(text), QUIET)

    def put(self, tokens: list[list[int]]) -> None:
        row = _only(tokens)
        self._pending, text = self._text.push(self._pending, row)
        text = escape(text)
        self._show(text, RUNS[self._runs % len(RUNS)])
        self._runs += bool(row)

    def put_draft(self, tokens: list[list[int]]) -> None:
        if self._columns is None:
            return
        text = escape(self._text.push(self._pending, _only(tokens))[1]).replace("\n", "↵").replace("\t", " ")
        text = _fit(text, self._columns - 1 - self._column)
        self._drafted = bool(text)
        if text:
            self._write(f"{SAVE}{QUIET}{text}{RESET}{RESTORE}")

    def end(self) -> None:
        """Erases drafts and shows what was held back; harmless if called again."""
        self._show(escape(self._text.flush(self._pending)), RUNS[(self._runs - 1) % len(RUNS)])
        self._pending = self._text.begin

    def _show(self, text: str, style: str) -> None:
        erase = ERASE if self._drafted else ""
        self._drafted = False
        if text:
            self._column = _column_after(text, self._column, self._columns)
        shown = f"{style}{text}{RESET}" if text and self._colour else text
        if erase + shown:
            self._write(erase + shown)


def render(tokenizer: Decoder, tokens: Sequence[int], accepted: Iterable[int], colour: bool = True) -> str:
    """A finished row as it would have been streamed; `accepted` as in `Generation`."""
    parts: list[str] = []
    streamer, at = TerminalStreamer(tokenizer, parts.append, colour), 0
    for amount in accepted:
        streamer.put([list(tokens[at : at + amount])])
        at += amount
    streamer.end()
    return "".join(parts)


def _only(tokens: list[list[int]]) -> list[int]:
    if len(tokens) != 1:
        raise UserError(f"TerminalStreamer: got {len(tokens)} rows, may be one")
    return tokens[0]


def _width(character: str) -> int:
    """Cells a terminal gives a character."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _fit(text: str, cells: int) -> str:
    """As much of a line as fits."""
    used = 0
    for i, character in enumerate(text):
        used += _width(character)
        if used > cells:
            return text[:i]
    return text


def _column_after(text: str, column: int, columns: int | None) -> int:
    """Where the cursor stands after text; `columns` itself when the line is full and the next character will wrap."""
    if columns is None:
        return 0
    for character in text:
        if character == "\n":
            column = 0
        elif character == "\t":
            column = min(column // 8 * 8 + 8, columns - 1)
        else:
            width = _width(character)
            column = width if column + width > columns else column + width
    return column

"""What a terminal sees while text is sampled: every token once, no broken character, no command, drafts that vanish."""

import re

import pytest

from zaya_jax.sampling.streaming import QUIET, RESET, RUNS, TerminalStreamer, escape, render
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()
TEXT = "héllo 日本語 🎉🇨🇭 ∑∞ añb\n\tend"


def streamed(tokens, amounts, **options) -> list[str]:
    """What is written when `amounts` tokens arrive at a time."""
    parts: list[str] = []
    streamer, at = TerminalStreamer(BYTES, parts.append, **options), 0
    for amount in amounts:
        streamer.put([list(tokens[at : at + amount])])
        at += amount
    assert at >= len(tokens)
    streamer.end()
    return parts


class Terminal:
    """As much of one as the streamer uses. It fails on any other command and where a draft reaches the line's end."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.column, self.saved = columns, [[]], 0, None

    def write(self, text: str) -> None:
        for piece in re.findall("\x1b[78]|\x1b\\[[0-9]*[mK]|[^\x1b]|\x1b", text):
            if piece == "\x1b7":
                self.saved = (len(self.lines), self.column)
            elif piece == "\x1b8":
                assert self.saved[0] == len(self.lines)  # nothing scrolled away beneath the cursor
                self.column, self.saved = self.saved[1], None
            elif piece == "\x1b[K":
                assert self.column < self.columns  # else it would take the line's last character
                del self.lines[-1][self.column :]
            elif piece.endswith("m") and len(piece) > 1:
                assert piece in (QUIET, RESET, *RUNS)
            else:
                assert piece >= " " or piece == "\n"
                self.character(piece)

    def character(self, character: str) -> None:
        if character == "\n" or self.column == self.columns:
            self.lines.append([])
            self.column = 0
        if character == "\n":
            return
        self.lines[-1][self.column :] = [character]
        self.column += 1
        assert self.saved is None or self.column < self.columns

    @property
    def text(self) -> str:
        return "\n".join("".join(line) for line in self.lines)


@pytest.mark.parametrize("size", range(1, 9))
def test_every_token_is_shown_once_and_no_character_is_split(size):
    tokens = BYTES.encode(TEXT)
    parts = streamed(tokens, [size] * -(-len(tokens) // size), colour=False)
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)
    assert len(parts) > len(tokens) / size / 5  # nothing waits for longer than a character


def test_merged_tokens_are_no_different():
    tokenizer = BPETokenizer.train([TEXT] * 3, 290)
    parts: list[str] = []
    streamer = TerminalStreamer(tokenizer, parts.append, colour=False)
    for token in tokenizer.encode(TEXT):
        streamer.put([[token]])
    streamer.end()
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_character_are_shown_at_the_end():
    assert "".join(streamed([97, 0xE6, 0x97], [1, 1, 1], colour=False)) == "a\ufffd"
    assert "".join(streamed([0xFF, 97, 0xFF, 0xFF, 98], [1] * 5, colour=False)) == "\ufffda\ufffd\ufffdb"


def test_runs_alternate_in_colour_as_accepted_says():
    tokens = BYTES.encode("abcdefé") + [BYTES.eos_id]
    cyan, yellow = RUNS
    shown = render(BYTES, tokens, [1, 0, 3, 2, 0, 1, 2])
    # é is completed by the last forward; forwards that yielded nothing take no colour
    assert shown == (f"{cyan}a{RESET}{yellow}bcd{RESET}{cyan}ef{RESET}{cyan}é{RESET}")
    assert render(BYTES, tokens, [1, 0, 3, 2, 0, 1, 2], colour=False) == "abcdefé"
    assert re.sub("\x1b\\[[0-9]+m", "", shown) == "abcdefé"


def test_the_model_cannot_command_the_terminal():
    wicked = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2028ok\n\tok"
    shown = "".join(streamed(BYTES.encode(wicked), [3] * 20, columns=80))
    bare = shown
    for command in (*RUNS, RESET):
        bare = bare.replace(command, "")
    assert bare == r"\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2028ok" + "\n\tok"
    assert escape("\ud800") == "\\ud800"
    written: list[str] = []
    TerminalStreamer(BYTES, written.append, colour=False).prompt("\x1b[2J")
    assert written == [r"\x1b[2J"]


@pytest.mark.parametrize("columns", [4, 7, 20, 200])
def test_drafts_stand_after_the_text_and_vanish(columns):
    tokens = BYTES.encode("one two\nthree four five sié six")
    terminal = Terminal(columns)
    streamer = TerminalStreamer(BYTES, terminal.write, columns=columns)
    streamer.prompt("ask:")
    plain, drafted = Terminal(columns), 0
    plain.write("ask:")
    for at in range(0, len(tokens), 3):
        streamer.put([tokens[at : at + 3]])
        before = len(terminal.text)
        streamer.put_draft([tokens[at + 3 : at + 5] + BYTES.encode("?\n?")])
        drafted += len(terminal.text) > before
        if columns == 200:  # room for all of it
            assert terminal.text.endswith("?↵?")
    streamer.end()
    streamer.end()
    plain.write(BYTES.decode(tokens))
    assert terminal.text == plain.text
    assert drafted >= 3 or columns == 4


def test_drafts_are_for_coloured_terminals_only():
    for options in (dict(colour=False, columns=80), dict(colour=True, columns=None)):
        written: list[str] = []
        streamer = TerminalStreamer(BYTES, written.append, **options)
        streamer.put([[97]])
        streamer.put_draft([[98, 99]])
        streamer.end()
        assert "b" not in "".join(written)


def test_one_row_only():
    streamer = TerminalStreamer(BYTES, print)
    with pytest.raises(ValueError, match="got 2 rows, may be one"):
        streamer.put([[97], [98]])

"""Text as its tokens come in: whole characters only, and together exactly what the tokens decode to at once.

State is a value: `push` takes one and returns the next, so looking ahead is pushing without keeping the state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

UNKNOWN = "\ufffd"  # what a decoder writes for bytes that are no (or not yet a) character


class Decoder(Protocol):
    """What this needs of a tokenizer."""

    @property
    def context(self) -> tuple[int, ...]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def joins(self, id_: int) -> bool: ...
    @property
    def tidies(self) -> bool: ...


class Pending(NamedTuple):
    """Tokens that may still matter to text to come."""

    held: tuple[int, ...]
    given: int  # characters of their text that were returned (or were not asked for)


@dataclass(frozen=True)
class Detokenizer:
    """Tokens to text, piece by piece.

    Text is returned when no token to come can change it. Held back are: bytes that are no character yet, and runs of
    byte tokens (SentencePiece's byte fallback), which decode as a whole: one wrong byte makes all of a run unknown;
    and, where decoding tidies spaces, what a later token may still join.
    What `push` and `flush` return adds up to what `whole` returns, in whatever portions the tokens come.

    Attributes:
      start: whether the tokens begin a text. Where they do not, a tokenizer that leaves out the space in front of a
        text keeps it: they are decoded after `Decoder.context`.
    """

    tokenizer: Decoder
    start: bool = True

    @property
    def begin(self) -> Pending:
        """The state before any token."""
        return Pending((), 0) if self.start else self._after(self.tokenizer.context)

    def push(self, state: Pending, tokens: Sequence[int]) -> tuple[Pending, str]:
        """(next state, the text that became certain with these tokens)."""
        held = (*state.held, *tokens)
        settled = len(held)
        for at in reversed(range(len(held))):
            if self.tokenizer.joins(held[at]):
                settled = at
            elif self.tokenizer.decode(held[at : at + 1]):  # a special token ends no run
                break
        text = self.tokenizer.decode(held[:settled])
        certain = text.removesuffix(UNKNOWN)
        if self.tokenizer.tidies:
            certain = certain[: _untouched(certain)]
        new, given = certain[state.given :], max(state.given, len(certain))
        if settled == len(held) and certain == text:
            return self._compact(Pending(held, given)), new
        return Pending(held, given), new

    def flush(self, state: Pending) -> str:
        """What is held back, as it is."""
        return self.tokenizer.decode(state.held)[state.given :]

    def whole(self, tokens: Sequence[int]) -> str:
        """The text of all tokens at once."""
        state = self.begin
        return self.tokenizer.decode((*state.held, *tokens))[state.given :]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token completes; what none does goes to the last."""
        out, state = [], self.begin
        for token in tokens:
            state, text = self.push(state, [token])
            out.append(text)
        if out:
            out[-1] += self.flush(state)
        return out

    def _after(self, context: tuple[int, ...]) -> Pending:
        return Pending(context, len(self.tokenizer.decode(context)))

    def _compact(self, state: Pending) -> Pending:
        """The same state from as few tokens as say what the next token's text depends on; all text is certain."""
        last = state.held[-1:]
        alone = self.tokenizer.decode(last)
        if UNKNOWN in alone:
            return self._after(self.tokenizer.context)  # it ends a character: a byte, whose text depends on no space
        return self._after(last) if alone.strip() else state


def _untouched(text: str) -> int:
    """Where the last word of a tidied text begins: no token to come changes what is before (see `published.tidied`)."""
    at = text.rfind(" ")
    while at > 0 and text[at - 1] == "'":
        at = text.rfind(" ", 0, at)
    return max(at, 0)

"""Where a row ends because of what it says: the first token that completes a stop string."""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from zaya_jax.text.detokenizer import UNKNOWN, Detokenizer, Pending
from zaya_jax.text.detokenizer import Decoder as WholeDecoder


class Decoder(Protocol):
    """What stop strings need of a tokenizer.

    Where it also has `context` and `joins` (`zaya_jax.text.detokenizer.Decoder`), the space that SentencePiece-like
    decoders leave out in front of a text is kept in front of the new one; where it has `special_ids`, a stop string may
    be a special token's spelling.
    """

    def decode(self, ids: Sequence[int]) -> str: ...


class StopStrings:
    """One row's search; tokens go in once, in order."""

    def __init__(
        self, strings: Sequence[str], tokenizer: Decoder, passed_over: int, stop_tokens: Sequence[int], before: int
    ) -> None:
        """Nothing read yet.

        Args:
          strings: any of them ends the row.
          passed_over: tokens at the row's start that end nothing: a string that is complete there is not looked at.
          stop_tokens: ids that end the row anyway, whatever they are called.
          before: the token before the first one, which a tokenizer without `context` decodes it after.
        """
        spelled: Mapping[str, int] = getattr(tokenizer, "special_ids", {})
        self._special = {spelled[s] for s in strings if s in spelled} - set(stop_tokens)
        self._strings, self._longest = strings, max(map(len, strings))
        self._text = Detokenizer(cast(WholeDecoder, _Whole(tokenizer, before)), start=False)
        self._pending: Pending = self._text.begin
        self._passed_over = passed_over
        self._tokens = 0  # read so far
        self._tail = ""  # the newest certain text, as much as a stop string may begin in
        self._fresh = 0  # characters of the tail that belong to what was passed over

    def read(self, tokens: Sequence[int]) -> int | None:
        """Reads on: the number of the row's tokens up to the one that ends it, or None."""
        for token in tokens:
            self._tokens += 1
            if self._ends(token):
                return self._tokens
        return None

    def _ends(self, token: int) -> bool:
        self._pending, certain = self._text.push(self._pending, [token])
        # What is held back counts as it stands, but for the beginning of a character: a newline that is a byte token,
        # say, would otherwise end the row a token late.
        certain = self._tail + certain
        whole = certain + self._text.flush(self._pending).rstrip(UNKNOWN)
        if self._tokens <= self._passed_over:
            self._fresh, found = len(whole), False
        else:
            found = token in self._special or any(self._is_in(whole, string) for string in self._strings)
        cut = max(0, len(certain) - self._longest + 1)
        self._tail, self._fresh = certain[cut:], max(0, self._fresh - cut)
        return found

    def _is_in(self, text: str, string: str) -> bool:
        """Whether the string ends beyond what was passed over."""
        return text.find(string, max(0, self._fresh - len(string) + 1)) >= 0


class _Whole:
    """A tokenizer that may have `decode` alone, as `Detokenizer` wants one."""

    def __init__(self, tokenizer: Decoder, before: int) -> None:
        self.decode = tokenizer.decode
        text = "" if hasattr(tokenizer, "context") else tokenizer.decode([before])
        visible = bool(text.strip()) and UNKNOWN not in text
        self.context: tuple[int, ...] = getattr(tokenizer, "context", (before,) if visible else ())
        joins = getattr(tokenizer, "joins", None)
        self.joins = joins if joins is not None else lambda id_: False
        self.tidies: bool = getattr(tokenizer, "tidies", False)

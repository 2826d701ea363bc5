"""A chat with a model: what was said, written down by its template, and what the model has read of it."""

import dataclasses
from collections.abc import Sequence

from zaya_jax.sampling import Session
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.templates import MARK, ChatTemplate, Messages, encode, question
from zaya_jax.text.tokenizers import Tokenizer


@dataclasses.dataclass
class Conversation:
    """A chat so far: what was said, and what the model has read of it."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    said: Messages = ()
    session: Session | None = None

    def prompt(self, line: str) -> tuple[list[int], Session | None]:
        """What the model has to read before it answers, and after which session."""
        if self.template is None:
            first = self.session is None
            return question(line, self.tokenizer) if first else self.tokenizer.encode(line, False), self.session
        messages = [*self.said, _message("user", line)]
        text = None if self.session is None else self.template.next_prompt(messages, self.tokenizer)
        if text is None:  # the first turn, or a template that writes what was said in another way now
            return self.template.prompt(messages, self.tokenizer), None
        assert self.session is not None
        ended = self.session.texts[0][-1] in self.tokenizer.eos_ids
        end = self.session.texts[0][-1] if ended else self.tokenizer.eos_id
        more = encode(text, self.tokenizer, start=False, after=int(end))
        return [self.tokenizer.eos_id] * (not ended) + more, self.session

    def add(self, line: str, answer: Sequence[int], session: Session) -> None:
        """Takes a turn and its answer into what was said."""
        text = Detokenizer(self.tokenizer, start=False).whole(answer)
        self.said, self.session = (*self.said, _message("user", line), _message("assistant", text)), session

    def forget(self) -> None:
        self.said, self.session = (), None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.replace("\0", "").replace(MARK, "")}

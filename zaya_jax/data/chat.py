"""Chats to documents: a Jinja chat template, loss on the assistant's words alone, long thinking trimmed.

A chat is [{"role": str, "content": str}, ...]. The template is rendered in Jinja's sandbox with the variables of a
Hugging Face one: `messages`, `add_generation_prompt`, `bos_token`, `eos_token`, and `raise_exception`. Special tokens
have no spelling here, so a template writes `{{ eos_token }}` where an assistant's turn ends: that is the token which
stops sampling. What is answer and what is not is found by rendering prefixes: everything between the prompt for a turn
and that turn's `eos_token`. The parts are tokenised apart, as when sampling, and what follows the last answer is left
out.

A chat longer than a row is trimmed as ZAYA1's were (zaya1.md section 5): tokens go from the tail of the last thinking
block, the answer stays; a chat that would not fit without the whole block is dropped. It depends on the row's length,
so every phase trims anew.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.sandbox

from zaya_jax.data.tokenizers import Tokenizer

Messages = Sequence[Mapping[str, str]]

THINKING = ("<think>", "</think>")
# What stands for a special token between rendering and tokenising; contents may not hold NUL.
_BOS, _EOS = "\0bos\0", "\0eos\0"
_SPECIALS = re.compile(f"({_BOS}|{_EOS})")
PLAIN = """\
{% for message in messages %}
<|{{ message.role }}|>
{{ message.content }}{{ eos_token if message.role == "assistant" else "" }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""


class Encoded(NamedTuple):
    """A chat as ids."""

    ids: list[int]
    answer: list[int]  # 1 on an assistant's words and the end of its turn, else 0; as long as ids
    trimmed: bool


class Survey(NamedTuple):
    """What became of the chats that were looked at."""

    chats: int
    trimmed: int
    dropped: int


@dataclass(frozen=True)
class ChatTemplate:
    """How a chat is written down. Build one with `load_template`, which also tries it."""

    source: str  # Jinja

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        # Block whitespace as transformers sets it, so that its templates mean the same here.
        world = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        return world.from_string(self.source, globals={"raise_exception": _refuse})

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The chat's text, special tokens as marks. ValueError, in one line, for a template that fails."""
        try:
            return self._compiled.render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, bos_token=_BOS, eos_token=_EOS
            )
        except (jinja2.TemplateError, jinja2.sandbox.SecurityError, TypeError) as error:
            raise ValueError(f"chat_template: {' '.join(str(error).split())}") from None

    def prompt(self, messages: Messages) -> str:
        """The text behind which an assistant answers `messages`.

        Raises:
          ValueError: it holds special tokens, which have no text.
        """
        text = self.render(messages, add_generation_prompt=True)
        if "\0" in text:
            raise ValueError("chat_template: writes special tokens into a prompt, which cannot be said as text")
        return text

    def turns(self, messages: Messages) -> list[tuple[str, bool]]:
        """(text, whether it is an answer), together the whole chat up to the end of its last answer.

        Raises:
          ValueError: the template changes what it wrote before as the chat goes on, or does not end an answer.
        """
        turns, done = [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.render(messages[:i], add_generation_prompt=True), self.render(messages[: i + 1])
            if not (before.startswith(done) and after.startswith(before)):
                raise ValueError(f"chat_template: message {i + 1} of a chat changes how those before it are written")
            end = after.find(_EOS, len(before)) + len(_EOS)
            if end < len(_EOS):
                raise ValueError("chat_template: writes no {{ eos_token }} behind an assistant's content")
            turns += [(before[len(done) :], False), (after[len(before) : end], True)]
            done = after[:end]
        return turns


class ChatSource:
    """Chats for a pipeline: `source[i]` has at least "text", which holds the chat; `encode` makes it a document.

    Args:
      records: "text" is the messages as JSON (`builders.prepare_chats`); or, where there is a "prompt", one question
        and its answer (a task's), whose last line end is left out.
      thinking: what opens and what closes a thinking block.
    """

    def __init__(self, records: Any, template: ChatTemplate, thinking: tuple[str, str] = THINKING):
        self.records, self.template, self.thinking = records, template, thinking

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self.records[index]

    def encode(self, element: Mapping[str, str], tokenizer: Tokenizer, row_length: int) -> Encoded | None:
        """The element's ids, at most `row_length`; None where they cannot be so few."""
        return encode_chat(messages_of(element), self.template, tokenizer, row_length, self.thinking)


def messages_of(element: Mapping[str, str]) -> Messages:
    """The chat of a source's element: see `ChatSource`."""
    if "prompt" not in element:
        return json.loads(element["text"])
    answer = element["text"][len(element["prompt"]) :].removesuffix("\n")
    return [{"role": "user", "content": element["prompt"]}, {"role": "assistant", "content": answer}]


def encode_chat(
    messages: Messages,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    row_length: int,
    thinking: tuple[str, str] = THINKING,
) -> Encoded | None:
    """A chat of at most `row_length` ids; None where it cannot be so short (module's docstring)."""
    pieces = [(_ids(text, tokenizer), answer) for text, answer in template.turns(messages)]
    trimmed = sum(len(ids) for ids, _ in pieces) > row_length
    if trimmed:
        pieces = _trimmed(template.turns(messages), tokenizer, row_length, thinking)
    if pieces is None:
        return None
    ids = [i for piece, _ in pieces for i in piece]
    return Encoded(ids, [int(answer) for piece, answer in pieces for _ in piece], trimmed)


def _trimmed(turns, tokenizer: Tokenizer, row_length: int, thinking: tuple[str, str]):
    """(ids, answer) pieces that fit a row, the last thinking block cut at its tail; None if that is not enough."""
    block = re.compile(f"{re.escape(thinking[0])}(.*?){re.escape(thinking[1])}", re.DOTALL)
    for number in reversed(range(len(turns))):
        text, answer = turns[number]
        found = list(block.finditer(text)) if answer else []
        if not found:
            continue
        start, end = found[-1].span(1)
        cut = [(text[:start], True), (text[start:end], True), (text[end:], True)]
        parts = [(_ids(part, tokenizer), a) for part, a in [*turns[:number], *cut, *turns[number + 1 :]]]
        thought = parts[number + 1][0]
        kept = len(thought) - (sum(len(ids) for ids, _ in parts) - row_length)
        parts[number + 1] = (thought[: max(0, kept)], True)
        return parts if kept >= 0 else None
    return None


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of rendered text, its marks replaced by the special tokens they stand for."""
    ids: list[int] = []
    for piece in _SPECIALS.split(text):
        if piece == _BOS:
            ids.append(tokenizer.bos_id)
        elif piece == _EOS:
            ids.append(tokenizer.eos_id)
        else:
            ids += tokenizer.encode(piece)
    return ids


def survey(source: ChatSource, tokenizer: Tokenizer, row_length: int, limit: int = 256) -> Survey:
    """Counts of up to `limit` chats spread evenly over `source`; all of them where it has no more.

    Raises:
      ValueError: not one fits a row.
    """
    step = max(1, len(source) // limit)
    encoded = [source.encode(source[i], tokenizer, row_length) for i in range(0, len(source), step)][:limit]
    dropped = sum(one is None for one in encoded)
    if dropped == len(encoded):
        raise ValueError(f"row_length: got {row_length}, may be more: none of {dropped} chats fits, even trimmed")
    return Survey(len(encoded), sum(one is not None and one.trimmed for one in encoded), dropped)


def load_template(spec: str) -> ChatTemplate:
    """The template that `spec` names: "plain", the path of a Jinja file, or a Jinja text (it has a brace in it).

    Raises:
      FileNotFoundError: no such file.
      ValueError: a template that cannot be read, or that fails on a chat of two questions.
    """
    if spec != "plain" and "{" not in spec and not Path(spec).is_file():
        raise FileNotFoundError(f'chat_template: got {spec!r}, may be "plain", a Jinja file or a Jinja text')
    text = PLAIN if spec == "plain" else spec if "{" in spec else Path(spec).read_text(encoding="utf-8")
    template = ChatTemplate(text)
    template.turns([{"role": role, "content": "a"} for role in ("user", "assistant") * 2])
    return template


def check_messages(messages: Any, where: str) -> list[dict[str, str]]:
    """`messages` as a chat, other fields left out. ValueError, led by `where`, for what is none or asks nothing."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: must be an object whose field 'messages' is a list of messages")
    chat = []
    for number, message in enumerate(messages):
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{where}: messages[{number}]: must be an object with the strings 'role' and 'content'")
        if "\0" in role + content:
            raise ValueError(f"{where}: messages[{number}]: holds a NUL character")
        chat.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in chat):
        raise ValueError(f"{where}: messages: none is an assistant's, so there is nothing to learn")
    return chat


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

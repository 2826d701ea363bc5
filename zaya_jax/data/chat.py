"""Chats to documents: written by a template, loss on the assistant's words alone, long thinking trimmed.

A chat is [{"role": str, "content": str}, ...], written down by a `ChatTemplate`: a Jinja text with the variables of a
Hugging Face one: `messages`, `tools`, `add_generation_prompt`, `bos_token`, `eos_token`, `pad_token` and
`raise_exception`. Bytes' and our own BPE's special tokens have no spelling, so a template for them writes
`{{ eos_token }}` where an assistant's turn ends: that is the token which stops sampling. What is answer and what is not
is found by rendering prefixes: everything between the prompt for a turn and the EOS token of that turn. The parts are
tokenised separately, as when sampling, and what follows the last answer is left out.

A chat longer than a row is trimmed as ZAYA1's were (docs/architecture.md#training-facts): tokens go from the tail of
the last thinking block, the answer stays; a chat that would not fit without the whole block is dropped. It depends on
the row's length, so every phase trims anew.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from zaya_jax.errors import UserError
from zaya_jax.text.templates import MARK, REASONING, ChatTemplate, Messages, Tools, encode, last_special
from zaya_jax.text.tokenizers import Tokenizer

THINKING = ("<think>", "</think>")
WORDED = ("tool_calls", "function_call", *REASONING)  # what a message without content may say


class Encoded(NamedTuple):
    """A chat as ids."""

    ids: list[int]
    answer: list[int]  # 1 on an assistant's words and the end of its turn, else 0; as long as ids
    trimmed: bool


class Survey(NamedTuple):
    """What became of the chats that were looked at."""

    chats: int
    trimmed: int
    dropped: int  # too long, or refused
    refused: int  # by the template, or written so that answers cannot be told from the rest


class RefusedChat(UserError):
    """A chat that the template cannot write, or not so that its answers can be trained on."""


class ChatSource:
    """Chats for a pipeline: `source[i]` has at least "text", which holds the chat; `encode` makes it a document.

    Args:
      records: "text" is the chat as JSON (`chat_text`); or, where there is a "prompt", one question
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
        """The element's ids, at most `row_length`; None where they cannot be so few, or the template refuses it."""
        try:
            messages, tools = chat_of(element)
            return encode_chat(messages, self.template, tokenizer, row_length, self.thinking, tools)
        except RefusedChat:
            return None


def chat_of(element: Mapping[str, str]) -> tuple[Messages, Tools]:
    """The messages of a source's element, and the tools that may be called in it: see `ChatSource`, `chat_text`."""
    if "prompt" not in element:
        chat = json.loads(element["text"])
        return (chat["messages"], chat["tools"]) if isinstance(chat, dict) else (chat, None)
    answer = element["text"][len(element["prompt"]) :].removesuffix("\n")
    return [{"role": "user", "content": element["prompt"]}, {"role": "assistant", "content": answer}], None


def chat_text(messages: Messages, tools: Tools) -> str:
    """A chat as JSON: its messages, or an object of them and its tools where there are any. `chat_of` reads it."""
    return json.dumps(messages if tools is None else {"messages": messages, "tools": tools}, ensure_ascii=False)


def encode_chat(
    messages: Messages,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    row_length: int,
    thinking: tuple[str, str] = THINKING,
    tools: Tools = None,
) -> Encoded | None:
    """A chat of at most `row_length` ids; None where it cannot be so short (module's docstring).

    Raises:
      RefusedChat: the template fails on it, does not end an answer, or writes what was said before in another way.
    """
    try:
        turns = template.turns(messages, tokenizer, tools)
    except UserError as error:
        raise RefusedChat(str(error)) from None
    pieces = _encoded(turns, tokenizer)
    trimmed = sum(len(ids) for ids, _ in pieces) > row_length
    if trimmed:
        pieces = _trimmed(turns, tokenizer, row_length, thinking)
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
        parts = _encoded([*turns[:number], *cut, *turns[number + 1 :]], tokenizer)
        thought = parts[number + 1][0]
        kept = len(thought) - (sum(len(ids) for ids, _ in parts) - row_length)
        parts[number + 1] = (thought[: max(0, kept)], True)
        return parts if kept >= 0 else None
    return None


def _encoded(turns: list[tuple[str, bool]], tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
    pieces, after = [], None
    for number, (text, answer) in enumerate(turns):
        pieces.append((encode(text, tokenizer, start=not number, after=after), answer))
        after = last_special(text) if text else after
    return pieces


def survey(source: ChatSource, tokenizer: Tokenizer, row_length: int, limit: int = 256) -> Survey:
    """Counts of up to `limit` chats spread evenly over `source`; all of them where it has no more.

    Raises:
      UserError: not one fits a row, or the template refuses every one; says why it refused the first.
    """
    step = max(1, len(source) // limit)
    trimmed = dropped = refused = 0
    where = why = ""
    indices = range(0, len(source), step)[:limit]
    for index in indices:
        element = source[index]
        try:
            messages, tools = chat_of(element)
            encoded = encode_chat(messages, source.template, tokenizer, row_length, source.thinking, tools)
        except RefusedChat as error:
            if not refused:
                where, why = element.get("name", f"number {index}"), str(error)
            dropped, refused = dropped + 1, refused + 1
            continue
        dropped += encoded is None
        trimmed += encoded is not None and encoded.trimmed
    if refused and dropped == len(indices):
        raise UserError(f"{why} (first in chat {where}; {refused} of {len(indices)} chats are refused)")
    if dropped == len(indices):
        raise UserError(f"row_length: got {row_length}, may be more: none of {dropped} chats fits, even trimmed")
    if refused:
        print(f"chats: {refused} of {len(indices)} looked at are left out, the first at {where}: {why}", flush=True)
    return Survey(len(indices), trimmed, dropped, refused)


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """`messages` as a chat, every field as it is. UserError, led by `where`, for what is none or asks nothing.

    A content is a string, a list of text parts ({"type": "text", "text": str}) or, where a message has other words, as
    tool calls are, None.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: must be an object whose field 'messages' is a list of messages")
    chat = []
    for number, message in enumerate(messages):
        at = f"{where}: messages[{number}]"
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        empty = isinstance(message, dict) and content is None and any(message.get(name) for name in WORDED)
        if not isinstance(role, str) or not (isinstance(content, str | list) or empty):
            raise UserError(f"{at}: must be an object with the strings 'role' and 'content'")
        for part in content if isinstance(content, list) else ():
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise UserError(f"{at}: content: got {str(part)[:60]}, must be parts of type 'text'")
        _check_characters(message, at)
        chat.append(message)
    if all(message["role"] != "assistant" for message in chat):
        raise UserError(f"{where}: messages: none is an assistant's, so there is nothing to learn")
    return chat


def check_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """The `tools` beside a chat's messages: a list of JSON schemas, or such a list as a string; None where there is
    none. UserError, led by `where`, for anything else."""
    if isinstance(tools, str):  # as tables hold them, whose columns have one type
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise UserError(f"{where}: tools: got {tools[:60]!r}, must be a list of objects, or one as JSON") from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{where}: tools: got {str(tools)[:60]}, must be a list of objects")
    _check_characters(tools, f"{where}: tools")
    return tools


def _check_characters(value: Any, where: str) -> None:
    """UserError for what `ChatTemplate` keeps for itself."""
    written = json.dumps(value, ensure_ascii=False)
    if "\\u0000" in written or MARK in written:
        raise UserError(f"{where}: holds a NUL character or U+FDD0")

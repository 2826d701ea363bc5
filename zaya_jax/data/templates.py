"""Chat templates: Jinja, rendered in its sandbox, to text in which special tokens cannot be mistaken for words.

Published templates write special tokens as text ("<|im_start|>"), which a user may write as well. So a chat is rendered
with a mark between any two characters of its contents: a special token in the result without a mark in it is the
template's own. Marks would be in the way of a template that looks for words in a content, so there is none inside of
the template's own string literals, nor beside white space (which templates trim); and the chat is rendered once more as
it is, to see that nothing but the marks is different.

Special tokens are then `"\\0" + id + "\\0"`, which no content can hold, until the text is made into ids.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from zaya_jax.data.published import SPELLED, read_object
from zaya_jax.data.tokenizers import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.paths import absolute, one_line, read_text

Messages = Sequence[Mapping[str, str]]
TEMPLATE_FILE = "chat_template.jinja"
MARK = "\ufdd0"  # a code point that is no character and never will be; contents may not hold it, nor NUL
SPECIAL = re.compile("\0([0-9]+)\0")
PLAIN = """\
{% for message in messages %}
<|{{ message.role }}|>
{{ message.content }}{{ eos_token if message.role == "assistant" else "" }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
"""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, in which some templates wrap an assistant's words; turns are told apart without it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it as its own extensions have it)

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class ChatTemplate:
    """How a chat is written down. Build one with `load_template` or `folder_template`, which also try it."""

    source: str  # Jinja

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return _world().from_string(self.source, globals={"raise_exception": _refuse})

    @functools.cached_property
    def _literals(self) -> tuple[str, ...]:
        """The template's string literals of two characters and more."""
        found = _world().parse(self.source).find_all(jinja2.nodes.Const)
        return tuple({const.value for const in found if isinstance(const.value, str) and len(const.value) > 1})

    def render(self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool = False) -> str:
        """The chat's text, special tokens as in `SPECIAL`.

        Raises:
          UserError: one line: a template that fails, or one that changes contents so that special tokens cannot be
            told from them.
        """
        names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        variables = {name: f"\0{id_}\0" for name, id_ in names.items() if id_ is not None}

        def text_of(messages: Iterable[Mapping[str, str]]) -> str:
            try:
                return self._compiled.render(
                    messages=list(messages), add_generation_prompt=add_generation_prompt, **variables
                )
            except Exception as error:  # a template can raise what it likes, of Python's too (a division by zero)
                raise UserError(f"chat_template: {' '.join(str(error).split())[:300]}") from None

        if not tokenizer.special_ids:
            return text_of(messages)
        spelled = {s: id_ for s, id_ in tokenizer.special_ids.items() if len(s) > 1}
        for message in messages:
            if any(
                s in message["role"] for s in spelled
            ):  # roles are told apart by templates, so they stay as they are
                raise UserError(f"chat_template: role: got {message['role']!r}, may hold no special token")
        guarded = text_of(m | {"content": self._guarded(m["content"], spelled)} for m in map(dict, messages))
        if guarded.replace(MARK, "") != text_of(messages):
            raise UserError("chat_template: changes a message's content, so special tokens cannot be told from words")
        anything = re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))
        return anything.sub(lambda found: f"\0{spelled[found[0]]}\0", guarded).replace(MARK, "")

    def _guarded(self, content: str, spelled: Iterable[str]) -> str:
        """A content with marks in it: see the module's docstring."""
        free = [False] * (len(content) + 1)  # the gap before each character, and the last one's other side
        for literal in self._literals:
            for found in _occurrences(literal, content):
                free[found + 1 : found + len(literal)] = [True] * (len(literal) - 1)
        for literal in self._literals:  # one that begins or ends a content has to be found there, too
            if content.startswith(literal):
                free[0] = True
            if content.endswith(literal):
                free[-1] = True
        for at, character in enumerate(content):
            if character.isspace():
                free[at] = free[at + 1] = True
        for token in spelled:
            for found in _occurrences(token, content):
                free[found + 1 : found + len(token)] = [False] * (len(token) - 1)
        gaps = ["" if open_ else MARK for open_ in free]
        return "".join(gap + character for gap, character in zip(gaps, content, strict=False)) + gaps[-1]

    def prompt(self, messages: Messages, tokenizer: Tokenizer) -> list[int]:
        """The ids behind which an assistant answers `messages`."""
        return encode(self.render(messages, tokenizer, add_generation_prompt=True), tokenizer)

    def turns(self, messages: Messages, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
        """(text, whether it is an answer), together the whole chat up to the end of its last answer.

        Raises:
          UserError: the template changes what it wrote before as the chat goes on, or does not end an answer.
        """
        turns, done = [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], tokenizer, add_generation_prompt=True)
            after = self.render(messages[: i + 1], tokenizer)
            if not (before.startswith(done) and after.startswith(before)):
                raise UserError(f"chat_template: message {i + 1} of a chat changes how those before it are written")
            ends = (f.end() for f in SPECIAL.finditer(after, len(before)) if int(f[1]) in tokenizer.eos_ids)
            end = next(ends, None)
            if end is None:
                raise UserError("chat_template: writes no {{ eos_token }} behind an assistant's content")
            turns += [(before[len(done) :], False), (after[len(before) : end], True)]
            done = after[:end]
        return turns

    def next_prompt(self, messages: Messages, tokenizer: Tokenizer) -> str | None:
        """What the template writes between the end of the last answer in `messages` and the next one.

        None where it then writes what comes before that answer, or the answer, in another way.
        """
        whole = self.render(messages, tokenizer, add_generation_prompt=True)
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        done = "".join(text for text, _ in self.turns(messages[: last + 1], tokenizer))
        return whole[len(done) :] if whole.startswith(done) else None


def encode(text: str, tokenizer: Tokenizer, start: bool = True) -> list[int]:
    """Ids of rendered text; `start`: whether it begins a chat."""
    ids: list[int] = []
    for number, piece in enumerate(SPECIAL.split(text)):
        if number % 2:
            ids.append(int(piece))
        elif piece:
            ids += tokenizer.encode(piece, start=start and not ids)
    return ids


def shown(text: str, tokenizer: Tokenizer) -> str:
    """Rendered text as a person may read it: special tokens by their spelling, or nothing where they have none."""
    spelling = {id_: spelling for spelling, id_ in tokenizer.special_ids.items()}
    return SPECIAL.sub(lambda found: spelling.get(int(found[1]), ""), text)


def load_template(spec: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that `spec` names: "plain", the path of a Jinja file, or a Jinja text (it has a brace in it).

    Raises:
      FileNotFoundError: no such file.
      UserError: a template that cannot be read, or that fails on a chat of two questions.
    """
    if spec != "plain" and "{" not in spec and not absolute(spec).exists():
        raise FileNotFoundError(f'chat_template: got {spec!r}, may be "plain", a Jinja file or a Jinja text')
    return _tried(PLAIN if spec == "plain" else spec if "{" in spec else _read(absolute(spec)), tokenizer)


def folder_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template in a checkpoint's folder: chat_template.jinja, or in tokenizer_config.json; None without one.

    Raises:
      UserError: one line: as `load_template`, or a file that cannot be read.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return _tried(_read(folder / TEMPLATE_FILE), tokenizer)
    given = read_object(folder / SPELLED).get("chat_template")
    if isinstance(given, list):  # several by name
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get("default", given)
    if given is None:
        return None
    if not isinstance(given, str):
        raise UserError(f"tokenizer: {folder / SPELLED}: chat_template: got {str(given)[:40]!r}, must be a Jinja text")
    return _tried(given, tokenizer)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"chat_template: {one_line(error)}") from None


def _tried(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    template = ChatTemplate(source)
    try:
        _ = template._compiled, template._literals
    except (jinja2.TemplateError, RecursionError) as error:
        raise UserError(f"chat_template: {' '.join(str(error).split())[:300]}") from None
    template.turns([{"role": role, "content": "a"} for role in ("user", "assistant") * 2], tokenizer)
    return template


@functools.cache
def _world() -> jinja2.Environment:
    """Block white space and tojson as transformers sets them, so that its templates mean the same here."""
    world = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    world.filters["tojson"] = _tojson
    return world


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _occurrences(part: str, text: str) -> list[int]:
    return [found.start() for found in re.finditer(f"(?={re.escape(part)})", text)]


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

"""Chat templates: Jinja, rendered in its sandbox, to text in which special tokens cannot be mistaken for words.

Published templates write special tokens as text ("<|im_start|>"), which a user may write as well. So a chat is rendered
with a mark between any two characters of its contents: a special token in the result without a mark in it is the
template's own. Marks would be in the way of a template that looks for words in a content, so there is none inside of
the template's own string literals, nor beside white space (which templates trim); and the chat is rendered once more as
it is, to see that nothing but the marks is different.

Special tokens are then `"\\0" + id + "\\0"`, which no content can hold, until the text is made into ids.
"""

import dataclasses
import datetime
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes

from zaya_jax.errors import UserError
from zaya_jax.files import read_text
from zaya_jax.paths import absolute, one_line
from zaya_jax.text.jinja_world import compiled, parsed, rendered
from zaya_jax.text.published import require_unicode
from zaya_jax.text.special_tokens import SPELLED, read_object
from zaya_jax.text.tokenizers import ByteTokenizer, Tokenizer, UntrainedBPE

Messages = Sequence[Mapping[str, Any]]  # see `chat.check_messages`
Tools = Sequence[Mapping[str, Any]] | None  # see `chat.check_tools`
TEMPLATE_FILE = "chat_template.jinja"
BESIDE_TOKENIZER = "tokenizer"  # names the template in the folder of a run's tokenizer
OTHERS = "additional_chat_templates"  # the folder of templates that have names
NAMES = ("role", "type")  # what of a message templates compare; all else is words
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the same, the first is the newest
NOW = "strftime_now"  # the function that templates ask for the date
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


@dataclass(frozen=True)
class ChatTemplate:
    """How a chat is written down. Build one with `load_template` or `folder_template`, which also try it."""

    source: str  # Jinja
    date: datetime.date | None = None  # what strftime_now says; None: when it is asked, as in transformers

    def __repr__(self) -> str:  # files of answers are told apart by it, those of before there was a date too
        date = "" if self.date is None else f", date={self.date}"
        return f"ChatTemplate(source={self.source!r}{date})"

    @functools.cached_property
    def asks_date(self) -> bool:
        """Whether it writes the date, so that the same chat is another text tomorrow, unless `date` is given."""
        names = parsed(self.source).find_all(jinja2.nodes.Name)
        return any(name.name == NOW for name in names)

    def on(self, date: datetime.date | None) -> "ChatTemplate":
        """The same at a date."""
        return dataclasses.replace(self, date=date)

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return compiled(self.source)

    @functools.cached_property
    def _literals(self) -> tuple[str, ...]:
        """The template's string literals of two characters and more."""
        found = parsed(self.source).find_all(jinja2.nodes.Const)
        return tuple({const.value for const in found if isinstance(const.value, str) and len(const.value) > 1})

    def render(
        self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool = False, tools: Tools = None
    ) -> str:
        """The chat's text, special tokens as in `SPECIAL`. The template sees what transformers would show it.

        Args:
          tools: the JSON schemas of functions that an assistant may call.

        Raises:
          UserError: one line: a template that fails, or one that changes contents so that special tokens cannot be
            told from them.
        """
        spelled = {s: id_ for s, id_ in tokenizer.special_ids.items() if len(s) > 1}
        variables: dict[str, Any] = {"documents": None, "add_generation_prompt": add_generation_prompt}
        variables |= _special_variables(tokenizer, spelled)
        if self.date is not None:
            variables[NOW] = datetime.datetime.combine(self.date, datetime.time()).strftime

        def text_of(messages: Iterable[Mapping[str, Any]], tools: Tools) -> str:
            shown = {"messages": [_as_shown(message) for message in messages], "tools": tools}
            return rendered(self._compiled, variables | shown)

        if not spelled:
            return text_of(messages, tools)
        guarded_tools = None if tools is None else self._guarded_parts(tools, spelled)
        guarded = text_of((self._guarded_parts(message, spelled) for message in messages), guarded_tools)
        if guarded.replace(MARK, "") != text_of(messages, tools):
            raise UserError("chat_template: changes a message's content, so special tokens cannot be told from words")
        anything = re.compile("|".join(map(re.escape, sorted(spelled, key=len, reverse=True))))
        return anything.sub(lambda found: f"\0{spelled[found[0]]}\0", guarded).replace(MARK, "")

    def _guarded_parts(self, value: Any, spelled: Iterable[str], name: str = "") -> Any:
        """A message, or a part of it, with marks in all of its words.

        UserError for a role that spells a token, or a name of a field: templates look for those as they are.
        """
        if isinstance(value, Mapping):
            wrong = next((key for key in value if any(token in key for token in spelled)), None)
            if wrong is not None:
                raise UserError(f"chat_template: field {wrong[:60]!r}: its name may hold no special token")
            return {key: self._guarded_parts(part, spelled, key) for key, part in value.items()}
        if isinstance(value, list):
            return [self._guarded_parts(part, spelled) for part in value]
        if not isinstance(value, str):
            return value
        if name in NAMES:  # templates tell them apart, so they stay as they are
            if any(token in value for token in spelled):
                raise UserError(f"chat_template: {name}: got {value!r}, may hold no special token")
            return value
        return self._guarded(value, spelled)

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
        """The ids after which an assistant answers `messages`."""
        return encode(self.render(messages, tokenizer, add_generation_prompt=True), tokenizer)

    def turns(self, messages: Messages, tokenizer: Tokenizer, tools: Tools = None) -> list[tuple[str, bool]]:
        """(text, whether it is an answer), together the whole chat up to the end of its last answer.

        Raises:
          UserError: the template changes what it wrote before as the chat continues, or does not end an answer.
        """
        turns, done = [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], tokenizer, add_generation_prompt=True, tools=tools)
            after = self.render(messages[: i + 1], tokenizer, tools=tools)
            if not (before.startswith(done) and after.startswith(before)):
                raise UserError(f"chat_template: message {i + 1} of a chat changes how those before it are written")
            ends = (f.end() for f in SPECIAL.finditer(after, len(before)) if int(f[1]) in tokenizer.eos_ids)
            end = next(ends, None)
            if end is None:
                raise UserError("chat_template: writes no {{ eos_token }} after an assistant's content")
            turns += [(before[len(done) :], False), (after[len(before) : end], True)]
            done = after[:end]
        return turns

    def next_prompt(self, messages: Messages, tokenizer: Tokenizer) -> str | None:
        """What the template writes between the end of the last answer in `messages` and the next one.

        None where it then writes what comes before that answer, or the answer, in another way.
        """
        whole = self.render(messages, tokenizer, add_generation_prompt=True)
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        try:
            done = "".join(text for text, _ in self.turns(messages[: last + 1], tokenizer))
        except UserError:  # as with templates that leave thinking out of what was said before
            return None
        return whole[len(done) :] if whole.startswith(done) else None


def encode(text: str, tokenizer: Tokenizer, start: bool = True, after: int | None = None) -> list[int]:
    """Ids of rendered text.

    Args:
      start: whether it begins a chat.
      after: the special token that stands before it, if one does.
    """
    parts = [int(piece) if number % 2 else piece for number, piece in enumerate(SPECIAL.split(text)) if piece]
    if after is None:
        return tokenizer.encode_written(parts, start)
    return tokenizer.encode_written([after, *parts], start)[1:]


def last_special(text: str) -> int | None:
    """The special token that ends a rendered text, if one does."""
    found = SPECIAL.search(text, max(0, text.rfind("\0", 0, len(text) - 1))) if text.endswith("\0") else None
    return None if found is None else int(found[1])


def shown(text: str, tokenizer: Tokenizer) -> str:
    """Rendered text as a person may read it: special tokens by their spelling, or nothing where they have none."""
    spelling = {id_: spelling for spelling, id_ in tokenizer.special_ids.items()}
    return SPECIAL.sub(lambda found: spelling.get(int(found[1]), ""), text)


def load_template(spec: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template that `spec` names: "plain", the path of a Jinja file, or a Jinja text (it has a brace in it).

    Raises:
      FileNotFoundError: no such file.
      UserError: a template that cannot be read, or that writes no prompt for a question.
    """
    if spec != "plain" and "{" not in spec and not absolute(spec).exists():
        raise FileNotFoundError(f'chat_template: got {spec!r}, may be "plain", a Jinja file or a Jinja text')
    return _tried(PLAIN if spec == "plain" else spec if "{" in spec else _read(absolute(spec)), tokenizer)


def folder_template(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template in a checkpoint's folder, if any: the default one where there are several.

    chat_template.jinja or, where there is neither that nor a folder of named ones, that of tokenizer_config.json or of
    chat_template.json (a processor's).

    Raises:
      UserError: one line: as `load_template`, or a file that cannot be read, or named templates without a default one.
    """
    if os.path.lexists(folder / TEMPLATE_FILE):  # whatever it is
        return _tried(_read(folder / TEMPLATE_FILE), tokenizer)
    named = sorted(path.stem for path in (folder / OTHERS).glob("*.jinja"))
    if named:
        if "default" in named:
            return _tried(_read(folder / OTHERS / "default.jinja"), tokenizer)
        raise UserError(f"chat_template: {folder / OTHERS}: has {', '.join(named)}, must have one named default")
    for name in (SPELLED, "chat_template.json"):
        given = read_object(folder / name).get("chat_template")
        if isinstance(given, list):  # several by name
            named = [item for item in given if isinstance(item, dict) and item.get("name") == "default"]
            given = named[-1].get("template", given) if named else given
        if given is None:
            continue
        if not isinstance(given, str):
            got = f"chat_template: got {str(given)[:40]!r}, must be a Jinja text"
            raise UserError(f"tokenizer: {folder / name}: {got}")
        return _tried(given, tokenizer)
    return None


def beside_tokenizer(spec: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template in the folder of the tokenizer that `spec` names, if any."""
    path = absolute(spec)
    return folder_template(path if path.is_dir() else path.parent, tokenizer)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"chat_template: {one_line(error)}") from None


def _tried(source: str, tokenizer: Tokenizer, date: datetime.date | None = None) -> ChatTemplate:
    """A template that compiles and asks a question, after a system's message if it needs one."""
    if isinstance(tokenizer, UntrainedBPE):  # has no ids of words yet; whether a question is asked, bytes tell as well
        tokenizer = ByteTokenizer()
    require_unicode(source)
    template = ChatTemplate(source, date)
    _ = template._compiled, template._literals
    question = {"role": "user", "content": "a"}
    try:
        prompt = template.prompt([question], tokenizer)
    except UserError as error:
        try:
            prompt = template.prompt([{"role": "system", "content": "a"}, question], tokenizer)
        except UserError:
            raise error from None
    if not prompt:
        raise UserError(f"chat_template: got {source!r:.60}, which writes nothing for a question")
    return template


def _special_variables(tokenizer: Tokenizer, spelled: Mapping[str, int]) -> dict[str, str]:
    """Special tokens by their names in a template: spelled as their publisher does, else as `SPECIAL`."""
    named = dict(tokenizer.template_tokens)
    if not named:
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        return {name: f"\0{id_}\0" for name, id_ in ids.items() if id_ is not None}
    ids = tokenizer.special_ids
    return {name: s if s in spelled or s not in ids else f"\0{ids[s]}\0" for name, s in named.items()}


def _as_shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers shows it: without what is None, thinking under all of its names."""
    there = {name: value for name, value in message.items() if value is not None}
    thought = next((there[name] for name in REASONING if name in there), None)
    return there if thought is None else {"thinking": thought, **there, "reasoning_content": thought}


def _occurrences(part: str, text: str) -> list[int]:
    return [found.start() for found in re.finditer(f"(?={re.escape(part)})", text)]


def question(text: str, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> list[int]:
    """What a model reads to answer `text`: a user's message, or without a template the text as the tokenizer has it."""
    if template is not None:
        return template.prompt([{"role": "user", "content": text}], tokenizer)
    return [*tokenizer.opening, *tokenizer.encode(text), *tokenizer.closing]

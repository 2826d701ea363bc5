"""The data of a run: mixtures of texts, tasks and chats, read from a config.

A mixture is a tuple of {"text": SOURCE}, {"task": NAME, "options": {...}} or {"chat": [paths]}, each with a "weight",
its share of training rows. {"as_chat": True} writes a task's problems as chats.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict

from zaya_jax.checks import SWITCH, Number, Text, check, shown
from zaya_jax.data.builders import check_text, prepare_chats, prepare_text
from zaya_jax.data.chat import ChatSource
from zaya_jax.data.pipeline import Source
from zaya_jax.errors import UserError
from zaya_jax.tasks import Task, TaskSource, make_task
from zaya_jax.text.templates import ChatTemplate

FIELDS = {"text": (), "task": ("options", "as_chat"), "chat": ()}  # what an ingredient is: what else it may say


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One ingredient of the training data."""

    name: str
    weight: float
    task: Task | None = None
    text: Any = None  # see `prepare_text`
    chats: Any = None  # see `prepare_chats`
    template: ChatTemplate | None = None  # of chats, and of a task that is written as them
    thinking: tuple[str, str] = ("", "")

    @property
    def is_text(self) -> bool:
        """Whether it is plain text, whose bits per byte mean something."""
        return self.text is not None

    def open(self, split: str, data_dir: Path, task_documents: int, seed: int) -> Source:
        """A split, prepared under `data_dir` if need be; tasks draw theirs from their own hold-out."""
        if self.text is not None:
            return prepare_text(self.text, data_dir, split)
        if self.task is not None:
            records = TaskSource(self.task, split, seed, task_documents)
        else:
            records = prepare_chats(self.chats, data_dir, split)
        return records if self.template is None else ChatSource(records, self.template, self.thinking)


class Mixtures:
    """Reads the mixtures of a run, so that a source has one name in all of them and no other source has it."""

    def __init__(self, template: ChatTemplate, thinking: tuple[str, str]):
        self._template, self._thinking = template, thinking
        self.sources: dict[str, MixtureSource] = {}  # by name, in the order they were read

    def read(self, items: Any, where: str) -> tuple[MixtureSource, ...]:
        """The ingredients of one mixture.

        Raises:
          UserError, FileNotFoundError: one line that names the field, what it got and what it may be.
        """
        if not isinstance(items, (tuple, list)) or not items or tuple(items) == ("",):  # "--config.data.mixture="
            raise UserError(f"{where}: got {shown(items)}, may be a tuple of at least one ingredient")
        return tuple(self._named(self._source(item, f"{where}[{i}]")) for i, item in enumerate(items))

    def _named(self, source: MixtureSource) -> MixtureSource:
        """`source` under the name it had before, or under one that is not taken."""
        base, number = source.name, 1
        while source.name in self.sources:
            if dataclasses.replace(self.sources[source.name], weight=source.weight) == source:
                return source
            number += 1
            source = dataclasses.replace(source, name=f"{base}_{number}")
        self.sources[source.name] = source
        return source

    def _source(self, item: Any, where: str) -> MixtureSource:
        item = ConfigDict(item) if isinstance(item, dict) else item  # as the command line gives it
        if not isinstance(item, ConfigDict):
            raise UserError(f"{where}: got {shown(item)}, may be such as {{'text': 'stdlib', 'weight': 1.0}}")
        weight = cast(float, check(f"{where}.weight", item.get("weight", 1.0), Number(0, 1e9, above=True)))
        kinds = [kind for kind in FIELDS if kind in item]
        unknown = set(item) - {"weight", *kinds, *(field for kind in kinds for field in FIELDS[kind])}
        if unknown or len(kinds) != 1:
            got = sorted(unknown)[0] if unknown else sorted(item)
            may_be = "{text, weight}, {task, options, as_chat, weight} or {chat, weight}"
            raise UserError(f"{where}: got {got!r}, may be {may_be}")
        as_chat = {"template": self._template, "thinking": self._thinking}
        if kinds == ["task"]:
            task = _task(item, where)
            if not check(f"{where}.as_chat", item.get("as_chat", False), SWITCH):
                return MixtureSource(item.task, weight, task=task)
            return MixtureSource(f"{item.task}_chat", weight, task=task, **as_chat)
        given = item[kinds[0]]
        given = given.to_dict() if isinstance(given, ConfigDict) else given
        try:
            check_text(given)
        except (UserError, OSError) as error:
            raise type(error)(f"{where}.{kinds[0]}: {error}") from error
        if kinds == ["chat"]:
            if isinstance(given, (str, dict)):
                raise UserError(f"{where}.chat: got {given!r}, may be a list of .jsonl files")
            return MixtureSource("chat", weight, chats=list(given), **as_chat)
        return MixtureSource(given if isinstance(given, str) else "text", weight, text=given)


def _task(item: ConfigDict, where: str) -> Task:
    """The task that an ingredient names, with its options."""
    name, options = check(f"{where}.task", item.task, Text()), item.get("options", {})
    if not isinstance(options, (dict, ConfigDict)):
        raise UserError(f"{where}.options: got {shown(options)}, may be a dict of the task's options")
    try:
        return make_task(name, **dict(options))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error

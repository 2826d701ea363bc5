"""The data of a run: what the ingredients of its mixtures (`tree.Ingredient`) name."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zaya_jax.data.builders import check_text, prepare_chats, prepare_text
from zaya_jax.data.chat import ChatSource
from zaya_jax.data.packed import PackedRows, read_manifest
from zaya_jax.data.pipeline import Source
from zaya_jax.errors import UserError
from zaya_jax.paths import absolute
from zaya_jax.runs.configuration.tree import Ingredient
from zaya_jax.tasks import Task, TaskSource, make_task
from zaya_jax.text.templates import ChatTemplate


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One ingredient of the training data."""

    name: str
    weight: float
    task: Task | None = None
    text: Any = None  # see `prepare_text`
    chats: Any = None  # see `prepare_chats`
    packed: Path | None = None  # see `PackedRows`
    template: ChatTemplate | None = None  # of chats, and of a task that is written as them
    thinking: tuple[str, str] = ("", "")

    @property
    def is_text(self) -> bool:
        """Whether it is plain text, as documents."""
        return self.text is not None

    @property
    def counts_bytes(self) -> bool:
        """Whether bits per byte mean something: plain text, as documents or as rows."""
        return self.is_text or (self.packed is not None and self.template is None)

    def open(self, split: str, data_dir: Path, task_documents: int, seed: int) -> Source | PackedRows:
        """A split, prepared under `data_dir` if need be; tasks draw theirs from their own hold-out."""
        if self.packed is not None:
            return PackedRows(self.packed, split)
        if self.text is not None:
            return prepare_text(self.text, data_dir, split)
        if self.task is not None:
            records = TaskSource(self.task, split, seed, task_documents)
        else:
            records = prepare_chats(self.chats, data_dir, split)
        return records if self.template is None else ChatSource(records, self.template, self.thinking)


class Mixtures:
    """Finds what the mixtures of a run name: a source has one name in all of them, and no other source has it."""

    def __init__(self, template: ChatTemplate, thinking: tuple[str, str]):
        self._as_chat: dict[str, Any] = {"template": template, "thinking": thinking}
        self.sources: dict[str, MixtureSource] = {}  # by name, in the order they were found

    def find(self, where: str, items: Sequence[Ingredient]) -> tuple[MixtureSource, ...]:
        """The sources of one mixture.

        Raises:
          UserError, FileNotFoundError: one line that names the field, what it got and what it may be.
        """
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

    def _source(self, item: Ingredient, where: str) -> MixtureSource:
        if item.task is not None:
            try:
                task = make_task(item.task, **item.options)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            if not item.as_chat:
                return MixtureSource(item.task, item.weight, task=task)
            return MixtureSource(f"{item.task}_chat", item.weight, task=task, **self._as_chat)
        if item.packed is not None:
            return self._packed(item, f"{where}.packed")
        kind, given = ("text", item.text) if item.chat is None else ("chat", item.chat)
        try:
            check_text(given)
        except (UserError, OSError) as error:
            raise type(error)(f"{where}.{kind}: {error}") from error
        if kind == "chat":
            if isinstance(given, (str, dict)):
                raise UserError(f"{where}.chat: got {given!r}, may be a list of .jsonl files")
            return MixtureSource("chat", item.weight, chats=list(given), **self._as_chat)
        return MixtureSource(given if isinstance(given, str) else "text", item.weight, text=given)

    def _packed(self, item: Ingredient, where: str) -> MixtureSource:
        folder = absolute(str(item.packed))
        try:
            manifest = read_manifest(folder)
        except (UserError, OSError) as error:
            raise type(error)(f"{where}: {error}") from error
        if manifest["kind"] == "text":
            return MixtureSource("packed", item.weight, packed=folder)
        if manifest["template"] != self._as_chat["template"].source:
            raise UserError(f"{where}: got {folder}, whose chats another template wrote, may be of data.chat_template")
        return MixtureSource("packed_chat", item.weight, packed=folder, template=self._as_chat["template"])

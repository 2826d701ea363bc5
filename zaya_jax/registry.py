"""What a registry of named things refuses, for tasks, sampler targets, training layouts, objectives and model
families alike.

A name belongs to the file that registered it. Read again (a sweep reads a config file for each job), the file replaces
its own entry.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from zaya_jax.checks import no_such
from zaya_jax.errors import UserError
from zaya_jax.files import read_bytes
from zaya_jax.paths import one_line

NAME = re.compile("[a-z][a-z0-9_]*")
AUTOREGRESSIVE = "autoregressive"
PACKAGE = str(Path(__file__).parent)
T = TypeVar("T")
_OWNERS: list["Owners"] = []  # of every registry


def caller() -> str:
    """The file of whoever called the function that calls this; a notebook's cells are one."""
    names = sys._getframe(2).f_globals
    file = names.get("__file__")
    return str(Path(file).resolve()) if file else str(names.get("__name__"))


class Owners:
    """Which file each name of a registry belongs to.

    Args:
      field: what a mistake calls a name: "task".
    """

    def __init__(self, field: str):
        self.field = field
        self._files: dict[str, str] = {}
        _OWNERS.append(self)

    def claim(self, name: object, file: str, taken: Mapping[str, object]) -> str:
        """`name`, now `file`'s.

        Args:
          taken: what is registered; a name without a recorded file is the package's own.

        Raises:
          UserError: a name that a config cannot hold, or that another file has registered.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{self.field}: got name {name!r}, may be lower-case letters, digits and _")
        owner = self._files.get(name, PACKAGE)
        if name in taken and owner != file:
            whose = "zaya_jax's own" if owner.startswith(PACKAGE) else f"registered by {owner}"
            raise UserError(f"{self.field}: got name {name!r}, may be none of {', '.join(taken)} (it is {whose})")
        self._files[name] = file
        return name


def has_registered(file: Path | str) -> bool:
    """Whether a Python file that was read here has registered anything, so that another process has to read it, too."""
    return any(str(Path(file).resolve()) in owners._files.values() for owners in _OWNERS)


class Registry(Mapping[str, T], Generic[T]):
    """Things by name, in the order of registration; an unknown name is a UserError that tells the nearest ones."""

    def __init__(self, field: str):
        self.entries: dict[str, T] = {}
        self._owners = Owners(field)
        self.field = field

    def add(self, name: str, entry: T, file: str) -> None:
        """Raises as `Owners.claim`."""
        self.entries[self._owners.claim(name, file, self.entries)] = entry

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise no_such(self.field, name, self)
        return self.entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def load_extension(path: Path | str) -> None:
    """Runs a Python file that registers tasks, targets, layouts, objectives or model families.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is no Python. What the file itself raises keeps its traceback.
    """
    path = Path(path).expanduser().absolute()
    spec = importlib.util.spec_from_file_location(path.stem, path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"--extension {path}: no such file, may be a .py file that registers something")
    source = read_bytes(path)
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # a zero byte; nested too deeply
        raise UserError(f"--extension {path}: no Python that can be read ({one_line(error)})") from None
    exec(code, vars(importlib.util.module_from_spec(spec)))


def kind_drafts(kind: object) -> bool:
    """Whether a phase whose config says this `objective.kind` trains draft blocks; so says its name, without its code.

    Every kind does but "autoregressive" and those whose names begin so (`register_objective` holds them to it).
    """
    return isinstance(kind, str) and not kind.startswith(AUTOREGRESSIVE)

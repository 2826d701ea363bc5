"""Names that were others before.

Modules of 0.1.0 are still imported, with a DeprecationWarning that says where they are now. Files that earlier runs
have written are read with their fields and columns under today's names; a config file or a flag that uses an earlier
one is told today's in one line.
"""

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TASKS = ("addition", "base", "chat_task", "countdown", "expressions", "gsm_symbolic", "human_eval", "list_programs")
MOVED = {
    **{f"data.{name}": f"text.{name}" for name in ("detokenizer", "published", "templates", "tokenizers")},
    "data.sandbox": "sandbox.runner",
    "data.tasks": "tasks",
    **{f"data.tasks.{name}": f"tasks.{name}" for name in _TASKS},
    "interop.huggingface": "interop.formats.huggingface",
    "interop.native": "interop.formats.native",
    "sampling.anchors": "sampling.planning.branch_points",
    "sampling.cost": "sampling.planning.cost",
    "sampling.targets": "sampling.core.targets",
}  # fmt: skip
NAMES = {"Arm": "NamedSampler"}  # of zaya_jax
FIELDS = {"evaluate.arms": "evaluate.samplers"}  # of a config
FLAGS = {"arms": "samplers"}  # of commands
COLUMNS = {"arm": "sampler"}  # of results.csv and samples.jsonl


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config.json with its fields under today's names."""
    found = dict(config)
    for before, now in FIELDS.items():
        (name, old), new = before.split("."), now.rpartition(".")[2]
        section = found.get(name)
        if isinstance(section, dict) and old in section and new not in section:
            found[name] = {new if key == old else key: value for key, value in section.items()}
    return found


class _Finder(MetaPathFinder, Loader):
    """Hands out the module itself, under its old name too."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{__package__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # which the import has overwritten


def install() -> None:
    """Makes the old names known, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

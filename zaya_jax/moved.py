"""Names that were others before.

Modules of 0.1.0 are still imported, with a DeprecationWarning that says where they are now, and its commands still run.
Files that earlier runs have written are read with their fields and columns under today's names; a config file or a flag
that uses an earlier one is told today's in one line.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any, cast

_TASKS = ("addition", "base", "chat_task", "countdown", "expressions", "gsm_symbolic", "human_eval", "list_programs")
MOVED = {  # of zaya_jax
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
_BENCHMARKS = ("convert", "loading", "memory", "sampling", "smollm2", "training", "transformers")
COMMANDS = {"inspect": "inspect_checkpoint", **{f"bench_{name}": f"bench.{name}" for name in _BENCHMARKS}}
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
    """Hands out a package's module itself, under its old name too; `python -m` runs it by its old name."""

    def __init__(self, package: str, names: Mapping[str, str]) -> None:
        self.package, self._names = package, names

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        package, _, name = fullname.partition(".")
        if package != self.package or name not in self._names:
            return None
        now = importlib.util.find_spec(self._now(fullname))
        origin = None if now is None else now.origin  # `python -m` makes sys.argv[0] of it
        return ModuleSpec(fullname, self, origin=origin)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {self._now(spec.name)}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._now(spec.name))
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # which the import has overwritten

    def get_code(self, fullname: str) -> CodeType | None:
        """For `python -m`."""
        now = importlib.util.find_spec(self._now(fullname))
        return cast(InspectLoader, now.loader).get_code(now.name) if now else None

    def _now(self, fullname: str) -> str:
        return f"{self.package}.{self._names[fullname.partition('.')[2]]}"


def install(package: str, names: Mapping[str, str]) -> None:
    """Makes modules of a package known by their old names (old -> new, without the package's), once."""
    if not any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(package, names))

"""Commands: `python -m experiments` lists them. They run from a clone; only zaya_jax is installed."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
# Commands that 0.1.0 had under other names; `python -m experiments.OLD` still runs them.
BENCHMARKS = ("convert", "loading", "memory", "sampling", "smollm2", "training", "transformers")
RENAMED = {"inspect": "inspect_checkpoint", **{f"bench_{name}": f"bench/{name}" for name in BENCHMARKS}}


class _Renamed(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        name = fullname.removeprefix(f"{__name__}.")
        return spec_from_file_location(fullname, HERE / f"{RENAMED[name]}.py") if name in RENAMED else None


sys.meta_path.append(_Renamed())

"""A config as lines, one a field, that can be read, searched and compared: what --print_config shows."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.parallel import MeshConfig
from zaya_jax.runs.configuration.tree import Data, Evaluation, PhaseSection, is_phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

DEFAULT = "  # the default; not in the file, so not for the command line"


def lines_of(config: ConfigDict) -> list[str]:
    """FIELD = VALUE of every field, sorted; --config.FIELD=VALUE changes it.

    A field that is None says its type. One that the file leaves to the default of the dataclass that will hold it is
    listed, too.
    """
    return list(_lines(config, "", _defaults(config)))


def differences(base: list[str], other: list[str]) -> list[str]:
    """The lines of `other` that are not in `base`, and the fields of `base` that `other` has no more."""
    names = {line.partition(" = ")[0] for line in other}
    gone = [f"{name}: not in it" for name in (line.partition(" = ")[0] for line in base) if name not in names]
    return [line for line in other if line not in base] + gone


def _lines(value: Any, field: str, defaults: dict[str, dict[str, Any]], kind: type | None = None) -> Iterator[str]:
    if isinstance(value, (ConfigDict, dict)) and (value or field in defaults):
        added = {name: default for name, default in defaults.get(field, {}).items() if name not in value}
        for name in sorted({*map(str, value), *added}):
            path = f"{field}.{name}" if field else name
            if name in added:
                yield f"{path} = {added[name]!r}{DEFAULT}"
            else:
                typed = value.get_type(name) if isinstance(value, ConfigDict) else None
                yield from _lines(value[name], path, defaults, typed)
    elif isinstance(value, (tuple, list)) and any(isinstance(item, (ConfigDict, dict)) for item in value):
        for i, item in enumerate(value):
            yield from _lines(item, f"{field}[{i}]", defaults)
    else:
        plain = {} if isinstance(value, ConfigDict) else value
        known = value is None and isinstance(kind, type) and kind is not type(None)
        yield f"{field} = {plain!r}" + (f"  # {kind.__name__}" if known else "")


def _defaults(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Section -> the defaults of the dataclass that will hold it."""
    kinds: dict[str, type] = {
        "model": ZayaConfig, "execution": Execution, "mesh": MeshConfig, "data": Data, "evaluate": Evaluation,
    }  # fmt: skip
    for name in config:
        if is_phase(config[name]):
            kinds |= {name: PhaseSection, f"{name}.objective": Objective, f"{name}.optimizer": OptimizerConfig}
            if config[name].get("mesh") is not None:
                kinds[f"{name}.mesh"] = MeshConfig
    found = {section: _defaults_of(kind) for section, kind in kinds.items()}
    for section in found:
        found[section].pop("seed", None)  # of a phase: the config's
    return found


def _defaults_of(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}

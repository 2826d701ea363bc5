"""A run's folder, read: its config, what it was made with, what was logged, its results and its samples."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from zaya_jax import moved
from zaya_jax.architecture import ZayaConfig, preset
from zaya_jax.architecture.drafters.config import KINDS as DRAFTERS
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.architecture.execution import without_execution
from zaya_jax.checks import shown
from zaya_jax.errors import UserError
from zaya_jax.files import read_lines, read_object, remedy
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.registry import kind_drafts
from zaya_jax.reporting.results import COMPARED, ENVIRONMENT, KINDS, METRICS, RESULTS, SAMPLES, Row, read_results
from zaya_jax.training.drafter_objective import DrafterObjective
from zaya_jax.training.logging.metrics import REMEDY as METRICS_REMEDY
from zaya_jax.training.logging.metrics import read_metrics
from zaya_jax.training.optimizer import OptimizerConfig, frozen_parameters, moving

# The phases of a config.json that names none: of runs before there was a list.
STAGES = ("pretrain", "convert", "control")
SECTIONS = ("model", "data", "evaluate")  # of config.json, each an object, as is the section of every phase
NUMBERS = dict.fromkeys(("steps", "batch_size", "row_length"), int) | {"rope_theta": (int, float)}  # of a section
LARGE = 1e300  # what is larger is no measured number, and may be no float
REMEDIES = {  # for a damaged file of a run's
    ENVIRONMENT: "delete the file: the same command writes it anew, without the seconds of what ran before",
    RESULTS: "delete the file: the same command writes it anew, from the answers in answers/",
    SAMPLES: "delete the file and results.csv: the same command writes them anew, from the answers in answers/",
    METRICS: METRICS_REMEDY,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, read. Files that are not there (an unfinished run) are empty; `missing` names them."""

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: list[Row]
    samples: list[dict[str, Any]]
    absent_files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.directory.name))

    @property
    def model(self) -> ZayaConfig | None:
        """The model's shape from config.json (a preset's name, or every field), with the drafter that a phase trains;
        None where there is none.

        Raises:
          UserError: a field that makes no ZayaConfig, or no objective of a drafter.
        """
        fields = self.config.get("model")
        if not fields:
            return None
        try:
            fields = without_execution(dict(fields))
            if fields.get("layer_types") is not None:
                fields["layer_types"] = tuple(fields["layer_types"])
            model = preset(fields.pop("preset"), **fields) if "preset" in fields else ZayaConfig(**fields)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.directory / 'config.json'}: model: {error}") from None
        drafters = [drafter for phase in self.phases if (drafter := self._drafter(phase)) is not None]
        return model.replace(drafter=drafters[-1]) if drafters else model

    @property
    def trained_parameters(self) -> int:
        """How many of the model's parameters some phase trains: those that not every phase freezes.

        Raises:
          UserError: a phase's optimizer.freeze that fits no model; no model.
        """
        if self.model is None:
            raise UserError(f"{self.directory / 'config.json'}: model: missing")
        params = traverse_util.unflatten_dict(abstract_variables(self.model))["params"]
        held: list[Any] = []
        for phase in self.phases:
            patterns = (self.config.get(phase, {}).get("optimizer") or {}).get("freeze") or ()
            try:
                held.append(frozen_parameters(OptimizerConfig(freeze=patterns), params))
            except UserError as error:
                raise UserError(f"{self.directory / 'config.json'}: {phase}.optimizer: {error}") from None
        everywhere = jax.tree.map(lambda *masks: functools.reduce(np.logical_and, masks), *held) if held else False
        return moving(everywhere, params) if held else 0

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the training phases that have steps, in order, whether they have been run or not."""
        names = _phase_names(self.config)
        return tuple(name for name in names if self.config.get(name, {}).get("steps") != 0)

    def _drafter(self, phase: str) -> DrafterConfig | None:
        """The drafter beside the model that a phase trains; None where its objective has none."""
        fields = self.config.get(phase, {}).get("objective") or {}
        if not isinstance(fields, dict) or fields.get("kind") not in DRAFTERS:
            return None
        try:
            return DrafterObjective(**fields).drafter
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.directory / 'config.json'}: {phase}.objective: {error}") from None

    @property
    def sampled(self) -> str | None:
        """The phase whose model is sampled (`evaluate.phase`): without it "convert", or the last (that drafts)."""
        chosen = self.config.get("evaluate", {}).get("phase")
        drafting = [name for name in self.phases if self.drafts(name)]
        if chosen or "convert" in drafting or "phases" not in self.config:
            return chosen or "convert"
        return (drafting or self.phases or (None,))[-1]

    @property
    def is_autoregressive(self) -> bool:
        """Whether no phase drafts: then there is nothing to verify, and autoregression is all there is to sample."""
        return "phases" in self.config and not any(map(self.drafts, self.phases))

    def drafts(self, phase: str) -> bool:
        """Whether a phase trains draft blocks."""
        return kind_drafts(self.config.get(phase, {}).get("objective", {}).get("kind"))

    def path_to(self, phase: str) -> tuple[str, ...]:
        """The phases whose weights came to be `phase`'s, itself the last (runs/configuration/tree.py says how)."""
        names, at = _phase_names(self.config), phase
        path = []
        while at in names:
            if at in self.phases:
                path.append(at)
            before = names[: names.index(at)]
            start = self.config.get(at, {}).get("start")
            if start is None and "phases" not in self.config and before:
                start = before[0]  # everything started from pretraining then
            if start in names and start not in before:
                break  # of a later one, or itself: no run's config
            at = start or (before[-1] if before else "")
        return tuple(reversed(path))

    @property
    def block_size(self) -> int | None:
        """Slots a draft block in the sampled phase."""
        if self.is_autoregressive:
            return None
        return self.config.get(self.sampled or "", {}).get("objective", {}).get("block_size")

    def rows(self, kind: str, **equal: Any) -> list[Row]:
        """Lines of results.csv of a kind, with the given cells."""
        return [r for r in self.results if r["kind"] == kind and all(r[k] == v for k, v in equal.items())]

    def stage(self, name: str, key: str) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl of a stage ("convert", "convert/validation") that have `key`, by step."""
        return sorted((m for m in self.metrics if m["stage"] == name and key in m), key=lambda m: m["step"])

    def sources(self) -> list[str]:
        """Names of the validation sources, in the order they were written."""
        keys = (key for m in self.metrics if m["stage"].endswith("/validation") for key in m)
        return list(dict.fromkeys(key.rpartition("/")[0] for key in keys if key.endswith("/ar_loss")))

    def missing(self) -> list[str]:
        """What a whole run would have and this one lacks, in words."""
        lacks = [f"{name} (no such file)" for name in self.absent_files]
        if METRICS not in self.absent_files:
            stages = {m["stage"] for m in self.metrics}
            lacks += [f"stage {name} (not in {METRICS})" for name in self.phases if name not in stages]
        if RESULTS in self.absent_files:
            return lacks
        kinds, may_have = (("sampling", "likelihood"), COMPARED[:1]) if self.is_autoregressive else (KINDS, COMPARED)
        lacks += [f"{kind} rows (none in {RESULTS})" for kind in kinds if not self.rows(kind)]
        sampling = self.rows("sampling")
        for temperature in sorted({r["temperature"] for r in sampling if r["temperature"] is not None}):
            samplers = {r["sampler"] for r in sampling if r["temperature"] == temperature}
            lacks += [f"sampler {name} at temperature {temperature:g}" for name in may_have if name not in samplers]
        return lacks


def load_run(directory: Path | str) -> Run:
    """Reads a run directory. config.json must be there; an unfinished run may lack the other files.

    Raises:
      FileNotFoundError: no such directory, or no config.json in it.
      UserError: a file that is not what it should be; one line with the file and the field.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory, should be a run's workdir")
    if not (directory / "config.json").exists():
        raise FileNotFoundError(f"{directory / 'config.json'}: no such file, should be the config of a run")
    config = moved.renamed(read_object(directory / "config.json"))
    _check_config(config, str(directory / "config.json"))
    readers: dict[str, Callable[[Path], Any]] = {
        ENVIRONMENT: read_environment,
        METRICS: _read_metrics,
        RESULTS: read_results,
        SAMPLES: _read_samples,
    }
    read = {}
    for name, reader in readers.items():
        if (directory / name).exists():
            with remedy(REMEDIES[name]):
                read[name] = reader(directory / name)
    return Run(
        directory=directory,
        config=config,
        environment=read.get(ENVIRONMENT, {}),
        metrics=read.get(METRICS, []),
        results=read.get(RESULTS, []),
        samples=read.get(SAMPLES, []),
        absent_files=tuple(name for name in readers if name not in read),
    )


def training_seed(checkpoint: Path) -> int | None:
    """The seed of the run whose model lies in this folder: its config.json stands beside or above it.

    None where there is none: a checkpoint from elsewhere.
    """
    for folder in list(checkpoint.parents)[:2]:  # RUN/model, RUN/checkpoints/STAGE
        if (folder / "config.json").exists():
            seed = read_object(folder / "config.json").get("seed")
            return seed if isinstance(seed, int) else None
    return None


def read_environment(path: Path | str) -> dict[str, Any]:
    """Reads environment.json. UserError unless it is an object whose `seconds` by stage, if it has any, are numbers."""
    values = read_object(path)
    for field in ("seconds", "programs_from_cache"):
        counts = values.setdefault(field, {})
        _expect(counts, dict, f"{path}: {field}")
        _require(counts, dict.fromkeys(counts, (int, float)), f"{path}: {field}")
    return values


def _phase_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("phases", STAGES)
    return (names,) if isinstance(names, str) else tuple(names or ())


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a section or field that figures and the report read, of another type than a run's."""

    def have(section: Mapping[str, Any], kinds: Mapping[str, Any], at: str) -> None:
        _require(section, {field: kind for field, kind in kinds.items() if section.get(field) is not None}, at)

    have(config, {"phases": (list, str)}, where)
    for number, name in enumerate(_phase_names(config)):
        _expect(name, str, f"{where}: phases[{number}]")
    sections = [name for name in (*SECTIONS, *_phase_names(config)) if name in config]
    _require(config, dict.fromkeys(sections, dict), where)
    for name in sections:
        section, at = config[name], f"{where}: {name}"
        have(
            section, {"phase": str, "start": str, "objective": dict, "optimizer": dict, "mixture": list, **NUMBERS}, at
        )
        have(section.get("objective") or {}, {"kind": str, "block_size": int, "alpha": (int, float)}, f"{at}.objective")
        for number, source in enumerate(section.get("mixture") or ()):
            _expect(source, dict, f"{at}.mixture[{number}]")
            have(source, {"weight": (int, float)}, f"{at}.mixture[{number}]")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines whose values are numbers, or lists of them that have one shape in every line of a stage."""
    lines, shapes = read_metrics(path), {}
    for number, line in enumerate(lines, start=1):
        for key, value in line.items():
            if key in ("stage", "step") or value is None:
                continue
            shape = _shape(value)
            known = shapes.setdefault((line["stage"], key), shape)
            if shape is None or shape != known:
                may_be = "numbers" if shape is None or known is None else f"numbers of shape {list(known)} as before"
                raise UserError(f"{path} line {number}: {key}: got {shown(value)}, may be {may_be}")
    return lines


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a number or a nested list of numbers (or of None, where a step had none); None for anything else."""
    if isinstance(value, list):
        shapes = {_shape(each) for each in value} or {()}
        inner = shapes.pop()
        return None if shapes or inner is None else (len(value), *inner)
    fits = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGE)
    return () if fits else None


def _read_samples(path: Path) -> list[dict[str, Any]]:
    fields = {"sampler": str, "temperature": (int, float), "prompt": str, "pieces": list, "accepted": list}
    samples = [
        {moved.COLUMNS.get(key, key): value for key, value in line.items()} for line in read_lines(path, grows=False)
    ]
    for number, sample in enumerate(samples, start=1):
        where = f"{path} line {number}"
        _require(sample, fields, where)
        pieces, accepted = sample["pieces"], sample["accepted"]
        if not all(isinstance(piece, str) for piece in pieces):
            raise UserError(f"{where}: pieces: should be a list of texts")
        if not all(type(n) is int and n >= 0 for n in accepted) or sum(accepted) != len(pieces):
            raise UserError(f"{where}: accepted: should be integers that sum to len(pieces) = {len(pieces)}")
    return samples


def _require(line: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
    """Refuses an object without these fields of these types."""
    for field, kind in fields.items():
        _expect(line.get(field), kind, f"{where}: {field}")


def _expect(value: Any, kind: Any, what: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    if not fits or (isinstance(value, int | float) and not abs(value) < LARGE):
        raise UserError(f"{what}: got {shown(value)}, should be {' or '.join(kind.__name__ for kind in kinds)}")

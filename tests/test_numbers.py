"""Every number that a user can set has a range, and what is asked for is held against the memory that is there."""

import ast
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any
from unittest import mock

import pytest
from flax import struct
from ml_collections import ConfigDict

import experiments
import zaya_jax
from tests import commands
from tests.experiments import tiny
from zaya_jax import generate as sample
from zaya_jax import load_pretrained, memory
from zaya_jax.architecture import Execution, Zaya, preset
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.command_line import sampling_flags
from zaya_jax.costs.flops import Split
from zaya_jax.data.packing import Preparation
from zaya_jax.errors import UserError
from zaya_jax.evaluation.lm_eval_adapter import Adapter
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.formats import native
from zaya_jax.parallel import MeshConfig
from zaya_jax.rollouts.config import Rollouts
from zaya_jax.rollouts.objective import PolicyObjective
from zaya_jax.runs import sizes
from zaya_jax.runs.configuration import settings
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.drafters.ngram import NGram
from zaya_jax.tasks import BENCHMARKS, TASKS
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.training.drafter_objective import DrafterObjective
from zaya_jax.training.loop import Phase
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig

# No number has one of these, whatever it counts or measures.
WRONG = (-7, 10**39, math.nan, math.inf, -math.inf, True, "3")


def unsized() -> Any:
    """Nothing may be sized within it."""
    return mock.patch("jax.eval_shape", side_effect=AssertionError("sized before it was checked"))


def numbers(config: ConfigDict, before: str = "") -> Iterator[str]:
    """The dotted names of a config's numbers, those that are not set included."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from numbers(value, f"{before}{name}.")
        elif type(value) in (int, float) or (value is None and config.get_type(name) in (int, float)):
            yield before + name


def changed(field: str, value: Any) -> ConfigDict:
    config = tiny.get_config()
    *sections, name = field.split(".")
    section = config
    for each in sections:
        section = section[each]
    with section.ignore_type():
        section[name] = value
    return config


@pytest.mark.parametrize("field", [*numbers(tiny.get_config())])
def test_every_number_of_a_config_has_a_range(field):
    for value in (value for value in WRONG if value is not True):  # of which ml_collections makes 1.0
        with pytest.raises(UserError) as error:
            settings.read(changed(field, value))
        assert field.rpartition(".")[2] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pretrain.optimizer.learning_rate", math.inf),
        ("convert.objective.alpha", math.inf),
        ("model.rope_theta", math.nan),
        ("convert.rope_theta", math.nan),
        ("data.row_length", 1),
        ("pretrain.row_length", 1),
        ("evaluate.seed", -1),
        ("evaluate.temperatures", ()),
        ("evaluate.temperatures", (math.nan,)),
        ("evaluate.temperatures", (-1.0,)),
        ("name", "../../x"),
        ("name", ""),
        ("convert.objective.block_size", 1_000_000),
        ("convert.objective.block_size", 49),  # on rows of 48
        ("model.num_hidden_layers", 10**9),
        ("model.hidden_size", 10**9),
        ("model.cca_time1", 1024),  # a compiled product a tap
        ("mesh.fsdp", 10**8),
        ("pretrain.batch_size", 10**8),
        ("data.task_documents", 10**10),
        ("data.validation_batches", 10**8),
        ("evaluate.prompts", 10**8),
        ("evaluate.max_new_tokens", 131_072),  # all positions of the model: none is left for a prompt
    ],
)
def test_what_was_accepted_and_should_not_be(field, value):
    with unsized(), pytest.raises(UserError, match=field.rpartition(".")[2].removesuffix("s")):
        settings.read(changed(field, value))


def test_a_rows_seed_is_one_that_keys_are_made_of():
    assert EvaluationProtocol(10**6, 4_000, 1, 1, 0)
    with pytest.raises(
        UserError, match=r"^EvaluationProtocol\.samples: got 4294, may be such that seed \+ prompts \* samples"
    ):
        EvaluationProtocol(10**6, 4_294, 1, 1, 10**6)


# --- the types that hold a user's numbers -----------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
MODEL = Zaya(preset("tiny", vocab_size=260))
GIVEN = {
    **{type(config): config for config in (preset("tiny"), Execution(), OptimizerConfig(), Objective(), MeshConfig())},
    **{type(task): task for task in (make() for make in (*TASKS.values(), *BENCHMARKS.values()))},
    Phase: Phase("one", Objective(), OptimizerConfig(), 1),
    SamplerConfig: SamplerConfig(),
    DrafterConfig: DrafterConfig(),
    DrafterObjective: DrafterObjective("dflash"),
    PolicyObjective: PolicyObjective(),
    Rollouts: Rollouts(),
    Preparation: Preparation((), "bytes", 8),
    NGram: NGram("ngram", "Looks up."),
    EvaluationProtocol: EvaluationProtocol(1, 1, 1, 1, 0),
    Adapter: Adapter(MODEL, {}, ByteTokenizer(), SamplerConfig("autoregressive")),
}
# What holds numbers that no user types: results, counts, what was read and checked, compiled things.
COMPUTED = ("zaya_jax.costs.", "zaya_jax.reporting.", "zaya_jax.aot.", "zaya_jax.interop.", "zaya_jax.checks",
            "zaya_jax.sampling.planning.auto", "zaya_jax.sampling.drafting", "zaya_jax.sampling.types",
            "zaya_jax.architecture.layers", "zaya_jax.runs.", "zaya_jax.command_line.")  # fmt: skip
ALSO = {"TaskResult", "Limits", "Verdict", "_Budget", "PublishedTokenizer", "ByteTokenizer", "BPETokenizer",
        "UntrainedBPE", "Piece", "Made", "Asked", "StepWork"}  # fmt: skip


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(zaya_jax.__path__, "zaya_jax."):
        yield importlib.import_module(found.name)


def numeric(kind: type) -> list[str]:
    """A dataclass's fields that are numbers, or None."""
    hints = typing.get_type_hints(kind)
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.init and {int, float} & {*_union(hints[field.name])} and str not in _union(hints[field.name])
    ]


def _union(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


@pytest.mark.parametrize("kind", GIVEN, ids=lambda kind: kind.__name__)
def test_every_number_of_a_type_has_a_range(kind):
    for name in numeric(kind):
        for value in WRONG:
            with pytest.raises(UserError, match=name):
                dataclasses.replace(GIVEN[kind], **{name: value})


def test_no_type_is_forgotten():
    """A new dataclass with numbers belongs into GIVEN, or is said to be none of a user's."""
    kinds = {
        kind
        for module in modules()
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
        if not issubclass(kind, struct.PyTreeNode)  # arrays
    }
    assert set(GIVEN) <= kinds
    forgotten = [
        f"{kind.__module__}.{kind.__name__}"
        for kind in kinds - set(GIVEN)
        if not kind.__module__.startswith(COMPUTED) and kind.__name__ not in ALSO and numeric(kind)
    ]
    assert not forgotten


@pytest.mark.parametrize("file", sorted(Path(experiments.__path__[0]).rglob("*.py")), ids=lambda file: file.stem)
def test_every_flag_that_is_a_number_has_a_range(file):
    """But for those of the sampler, which `SamplerConfig` checks."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("DEFINE_integer", "DEFINE_float"):
            named = {keyword.arg for keyword in call.keywords}
            name = ast.unparse(call.args[0])
            if name.strip("'") not in sampling_flags.FIELDS:
                assert len(call.args) > 3 or "lower_bound" in named, name
                assert "upper_bound" in named, name


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_what_the_cgroup_leaves(tmp_path, monkeypatch):
    machine = memory.host_memory()
    assert 2**28 < machine < 2**50
    mine, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "batch" / "job").mkdir(parents=True)
    (root / "batch" / "memory.max").write_text("1000000\n")  # holds for the job in it, too
    (root / "batch" / "job" / "memory.max").write_text("max\n")
    mine.write_text("0::/batch/job\n")
    monkeypatch.setattr(memory, "MINE", mine)
    monkeypatch.setattr(memory, "CGROUPS", root)
    assert memory.host_memory() == 1_000_000
    mine.write_text("4:memory:/job\n0::/\n")
    (root / "memory" / "job").mkdir(parents=True)
    (root / "memory" / "job" / "memory.limit_in_bytes").write_text("2000")
    assert memory.host_memory() == 2_000
    assert memory.device_memory(sharers=2) == 1_000
    monkeypatch.setattr(memory, "MINE", tmp_path / "no Linux")
    assert memory.host_memory() >= machine


def test_committed_sizes_fit():
    setup = settings.read(tiny.get_config())
    sizes.check(setup, dict.fromkeys(setup.stages))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"pretrain.batch_size": 1_000_000},
            r"pretrain: a training step: needs at least .* \(parameters .*, the optimizer's state .*, activations "
            r"and gradients about .*\), .* are there; pretrain\.batch_size, pretrain\.row_length or the model may be",
        ),
        ({"model.vocab_size": 2**31 - 1}, "pretrain: a training step: needs at least"),
        ({"model.num_experts": 65_536, "model.moe_intermediate_size": 2**20}, "pretrain: a training step: needs at"),
        ({"data.validation_batches": 100_000, "convert.batch_size": 10**6}, "data.validation_batches: 100000 of"),
        (
            {"evaluate.batch": 10**6, "evaluate.prompts": 10**6, "evaluate.max_new_tokens": 4_000},
            r"evaluate: needs at least .* \(keys and values of 1000000 x 4000 tokens\), .*evaluate\.batch, ",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(changes, line, monkeypatch):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    setup = settings.read(config)
    if "data.validation_batches" in changes:  # a step alone would fit
        monkeypatch.setattr(sizes, "device_memory", lambda *_: None)
    with unsized(), pytest.raises(UserError, match=line) as error:
        sizes.check(setup, dict.fromkeys(setup.stages))
    assert "\n" not in str(error.value)


SMALL_MACHINE = """
import runpy, sys
from zaya_jax import memory
memory.host_memory = lambda: 1 << 20
sys.argv = ["run", *sys.argv[1:]]
runpy.run_module("experiments.run", run_name="__main__")
"""


def test_a_run_that_does_not_fit_leaves_nothing(tmp_path):
    (tmp_path / "small_machine.py").write_text(SMALL_MACHINE)
    given = [f"--config={ROOT / 'tests' / 'experiments' / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    done = commands.run("small_machine", *given, folder=tmp_path)
    assert done.returncode == 2
    assert re.match(r"error: pretrain: a training step: needs at least .*, (1 MiB|512 KiB) are there; ", done.stderr)
    assert not (tmp_path / "run").exists()


def test_memory_is_that_of_how_the_stage_is_computed():
    config = tiny.get_config()
    plain = settings.read(config).stages["convert"]
    config.execution = ConfigDict({"remat": "full"})
    again = settings.read(config).stages["convert"]
    kept, recomputed = (sizes.stage_memory(stage, Split()).activations for stage in (plain, again))
    assert recomputed < kept


def test_what_is_frozen_counts_neither_gradients_nor_moments():
    config = tiny.get_config()
    stage = settings.read(config).stages["convert"]
    config.convert.optimizer.freeze = ("embed_tokens",)
    frozen = settings.read(config).stages["convert"]
    needs = [sizes.least(sizes.stage_memory(each, sizes.Split())) for each in (stage, frozen)]
    embedding = 4 * stage.model.vocab_size * stage.model.hidden_size
    assert abs(needs[0] - needs[1] - 2.5 * embedding) < 8  # two moments; of the gradients, an estimate, half counts


def test_more_samples_than_memory_holds_are_refused_before_anything_is_made():
    sampler = SamplerConfig("autoregressive")
    line = r"^generate: needs at least .* \(keys and values of 2147483647 x 8 tokens\)"
    made = mock.patch("zaya_jax.sampling.decoding.row_keys", side_effect=AssertionError("made before it was checked"))
    with made, pytest.raises(UserError, match=line):
        sample(MODEL, {}, [[1, 2]], sampler, 6, samples=2**31 - 1)


FOLDER = Path(__file__).parent / "parity" / "fixtures" / "plain"


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """The same model as one of our checkpoints."""
    folder = tmp_path_factory.mktemp("ours") / "model"
    convert(FOLDER, folder, "native")
    return folder


def test_a_checkpoint_larger_than_the_device_is_refused(ours, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 4096)
    for folder in (FOLDER, ours):
        with pytest.raises(
            UserError, match=r"(model|plain): needs at least .*, 4 KiB are there; may be read on a larger"
        ):
            load_pretrained(folder)


@pytest.mark.parametrize("change", [{"hidden_size": 10**9}, {"hidden_size": 2**24}, {"vocab_size": 2**31 - 1}], ids=str)
@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_absurd_sizes_of_a_checkpoint_are_refused_before_they_are_computed_with(kind, change, ours, tmp_path):
    folder = shutil.copytree(FOLDER if kind == "theirs" else ours, tmp_path / "model")
    file = folder / ("config.json" if kind == "theirs" else native.MODEL_FILE)
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | change))
    for act in (load_pretrained, lambda path: convert(path, tmp_path / "out")):
        with unsized(), pytest.raises(UserError, match=next(iter(change))):
            act(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

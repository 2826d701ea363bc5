"""What docs/extending.md shows works as it stands; a registry refuses names that are taken, and tells near ones."""

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import commands
from tests.helpers import built, random_variables
from tests.sampling.test_lossless import gap
from zaya_jax.architecture import Layout
from zaya_jax.architecture.training_layouts import LAYOUTS, TrainingLayout, register_layout
from zaya_jax.errors import UserError
from zaya_jax.interop import config_from_huggingface, load_huggingface, save_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.families.table import FAMILIES, ZAYA, register_family
from zaya_jax.registry import load_extension
from zaya_jax.runs.configuration import settings
from zaya_jax.sampling import Drafter, SamplerConfig, Target, register_drafter, register_target
from zaya_jax.sampling.core import targets
from zaya_jax.sampling.drafters import base as drafters
from zaya_jax.tasks import TASKS, make_task, register_task
from zaya_jax.training.objective import OBJECTIVES, Objective, register_objective

ROOT = Path(__file__).parents[1]
CONFIGS = ("my_task.py", "my_target.py", "my_layout.py", "my_objective.py")
FILES = (*CONFIGS, "my_family.py", "my_drafter.py")


def shown(file: str) -> str:
    """The block of docs/extending.md that begins with `file`'s docstring."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (block,) = re.findall(rf'^```python\n("""{re.escape(file)}.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture
def read(monkeypatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs a file of the page and returns its names; what it registers is forgotten afterwards."""
    registries = (TASKS, targets._REGISTERED.entries, LAYOUTS.entries, OBJECTIVES.entries, FAMILIES.entries)
    registries += (drafters._REGISTERED.entries,)
    before = [dict(each) for each in registries]

    def run(file: str, name: str = "") -> dict[str, Any]:
        namespace: dict = {"__name__": name or file}
        exec(compile(shown(file), file, "exec"), namespace)
        return namespace

    yield run
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_a_task_in_a_config_file_is_known_by_name(read):
    config = read("my_task.py")["get_config"]("fast")
    assert config.data.mixture[0].task == config.evaluate.tasks[0] == "reverse"
    task = make_task("reverse", letters=6)
    problem = task.problem("test", 0, 0)
    assert problem.solution == problem.prompt[:6][::-1] + "\n"
    assert task.check(problem, problem.solution) and not task.check(problem, problem.prompt)


def test_a_registered_name_must_be_new_and_a_word(read):
    reverse = read("my_task.py")["Reverse"]
    for name in ("addition", "human_eval", "Two words", ""):
        with pytest.raises(ValueError, match=rf"^task: got name '{name}', may be "):
            register_task(type("Mine", (reverse,), {"name": name}))
    for mine, what in (
        (
            lambda: register_target(Target("mix_stale", "Mine.", combine=lambda p, d, b: p)),
            "target: got name 'mix_stale'",
        ),
        (lambda: register_layout(TrainingLayout("tidar", "Mine.", lambda *_: {})), "layout: got name 'tidar'"),
        (lambda: register_drafter(Drafter("ngram", "Mine.")), "drafter: got name 'ngram'"),
        (lambda: register_objective(Objective), "objective: got name 'tidar'"),
        (lambda: register_family(dataclasses.replace(ZAYA, by_expert=True)), "model family: got name 'zaya'"),
    ):
        with pytest.raises(UserError, match=rf"^{what}, may be none of .* \(it is zaya_jax's own\)"):
            mine()
    with pytest.raises(
        UserError, match=r"objective: got .*, may be a frozen dataclass that is a subclass of Objective"
    ):
        register_objective(dict)  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize("file", FILES)
def test_a_file_may_be_read_again_and_another_may_not_take_its_name(file, read):
    read(file)
    read(file)
    with pytest.raises(UserError, match=rf"may be none of .* \(it is registered by {re.escape(file)}\)"):
        read(file, "another.py")


def test_an_unknown_name_is_told_the_nearest(read):
    with pytest.raises(UserError, match="task: got 'adition', did you mean addition"):
        make_task("adition")
    with pytest.raises(UserError, match=r"Objective.kind: got 'tidal', did you mean tidar"):
        Objective("tidal")
    with pytest.raises(UserError, match=r"Objective.row_layout: got 'tidr', did you mean tidar"):
        Objective(row_layout="tidr")
    with pytest.raises(UserError, match=r"SamplerConfig.target: got 'mix_linear', may be one of autoregressive, "):
        SamplerConfig(target="mix_linear")


def test_a_target_of_ones_own_is_an_sampler(read):
    setup = settings.read(read("my_target.py")["get_config"]("fast"))
    samplers = {sampler.name: sampler.config for sampler in setup.samplers}
    assert samplers["mix_linear"].target == "mix_linear" and samplers["mix_linear"].mode == "single_pass"
    combine = targets.find_target("mix_linear").combine
    assert combine is not None
    found = jax.nn.softmax(combine(jnp.array([0.0, 9.0]), jnp.array([9.0, 0.0]), jnp.array(0.5)))
    np.testing.assert_allclose(found, 0.5, atol=1e-6)


def test_a_drafter_of_ones_own_is_lossless(read, x64):
    """The whole output distribution is autoregression's; without its logits a chance draft would not be verified so."""
    read("my_drafter.py")
    sampler = SamplerConfig("drafter", drafter="bigram", draft_length=2, temperature=0.8, draft_temperature=1.3)
    assert gap(sampler) < 1e-9


def test_a_layout_of_ones_own_has_half_of_the_grids_blocks(read):
    setup = settings.read(read("my_layout.py")["get_config"]("fast"))
    objective = setup.stages["convert"].phase.objective
    tokens = jnp.arange(32)[None]
    batch = {"tokens": tokens, "document": jnp.zeros_like(tokens)}
    drawn = objective.draw(jax.random.key(0), 1, 32)
    layout, size = objective.layout(batch, drawn), objective.block_size
    assert layout.num_blocks == 2 and layout.tokens.shape == (1, 32 + 2 * size)
    first = int(drawn["first"][0, 0])
    assert layout.position[0, 32] == layout.horizon[0, 32] == first and layout.predecessor[0, 32] == first - 1
    ids, has = layout.draft_targets(first=drawn["first"])
    assert (ids == jnp.where(has, layout.draft_rows().position, 0)).all() and has[0, :size].all()
    assert objective.counts(batch, drawn)["draft_count"].sum() == has.sum()
    with pytest.raises(UserError, match=r"Objective.masking: got 'random', may be 'full'"):
        Objective(masking="random", row_layout="every_second")
    bad = TrainingLayout("bad", "Gives no rows.", lambda *_: {"first": jnp.zeros(3)})
    with pytest.raises(UserError, match=r"layout bad: draw gave first float32.3., may give int32 .batch, block."):
        bad.drawn(jax.random.key(0), 1, 8, 4)


def test_a_grid_is_blocks_at_its_rows():
    """`Layout.tidar` and `Layout.blocks_at` of its grid are the same rows with the same targets."""
    tokens, offset = np.arange(24, dtype=np.int32).reshape(2, 12), np.array([0, 3], np.int32)
    first = offset[:, None] + 4 * np.arange(3, dtype=np.int32)
    document = np.array([[0] * 5 + [1] * 7, [0] * 10 + [-1] * 2], np.int32)
    grid = built(Layout.tidar, tokens, block_size=4, offset=offset, document=document)
    anywhere = built(Layout.blocks_at, tokens, first=first, block_size=4, document=document)
    assert grid.ordered_blocks and not anywhere.ordered_blocks  # nobody knows it of blocks that stand anywhere
    anywhere = anywhere.replace(ordered_blocks=True)
    jax.tree.map(np.testing.assert_array_equal, grid, anywhere)

    @jax.jit
    def of_drafts(layout, **where):
        return layout.draft_targets(**where), layout.draft_teachers(**where)

    got, expected = of_drafts(grid, offset=offset), of_drafts(anywhere, first=first)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_an_objective_of_ones_own_is_built_from_the_config(read):
    names = read("my_objective.py")
    config = names["get_config"]("fast")
    config.convert.objective.slots = 2
    objective = settings.read(config).stages["convert"].phase.objective
    assert type(objective) is names["FirstSlots"] and objective.slots == 2 and objective.drafts
    sums = {"ar_nll": jnp.array(8.0), "draft_nll": jnp.array([3.0, 5.0, *[100.0] * (objective.block_size - 2)])}
    counts = {"ar_count": jnp.array(4.0), "draft_count": jnp.full(objective.block_size, 2.0)}
    assert objective.loss(sums, counts) == pytest.approx((objective.alpha * 2 + 2) / (1 + objective.alpha))
    config.convert.objective.slots = 99
    with pytest.raises(UserError, match=r"convert.objective.slots: got 99"):
        settings.read(config)
    with pytest.raises(UserError, match=r"Objective.kind: got 'first_slots', which is the kind of FirstSlots"):
        Objective("first_slots")


def test_a_family_of_ones_own_is_read_and_written(read, tmp_path):
    """The order of its rotated channels is theirs in its folders, and Llama's in what is written by default."""
    values = {"model_type": "helium", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 12, "head_dim": 4}
    values |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(UserError, match=r"model_type: got 'helium', may be one of \('llama', .*'zaya'\)"):
        config_from_huggingface(values)
    read("my_family.py")
    config = config_from_huggingface(values)
    assert (config.rope_theta, config.rms_norm_eps, config.attention_bias) == (100_000.0, 1e-8, False)
    variables = random_variables(config)
    save_huggingface(tmp_path / "llama", config, variables)
    convert(tmp_path / "llama", tmp_path / "helium", "helium")
    convert(tmp_path / "helium", tmp_path / "again")
    llama, helium, again = (load_file(tmp_path / name / "model.safetensors") for name in ("llama", "helium", "again"))
    assert json.loads((tmp_path / "helium" / "config.json").read_text())["model_type"] == "helium"
    for name, value in llama.items():
        np.testing.assert_array_equal(again[name], value)
        turned = "q_proj" in name or "k_proj" in name  # rows of a head: 0 and 2 rotate together there, 0 and 1 here
        heads = value.reshape(-1, 4, *value.shape[1:])[:, [0, 2, 1, 3]].reshape(value.shape) if turned else value
        np.testing.assert_array_equal(helium[name], heads)
    loaded, found = load_huggingface(tmp_path / "helium")
    assert loaded == config
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])
    for format, line in (
        ("mistrl", "format: got 'mistrl', did you mean mistral"),
        ("mistral", "cannot hold this model"),
    ):
        with pytest.raises(UserError, match=line):
            convert(tmp_path / "helium", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_an_extension_is_a_python_file(tmp_path, read):
    path = tmp_path / "my_task.py"
    path.write_text(shown("my_task.py"))
    load_extension(path)
    assert make_task("reverse").name == "reverse"
    for missing in (tmp_path / "no.py", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"--extension .*: no such file, may be a \.py file"):
            load_extension(missing)


@pytest.mark.parametrize("source", [b"def (", b"\xff\xfe", b"x = 1\0", b"(" * 300], ids=str)
def test_an_extension_that_is_no_python_is_one_line(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_bytes(source)
    with pytest.raises(UserError, match=rf"^--extension {path}: no Python that can be read \(") as caught:
        load_extension(path)
    assert "\n" not in str(caught.value)


def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return commands.run(f"experiments.{name}", *arguments, PYTHONPATH=str(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS)
def test_what_one_adds_trains_and_is_evaluated(file, tmp_path):
    path, workdir = tmp_path / file, tmp_path / "run"
    path.write_text(shown(file))
    done = command("run", f"--config={path}:fast", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    rows = (workdir / "results.csv").read_text()
    assert (workdir / "report.html").exists() and ",lossless," in rows
    assert {"my_task.py": ",reverse,", "my_target.py": ",mix_linear,"}.get(file, "") in rows


@pytest.mark.slow
def test_commands_without_a_config_file_are_given_it(tmp_path):
    for file in ("my_task.py", "my_target.py"):
        (tmp_path / file).write_text(shown(file))
    model = f"--checkpoint={ROOT / 'results' / 'quickstart' / 'model'}"
    task, target = (f"--extension={tmp_path / file}" for file in ("my_task.py", "my_target.py"))
    few = ("--prompts=2", "--samples=1", "--max_new_tokens=4", "--temperatures=1", f"--output={tmp_path / 'out'}")
    done = command("evaluate", model, "--tasks=reverse", "--samplers=mix_linear", task, target, *few)
    assert done.returncode == 0 and "mix_linear" in (tmp_path / "out" / "results.csv").read_text(), done.stderr
    done = command("generate", model, "--prompt=1+1=", "--target=mix_linear", "--max_new_tokens=4", target)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "sweep.py"
    sweep.write_text(
        "from configs.common import axis, sweep\n"
        "def get_config():\n"
        "    samplers = ('autoregressive', 'lossless', 'mix_linear')\n"
        "    return sweep('mine', 'configs/quickstart.py:fast', axis('evaluate.samplers', samplers))\n"
    )
    listed = command("sweep", f"--config={sweep}", "--list", target)
    assert listed.returncode == 0 and target in listed.stdout, listed.stderr  # its jobs know it too
    assert "got 'mix_linear'" in command("sweep", f"--config={sweep}", "--list").stderr
    assert "got 'mix_linear'" in command("generate", model, "--prompt=1", "--target=mix_linear").stderr

"""A config's list of phases: what starts where, with what, and what is refused; ZAYA1-8B's list and its twin's run."""

import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import chats, zaya1_8b
from tests.commands import Command
from tests.experiments import tiny
from tests.helpers import random_variables
from zaya_jax import load_pretrained, preset
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.formats.native import load_native
from zaya_jax.reporting.results import read_results
from zaya_jax.reporting.run_files import load_run
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.runs.start import load_start
from zaya_jax.text.tokenizers import BPETokenizer
from zaya_jax.training.checkpoints import Checkpoints
from zaya_jax.training.logging.metrics import read_metrics
from zaya_jax.training.state import init_state

pytestmark = pytest.mark.early


def read(change=lambda c: None, config: ConfigDict | None = None) -> settings.Settings:
    config = tiny.get_config() if config is None else config
    with config.unlocked():
        change(config)
    return settings.read(config)


def starts(change) -> dict:
    return {name: (stage.start, stage.data_seed) for name, stage in read(change).stages.items()}


def test_a_phase_starts_from_the_one_before_or_where_it_says(tmp_path):
    usual = {"pretrain": (None, 0), "convert": ("pretrain", 1), "control": ("pretrain", 1)}
    assert starts(lambda c: None) == usual
    assert starts(lambda c: c.control.update(start=None))["control"] == ("convert", 2)
    assert starts(lambda c: c.convert.update(start="scratch")) == usual | {"convert": (None, 0)}
    assert starts(lambda c: c.convert.update(start=str(tmp_path)))["convert"] == (tmp_path, 0)
    assert starts(lambda c: c.update(phases=("pretrain", "convert"))) == {k: usual[k] for k in ("pretrain", "convert")}
    # a phase of no steps is left out, and passes on where it would have started
    assert starts(lambda c: c.pretrain.update(steps=0)) == {"convert": (None, 0), "control": (None, 0)}
    assert starts(lambda c: c.pretrain.update(steps=0, start=str(tmp_path)))["control"] == (tmp_path, 0)


def test_a_phase_has_its_own_rows_data_and_rotary_base_or_those_it_comes_from():
    def change(c):
        c.pretrain.update(rope_theta=500.0)
        c.convert.update(rope_theta=2e4, row_length=64, packing="best_fit", mixture=(ConfigDict({"text": "stdlib"}),))
        c.control.update(start="convert")

    setup = read(change)
    assert [stage.model.rope_theta for stage in setup.stages.values()] == [500.0, 2e4, 2e4]
    assert [stage.row_length for stage in setup.stages.values()] == [48, 64, 48]
    assert [stage.packing for stage in setup.stages.values()] == ["first_fit", "best_fit", "first_fit"]
    names = [[source.name for source in stage.mixture] for stage in setup.stages.values()]
    assert names == [["addition", "stdlib"], ["stdlib"], ["addition", "stdlib"]]
    assert list(setup.sources) == ["addition", "stdlib"]  # the same source, whatever its weight
    assert read(lambda c: c.pretrain.update(rope_theta=500.0)).stages["control"].model.rope_theta == 500.0


def test_a_start_is_read_in_the_models_own_dtype(tmp_path):
    stored = preset("tiny", param_dtype="bfloat16")
    save_huggingface(tmp_path / "base", stored, random_variables(stored))
    model = stored.replace(param_dtype="float32")
    loaded, same = load_start(model, tmp_path / "base", "midtrain.start"), load_pretrained(tmp_path / "base")[1]
    assert jax.tree.map(lambda leaf: leaf.dtype.name, loaded["params"]) == jax.tree.map(
        lambda _: "float32", loaded["params"]
    )
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(lambda leaf: leaf.astype("float32"), same))
    with pytest.raises(ValueError, match=r"midtrain.start: .*base has .* may be the model's \(260, 16\)"):
        load_start(preset("tiny", hidden_size=16), tmp_path / "base", "midtrain.start")


def test_a_start_without_a_mask_token_gets_the_models(tmp_path):
    choices = dict(attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0)
    published = preset("tiny", **choices, mask_token_id=NO_MASK)
    save_huggingface(tmp_path / "base", published, random_variables(published))
    rows = {
        vocab: load_start(preset("tiny", **choices, vocab_size=vocab), tmp_path / "base", "convert.start")
        for vocab in (261, 260)  # the mask after the vocabulary, and on its last row, which text then may not hold
    }
    one, other = (rows[vocab]["params"]["embed_tokens"] for vocab in (261, 260))
    np.testing.assert_array_equal(one[:260], other)
    np.testing.assert_allclose(one[260], other.mean(0), atol=1e-6)
    with pytest.raises(ValueError, match=r"convert.start: .*base has \(260, 32\) .* may be the model's \(262, 32\)"):
        load_start(preset("tiny", **choices, vocab_size=262, mask_token_id=7), tmp_path / "base", "convert.start")


def test_two_sources_never_share_a_name():
    other = (
        ConfigDict({"task": "addition", "options": {"digits": 2}}),
        ConfigDict({"task": "addition", "as_chat": True}),
    )
    setup = read(lambda c: c.convert.update(mixture=other))
    assert [source.name for source in setup.stages["convert"].mixture] == ["addition_2", "addition_chat"]


def test_whose_model_is_sampled():
    tidar = {"kind": "tidar", "block_size": 2}
    assert read().sampled == "convert"
    assert read(lambda c: (c.control.objective.update(tidar), c.evaluate.update(phase="control"))).sampled == "control"

    def renamed(c):
        c.first, c.second = c.convert, c.convert.copy_and_resolve_references()
        c.phases = ("pretrain", "first", "second")

    assert read(renamed).sampled == "second"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c.update(phases=()), "phases: got none, may be different ones of the sections control, convert, pr"),
        (lambda c: c.update(phases=("pretrain", "convrt")), "phases: got 'convrt', may be different ones of"),
        (lambda c: c.update(phases=("convert", "convert")), "phases: got 'convert' twice, may be"),
        (lambda c: c.update(phases=("pretrain", "data")), "phases: got 'data', may be"),
        (lambda c: [c[n].update(steps=0) for n in c.phases], "phases: got .*, may be some of which at least one has"),
        (lambda c: c.update(extra=ConfigDict()), "^extra: unknown, did you mean"),
        (lambda c: c.data.update(rows=3), "^data.rows: unknown, may be one of"),
        (lambda c: c.convert.update(start="control"), r"convert.start: got 'control', may be an earlier phase \(pre"),
        (lambda c: c.convert.update(start="convert"), "convert.start: got 'convert', may be an earlier phase"),
        (lambda c: c.pretrain.update(start="/nowhere"), r"pretrain.start: got '/nowhere', may be .*\(none\)"),
        (lambda c: c.convert.update(row_length=5000), "convert.row_length: got 5000, may be at most model.max_pos"),
        (lambda c: c.convert.update(row_length=0), "convert.row_length: got 0, may be an integer"),
        (lambda c: c.convert.update(rope_theta=-1.0), "convert.rope_theta: got -1.0, may be a number above 0"),
        (lambda c: c.convert.update(mixture=()), r"convert.mixture: got \(\), may be a tuple of at least one"),
        (lambda c: c.convert.update(packing="tight"), "convert.packing: got 'tight', may be one of first_fit"),
        (lambda c: c.convert.update(optimizer_state="keep"), "convert.optimizer_state: got 'keep', may be one of"),
        (
            lambda c: c.pretrain.update(optimizer_state="continue"),
            "pretrain.optimizer_state: got 'continue', may be 'fresh' where a phase does not start from another",
        ),
        (
            lambda c: (c.convert.update(optimizer_state="continue"), c.convert.optimizer.update(name="muon")),
            "convert.optimizer_state: got 'continue', may be 'fresh': the optimizer keeps other state than that",
        ),
        (lambda c: c.evaluate.update(phase="pretrain"), "evaluate.phase: got 'pretrain', may be a phase that drafts"),
        (lambda c: c.data.update(chat_template="chatml"), "chat_template: got 'chatml', may be"),
        (lambda c: c.data.update(thinking=("<think>",)), "data.thinking: got .*, may be what opens and what closes"),
        (
            lambda c: c.convert.update(mixture=(ConfigDict({"chat": ["/nowhere.jsonl"]}),)),
            r"convert.mixture\[0\].chat: paths: /nowhere.jsonl is no file",
        ),
        (
            lambda c: c.convert.update(mixture=(ConfigDict({"text": "stdlib", "as_chat": True}),)),
            r"convert.mixture\[0\]: got 'as_chat', may be {text, weight}, {task, options, as_chat, weight}, {chat, w",
        ),
    ],
)  # fmt: skip
def test_bad_lists_are_refused_before_anything_runs(change, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        read(change)
    assert "\n" not in str(error.value)


def test_stage_names_follow_what_a_phase_starts_from():
    def keys(change=lambda c: None) -> dict[str, str]:
        config = tiny.get_config()
        config.data.mixture = config.data.mixture[:1]  # without the standard library, which is long to read
        setup = read(change, config)
        return stage_keys(config, setup)

    base = keys()
    assert keys(lambda c: c.update(phases=("pretrain", "convert"))) == {
        name: base[name] for name in ("pretrain", "convert")
    }
    after = keys(lambda c: c.control.update(start="convert"))
    assert after == base | {"control": after["control"]} and after["control"] != base["control"]
    for field, value in (("row_length", 64), ("rope_theta", 2e4), ("optimizer_state", "continue")):
        other = keys(lambda c, change={field: value}: c.convert.update(change))
        assert other == base | {"convert": other["convert"]} and other["convert"] != base["convert"], field
        deeper = keys(lambda c, change={field: value}: (c.convert.update(change), c.control.update(start="convert")))
        assert deeper["control"] not in (after["control"], base["control"]), field


def test_the_recipe_has_the_published_numbers(tmp_path):
    for name in ("pretrain", "midtrain", "extend"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("text")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "a.jsonl").write_text(chats.text())
    (tmp_path / "base").mkdir()
    BPETokenizer.train(["text"], 260).save(tmp_path / "tokenizer.json")
    where = f"tokenizer={tmp_path / 'tokenizer.json'},data={tmp_path}"
    setup = read(config=zaya1_8b.get_config(f"scratch,{where}"))
    sizes = {name: (s.row_length, s.model.rope_theta, s.batch_size) for name, s in setup.stages.items()}
    assert sizes == {
        "pretrain": (4096, 1e4, 4096), "midtrain": (32_768, 1e6, 512), "extend": (131_072, 5e6, 128),
        "sft": (131_072, 5e6, 128),
    }  # fmt: skip
    tokens = {n: s.phase.steps * s.row_length * s.batch_size for n, s in setup.stages.items()}
    assert tokens == pytest.approx({"pretrain": 12e12, "midtrain": 600e9, "extend": 500e9, "sft": 50e9}, rel=1e-3)
    drafting = [s.phase.objective for s in setup.stages.values()][1:]
    assert {(o.kind, o.block_size, o.masking) for o in drafting} == {("tidar", 16, "full")}
    assert [o.loss_on for o in drafting] == ["all", "all", "answers"]
    assert {s.phase.optimizer.name for s in setup.stages.values()} == {"muon"} and setup.sampled == "sft"
    assert (setup.model.dtype, setup.stages["sft"].execution.remat) == ("bfloat16", "full")

    based = read(config=zaya1_8b.get_config(f"start={tmp_path / 'base'},{where}"))
    assert list(based.stages) == ["midtrain", "extend", "sft"]
    assert based.stages["midtrain"].start == tmp_path / "base"
    # the twin is the same list
    twin = read(config=zaya1_8b.get_config("twin"))

    def kept(s):
        optimizer = s.phase.optimizer
        return s.model.rope_theta, s.start, s.continues, s.packing, s.phase.objective, s.data_seed, optimizer.name

    assert list(map(kept, twin.stages.values())) == list(map(kept, setup.stages.values()))


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("", "tokenizer: got 'TOKENIZER', must be"),
        ("tokenizer=bytes", "midtrain.start: got 'ZAYA1-8B-base', may be an earlier phase"),
        ("scratch,tokenizer=bytes", r"pretrain.mixture\[0\].text: paths: .*DATA/pretrain is no file, directory"),
    ],
)
def test_what_the_recipe_needs_of_a_user_is_named(argument, line):
    with pytest.raises(FileNotFoundError, match=line):
        settings.read(zaya1_8b.get_config(argument))


def test_the_committed_chats_are_what_their_module_makes():
    assert chats.FILE.read_text() == chats.text()


# Without pretraining, which is that of every other run.
TWIN = ("--config.phases=('midtrain','extend','sft')", "--config.midtrain.start=scratch")


def start(workdir: Path, *args: str) -> Command:
    config = "--config=configs/zaya1_8b.py:twin,block_size=4"
    return Command("experiments.run", config, f"--workdir={workdir}", *TWIN, *args, together=True, new_session=True)


def finish(workdir: Path, *args: str) -> str:
    process = start(workdir, *args)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> tuple[Path, str]:
    """Its phases, trained."""
    workdir = tmp_path_factory.mktemp("twin") / "run"
    return workdir, finish(workdir, "--train_only")


@pytest.fixture(scope="module")
def evaluated(twin) -> Path:
    """The same, evaluated by the command without --train_only."""
    workdir, _ = twin
    finish(workdir)
    return workdir


PHASES = ("midtrain", "extend", "sft")


@pytest.mark.slow
def test_the_twin_trains_its_phases(twin):
    workdir, output = twin
    assert "sft: of 144 chats 9 are trimmed and 3 dropped, to fit 256 tokens" in output
    configs = {name: load_native(workdir / "checkpoints" / name)[0] for name in PHASES}
    assert [config.rope_theta for config in configs.values()] == [1e6, 5e6, 5e6]
    ends = [(line["stage"], line["step"]) for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]
    assert ends == [("midtrain", 6), ("extend", 4), ("sft", 4)]


@pytest.mark.slow
def test_the_twin_is_evaluated(evaluated):
    workdir, names = evaluated, PHASES
    rows = read_results(workdir / "results.csv")
    assert {(r["model"], r["source"]) for r in rows if r["kind"] == "likelihood"} == {
        (name, source) for name in names for source in ("stdlib", "addition", "chat", "addition_chat")
    }
    sampled = {r["sampler"]: r for r in rows if r["kind"] == "sampling"}
    assert {r["model"] for r in sampled.values()} == {"sft"}
    assert sampled["lossless"]["identical_to_autoregressive"] == 1
    prompts = [json.loads(line)["prompt"] for line in (workdir / "samples.jsonl").read_text().splitlines()]
    setup = read(config=zaya1_8b.get_config("twin,block_size=4"))
    [task] = setup.tasks
    for problem in task.problems("test", 3, seed=0):
        asked = setup.tokenizer.decode(task.encode(problem, setup.tokenizer))
        assert asked == f"<|user|>\n{problem.prompt}\n<|assistant|>\n" and problem.prompt.endswith("=")
    assert prompts and all(p.endswith("=") for p in prompts)
    run = load_run(workdir)
    assert run.phases == names and run.path_to("sft") == names
    text = (workdir / "report.html").read_text()
    assert "4 steps of 4 rows of 256 tokens, rotary base 5e+06: next tokens and draft blocks of 4" in text
    assert (workdir / "figures" / "training_curves.png").exists()


def update_counts(folder: Path, stage: Stage) -> set[int]:
    """What all step counters of a phase's optimizers say at its end."""
    state = init_state(load_native(folder)[1], stage.phase.optimizer, 0)
    with Checkpoints(folder) as checkpoints:
        state, _ = checkpoints.load(state)
    assert int(state.step) == stage.phase.steps
    leaves = jax.tree.leaves_with_path((state.opt_state, state.balancing_opt_state))
    return {int(leaf) for path, leaf in leaves if str(path[-1]) == ".count"}


@pytest.mark.slow
def test_the_optimizer_is_handed_over_where_the_recipe_says(twin):
    stages = read(config=zaya1_8b.get_config("twin,block_size=4")).stages
    found = {
        name: update_counts(twin[0] / "checkpoints" / name, stages[name]) for name in ("midtrain", "extend", "sft")
    }
    assert found == {"midtrain": {6}, "extend": {6 + 4}, "sft": {4}}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["extend", "sft"])
def test_a_twin_killed_in_a_phase_resumes_to_the_same_numbers(evaluated, tmp_path, phase):
    workdir = tmp_path / "killed"
    process = start(workdir)
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(m["stage"] == f"{phase}/validation" for m in read_metrics(path)):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (workdir / "results.csv").exists()
    finish(workdir)

    def numbers(folder: Path) -> list[dict]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in line.items() if not k.endswith("_per_second")} for line in lines]

    assert numbers(workdir) == numbers(evaluated)
    for a, b in zip(read_results(workdir / "results.csv"), read_results(evaluated / "results.csv"), strict=True):
        assert [a[k] for k in ("model", "sampler", "tokens", "ar_loss")] == [
            b[k] for k in ("model", "sampler", "tokens", "ar_loss")
        ]

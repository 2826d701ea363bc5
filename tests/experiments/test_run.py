"""The run command from the outside: a whole run, a killed one, and a user's mistakes."""

import json
import os
import re
import signal
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.commands import Command
from tests.experiments import tiny
from zaya_jax import Zaya, load_pretrained, preset
from zaya_jax.command_line import cli
from zaya_jax.interop.conversion.locate import find_checkpoint
from zaya_jax.reporting.results import read_results
from zaya_jax.runs import evaluation, run_folder
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.sampling.planning.cost import rows_of
from zaya_jax.text.tokenizers import ByteTokenizer, load_tokenizer
from zaya_jax.training.logging.metrics import read_metrics

pytestmark = pytest.mark.early

ROOT = Path(__file__).parents[2]
CONFIG = "--config=tests/experiments/tiny.py:lean"


def start(*args, **options) -> Command:
    return Command("experiments.run", *args, together=True, **options)


def finish(*args) -> tuple[int, str]:
    process = start(*args)
    output, _ = process.communicate()
    return process.returncode, output


def numbers(workdir: Path) -> list[dict]:
    return [
        {k: v for k, v in line.items() if not k.endswith("_per_second")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "whole"
    status, output = finish(CONFIG, f"--workdir={workdir}")
    assert status == 0, output
    return workdir


def test_a_run_leaves_what_it_promises(whole):
    names = {p.name for p in whole.iterdir()}
    assert names >= {
        "config.json", "environment.json", "metrics.jsonl", "checkpoints", "results.csv", "samples.jsonl", "figures",
        "report.html",
    }  # fmt: skip
    assert len(list((whole / "figures").glob("*.png"))) >= 6
    rows = read_results(whole / "results.csv")
    sampling = [r for r in rows if r["kind"] == "sampling"]
    assert {(r["sampler"], r["temperature"]) for r in sampling} == {
        (sampler, t) for sampler in ("autoregressive", "lossless", "mix_stale") for t in (0.0, 1.0)
    }
    greedy = {r["sampler"]: r for r in sampling if r["temperature"] == 0}
    assert greedy["lossless"]["identical_to_autoregressive"] == 1
    assert greedy["lossless"]["accuracy"] == greedy["autoregressive"]["accuracy"]
    assert all(r["tokens_per_forward"] == 1 for r in sampling if r["sampler"] == "autoregressive")
    likelihood = {(r["model"], r["source"]): r for r in rows if r["kind"] == "likelihood"}
    assert set(likelihood) == {(m, s) for m in ("pretrain", "convert", "control") for s in ("addition", "text")}
    assert likelihood["convert", "text"]["bits_per_byte"] > 0
    config, variables = load_pretrained(whole / "checkpoints" / "convert")
    assert config.vocab_size == variables["params"]["embed_tokens"].shape[0] == 260
    # each stage's checkpoints hold the tokenizer; a workdir means the stage that was sampled
    assert all(isinstance(load_tokenizer(stage), ByteTokenizer) for stage in (whole / "checkpoints").glob("*/"))
    assert find_checkpoint(whole) == whole / "checkpoints" / "convert"
    environment = json.loads((whole / "environment.json").read_text())
    assert set(environment["seconds"]) == {"data", "pretrain", "convert", "control", "evaluate", "figures"}


def wait_for(process: Command, workdir: Path, stage: str, step: int) -> None:
    """Until a run has written the metrics of a step, or has ended."""
    deadline, path, size = time.monotonic() + 300, workdir / "metrics.jsonl", 0
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.stat().st_size != size:
            size = path.stat().st_size
            if any(m["stage"] == stage and m["step"] >= step for m in read_metrics(path)):
                break
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_stopped_and_killed_resumes_to_the_same_numbers(whole, tmp_path):
    """SIGTERM in pretraining, SIGKILL in conversion; the first also fills TensorBoard, the last traces.

    And to the same weights, of which an evaluation is a function (tests/evaluation kills those). Without the control,
    which nothing of this waits for.
    """
    workdir = tmp_path / "killed"
    args = (CONFIG, f"--workdir={workdir}", "--config.phases=('pretrain','convert')", "--train_only")
    process = start(*args, "--sinks=tensorboard")
    wait_for(process, workdir, "pretrain", 1)
    process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == cli.INTERRUPTED, output
    line = r"interrupted: pretrain: asked to stop; saved at step \d of 6; the same command resumes from there"
    assert re.fullmatch(line, output.strip().splitlines()[-1]), output
    assert list((workdir / "tensorboard" / "pretrain").glob("events*"))
    process = start(*args, new_session=True)
    wait_for(process, workdir, "convert", 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, output = finish(*args, f"--profile={tmp_path / 'trace'}")
    assert status == 0, output
    assert list((tmp_path / "trace" / "convert").rglob("*.xplane.pb"))
    assert numbers(workdir) == [line for line in numbers(whole) if line["stage"].split("/")[0] != "control"]
    for name in ("pretrain", "convert"):
        ours, theirs = (load_pretrained(folder / "checkpoints" / name) for folder in (workdir, whole))
        assert ours[0] == theirs[0]
        jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])


@pytest.mark.slow
def test_a_run_from_scratch_has_no_pretraining(tmp_path):
    some = ["--config.evaluate.temperatures=(1.0,)", "--config.evaluate.cost=True"]
    status, output = finish(CONFIG, f"--workdir={tmp_path / 'w'}", "--config.pretrain.steps=0", *some)
    assert status == 0, output
    rows = read_results(tmp_path / "w" / "results.csv")
    assert {r["model"] for r in rows if r["kind"] == "likelihood"} == {"convert", "control"}
    assert not (tmp_path / "w" / "checkpoints" / "pretrain").exists()
    assert {r["rows"] for r in rows if r["kind"] == "cost"} == {1, 8, 16, 24, 72}


def test_cost_is_that_of_one_token_and_of_blocks_of_eight(monkeypatch):
    """What is measured, without measuring it."""
    monkeypatch.setattr(
        evaluation, "forward_cost", lambda model, variables, plans: {plan: 3.0 * rows_of(plan) for plan in plans}
    )
    rows = evaluation.cost_rows(Zaya(preset("tiny")), {}, "convert", "here")
    assert [(r["rows"], r["milliseconds"], r["cost_ratio"]) for r in rows] == [
        (n, 3.0 * n, n) for n in (1, 8, 16, 24, 72)
    ]
    assert settings.read(tiny.get_config()).measures_cost
    assert not settings.read(tiny.get_config("lean")).measures_cost


@pytest.mark.slow
def test_a_phase_starts_from_the_checkpoint_that_it_names(whole, tmp_path):
    from_there = f"--config.convert.start={whole / 'checkpoints' / 'pretrain'}"
    few = ["--config.phases=('convert',)", "--train_only"]  # the whole run's train step, which is compiled already
    status, output = finish(CONFIG, f"--workdir={tmp_path / 'w'}", from_there, *few)
    assert status == 0 and "the same command without --train_only: evaluates" in output, output
    assert not any((tmp_path / "w" / name).exists() for name in ("results.csv", "figures", "report.html"))

    def losses(workdir: Path) -> list[float]:
        lines = read_metrics(workdir / "metrics.jsonl")
        return [line["loss"] for line in lines if line["stage"] == "convert"]

    scratch = read_metrics(whole / "metrics.jsonl")[0]["loss"]
    assert losses(tmp_path / "w")[0] < scratch
    status, output = finish(CONFIG, f"--workdir={tmp_path / 'v'}", from_there, *few, "--config.model.hidden_size=16")
    assert status == 2
    assert re.search(r"error: convert\.start: .* may be the model's \(260, 16\)", output.strip().splitlines()[-1])


def test_a_second_process_in_the_same_folder_is_refused(whole):
    with run_folder.locked(whole / ".lock"):
        status, output = finish(CONFIG, f"--workdir={whole}")
    assert status == 2
    assert output.strip().splitlines()[-1] == (
        f"error: {whole}: another process is running there; choose another folder"
    )


def test_a_finished_run_is_skipped_and_another_config_is_refused(whole):
    before = (whole / "results.csv").stat().st_mtime_ns
    status, output = finish(CONFIG, f"--workdir={whole}")
    assert status == 0, output
    assert (whole / "results.csv").stat().st_mtime_ns == before
    # trained on many devices, evaluated on one: no stage needs its mesh any more
    status, output = finish(CONFIG, f"--workdir={whole}", "--config.mesh.data=2", "--config.mesh.fsdp=8")
    assert status == 0, output
    status, output = finish(CONFIG, f"--workdir={whole}", "--config.convert.objective.alpha=0.5")
    assert status == 2
    assert output.strip().splitlines()[-1] == (
        f"error: --workdir {whole}: holds a run whose config differs in convert.objective.alpha (4.0 there, 0.5 now); "
        "choose another (evaluate.* may differ: the run is then evaluated again; experiments.evaluate measures any "
        "checkpoint)"
    )


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--config.convert.stepz=4"], "error: --config.convert.stepz: unknown, did you mean steps"),
        (["--config.convert.steps=many"], "error: .*steps.*many"),
        (["--config.convert.objective.block_size=0"], "error: convert.objective.block_size: got 0"),
        (
            ["--config=configs/quickstart.py:blocksize=3"],
            "error: config argument 'blocksize': unknown, did you mean block_size",
        ),
        (["--config=configs/nowhere.py"], "error: .*nowhere.py"),
        (["--sinks=csv"], "error: sinks: got 'csv', may be any of"),
        (["--confg=x"], "error: Unknown command line flag 'confg'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, line, tmp_path):
    config = [] if args[0].startswith("--config=") else [CONFIG]
    status, output = finish(*config, f"--workdir={tmp_path / 'w'}", *args)
    assert status == 2
    assert len([text for text in output.splitlines() if text.strip()]) == 1
    assert re.search(line, output.strip().splitlines()[-1]), output
    assert "Traceback" not in output
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c.model.update(hidden_size=0), "^model.hidden_size: got 0"),
        (lambda c: c.model.update(num_key_value_heads=3), "num_attention_heads: got 4, may be a multiple"),
        (lambda c: c.model.update(mask_token_id=260), "mask_token_id: got 260, may be in"),
        (lambda c: c.model.update(vocab_size=100, mask_token_id=99), "model.vocab_size: got 100"),
        (
            lambda c: c.model.update(mask_token_id=7),
            "model.mask_token_id: got 7, may be an id",
        ),
        (lambda c: c.data.update(row_length=5000), "data.row_length: got 5000"),
        (lambda c: c.data.update(row_length=0), "data.row_length: got 0"),
        (lambda c: c.pretrain.update(steps=-1), "pretrain.steps: got -1"),
        (lambda c: c.pretrain.optimizer.update(learning_rate=-1.0), "^pretrain.optimizer.learning_rate: got -1"),
        (lambda c: c.convert.optimizer.update(freeze=("a",)), "^convert.optimizer.freeze: 'a' matches"),
        (lambda c: c.convert.optimizer.update(accumulate=3), "convert.optimizer.accumulate: got 3, may be a divisor"),
        (lambda c: c.convert.update(evaluate_ema=True), "convert.evaluate_ema: got True, may be False"),
        (lambda c: c.execution.update(remat="some"), "^execution.remat: got 'some', may be one of"),
        (lambda c: c.model.update(remat="full"), "model.remat: how a model is computed stands in execution.remat"),
        (lambda c: c.evaluate.update(tasks=("poetry",)), "evaluate.tasks: got 'poetry', may be one of addition"),
        (lambda c: c.evaluate.update(samplers=("lossless",)), "evaluate.samplers: got .*, may be 'autoregressive' and"),
        (lambda c: c.evaluate.update(anchor_budget=99), "evaluate.anchor_budget: got 99, may be 0"),
        (lambda c: c.evaluate.update(draft_temperature=-1.0), "^evaluate.draft_temperature"),
        (lambda c: c.evaluate.update(samples=0), "evaluate.samples: got 0"),
        (lambda c: c.evaluate.update(temperatures=(-1.0,)), "^evaluate.temperatures: got "),
        (lambda c: c.evaluate.update(beta=2.0), "^evaluate.beta: got 2"),
        (lambda c: c.data.mixture[0].update(weight=0.0), r"data.mixture\[0\].weight: got 0"),
        (lambda c: c.data.mixture[0].update(task="poetry"), "poetry"),
        (lambda c: c.data.mixture[0].options.update(digits=0), "digits"),
        (lambda c: c.update(tokenizer="/nowhere.json"), "/nowhere.json"),
    ],
)
def test_bad_configs_are_refused_before_anything_runs(change, line):
    config = tiny.get_config()
    with config.unlocked():
        change(config)
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        settings.read(config)
    assert "\n" not in str(error.value)


def test_unreadable_data_is_named(tmp_path):
    config = tiny.get_config()
    with config.unlocked():
        config.data.mixture = (config.data.mixture[0], ConfigDict({"text": [str(tmp_path / "missing.txt")]}))
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        settings.read(config)


def test_help_says_what_a_user_needs():
    status, output = finish("--help")
    assert status == 0
    for words in ("python -m experiments.run --config=", "--workdir", "report.html", "Interrupt it at any moment"):
        assert words in output


def test_stage_names_change_with_what_decides_a_stage_and_nothing_else():
    def keys(change=lambda c: None) -> dict[str, str]:
        config = tiny.get_config()
        config.data.mixture = config.data.mixture[:1]  # without the standard library, which is long to read
        change(config)
        return stage_keys(config, settings.read(config))

    base = keys()
    assert len(set(base.values())) == 3
    assert keys(lambda c: c.evaluate.update(prompts=3, temperatures=(1.0,))) == base
    assert keys(lambda c: c.convert.update(evaluate_every=1, save_every=1)) == base
    assert keys(lambda c: c.convert.objective.update(alpha=0.5)) == {**base, "convert": mock.ANY}
    assert keys(lambda c: c.convert.objective.update(alpha=0.5))["convert"] != base["convert"]
    for change in (
        lambda c: c.update(seed=1),
        lambda c: c.model.update(router_state=False),
        lambda c: c.data.update(row_length=64),
        lambda c: c.pretrain.update(steps=7),
    ):
        other = keys(change)
        assert all(other[name] != base[name] for name in base)
    scratch = keys(lambda c: c.pretrain.update(steps=0))
    assert set(scratch) == {"convert", "control"} and scratch["convert"] != base["convert"]


def claimed(workdir: Path, **evaluate) -> dict:
    config = tiny.get_config()
    config.evaluate.update(evaluate)
    run_folder.claim_workdir(workdir, config)
    return json.loads((workdir / "config.json").read_text())


def test_another_evaluation_takes_the_place_of_the_earlier_one_which_is_kept(tmp_path):
    claimed(tmp_path)
    for count, name in enumerate(run_folder.EVALUATION):
        (tmp_path / name).write_text(str(count))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert claimed(tmp_path)["evaluate"]["prompts"] == 8  # the same config moves nothing
    assert (tmp_path / "results.csv").exists()
    assert claimed(tmp_path, prompts=3)["evaluate"]["prompts"] == 3
    assert not any((tmp_path / name).exists() for name in run_folder.EVALUATION)
    kept = tmp_path / "evaluations" / "1"
    assert [(kept / name).read_text() for name in run_folder.EVALUATION] == [*"01234"]
    assert json.loads((kept / "config.json").read_text())["evaluate"]["prompts"] == 8
    assert (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "results.csv").write_text("again")
    claimed(tmp_path, prompts=8)
    assert {p.name for p in (tmp_path / "evaluations").iterdir()} == {"1", "2"}
    assert (tmp_path / "evaluations" / "2" / "results.csv").read_text() == "again"


@pytest.mark.parametrize("moved", range(len(run_folder.EVALUATION) + 1))
@pytest.mark.parametrize("back", [False, True])
def test_a_kill_while_an_evaluation_is_moved_loses_nothing(tmp_path, moved, back):
    claimed(tmp_path)
    for name in run_folder.EVALUATION:
        (tmp_path / name).write_text(name)
    (tmp_path / "evaluations" / "partial").mkdir(parents=True)
    for name in run_folder.EVALUATION[:moved]:
        (tmp_path / name).replace(tmp_path / "evaluations" / "partial" / name)
    if back:  # the earlier config's command, to its end
        claimed(tmp_path)
        for name in run_folder.EVALUATION:
            (tmp_path / name).write_text(name)
    claimed(tmp_path, prompts=3)
    assert not any((tmp_path / name).exists() for name in run_folder.EVALUATION)
    last = max((tmp_path / "evaluations").iterdir(), key=lambda path: int(path.name))
    assert [(last / name).read_text() for name in run_folder.EVALUATION] == [*run_folder.EVALUATION]


def test_what_was_trained_with_another_config_is_refused_with_what_may_differ(tmp_path):
    claimed(tmp_path)
    config = tiny.get_config()
    config.pretrain.steps = 7
    with pytest.raises(ValueError, match=r"differs in pretrain\.steps \(6 there, 7 now\).*evaluate\.\* may differ"):
        run_folder.claim_workdir(tmp_path, config)


def test_a_run_that_drafts_nowhere_is_sampled_autoregressively():
    config = tiny.get_config()
    config.phases = ("pretrain",)
    setup = settings.read(config)
    assert setup.sampled == "pretrain" and not setup.measures_cost
    assert {sampler.name for sampler in setup.samplers} == {"autoregressive"}
    config.evaluate.phase = "control"
    with pytest.raises(ValueError, match=r"evaluate\.phase: got 'control', may be one of pretrain"):
        settings.read(config)


@pytest.mark.slow
def test_an_autoregressive_run_goes_from_start_to_report_and_is_evaluated_again(tmp_path):
    args = [CONFIG, f"--workdir={tmp_path}", "--config.phases=('pretrain',)", "--config.pretrain.steps=2"]
    status, output = finish(*args, "--config.evaluate.temperatures=(0.0,)")
    assert status == 0, output
    report = (tmp_path / "report.html").read_text()
    assert "No phase of this run drafts" in report and "Not in this run" not in report
    assert {r["sampler"] for r in read_results(tmp_path / "results.csv") if r["kind"] == "sampling"} == {
        "autoregressive"
    }
    assert (tmp_path / "samples.jsonl").read_text().strip()
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    status, output = finish(*args, "--config.evaluate.temperatures=(1.0,)")
    assert status == 0, output
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    for path, temperature in ((tmp_path, 1), (tmp_path / "evaluations" / "1", 0)):
        rows = read_results(path / "results.csv")
        assert {r["temperature"] for r in rows if r["kind"] == "sampling"} == {temperature}


@pytest.mark.slow
def test_own_text_alone_is_continued_on_what_was_held_back(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{i}: chapter and verse {i * 7919 % 1000}\n" for i in range(3000)))
    own = f"--config=configs/own_text.py:fast,preset=tiny,block_size=4,tokenizer=bpe,vocab_size=270,text={book}"
    args = [own, f"--workdir={tmp_path / 'w'}"]
    args += ["--config.pretrain.steps=2", "--config.convert.steps=2", "--config.evaluate.prompts=3"]
    status, output = finish(*args, "--config.evaluate.batch=3", "--config.evaluate.max_new_tokens=8")
    assert status == 0, output
    assert "ownloading" not in output
    rows = [r for r in read_results(tmp_path / "w" / "results.csv") if r["kind"] == "sampling"]
    assert {r["sampler"] for r in rows} == {"autoregressive", "lossless", "mix_stale"}
    assert all(r["accuracy"] is None and r["prompts"] == 3 and r["max_new_tokens"] == 8 for r in rows)
    assert all(r["ar_log_probability"] < 0 for r in rows)
    greedy = {r["sampler"]: r for r in rows if r["temperature"] == 0}
    assert greedy["lossless"]["identical_to_autoregressive"] == 1
    assert greedy["lossless"]["ar_log_probability"] == pytest.approx(greedy["autoregressive"]["ar_log_probability"])
    samples = [json.loads(line) for line in (tmp_path / "w" / "samples.jsonl").read_text().splitlines()]
    held_out = book.read_text()[int(0.9 * len(book.read_text())) :]
    assert samples and all(s["prompt"] in held_out and s["correct"] is None for s in samples)
    assert "log-probability under AR" in (tmp_path / "w" / "report.html").read_text()
    assert load_tokenizer(tmp_path / "w" / "tokenizer.json").vocab_size == 270

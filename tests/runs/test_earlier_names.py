"""What was called otherwise before: earlier files are read under today's names, and a user is told today's."""

import json
import re
from pathlib import Path

import pytest
from absl import flags

import zaya_jax
from tests.reporting.made_up_run import build_run
from zaya_jax.errors import UserError
from zaya_jax.reporting.results import read_results, read_sweep, write_sweep
from zaya_jax.reporting.run_files import load_run
from zaya_jax.runs import jobs, run_folder
from zaya_jax.runs.configuration import config_files, settings

TINY = str(Path(__file__).parents[1] / "experiments" / "tiny.py")


def as_before(folder: Path) -> None:
    """Writes a run's files with the names of before."""
    for name in ("results.csv", "samples.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(re.sub(r'(?<=")sampler(?=":)|(?<=,)sampler(?=,)', "arm", text))
    config = json.loads((folder / "config.json").read_text())
    if "samplers" in config["evaluate"]:
        config["evaluate"]["arms"] = config["evaluate"].pop("samplers")
    (folder / "config.json").write_text(json.dumps(config))


def test_an_earlier_runs_files_are_read_under_todays_names(tmp_path):
    folder = build_run(tmp_path / "run")
    now = load_run(folder)
    as_before(folder)
    assert "arm,temperature" in (folder / "results.csv").read_text()
    assert '"arm"' in (folder / "samples.jsonl").read_text()
    before = load_run(folder)
    assert (before.results, before.samples) == (now.results, now.samples)


def test_an_earlier_sweeps_table_is_read_under_todays_names(tmp_path):
    rows = read_results(build_run(tmp_path / "run") / "results.csv")
    write_sweep(tmp_path / "results.csv", {"a": ({"evaluate.samplers": ["lossless"]}, rows)})
    now = read_sweep(tmp_path / "results.csv")
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(
        text.replace("evaluate.samplers", "evaluate.arms").replace("sampler,", "arm,")
    )
    assert read_sweep(tmp_path / "results.csv") == now


def test_a_table_with_a_column_under_both_names_is_refused(tmp_path):
    (tmp_path / "results.csv").write_text("kind,arm,sampler\nsampling,lossless,lossless\n")
    with pytest.raises(UserError, match=r"results\.csv: column 'sampler' stands in it twice"):
        read_results(tmp_path / "results.csv")


def test_an_earlier_run_is_resumed_and_not_evaluated_again(tmp_path):
    config = jobs.read_config(TINY, [])
    folder = build_run(tmp_path / "run")
    (folder / "config.json").write_text(config.to_json_best_effort())
    as_before(folder)
    assert "arms" in json.loads((folder / "config.json").read_text())["evaluate"]
    assert run_folder.difference(folder, config) is None
    run_folder.claim_workdir(folder, config)
    assert (folder / "results.csv").exists() and not (folder / "evaluations").exists()


def test_an_earlier_sweeps_jobs_are_found_under_their_names(tmp_path):
    changes = {"samplers=lossless-seed=1": {"evaluate.samplers": ("autoregressive", "lossless"), "seed": 1}}
    (job,) = jobs.check_jobs(TINY, changes, tmp_path).values()
    assert job.name == "samplers=lossless-seed=1" and not job.finished and not job.mistake
    folder = build_run(tmp_path / "runs" / "arms=lossless-seed=1")
    (folder / "config.json").write_text(job.config.to_json_best_effort())
    as_before(folder)
    found = jobs.check_jobs(TINY, changes, tmp_path)
    assert list(found) == ["arms=lossless-seed=1"] and found["arms=lossless-seed=1"].finished


def test_an_earlier_name_in_a_config_a_flag_or_code_is_told_todays():
    config = jobs.read_config(TINY, [])
    config.unlock()
    config.evaluate.arms = ("autoregressive",)
    with pytest.raises(UserError, match=r"^evaluate\.arms: is evaluate\.samplers now$"):
        settings.read(config)
    with pytest.raises(UserError, match=r"^--config\.evaluate\.arms: is --config\.evaluate\.samplers now$"):
        jobs.read_config(TINY, ["--config.evaluate.arms=('autoregressive',)"])
    values = flags.FlagValues()
    flags.DEFINE_list("samplers", [], "", flag_values=values)
    with pytest.raises(UserError, match=r"^--arms: is --samplers now$"):
        config_files.parse(["evaluate", "--arms=lossless"], values)
    with pytest.raises(AttributeError, match=r"'Arm': it is NamedSampler now"):
        _ = zaya_jax.Arm

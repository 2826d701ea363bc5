"""A run's adapters, written by themselves, with the tokens that the run learned to write."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import commands
from tests.experiments import tiny
from tests.helpers import random_variables
from zaya_jax import load_pretrained
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.formats.adapter_folder import load_adapters
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.reporting.results import read_results
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.trained_tokens import count_trained, most_frequent
from zaya_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, base, settings) of a run that trained adapters on additions from a base; only its files are real."""
    workdir = tmp_path_factory.mktemp("adapters")
    config = tiny.get_config("lean")
    config.model.update(lora_rank=2, lora_alpha=4.0, lora_rows="drafts", dtype="float32")
    (workdir / "base").mkdir()
    config.phases, config.convert.start = ("convert",), str(workdir / "base")
    config.data.mixture = config.data.mixture[:1]
    config.convert.objective.loss_on = "answers"
    setup = settings.read(config)
    model = setup.stages["convert"].model
    base = random_variables(model.replace(lora_rank=0), scale=0.1)
    save_huggingface(workdir / "base", model.replace(lora_rank=0), base)
    flat = traverse_util.flatten_dict(random_variables(model)) | traverse_util.flatten_dict(base)
    folder = workdir / "run" / "checkpoints" / "convert"
    write_model_file(folder, model)
    with Checkpoints(folder) as steps:
        steps.save(6, traverse_util.unflatten_dict(flat), {})
    (workdir / "run" / "config.json").write_text(config.to_json_best_effort())
    return workdir / "run", workdir / "base", setup


def test_what_a_run_trained_to_write_is_counted(run):
    workdir, _, setup = run
    counts = count_trained(setup, workdir, "convert")
    written = {chr(i) for i in np.flatnonzero(counts) if i < 256}
    assert written == set("0123456789+=,:\n") and counts.sum() > 300  # an addition's worked columns, no question
    assert most_frequent(np.array([2, 0, 5, 2]), 3) == [2, 0, 3]
    assert most_frequent(np.array([2, 0, 5, 2]), 9) == [2, 0, 3]


@pytest.mark.slow
def test_the_folder_loads_onto_its_base_and_drafts_what_was_learned(run, tmp_path):
    workdir, base, setup = run
    done = commands.run(
        "experiments.adapters",
        f"--checkpoint={workdir}",
        f"--output={tmp_path / 'out'}",
        "--draft_vocabulary=9",
        "--anchors=1,3",
    )
    assert done.returncode == 0 and "9 tokens are drafted" in done.stdout, done.stderr
    config, variables, sampler = load_adapters(tmp_path / "out", *load_pretrained(base))
    assert (config.lora_rank, config.lora_rows, sampler) == (2, "drafts", {"block_size": 4, "anchors": [1, 3]})
    expected = most_frequent(count_trained(setup, workdir, "convert"), 9)
    assert variables["draft_vocabulary"]["tokens"].tolist() == sorted(expected)
    learned = load_pretrained(workdir / "checkpoints" / "convert")[1]["params"]["mask_lora"]
    assert jnp.array_equal(variables["params"]["mask_lora"], learned.astype(jnp.bfloat16).astype(learned.dtype))
    about = json.loads((tmp_path / "out" / "adapters.json").read_text())
    assert about["run"]["steps"] == 6 and "Blocks of 4 tokens" in (tmp_path / "out" / "README.md").read_text()
    # `evaluate` takes block size and branch points from the folder, as `generate` does
    done = commands.run(
        "experiments.evaluate", f"--checkpoint={base}", f"--adapters={tmp_path / 'out'}", "--tokenizer=bytes",
        "--tasks=addition", "--prompts=1", "--samples=1", "--max_new_tokens=4", "--samplers=lossless",
        "--temperatures=0", f"--output={tmp_path / 'evaluated'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_results(tmp_path / "evaluated" / "results.csv")
    assert [row["rows_per_forward"] for row in rows] == [1, 4 * (1 + 2)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": "x"}, "convert.steps: got 'x', may be an integer"),
        ({"batch_size": [1]}, "convert.batch_size: got [1], may be an integer"),
        ({"objective": {"block_size": "4"}}, "convert.objective.block_size: got '4', may be an integer"),
        ({"objective": 3}, "convert.objective: got 3, may be an object of block_size"),
    ],
    ids=str,
)
def test_a_damaged_config_of_the_run_is_named_with_its_field(run, tmp_path, change, says):
    workdir, copy = run[0], tmp_path / "run"
    shutil.copytree(workdir, copy)
    config = json.loads((copy / "config.json").read_text())
    config["convert"] |= change
    (copy / "config.json").write_text(json.dumps(config))
    done = commands.run("experiments.adapters", f"--checkpoint={copy}", f"--output={tmp_path / 'out'}")
    chosen, line = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: {copy / 'config.json'}: {says}"), done.stderr
    assert chosen.startswith("checkpoint: ") and not (tmp_path / "out").exists()

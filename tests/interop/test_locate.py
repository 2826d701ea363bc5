"""What a --checkpoint may name, and what is said of one that means nothing."""

import json
import os
from pathlib import Path

import pytest
from folders import CONFIGS, random_variables

from zaya_jax import load_pretrained
from zaya_jax.errors import UserError
from zaya_jax.interop.conversion.conversion import open_checkpoint
from zaya_jax.interop.conversion.inventory import take
from zaya_jax.interop.conversion.locate import find_checkpoint
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.training.checkpoints import Checkpoints

CONFIG = CONFIGS["tied"]
RUN = {
    "phases": ["pretrain", "convert", "control"],
    "evaluate": {"tasks": []},
    "pretrain": {"steps": 2, "objective": {"kind": "autoregressive"}},
    "convert": {"steps": 2, "objective": {"kind": "tidar"}},
    "control": {"steps": 2, "objective": {"kind": "tidar"}},
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "50% of #1"  # in a URL these would mean something
    for stage in ("pretrain", "convert", "control"):
        write_model_file(folder / "checkpoints" / stage, CONFIG)
        with Checkpoints(folder / "checkpoints" / stage) as steps:
            steps.save(2, random_variables(CONFIG), {})
    (folder / "config.json").write_text(json.dumps(RUN))
    return folder


def config_of(workdir: Path, **changes) -> None:
    (workdir / "config.json").write_text(json.dumps(RUN | changes))


def test_a_workdir_means_the_stage_that_the_run_samples(workdir, monkeypatch):
    stages = workdir / "checkpoints"
    monkeypatch.chdir(stages / "control")
    for given in (workdir, str(stages), "..", "../..", "../convert", f"{stages}/../checkpoints"):
        assert find_checkpoint(given) == stages / "convert"
    assert load_pretrained("../..")[0] == open_checkpoint("..").config == take("../convert").config == CONFIG
    config_of(workdir, evaluate={"phase": "control"})
    assert find_checkpoint(workdir) == stages / "control"
    config_of(workdir, convert={"steps": 0, "objective": {"kind": "tidar"}})
    assert find_checkpoint(workdir) == stages / "control"
    config_of(workdir, phases=["pretrain"])
    assert find_checkpoint(workdir) == stages / "pretrain"
    config_of(workdir)


def test_where_no_stage_is_meant_the_choices_are_named(workdir):
    choices = " or ".join(str(workdir / "checkpoints" / name) for name in ("control", "convert", "pretrain"))
    for changes in ({"phases": []}, {"evaluate": {"phase": "other"}}):
        config_of(workdir, **changes)
        with pytest.raises(UserError) as caught:
            find_checkpoint(workdir)
        assert choices in str(caught.value)
    config_of(workdir)
    with pytest.raises(UserError, match=r"a single step; may be .*convert, whose newest step is read"):
        find_checkpoint(workdir / "checkpoints" / "convert" / "2")


@pytest.mark.parametrize("text", ["[]", "null", "7", "{", "[" * 100_000])
def test_a_workdir_whose_config_is_damaged_is_one_line(workdir, text):
    (workdir / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: (not valid JSON|got)"):
        find_checkpoint(workdir)
    config_of(workdir)


def test_a_hub_id_is_to_be_downloaded_first():
    for given in ("HuggingFaceTB/SmolLM2-135M", "https://huggingface.co/HuggingFaceTB/SmolLM2-135M"):
        with pytest.raises(FileNotFoundError) as caught:
            load_pretrained(given)
        assert "hf download HuggingFaceTB/SmolLM2-135M --local-dir=SmolLM2-135M" in str(caught.value)
    for given in ("/nowhere/x", "./a/b", "~/a/b"):
        with pytest.raises(FileNotFoundError, match=r"not a folder$"):
            load_pretrained(given)


FOLDERS = {
    "empty": ([], "holds neither config.json"),
    "a PEFT folder": (["adapter_config.json", "adapter_model.safetensors", "training_args.bin"], "PEFT adapters"),
    "a merged one beside": (["adapter_config.json", "config.json", "model.safetensors"], "PEFT adapters"),
    "pickles": (["config.json", "pytorch_model.bin", "optimizer.pt"], "pytorch_model.bin: a pickle"),
    "a lone shard": (["config.json", "model-00001-of-00001.safetensors"], "may be named model.safetensors if"),
    "gguf": (["config.json", "model-q4.gguf"], "weights of another library: not supported"),
    "no weights": (["config.json"], "no weights, may hold model.safetensors or"),
    "the hub's cache": (["snapshots/0a1b/config.json"], "a cache of downloads, may be .*snapshots/0a1b"),
    "one level up": (["my_model/config.json"], "holds neither .*; may be .*my_model"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_what_cannot_be_read_is_named(tmp_path, case):
    names, message = FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for act in (load_pretrained, open_checkpoint, take):
        with pytest.raises((UserError, FileNotFoundError), match=message) as caught:
            act(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_file_in_a_checkpoint_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=f"not a folder, may be {tmp_path}$"):
        load_pretrained(tmp_path / "model.safetensors")


def test_a_run_without_checkpoints_says_so(tmp_path):
    config_of(tmp_path)
    with pytest.raises(FileNotFoundError, match="a run that has no checkpoint here"):
        load_pretrained(tmp_path)
    sweep = tmp_path / "sweep"
    os.makedirs(sweep / "runs" / "job")
    config_of(sweep / "runs" / "job")
    write_model_file(sweep / "stages" / "convert-0a", CONFIG)
    for folder in (sweep, sweep / "runs" / "job"):
        with pytest.raises(FileNotFoundError, match=r"may be .*stages.convert-0a"):
            load_pretrained(folder)

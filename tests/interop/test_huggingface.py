"""Checkpoints out and in again, and everything that can be wrong with one."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from folders import CONFIGS, assert_identical, random_variables
from safetensors.numpy import load_file, save_file

from zaya_jax.architecture import preset
from zaya_jax.interop import abstract_tensors, load_huggingface, save_huggingface
from zaya_jax.interop.families.table import family_of
from zaya_jax.interop.formats import huggingface, shards
from zaya_jax.interop.formats.names import abstract_variables

NORM = "model.norm.weight"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_export_and_import_are_bit_identical(name, shard_bytes, tmp_path):
    config, variables = CONFIGS[name], random_variables(CONFIGS[name])
    save_huggingface(tmp_path / "model", config, variables, shard_bytes)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes > 20_000)
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(x.nbytes for x in tensors.values()) <= shard_bytes
    again, loaded = load_huggingface(tmp_path / "model")
    assert again == config
    assert_identical(variables, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_fixture_goes_through_us_bit_for_bit(tmp_path):
    """transformers' own file -> ours -> the same tensors: the table loses and turns nothing."""
    theirs = pathlib.Path(__file__).parent.parent / "parity" / "fixtures" / "biases_untied"
    save_huggingface(tmp_path / "model", *load_huggingface(theirs))
    before, after = (load_file(path / "model.safetensors") for path in (theirs, tmp_path / "model"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_covers_every_variable_once(name):
    paths = [entry.path for entry in family_of(CONFIGS[name]).entries(CONFIGS[name])]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(abstract_variables(CONFIGS[name]))


def test_zaya1_8b_by_shape_alone():
    tensors = abstract_tensors(preset("zaya1_8b"))
    assert len(tensors) == 1283
    parameters = {name: shape for name, (shape, _) in tensors.items() if not name.endswith("balancing_biases")}
    assert len(tensors) - len(parameters) == 40
    assert sum(int(np.prod(shape)) for shape in parameters.values()) == 8_840_488_784
    dtypes = {name: dtype for name, (_, dtype) in tensors.items()}
    assert dtypes.pop("model.layers.3.mlp.gate.balancing_biases") == np.float32
    assert dtypes["model.layers.3.mlp.experts.gate_up_proj"] == ml_dtypes.bfloat16
    assert tensors["model.layers.0.self_attn.qkv_proj.conv_qk_grouped.weight"][0] == (1280, 128, 2)


def test_big_stacks_go_onto_the_device_layer_by_layer(tmp_path, monkeypatch):
    config, variables = CONFIGS["everything"], random_variables(CONFIGS["everything"])
    save_huggingface(tmp_path / "model", config, variables)
    monkeypatch.setattr(huggingface, "BIG_STACK", 0)
    assert_identical(variables, load_huggingface(tmp_path / "model")[1])


@pytest.fixture
def spoil(whole, tmp_path):
    """spoil(change) -> a copy of the one-file checkpoint whose tensors `change` edited in place."""

    def copy(change) -> pathlib.Path:
        shutil.copytree(whole / "file", tmp_path / "model")
        tensors = load_file(tmp_path / "model" / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model" / "model.safetensors")
        return tmp_path / "model"

    return copy


def refused(directory, *parts: str, error=ValueError) -> None:
    """Loading fails with one line that holds all of `parts`."""
    with pytest.raises(error) as caught:
        load_huggingface(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(directory), *parts):
        assert part in message, message


def test_missing_tensor(spoil):
    refused(spoil(lambda tensors: tensors.pop(NORM)), "model.safetensors", NORM, "missing, may be of shape [32]")


def test_unexpected_tensor(spoil):
    directory = spoil(lambda tensors: tensors.update(extra=np.zeros(2, np.float32)))
    refused(directory, "model.safetensors: tensor extra: unexpected")


def test_wrong_shape(spoil):
    directory = spoil(lambda tensors: tensors.update({NORM: np.zeros(31, np.float32)}))
    refused(directory, f"tensor {NORM}: got shape [31], may be [32]")


def test_wrong_dtype(spoil):
    directory = spoil(lambda tensors: tensors.update({NORM: np.zeros(32, np.float64)}))
    refused(directory, f"tensor {NORM}: got dtype F64, may be one of ['BF16', 'F16', 'F32']")


def test_mixed_dtypes_take_the_wider_exactly(spoil):
    directory = spoil(lambda tensors: tensors.update({NORM: tensors[NORM].astype(ml_dtypes.bfloat16)}))
    config, variables = load_huggingface(directory)
    norm = variables["params"]["norm"]["weight"]
    assert (config.param_dtype, norm.dtype) == ("float32", jnp.float32)
    np.testing.assert_array_equal(norm, load_file(directory / "model.safetensors")[NORM].astype(np.float32))


def test_bfloat16_balancing_biases_become_float32(tmp_path):
    save_huggingface(tmp_path / "model", CONFIGS["bfloat16"], random_variables(CONFIGS["bfloat16"]))
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(file).items()}, file)
    config, variables = load_huggingface(tmp_path / "model")
    assert config.param_dtype == "bfloat16"
    assert variables["balancing"]["layers"]["mlp"]["gate"]["biases"].dtype == jnp.float32


def test_a_tied_head_may_be_stored_if_equal(spoil, whole):
    directory = spoil(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert_identical(load_huggingface(directory)[1], load_huggingface(whole / "file")[1])


def test_a_tied_head_that_differs_is_refused(spoil):
    directory = spoil(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    refused(directory, "tensor lm_head.weight: differs from model.embed_tokens.weight")


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_file(whole, tmp_path, kept):
    shutil.copytree(whole / "file", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path / "model", f"{file}: truncated or not a safetensors file")


def test_corrupt_header(whole, tmp_path):
    shutil.copytree(whole / "file", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(b"x" * 200)
    refused(tmp_path / "model", f"{file}: truncated or not a safetensors file")


def test_missing_files(whole, tmp_path):
    directory = tmp_path / "model"
    refused(directory, "config.json: no such file", error=FileNotFoundError)
    shutil.copytree(whole / "file", directory)
    (directory / "model.safetensors").unlink()
    refused(directory, "no weights, may hold model.safetensors or", error=FileNotFoundError)


@pytest.mark.parametrize("text", ["{", "", "\udcff"])
def test_malformed_config(whole, tmp_path, text):
    shutil.copytree(whole / "file", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(tmp_path / "model", "config.json: not valid JSON")


def test_refused_config_names_the_file(whole, tmp_path):
    shutil.copytree(whole / "file", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"hidden_act": "relu"}')
    refused(tmp_path / "model", "config.json", "hidden_act: got 'relu'")


class TestShards:
    @pytest.fixture
    def shards(self, whole, tmp_path):
        shutil.copytree(whole / "shards", tmp_path / "model")
        return tmp_path / "model"

    def edit(self, directory, change) -> None:
        index = directory / "model.safetensors.index.json"
        values = json.loads(index.read_text())
        change(values)
        index.write_text(json.dumps(values))

    def test_missing_shard(self, shards):
        file = min(shards.glob("model-*.safetensors"))
        file.unlink()
        refused(shards, f"{file}: missing", error=FileNotFoundError)

    def test_malformed_index(self, shards):
        (shards / "model.safetensors.index.json").write_text("[")
        refused(shards, "model.safetensors.index.json: not valid JSON")

    @pytest.mark.parametrize("weight_map", [None, [], {}])
    def test_index_without_a_map(self, shards, weight_map):
        self.edit(shards, lambda values: values.update(weight_map=weight_map))
        refused(shards, "model.safetensors.index.json: weight_map: got")

    @pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", 3, ""])
    def test_index_that_points_elsewhere(self, shards, file):
        self.edit(shards, lambda values: values["weight_map"].update({NORM: file}))
        refused(shards, f"weight_map.{NORM}: got {file!r}")

    def test_index_that_names_the_wrong_shard(self, shards):
        names = sorted(path.name for path in shards.glob("model-*.safetensors"))
        self.edit(shards, lambda values: values["weight_map"].update({NORM: names[-1]}))
        refused(shards, f"tensor {NORM}: ", "index.json maps it")

    def test_index_with_a_tensor_no_shard_holds(self, shards):
        file = min(shards.glob("model-*.safetensors")).name
        self.edit(shards, lambda values: values["weight_map"].update(ghost=file))
        refused(shards, f"{file}: tensor ghost: missing")

    def test_truncated_shard(self, shards):
        file = max(shards.glob("model-*.safetensors"))
        file.write_bytes(file.read_bytes()[:-4])
        refused(shards, f"{file}: truncated")


class TestSave:
    def test_a_taken_directory_is_left_alone(self, whole):
        before = sorted(path.name for path in (whole / "file").iterdir())
        with pytest.raises(ValueError, match="may be a new or an empty directory"):
            save_huggingface(whole / "file", CONFIGS["tied"], random_variables(CONFIGS["tied"]))
        assert sorted(path.name for path in (whole / "file").iterdir()) == before

    def test_an_empty_directory_and_missing_parents_are_fine(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for directory in (tmp_path / "empty", tmp_path / "a" / "b"):
            save_huggingface(directory, CONFIGS["tied"], random_variables(CONFIGS["tied"]))
            assert load_huggingface(directory)[0] == CONFIGS["tied"]

    def test_a_failed_save_leaves_nothing(self, tmp_path, monkeypatch):
        calls = []

        def fail_on_the_second(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise OSError("no space left on device")
            return write_file(*args, **kwargs)

        write_file = shards.write_file
        monkeypatch.setattr(shards, "write_file", fail_on_the_second)
        with pytest.raises(OSError, match="no space"):
            save_huggingface(tmp_path / "model", CONFIGS["tied"], random_variables(CONFIGS["tied"]), 20_000)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda params: params.pop("embed_tokens"), "variables: params/embed_tokens: missing"),
            (lambda params: params.update(more=jnp.zeros(1)), "variables: params/more: unexpected"),
            (
                lambda params: params["norm"].update(weight=jnp.zeros(3)),
                r"variables: params/norm/weight: got float32\[3\], may be float32\[32\]",
            ),
            (
                lambda params: params["norm"].update(weight=jnp.zeros(32, jnp.bfloat16)),
                r"variables: params/norm/weight: got bfloat16\[32\], may be float32\[32\]",
            ),
        ],
    )
    def test_variables_of_another_model(self, tmp_path, change, message):
        variables = random_variables(CONFIGS["tied"])
        change(variables["params"])
        with pytest.raises(ValueError, match=message):
            save_huggingface(tmp_path / "model", CONFIGS["tied"], variables)
        assert not list(tmp_path.iterdir())

    def test_shard_size(self, tmp_path):
        with pytest.raises(ValueError, match="max_shard_bytes: got 0, may be at least 1"):
            save_huggingface(tmp_path / "model", CONFIGS["tied"], {}, max_shard_bytes=0)

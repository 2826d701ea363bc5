"""Checksums of arrays' values: any change is seen, whatever cuts the array, and no damaged step is read."""

import json
import shutil

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from tests.helpers import random_variables, small_config
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.conversion.inventory import take
from zaya_jax.interop.formats import native_arrays, sums
from zaya_jax.interop.formats.native import CheckpointError, load_native, write_model_file
from zaya_jax.training.checkpoints import Checkpoints

DTYPES = (np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_, np.float64)


def array_of(dtype, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def written_out(array: np.ndarray) -> int:
    """The definition, word by word."""
    size = min(array.dtype.itemsize, 4)
    words = np.frombuffer(array.tobytes(), f"u{size}").tolist()
    return sum((2 * place + 1) * word for place, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_the_sum_is_its_definition_in_every_dtype(dtype, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 8)
    for shape in ((), (0,), (1,), (7,), (3, 5, 4)):
        array = array_of(dtype, shape)
        assert sums.of_values(array) == written_out(array)


def test_devices_and_their_shards_add_to_the_same_sum():
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    arrays = {np.dtype(dtype).name: array_of(dtype, (8, 3, 5)) for dtype in DTYPES[:-1]} | {"one": np.float32(3)}
    expected = {name: written_out(np.asarray(array)) for name, array in arrays.items()}
    assert {name: int(value) for name, value in sums.on_devices(arrays).items()} == expected
    assert sums.of_tree(arrays) == expected
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    put = {
        k: jax.device_put(v, NamedSharding(mesh, PartitionSpec(*["x"] * (np.ndim(v) > 0)))) for k, v in arrays.items()
    }
    assert {name: int(value) for name, value in sums.on_devices(put).items()} == expected


@settings(deadline=None, max_examples=30)
@given(place=st.integers(0, 59), bit=st.integers(0, 31), seed=st.integers(0, 99))
def test_any_flipped_bit_changes_the_sum(place, bit, seed):
    array = array_of(np.uint32, (60,), seed)
    before = sums.of_values(array)
    array[place] ^= np.uint32(1 << bit)
    assert sums.of_values(array) != before


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(0, 60), dtype=st.sampled_from(DTYPES))
def test_pieces_add_to_the_whole(cut, dtype):
    array = array_of(dtype, (60,))
    parts = sums.of_values(array[:cut]) + sums.of_values(array[cut:], cut)
    assert parts % sums.MODULUS == sums.of_values(array)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A step of a small model, and its variables."""
    folder, config = tmp_path_factory.mktemp("steps"), small_config()
    variables = jax.tree.map(jnp.asarray, random_variables(config))
    write_model_file(folder, config)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(4, variables, {"data": 1})
    return folder, variables


NAME = "params.embed_tokens"


@pytest.fixture
def flipped(saved, tmp_path):
    """A copy whose embedding was written once more, with one bit flipped: whole files, other values."""
    folder, variables = tmp_path / "flipped", saved[1]
    shutil.copytree(saved[0], folder)
    metadata = json.loads((folder / "4" / sums.METADATA).read_text())
    embedding = np.asarray(variables["params"]["embed_tokens"]).copy()
    embedding.view(np.uint32).reshape(-1)[5] ^= 1 << 20
    shutil.rmtree(folder / "4")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(
            4, {**variables, "params": {**variables["params"], "embed_tokens": jnp.asarray(embedding)}}, {}
        )
    (folder / "4" / sums.METADATA).write_text(json.dumps(metadata))
    return folder


LINE = rf"4: array {NAME}: damaged, its values are not those that were saved; delete this step's folder"


def test_a_step_reads_back_with_what_was_saved_beside_it(saved):
    with Checkpoints(saved[0]) as checkpoints:
        read, extra = checkpoints.load(saved[1])
    assert extra == {"data": 1}
    jax.tree.map(np.testing.assert_array_equal, read, saved[1])
    assert f"checksums of {len(jax.tree.leaves(read))} arrays" in take(saved[0]).about


def test_a_flipped_bit_is_one_line_wherever_the_step_is_read(flipped, saved, tmp_path):
    with pytest.raises(CheckpointError, match=LINE), Checkpoints(flipped) as checkpoints:
        checkpoints.load(saved[1])
    with pytest.raises(CheckpointError, match=LINE):
        load_native(flipped)
    with pytest.raises(CheckpointError, match=LINE):
        convert(flipped, tmp_path / "out", "native")
    stock = take(flipped)
    with pytest.raises(CheckpointError, match=LINE):
        stock.read(next(row for row in stock.rows if row.name == NAME.replace(".", "/")))
    assert [path.name for path in tmp_path.iterdir()] == ["flipped"]


@pytest.mark.parametrize("chunk", [native_arrays.CHUNK, 2000])
def test_what_convert_writes_carries_the_same_sums(saved, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(native_arrays, "CHUNK", chunk)
    monkeypatch.setattr(native_arrays, "SMALL_LAYER", 1000)
    convert(saved[0], tmp_path / "out", "native")
    assert sums.of_step(tmp_path / "out" / "4") == sums.of_step(saved[0] / "4") == sums.of_tree(saved[1])
    jax.tree.map(np.testing.assert_array_equal, load_native(tmp_path / "out")[1], saved[1])


def test_steps_of_earlier_code_are_read_without(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "old")
    file = tmp_path / "old" / "4" / sums.METADATA
    values = json.loads(file.read_text())
    del values["custom_metadata"][sums.SUMS]
    file.write_text(json.dumps(values))
    jax.tree.map(np.testing.assert_array_equal, load_native(tmp_path / "old")[1], saved[1])
    assert "no checksums of the arrays" in take(tmp_path / "old").about


@pytest.mark.parametrize("value", [3, [], {"params.embed_tokens": "x"}], ids=str)
def test_checksums_that_are_none_are_named(saved, tmp_path, value):
    shutil.copytree(saved[0], tmp_path / "odd")
    file = tmp_path / "odd" / "4" / sums.METADATA
    values = json.loads(file.read_text())
    values["custom_metadata"][sums.SUMS] = value
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"sums: got .*, may be an object of integers"):
        load_native(tmp_path / "odd")

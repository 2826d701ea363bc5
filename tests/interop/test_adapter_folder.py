"""Adapters in a folder of their own: what is saved is what is loaded, onto that model and no other."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.helpers import no_file_above, random_variables, small_config
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError
from zaya_jax.files import WriteError
from zaya_jax.interop.editing.adapters import is_adapter
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.formats.adapter_folder import ABOUT, ARRAYS, checksum, load_adapters, save_adapters

BASE = small_config(mask_token_id=NO_MASK, dtype="bfloat16", param_dtype="bfloat16")


@pytest.fixture(scope="module")
def published():
    return BASE, random_variables(BASE)


@pytest.fixture(scope="module")
def trained(published):
    """The published model, in float32 as training has it, with a row for its mask and random adapters."""
    config, variables = add_mask_token(*published)
    config = config.replace(lora_rank=3, lora_alpha=2.0, lora_rows="drafts", dtype="float32", param_dtype="float32")
    flat = traverse_util.flatten_dict(random_variables(config, seed=1))
    flat |= {path: jnp.asarray(x, jnp.float32) for path, x in traverse_util.flatten_dict(variables).items()}
    return config, traverse_util.unflatten_dict(flat)


@pytest.fixture
def folder(tmp_path, published, trained):
    save_adapters(tmp_path / "adapters", *trained, published, 4, {"name": "base"}, "# A card\n")
    return tmp_path / "adapters"


def test_what_is_saved_is_loaded(folder, published, trained):
    config, variables, sampler = load_adapters(folder, *published)
    assert sampler == {"block_size": 4} and config == trained[0].replace(dtype="bfloat16", param_dtype="bfloat16")
    flat, expected = map(traverse_util.flatten_dict, (variables, trained[1]))
    assert flat.keys() == expected.keys()
    for path, leaf in flat.items():
        assert leaf.dtype == jnp.bfloat16 or not is_adapter(path)
        assert np.array_equal(np.asarray(leaf, np.float32), np.asarray(expected[path].astype(leaf.dtype), np.float32))
    assert (folder / "README.md").read_text() == "# A card\n"
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())  # others may read them


def test_a_full_disk_leaves_nothing(tmp_path, published, trained):
    refused = rf"{tmp_path}/adapters/{ARRAYS}: cannot be written: File too large"
    with no_file_above(1_000), pytest.raises(WriteError, match=refused):
        save_adapters(tmp_path / "adapters", *trained, published, 4, {}, "")
    assert not list(tmp_path.iterdir())


def test_a_draft_vocabulary_is_kept(tmp_path, published, trained):
    save_adapters(tmp_path / "adapters", *trained, published, 4, {}, "", draft_vocabulary=[5, 1, 7])
    variables = load_adapters(tmp_path / "adapters", *published)[1]
    assert np.asarray(variables["draft_vocabulary"]["tokens"]).tolist() == [1, 5, 7]
    with pytest.raises(ValueError, match="draft_vocabulary: got token 1 twice"):
        save_adapters(tmp_path / "more", *trained, published, 4, {}, "", draft_vocabulary=[1, 1])
    assert not (tmp_path / "more").exists()


def test_branch_points_are_kept_and_checked(tmp_path, published, trained):
    save_adapters(tmp_path / "adapters", *trained, published, 4, {}, "", anchors=[1, 3])
    assert load_adapters(tmp_path / "adapters", *published)[2] == {"block_size": 4, "anchors": [1, 3]}
    with pytest.raises(
        ValueError, match=r"anchors: got \[1, 5\], may be .*, each an integer of at least 1 and at most 4"
    ):
        save_adapters(tmp_path / "more", *trained, published, 4, {}, "", anchors=[1, 5])
    about = json.loads((tmp_path / "adapters" / ABOUT).read_text())
    (tmp_path / "adapters" / ABOUT).write_text(json.dumps(about | {"anchors": "all"}))
    with pytest.raises(ValueError, match=f"{ABOUT}: anchors: got 'all', may be"):
        load_adapters(tmp_path / "adapters", *published)


def test_another_model_is_refused_by_name(folder, published):
    config, variables = published
    moved = jax.tree.map(lambda x: x, variables)
    moved["params"]["norm"]["weight"] = moved["params"]["norm"]["weight"].at[0].add(1)
    with pytest.raises(ValueError, match=r"adapters .*: belong to another model than this one \(\w+\), may be .*base"):
        load_adapters(folder, config, moved)
    assert checksum(variables) != checksum(moved)


def test_a_base_whose_weights_moved_is_refused(tmp_path, published, trained):
    config, variables = trained
    moved = jax.tree.map(lambda x: x, variables)
    moved["params"]["norm"]["weight"] = moved["params"]["norm"]["weight"].at[0].add(1)
    with pytest.raises(ValueError, match="base: got another model than the adapters were trained on"):
        save_adapters(tmp_path / "adapters", config, moved, published, 4, {}, "")
    with pytest.raises(ValueError, match=r"ZayaConfig\.lora_rank: got 0, may be"):
        save_adapters(tmp_path / "adapters", *published, published, 4, {}, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lora_rank=0), "lora_rank: got 0, may be"),
        (dict(lora_rank=4), "got \\(.*, may be \\("),
        (dict(block_size="8"), "block_size: got '8', may be"),
        (dict(block_size=2000), "adapters.json: block_size: got 2000, may be"),
        (dict(anchors=[3, 1]), r"adapters.json: anchors: got \[3, 1\], may be increasing"),
        (dict(anchors=[1, 1]), r"adapters.json: anchors: got \[1, 1\], may be increasing"),
        (dict(lora_rows="clean"), "lora_rows: got 'clean', may be"),
        (dict(mask_row=1), "mask_row: got 1, may be"),
        (dict(draft_vocabulary=[1, "2"]), "draft_vocabulary: got \\[1, '2'\\], may be a list of token ids"),
        (dict(draft_vocabulary=[1, 10**6]), "adapters.json: draft_vocabulary: got token 1000000, may be in"),
        (dict(base=[]), "base: got \\[\\], may be"),
    ],
)
def test_damaged_words_are_named(folder, published, change, message):
    path = folder / ABOUT
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_adapters(folder, *published)


def test_damaged_arrays_and_missing_files_are_named(folder, published):
    path = folder / ARRAYS
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=f"{ARRAYS}: truncated or not a safetensors file"):
        load_adapters(folder, *published)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{ARRAYS}: no such file"):
        load_adapters(folder, *published)
    (folder / ABOUT).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {ABOUT}"):
        load_adapters(folder, *published)


@pytest.mark.parametrize("name", [ABOUT, ARRAYS])
def test_a_pipe_does_not_hang(folder, published, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name}: not a plain file"):
        load_adapters(folder, *published)


@pytest.mark.parametrize("dtype", ["I16", "F8_E4M3"])
def test_arrays_of_numbers_that_are_no_weights_are_named(folder, published, dtype):
    path = folder / ARRAYS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    first, last = header[name]["data_offsets"]
    header[name]["dtype"] = dtype
    if dtype.startswith("F8"):  # of half the bytes: the next tensor takes the others
        header[name]["data_offsets"], header["z"] = [first, (first + last) // 2], {
            "dtype": "U8", "shape": [(last - first) // 2], "data_offsets": [(first + last) // 2, last],
        }  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(UserError, match=rf"{ARRAYS}: {name}: dtype: got {dtype}, may be one of F32, BF16, F16"):
        load_adapters(folder, *published)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(folder, published, value):
    path = folder / ARRAYS
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    name = next(name for name, it in json.loads(data[8:begin]).items() if it.get("data_offsets", [1])[0] == 0)
    written = np.frombuffer(np.array([value], np.float32).tobytes()[2:], np.uint8)  # as bfloat16
    path.write_bytes(data[:begin] + written.tobytes() + data[begin + 2 :])
    with pytest.raises(UserError, match=rf"{ARRAYS}: {name}: 1 of \d+ values are NaN or infinite"):
        load_adapters(folder, *published)

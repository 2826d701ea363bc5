"""Folders that lie: refused with one line that names the file; nothing large is allocated, no code of theirs runs."""

import json
import os
import pickle
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
from folders import assert_identical
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax import load_pretrained
from zaya_jax.interop import load_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.conversion.inventory import take

NORM = "model.norm.weight"


@pytest.fixture
def model(whole, tmp_path):
    return Path(shutil.copytree(whole / "file", tmp_path / "model"))


@pytest.fixture
def shards(whole, tmp_path):
    return Path(shutil.copytree(whole / "shards", tmp_path / "model"))


def refused(folder: Path, *parts: str) -> None:
    """Loading and converting fail with one line, leave nothing and allocate little."""
    tracemalloc.start()
    for act in (load_huggingface, load_pretrained, lambda path: convert(path, folder.parent / "out")):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            act(folder)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 10_000
        for part in parts:
            assert part in message, message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20, peak
    assert not list(folder.parent.glob("*out*"))


def header(folder: Path) -> tuple[dict, bytes]:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(folder: Path, values, body: bytes) -> None:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


# --- headers ----------------------------------------------------------------------------------------------------------

HEADERS = {
    "shape too large": (dict(shape=[1 << 62, 1 << 62]), "shape [4611686018427387904, 4611686018427387904] of F32"),
    "shape negative": (dict(shape=[-32]), "shape: got [-32]"),
    "shape fractional": (dict(shape=[32.0]), "shape: got [32.0]"),
    "shape true": (dict(shape=[True]), "shape: got [True]"),
    "shape long": (dict(shape=[1] * 9), "at most 8 integers"),
    "offsets swapped": (dict(data_offsets=[128, 0]), "data_offsets: got 128 to 0"),
    "offsets huge": (dict(data_offsets=[1 << 80, (1 << 80) + 128]), "leaves a gap after"),
    "offsets overlap": (dict(data_offsets=[0, 128]), "data_offsets: overlaps"),
    "offsets three": (dict(data_offsets=[0, 1, 2]), "may be two integers"),
    "dtype unknown": (dict(dtype="PICKLE"), "dtype: got 'PICKLE'"),
    "dtype number": (dict(dtype=4), "dtype: got '4'"),
    "dtype narrower": (dict(dtype="BF16"), "but shape [32] of BF16 is 64 bytes"),
    "more keys": (dict(run="me"), "may be an object of dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies(model, case):
    change, message = HEADERS[case]
    values, body = header(model)
    values[NORM] = {**values[NORM], **change}
    rewrite(model, values, body)
    refused(model, str(model / "model.safetensors"), message)


def test_a_tensor_twice(model):
    values, body = header(model)
    text = json.dumps(values)[:-1] + f', "{NORM}": {json.dumps(values[NORM])}}}'
    rewrite(model, text.encode(), body)
    refused(model, f"the key '{NORM}' occurs twice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"\xff": 1}', "not UTF-8 (byte 2)"),
        (b"[]", "the header is no JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "truncated or not a safetensors file"),
        (b'{"a\\u001b[2J": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', "not a name"),
        (b"", "truncated or not a safetensors file"),
    ],
)
def test_a_header_that_is_none(model, text, message):
    rewrite(model, text, header(model)[1])
    refused(model, str(model / "model.safetensors"), message)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 0])
def test_a_header_of_absurd_length(model, length):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(model, str(file), "truncated or not a safetensors file")


def test_bytes_after_the_tensors(model):
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"more")
    refused(model, "the tensors end at byte")


# --- paths ------------------------------------------------------------------------------------------------------------


def point(folder: Path, name: str, file) -> None:
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][name] = file
    index.write_text(json.dumps(values))


ELSEWHERE = [
    "../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "x\0.safetensors", 3, None, ["a"],
    "pytorch_model.bin", "model.safetensors\n", "a" * 300 + ".safetensors",
]  # fmt: skip


@pytest.mark.parametrize("file", ELSEWHERE)
def test_an_index_that_points_elsewhere(shards, file):
    point(shards, NORM, file)
    refused(shards, "index.json", f"weight_map.{NORM}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder(model, tmp_path, name):
    outside = tmp_path / "elsewhere"
    (model / name).rename(outside)
    (model / name).symlink_to(outside)
    refused(model, str(model / name), "may not lead out of its folder")


def test_links_of_hugging_faces_cache_are_followed(whole, tmp_path):
    """models--X--Y/snapshots/REVISION holds links into models--X--Y/blobs."""
    cache = tmp_path / "models--X--Y"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in (whole / "file").iterdir():
        shutil.copyfile(file, cache / "blobs" / f"hash-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert_identical(load_pretrained(snapshot)[1], load_pretrained(whole / "file")[1])


def test_a_loop_of_links_and_a_link_to_nothing(model):
    file = model / "model.safetensors"
    file.unlink()
    file.symlink_to("model.safetensors")
    refused(model)
    file.unlink()
    file.symlink_to("nothing")
    refused(model)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pipe_does_not_hang(model, name):
    (model / name).unlink()
    os.mkfifo(model / name)
    refused(model, str(model / name), "not a plain file")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_folder_in_a_files_place(model, name):
    (model / name).unlink()
    (model / name).mkdir()
    refused(model, "not a plain file")


# --- code -------------------------------------------------------------------------------------------------------------


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.pth", "x.ckpt", "pytorch_model.bin.index.json"]
)
def test_pickles_are_named_and_not_opened(model, tmp_path, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    refused(model, str(model / name), "a pickle, which can run code", "safetensors")
    assert not (tmp_path / "ran").exists()


def test_no_code_of_a_folder_runs(model, tmp_path):
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')\nclass Evil: pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py", "json.py"):
        (model / name).write_text(code)
    values = json.loads((model / "config.json").read_text())
    values |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "architectures": ["Evil"]}
    (model / "config.json").write_text(json.dumps(values))
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": "tokenization_evil.Evil"}}))
    load_pretrained(model)
    convert(model, tmp_path / "out")
    take(model)
    assert not marker.exists()


# --- configurations ---------------------------------------------------------------------------------------------------

ABSURD = {
    "layers": dict(num_hidden_layers=10**9, layer_types=None),
    "some layers": dict(num_hidden_layers=5000, layer_types=None),
    "no layers": dict(num_hidden_layers=0, layer_types=None),
    "experts": dict(num_experts=1 << 30),
    "vocabulary": dict(vocab_size=1 << 31),
    "width": dict(hidden_size=1 << 31),
    "heads": dict(num_attention_heads=1 << 30),
    "head size": dict(head_dim=1 << 30),
    "kernel": dict(cca_time1=1 << 30),
    "router": dict(router_hidden_size=1 << 30),
    "more than 64 bits": dict(hidden_size=10**30),
    "inner": dict(moe_intermediate_size=1 << 31),
    "negative": dict(hidden_size=-5),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_built(model, case):
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, **ABSURD[case]}))
    refused(model, str(model / "config.json"), next(iter(ABSURD[case])))


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"a": 1, "a": 1}', b"\xff", b"null", b"3", b'"x"'])
def test_a_config_that_is_none(model, text):
    (model / "config.json").write_bytes(text)
    refused(model, str(model / "config.json"))


# --- fuzz -------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("zaya"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def load(folder: Path) -> dict | None:
    """The variables that stand in a folder; None where it is refused, in one line that names it."""
    message = ""
    try:
        return load_huggingface(folder)[1]
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    assert message and "\n" not in message and str(folder) in message, message
    return None


def loads_the_same_or_is_refused(folder: Path, wanted: dict) -> None:
    found = load(folder)
    if found is not None:
        assert_identical(found, wanted)


@pytest.fixture(scope="module")
def scratch(whole, tmp_path_factory):
    """(a folder to spoil, the files to mend it with, its variables)."""
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(whole / "shards", folder)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}, load_huggingface(folder)[1]


def mend(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@settings(max_examples=60)
@given(data=st.data())
def test_a_mutated_header_or_index(scratch, data):
    """Bytes changed, cut out or put in, before the tensors begin."""
    folder, files, wanted = scratch
    mend(folder, files)
    name = data.draw(st.sampled_from(sorted(files)))
    found = bytearray(files[name])
    end = 8 + struct.unpack("<Q", found[:8])[0] if name.endswith(".safetensors") else len(found)
    at = data.draw(st.integers(0, end - 1))
    how = data.draw(st.sampled_from(["change", "cut", "insert", "end"]))
    if how == "change":
        found[at] = data.draw(st.integers(0, 255))
    elif how == "cut":
        del found[at : at + data.draw(st.integers(1, 20))]
    elif how == "insert":
        found[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        del found[at:]
    (folder / name).write_bytes(found)
    if name == "config.json":  # a digit may change what the model computes, and then it is another model
        load(folder)
    else:
        loads_the_same_or_is_refused(folder, wanted)


@settings(max_examples=60)
@given(data=st.data())
def test_a_mutated_field(scratch, data):
    """A field of the header, the index or the configuration holds something else."""
    folder, files, wanted = scratch
    mend(folder, files)
    where = data.draw(st.sampled_from(["header", "index", "config"]))
    value = data.draw(JSON)
    if where == "header":
        name = data.draw(st.sampled_from(sorted(n for n in files if n.endswith(".safetensors"))))
        length = struct.unpack("<Q", files[name][:8])[0]
        values, body = json.loads(files[name][8 : 8 + length]), files[name][8 + length :]
        tensor = data.draw(st.sampled_from(sorted(values)))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "format"]))
        values[tensor][key] = value
        text = json.dumps(values).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + body)
        loads_the_same_or_is_refused(folder, wanted)
        return
    name = "config.json" if where == "config" else "model.safetensors.index.json"
    values = json.loads(files[name])
    target = values if where == "config" else values["weight_map"]
    target[data.draw(st.sampled_from(sorted(target)))] = value
    (folder / name).write_text(json.dumps(values))
    if where == "index":
        loads_the_same_or_is_refused(folder, wanted)
    else:
        load(folder)


@settings(max_examples=30)
@given(data=st.data())
def test_renamed_missing_and_swapped_files(scratch, data):
    folder, files, wanted = scratch
    mend(folder, files)
    one, other = (data.draw(st.sampled_from(sorted(files))) for _ in range(2))
    how = data.draw(st.sampled_from(["remove", "swap", "copy", "rename"]))
    if how == "remove":
        (folder / one).unlink()
    elif how == "rename":
        (folder / one).rename(folder / f"{one}.old")
    else:
        (folder / one).write_bytes(files[other])
        if how == "swap":
            (folder / other).write_bytes(files[one])
    loads_the_same_or_is_refused(folder, wanted)


def test_the_fuzz_has_power(scratch):
    """A tensor that differs is told from one that does not."""
    folder, files, wanted = scratch
    mend(folder, files)
    name = max(n for n in files if n.endswith(".safetensors"))
    (folder / name).write_bytes(files[name][:-1] + bytes([files[name][-1] ^ 1]))
    with pytest.raises(AssertionError):
        loads_the_same_or_is_refused(folder, wanted)

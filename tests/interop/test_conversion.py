"""Any layout to any other: bit for bit, on after a kill, and nothing left of what failed."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from folders import CONFIGS, SMALL, assert_identical, random_variables
from safetensors.numpy import load_file

from zaya_jax import load_pretrained
from zaya_jax.architecture import preset
from zaya_jax.errors import UserError
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion import conversion
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.conversion.inventory import take
from zaya_jax.interop.formats import native_arrays, shards
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.early

CHAINS = {
    "tied": ("legacy", "native", "huggingface"),
    "everything": ("native", "legacy", "native", "huggingface"),
    "one layer": ("legacy", "native", "huggingface"),
    "bfloat16": ("native", "legacy", "huggingface"),
    "bfloat16 stored": ("legacy", "native"),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Tiny models take the ways of large ones: stacks go out a layer and an expert at a time, matrices in chunks."""
    monkeypatch.setattr(native_arrays, "CHUNK", 2000)
    monkeypatch.setattr(native_arrays, "SMALL_LAYER", 1000)


@pytest.fixture
def start(tmp_path):
    config, variables = CONFIGS["tied"], random_variables(CONFIGS["tied"])
    save_huggingface(tmp_path / "start", config, variables)
    return tmp_path / "start"


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trips_are_bit_identical(name, tmp_path):
    config, variables, chain = CONFIGS[name], random_variables(CONFIGS[name]), CHAINS[name]
    save_huggingface(tmp_path / "0", config, variables)
    for number, format in enumerate(chain):
        shard_bytes = (20_000, 5_000_000_000)[number % 2]
        report = convert(tmp_path / str(number), tmp_path / str(number + 1), format, None, shard_bytes)
        assert report.rounded == report.kept == 0 and not report.not_finite
    again, loaded = load_pretrained(tmp_path / str(len(chain)))
    assert again == config
    assert_identical(variables, loaded)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(len(chain) + 1)]


def trained(folder, config, variables):
    write_model_file(folder, config)
    with Checkpoints(folder) as steps:
        steps.save(1, variables, {})
    return folder


@pytest.mark.parametrize("rows", ["all", "drafts"])
def test_adapters_stay_in_our_own_format_and_no_other(rows, tmp_path):
    config = CONFIGS["tied"].replace(lora_rank=2, lora_rows=rows)
    variables = random_variables(config)
    source = trained(tmp_path / "ours", config, variables)
    convert(source, tmp_path / "native", "native")
    again, loaded = load_pretrained(tmp_path / "native")
    assert again == config
    assert_identical(variables, loaded)
    cure = "`experiments.merge`" if rows == "all" else "`experiments.adapters`"
    for format in ("huggingface", "legacy"):
        with pytest.raises(UserError, match=rf"^ZayaConfig\.lora_rank: got 2, may be 0 in .*{cure}"):
            convert(source, tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native", "ours"]


def test_the_steps_of_training_are_read_and_the_average(tmp_path):
    """As the loop saves them: a state that holds more, in Orbax's own files."""
    config = CONFIGS["everything"]
    variables, average = random_variables(config), random_variables(config, 1)
    state = {**variables, "ema": average["params"], "optimizer": {"count": jnp.zeros(())}}
    write_model_file(tmp_path / "ours", config)
    with Checkpoints(tmp_path / "ours") as steps:
        steps.save(3, state, {"step": 3})
    convert(tmp_path / "ours", tmp_path / "plain")
    assert_identical(variables, load_pretrained(tmp_path / "plain")[1])
    convert(tmp_path / "ours", tmp_path / "average", "native", ema=True)
    assert_identical({**average, "balancing": variables["balancing"]}, load_pretrained(tmp_path / "average")[1])
    assert (tmp_path / "average" / "3").is_dir()


def test_no_average_to_read(start, tmp_path):
    convert(start, tmp_path / "ours", "native")
    with pytest.raises(ValueError, match="no average of the parameters was kept"):
        convert(tmp_path / "ours", tmp_path / "out", ema=True)
    with pytest.raises(ValueError, match="a Hugging Face folder holds no average"):
        convert(start, tmp_path / "out", ema=True)
    assert not list(tmp_path.glob("*out*"))


# --- dtypes and values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", conversion.FORMATS)
def test_narrowing_rounds_and_says_so(start, tmp_path, format):
    report = convert(start, tmp_path / "out", format, "bfloat16")
    config, narrow = load_pretrained(tmp_path / "out")
    wide = load_pretrained(start)[1]
    assert (config.param_dtype, config.dtype) == ("bfloat16", "bfloat16")
    up, weights = (tree["params"]["layers"]["mlp"]["gate_up_proj"] for tree in (narrow, wide))
    np.testing.assert_array_equal(np.asarray(up), np.asarray(weights).astype(ml_dtypes.bfloat16))
    biases = narrow["balancing"]["layers"]["mlp"]["gate"]["biases"]
    assert biases.dtype == jnp.float32
    np.testing.assert_array_equal(biases, wide["balancing"]["layers"]["mlp"]["gate"]["biases"])
    assert 0.9 * report.values < report.rounded < report.values
    text = "\n".join(report.lines())
    assert "float32 -> bfloat16, rounded" in text and "not reversible" in text


def test_widening_is_exact(tmp_path):
    config = CONFIGS["bfloat16"]
    variables = random_variables(config)
    save_huggingface(tmp_path / "narrow", config, variables)
    report = convert(tmp_path / "narrow", tmp_path / "wide", "native", "float32")
    assert report.rounded == 0 and any("exactly" in line for line in report.lines())
    convert(tmp_path / "wide", tmp_path / "again", "legacy", "bfloat16")
    assert_identical(variables, load_pretrained(tmp_path / "again")[1])


@pytest.mark.parametrize("name", ["tied", "bfloat16"])
def test_what_is_not_finite_is_counted_and_kept(name, tmp_path):
    variables = random_variables(CONFIGS[name])
    norm = variables["params"]["norm"]["weight"]
    variables["params"]["norm"]["weight"] = norm.at[:3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf], norm.dtype))
    save_huggingface(tmp_path / "start", CONFIGS[name], variables)
    report = convert(tmp_path / "start", tmp_path / "out", "legacy")
    assert report.not_finite == {"model.final_norm.weight": 3}
    assert "warning: model.final_norm.weight: 3 values are NaN or infinite" in report.lines()
    assert_identical(variables, load_pretrained(tmp_path / "out")[1])


# --- kills ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no handler of ours expects."""


@pytest.mark.parametrize("format", conversion.FORMATS)
@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_a_killed_conversion_resumes(start, tmp_path, monkeypatch, format, pieces):
    die_after(monkeypatch, format, pieces)
    with pytest.raises(Killed):
        convert(start, tmp_path / "out", format, max_shard_bytes=20_000)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    report = convert(start, tmp_path / "out", format, max_shard_bytes=20_000)
    assert report.kept == pieces
    assert_identical(load_pretrained(start)[1], load_pretrained(tmp_path / "out")[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "start"]
    assert not list((tmp_path / "out").rglob("*.part*")) and not (tmp_path / "out" / "journal.jsonl").exists()


def die_after(monkeypatch, format: str, pieces: int) -> None:
    where, name = (native_arrays.Shell, "write") if format == "native" else (shards, "write_file")
    real, calls = getattr(where, name), []

    def write(*args, **kwargs):
        calls.append(1)
        if len(calls) > pieces:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, write)


@pytest.fixture
def killed(start, tmp_path, monkeypatch):
    """The partial folder of a conversion that died after two shards."""
    with monkeypatch.context() as patch:
        die_after(patch, "legacy", 2)
        with pytest.raises(Killed):
            convert(start, tmp_path / "out", "legacy", max_shard_bytes=20_000)
    return tmp_path / ".out.partial"


def test_a_damaged_piece_is_made_anew(killed, start, tmp_path):
    first = min(killed.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    report = convert(start, tmp_path / "out", "legacy", max_shard_bytes=20_000)
    assert report.kept == 1
    assert_identical(load_pretrained(start)[1], load_pretrained(tmp_path / "out")[1])


def test_a_line_that_was_cut_short_is_forgotten(killed, start, tmp_path):
    with (killed / "journal.jsonl").open("a") as file:
        file.write('{"piece": "model-00003')
    assert convert(start, tmp_path / "out", "legacy", max_shard_bytes=20_000).kept == 2


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (dict(format="huggingface"), "format"),
        (dict(dtype="bfloat16"), "dtype"),
        (dict(max_shard_bytes=30_000), "max_shard_bytes"),
    ],
)
def test_another_conversion_is_not_mixed_in(killed, start, tmp_path, change, differs):
    before = sorted(path.name for path in killed.iterdir())
    with pytest.raises(ValueError, match=f"a partial conversion with another {differs}; delete it"):
        convert(start, tmp_path / "out", **{"format": "legacy", "max_shard_bytes": 20_000, **change})
    assert sorted(path.name for path in killed.iterdir()) == before


def test_nor_a_source_that_has_changed(killed, start, tmp_path):
    save_huggingface(tmp_path / "new", CONFIGS["tied"], random_variables(CONFIGS["tied"], 1))
    (tmp_path / "new" / "model.safetensors").rename(start / "model.safetensors")
    with pytest.raises(ValueError, match="a partial conversion with another source's files"):
        convert(start, tmp_path / "out", "legacy", max_shard_bytes=20_000)


def test_what_is_no_partial_folder_is_left_alone(start, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").write_text("precious")
    with pytest.raises(ValueError, match="holds files but no journal"):
        convert(start, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine").read_text() == "precious"


def test_two_at_once(killed, start, tmp_path):
    import fcntl

    with (killed / "journal.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is converting into it"):
            convert(start, tmp_path / "out", "legacy", max_shard_bytes=20_000)


# --- what is refused leaves nothing -----------------------------------------------------------------------------------


def test_every_problem_is_named_and_nothing_written(start, tmp_path):
    from safetensors.numpy import save_file

    file = start / "model.safetensors"
    tensors = load_file(file)
    tensors["extra"] = np.zeros(2, np.float32)
    tensors["model.norm.weight"] = np.zeros(31, np.float32)
    tensors["model.layers.1.self_attn.qk_norm.temp"] = np.zeros(2, np.float64)
    del tensors["model.layers.0.mlp.gate.down_proj.bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        convert(start, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "tensor extra: unexpected", "tensor model.norm.weight: got shape [31], may be [32]",
        "model.layers.1.self_attn.qk_norm.temp: got dtype F64",
        "tensor model.layers.0.mlp.gate.down_proj.bias: missing, may be of shape [16]",
    ):  # fmt: skip
        assert part in message, message
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_a_model_that_a_layout_has_no_words_for(tmp_path):
    write_model_file(tmp_path / "gqa", preset("tiny", **SMALL, attention="gqa"))
    config = preset("tiny", **SMALL, attention="gqa")
    with Checkpoints(tmp_path / "gqa") as steps:
        steps.save(1, random_variables(config), {})
    for format in ("huggingface", "legacy"):
        with pytest.raises(ValueError, match=r"ZayaConfig: .*attention"):
            convert(tmp_path / "gqa", tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["gqa"]
    convert(tmp_path / "gqa", tmp_path / "out", "native")  # ours has


def test_a_taken_output_and_a_full_disk(start, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ValueError, match="may be a new or an empty directory"):
        convert(start, tmp_path / "out")
    usage = conversion.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs \d\.\d\d MB, the disk has 0\.00 MB free"):
        convert(start, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "start"]


# --- what goes along --------------------------------------------------------------------------------------------------


def test_tokenizers_go_along_and_code_does_not(start, tmp_path):
    (start / "tokenizer.json").write_text('{"é": 1}')
    (start / "chat_template.jinja").write_text("{{ messages }}")
    (start / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.X", null]}, "eos": "é"}')
    (start / "modeling_evil.py").write_text("raise SystemExit('ran')")
    (start / "pytorch_model.bin").write_bytes(b"a pickle")
    values = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**values, "auto_map": {"AutoModel": "modeling_evil.Evil"}}))
    report = convert(start, tmp_path / "out")
    out = {path.name for path in (tmp_path / "out").iterdir()}
    assert out == {
        "config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"eos": "é"}
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert {"left behind, and never run: modeling_evil.py",
            "tokenizer_config.json: auto_map (code to run) was left out"} <= set(report.lines())  # fmt: skip


def test_a_folder_in_a_companions_place_is_named_and_a_folder_of_licences_left_behind(start, tmp_path):
    (start / "LICENSES").mkdir()
    assert "left behind: LICENSES/" in "\n".join(convert(start, tmp_path / "out", "native").notes)
    (start / "merges.txt").mkdir()
    with pytest.raises(ValueError, match=r"merges\.txt: got a folder, may be a file"):
        convert(start, tmp_path / "other", "native")
    assert not (tmp_path / "other").exists()


def test_the_card_says_how_it_was_made(tmp_path):
    config = preset("tiny", **SMALL)
    run = tmp_path / "run"
    write_model_file(run / "checkpoints" / "convert", config)
    with Checkpoints(run / "checkpoints" / "convert") as steps:
        steps.save(7, random_variables(config), {})
    phase = {"steps": 5, "batch_size": 2, "objective": {"kind": "tidar", "block_size": 4}}
    first = {**phase, "objective": {"kind": "autoregressive", "block_size": 4}}
    (run / "config.json").write_text(json.dumps({"name": "mine", "seed": 3, "pretrain": first, "convert": phase}))
    made = {"version": "0.1.0", "commit": "abc", "command": "convert ...", "date": "2026-01-01"}
    convert(run / "checkpoints" / "convert", tmp_path / "out", made=made)
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "(step 7)", "at commit abc", "convert ...", "Run `mine`, seed 3", "pretrain: autoregressive; 5 steps",
        "convert: tidar, blocks of 4; 5 steps of 2 rows", "token 39, stored as `zaya_jax.mask_token_id`",
        "of which this is the last", "--block-size=4", "# license: to be filled in",
    ):  # fmt: skip
        assert part in text, text


def test_the_skip_expert_is_what_its_layout_has(tmp_path):
    """Identity in Zyphra's code, zero in transformers: said where it can ever matter."""
    config = preset("tiny", **SMALL)
    variables = random_variables(config)
    biases = jnp.full((2, 5), 0.1).at[:, -1].set(-1.0)
    for name, skip, said in (("never", biases, "none is chosen"), ("may", 0 * biases, "possible in layers 0, 1")):
        variables["balancing"]["layers"]["mlp"]["gate"]["biases"] = skip
        save_huggingface(tmp_path / name, config, variables)
        report = convert(tmp_path / name, tmp_path / f"{name}-legacy", "legacy")
        assert any(said in line for line in report.notes), report.notes
        values = json.loads((tmp_path / f"{name}-legacy" / "config.json").read_text())
        del values["zaya_jax"]  # as Zyphra's own files are
        (tmp_path / f"{name}-legacy" / "config.json").write_text(json.dumps(values))
        report = convert(tmp_path / f"{name}-legacy", tmp_path / f"{name}-back")
        assert report.config.skip_expert == "identity"
        assert any(said in line for line in report.notes), report.notes


def test_zayas_spare_rows_hold_the_mask():
    """262,145 ids in 262,272 rows: the default mask is the last row, which no text reaches."""
    config = preset("zaya1_8b")
    assert config.mask_token_id == 262_271 >= 262_145


def test_taking_stock_continues_where_the_configuration_cannot_be_read(start):
    (start / "config.json").write_text("{}")
    found = take(start)
    assert found.config is None and len(found.rows) == 67
    assert len(found.problems) == 1 and "vocab_size * hidden_size" in found.problems[0]


def test_pieces_that_memory_cannot_hold_are_refused(start, tmp_path, monkeypatch):
    """One of ours whose arrays are one piece each, as training saves them."""
    convert(start, tmp_path / "ours", "native")
    largest = property(lambda self: 1 << 50, lambda self, value: None)
    monkeypatch.setattr(native_arrays.Native, "largest_chunk", largest, raising=False)
    with pytest.raises(ValueError, match=r"stored in pieces of up to 1125899\.9 GB, which are decoded whole"):
        convert(tmp_path / "ours", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_source_that_turns_out_damaged_leaves_nothing(start, tmp_path):
    """Headers do not tell: the chunks of our own arrays are compressed."""
    convert(start, tmp_path / "ours", "native")
    chunk = max((tmp_path / "ours" / "0").rglob("*kernel/0*"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(b"\xff" * 9)
    with pytest.raises(UserError, match=r"^checkpoint .*ours"):
        convert(tmp_path / "ours", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "start"]


def test_what_a_disk_refuses_of_our_own_format_is_kept_for_the_next_try(start, tmp_path, monkeypatch):
    pieces, write = [], native_arrays.Shell._sum
    monkeypatch.setattr(native_arrays.Shell, "_sum", lambda *what: pieces.append(1) or write(*what))

    def full(self, path):
        if len(pieces) > 3:
            raise OSError(28, "No space left on device")
        return opened(self, path)

    opened = native_arrays.Shell._array
    monkeypatch.setattr(native_arrays.Shell, "_array", full)
    with pytest.raises(OSError, match="No space left"):
        convert(start, tmp_path / "out", "native")
    monkeypatch.setattr(native_arrays.Shell, "_array", opened)
    assert convert(start, tmp_path / "out", "native").kept == 4


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("format", ["native", "legacy"])
def test_damaged_settings_are_named_before_anything_is_written(start, tmp_path, name, format):
    (start / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name}: not valid JSON"):
        convert(start, tmp_path / "out", format)
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


@pytest.mark.parametrize("journal", ["[" * 100_000 + "\n", '{"conversion": 3}\n', "3\n"], ids=["deep", "3", "number"])
def test_a_journal_of_somebody_else_s_is_named(start, tmp_path, journal):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "journal.jsonl").write_text(journal)
    with pytest.raises(UserError, match="delete the folder to begin anew"):
        convert(start, tmp_path / "out")


def test_the_card_of_a_folder_whose_name_is_no_text(start, tmp_path):
    odd = tmp_path / "odd\udcff"  # as Python spells a byte that is not UTF-8
    start.rename(odd)
    convert(odd, tmp_path / "out")
    assert "odd\\udcff" in (tmp_path / "out" / "README.md").read_text()

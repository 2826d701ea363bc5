"""convert, inspect, compare and their benchmark, as a user calls them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import processors

from tests import commands
from tests.helpers import random_variables
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax import load_pretrained
from zaya_jax.architecture import preset
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.editing.adapters import merge_adapters
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.runs import tokens
from zaya_jax.text.templates import folder_template
from zaya_jax.text.tokenizers import BPETokenizer, load_tokenizer
from zaya_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.early

CONFIG = preset("tiny")


def run(command: str, *flags: str) -> subprocess.CompletedProcess:
    return commands.run(f"experiments.{command}", *flags)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    save_huggingface(folder, CONFIG, random_variables(CONFIG))
    return folder


def test_there_and_compared(start, tmp_path):
    out = tmp_path / "legacy"
    result = run("convert", f"--checkpoint={start}", f"--output={out}", "--format=legacy", "--max_shard_gb=0.0001")
    assert result.returncode == 0, result.stderr
    assert re.search(r"done: .*legacy \(79 tensors, [0-9.]+ MB, float32\)", result.stdout), result.stdout
    assert len(list(out.glob("*.safetensors"))) > 1
    result = run("compare", f"--checkpoint={start}", f"--other={out}", "--text=123+")
    assert result.returncode == 0, result.stderr
    for line in ("1 x 4 tokens", "largest difference 0, 0 of their std", "KL 0 nats", "top-1 agreement 100.0%",
                 "36 equal, 0 differ"):  # fmt: skip
        assert line in result.stdout, result.stdout


def test_a_text_is_compared_as_its_tokenizer_opens_and_ends_it(tmp_path):
    model = byte_level()
    pairs = [(token, model.token_to_id(token)) for token in ("<s>", "</s>")]
    model.post_processor = processors.TemplateProcessing("<s> $A </s>", None, pairs)
    folder = publish(tmp_path / "model", model, tokenizer_config=SPELLED)
    code = "import sys; from absl import flags; from pathlib import Path; from experiments import compare; "
    code += "from zaya_jax import preset; flags.FLAGS(['', '--text=cat']); "
    code += "print(compare._tokens(Path(sys.argv[1]), preset('tiny', vocab_size=400)).tolist())"
    done = commands.run("tests.snippet", code, str(folder))
    assert done.stdout == f"[{model.encode('cat').ids}]\n", done.stderr


@pytest.mark.slow
def test_a_narrowed_copy_differs_a_little(start, tmp_path):
    run("convert", f"--checkpoint={start}", f"--output={tmp_path / 'half'}", "--dtype=bfloat16")
    result = run("compare", f"--checkpoint={start}", f"--other={tmp_path / 'half'}", "--length=16", "--listed=2")
    assert result.returncode == 0, result.stderr
    gap, kl = (float(re.search(pattern, result.stdout)[1]) for pattern in (r", (\S+) of their std", r"KL (\S+) nats"))
    assert 0 < gap < 1 and 0 < kl < 0.1, result.stdout
    assert "1 equal, 35 differ" in result.stdout  # the balancing biases stay float32


def test_inspect_lists_what_training_saves(tmp_path):
    variables = random_variables(CONFIG)
    write_model_file(tmp_path, CONFIG)
    with Checkpoints(tmp_path) as steps:
        for step in (1, 2):
            state = {**variables, "ema": variables["params"], "optimizer": {"mu": variables["params"]["norm"]}}
            steps.save(step, state, {"data": 7})
    result = run("inspect_checkpoint", f"--checkpoint={tmp_path}", "--stats")
    assert result.returncode == 0, result.stderr
    for part in ("steps [1, 2], the newest (2)", "data: 7", "holds average, buffers, optimizer, weights",
                 "ema/embed_tokens float32[260, 32]", "optimizer: 1 arrays, 32 values", "rms", "complete"):  # fmt: skip
        assert part in result.stdout, result.stdout


def test_inspect_says_all_that_is_wrong_and_still_lists(start, tmp_path):
    tensors = load_file(start / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["ghost"] = tensors.pop("model.layers.0.self_attn.qk_norm.temp")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((start / "config.json").read_text())
    result = run("inspect_checkpoint", f"--checkpoint={tmp_path}")
    assert result.returncode == 1
    for part in ("model.layers.*.mlp.experts.gate_up_proj F32[4, 64, 32] x 2", "tensor ghost: unexpected",
                 "model.norm.weight: missing", "qk_norm.temp: missing"):  # fmt: skip
        assert part in result.stdout, result.stdout


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run's workdir as it was before checkpoints held their tokenizer; its BPE lies elsewhere."""
    root = tmp_path_factory.mktemp("run")
    BPETokenizer.train(["some words and some more words"] * 3, 270).save(root / "bpe.json")
    config = preset("tiny", vocab_size=270, mask_token_id=269, lora_rank=2)
    write_model_file(root / "w" / "checkpoints" / "convert", config)
    with Checkpoints(root / "w" / "checkpoints" / "convert") as steps:
        steps.save(1, random_variables(config), {})
    values = {
        "name": "mine", "seed": 3, "tokenizer": str(root / "bpe.json"), "data": {"chat_template": TEMPLATE},
        "phases": ["convert"],
        "convert": {"steps": 1, "batch_size": 1, "objective": {"kind": "tidar", "block_size": 4}},
    }  # fmt: skip
    (root / "w" / "config.json").write_text(json.dumps(values))
    return root / "w"


def check_carried(folder: Path, trained: Path, command: str) -> None:
    own, found = BPETokenizer.load(trained.parent / "bpe.json"), load_tokenizer(folder)
    assert found.encode("more words") == own.encode("more words") and found.eos_id == own.eos_id == 267
    assert folder_template(folder, found).source == TEMPLATE
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 267
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 267
    card = (folder / "README.md").read_text()
    assert f"python -m experiments.{command}" in card and "tidar, blocks of 4; 1 steps of 1 rows" in card


def test_merge_writes_tokenizer_template_and_card(trained, tmp_path):
    result = run("merge", f"--checkpoint={trained}", f"--output={tmp_path / 'x' / '..' / 'merged'}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == f"checkpoint: {trained / 'checkpoints' / 'convert'}\n"
    check_carried(tmp_path / "merged", trained, "merge")
    assert load_pretrained(tmp_path / "merged")[0].lora_rank == 0
    result = run("merge", f"--checkpoint={trained}", f"--output={tmp_path / 'merged'}")
    assert result.returncode == 2 and "got a path that is taken" in result.stderr


def test_convert_takes_a_run_s_tokenizer_there_and_back(trained, tmp_path):
    checkpoint = tokens.checkpoint_of(str(trained))
    config, variables = merge_adapters(*load_pretrained(checkpoint))
    plain = tmp_path / "w" / "checkpoints" / "convert"
    write_model_file(plain, config)
    with Checkpoints(plain) as steps:
        steps.save(1, variables, {})
    shutil.copy(trained / "config.json", tmp_path / "w")
    made = {"command": "python -m experiments.convert"}
    with tokens.companions_of(plain) as (companions, notes):
        convert(plain, tmp_path / "hf", made=made, companions=companions)
    assert notes == []
    check_carried(tmp_path / "hf", trained, "convert")
    shutil.move(tmp_path / "hf", tmp_path / "moved")
    convert(tmp_path / "moved", tmp_path / "native", format="native")
    with tokens.companions_of(tmp_path / "native") as (companions, _):
        assert companions is None  # they are beside it
    convert(tmp_path / "native", tmp_path / "again", made=made)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "moved" / name).read_bytes(), name
    (tmp_path / "w" / "config.json").write_text(json.dumps({"tokenizer": "/gone/bpe.json"}))
    with tokens.companions_of(plain) as (companions, notes):
        assert companions is None and "no tokenizer was written: tokenizer: got '/gone/bpe.json'" in notes[0]
    own = BPETokenizer.train(["the cat sat on the mat " * 9], 270)
    own.save(tmp_path / "w" / "tokenizer.json")  # where a run keeps the one that it trained
    (tmp_path / "w" / "config.json").write_text(json.dumps({"tokenizer": "bpe:270"}))
    with tokens.companions_of(plain) as (companions, notes):
        assert companions is not None and notes == []
        assert load_tokenizer(companions).encode("the mat") == own.encode("the mat")


def test_all_that_belongs_goes_along_and_the_rest_is_named(start, tmp_path):
    source = Path(shutil.copytree(start, tmp_path / "in"))
    along = ("tokenizer.model", "tokenizer.model.v3", "vocab.txt", "LICENSE-2", "additional_chat_templates/tools.jinja")
    (source / "additional_chat_templates").mkdir()
    for name in (*along, "model.py", "notes.txt", ".gitattributes"):
        (source / name).write_text("x")
    (source / "original").mkdir()
    report = convert(source, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_text() == "x" for name in along)
    assert "left behind, and never run: model.py" in report.lines()
    assert "left behind: notes.txt, original/" in report.lines()
    (source / "additional_chat_templates" / "evil.jinja").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="may not lead out of its folder"):
        convert(source, tmp_path / "out2")


def test_ends_that_only_a_config_names_stay_with_a_native_copy(start, tmp_path):
    source = Path(shutil.copytree(start, tmp_path / "in"))
    publish(source, byte_level(), tokenizer_config={})
    values = json.loads((source / "config.json").read_text())
    values |= {"bos_token_id": 305, "eos_token_id": [306, 308], "pad_token_id": -1}
    (source / "config.json").write_text(json.dumps(values))
    convert(source, tmp_path / "out", format="native")
    for name in ("bos_id", "eos_ids", "pad_id"):
        assert getattr(load_tokenizer(tmp_path / "out"), name) == getattr(load_tokenizer(source), name)


MISTAKES = {
    "no checkpoint": ("convert", ["--output=x"], "--checkpoint: missing, may be a folder"),
    "no folder": ("convert", ["--checkpoint=/nowhere", "--output=x"], "checkpoint /nowhere: not a folder"),
    "tokens": ("compare", ["--checkpoint={start}", "--other={start}", "--tokens=1 x"], "may be token ids"),
    "no room": (
        "compare",
        ["--checkpoint={start}", "--other={start}", "--rows=1024", "--length=131072"],
        "134217728 tokens: needs at least 1.27 TiB (logits), ",
    ),
    "large token": ("compare", ["--checkpoint={start}", "--other={start}", "--tokens=260"], "may be ids below 260"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(start, case):
    command, flags, message = MISTAKES[case]
    result = run(command, *(flag.format(start=start) for flag in flags))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr, result.stderr


@pytest.mark.slow
def test_the_benchmark_kills_resumes_and_verifies(tmp_path):
    output = tmp_path / "numbers.json"
    result = run("bench.convert", f"--workdir={tmp_path / 'w'}", "--preset=zaya1_25m", f"--output={output}")
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())["conversions"]
    assert [row["tensors_verified"] for row in rows] == [259] * 4
    assert rows[2]["pieces_kept"] > 0 and rows[0]["killed_after_s"] > 0
    assert not (tmp_path / "w").exists()

"""Every command on hostile input: see harness.py for what it promises and how to try more."""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_packed import write_corpus
from tests.fuzz import harness, hostile
from tests.fuzz.harness import command, fuzzed, nothing_left, run
from tests.helpers import random_variables, small_config
from tests.reporting import made_up_sweeps
from tests.reporting.made_up_run import build_run
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax import preset
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.data.builders import prepare_chats, prepare_text
from zaya_jax.data.chat import ChatSource, survey
from zaya_jax.data.packed import MANIFEST, PackedRows, digest, verify
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.data.pipeline import eval_batches
from zaya_jax.data.splits import SPLITS
from zaya_jax.errors import UserError
from zaya_jax.evaluation.answers import Answers
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.formats.adapter_folder import load_adapters, save_adapters
from zaya_jax.reporting.html.report import write_report
from zaya_jax.reporting.plots.plots import draw_figures
from zaya_jax.reporting.results import write_sweep
from zaya_jax.reporting.run_files import load_run
from zaya_jax.text.templates import load_template
from zaya_jax.text.tokenizers import load_tokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GENERATED = ("--mode=autoregressive", "--max_new_tokens=2")
CONFIGS = ("configs/quickstart.py:fast", "configs/study.py:fast", "tests/experiments/tiny.py")
FIELDS = (
    "seed", "name", "tokenizer", "cpu_devices", "phases", "model.preset", "model.hidden_size",
    "model.num_hidden_layers", "model.rope_theta", "model.head_dim", "data.row_length", "data.mixture",
    "data.packing", "data.task_documents", "pretrain.steps", "pretrain.batch_size", "pretrain.start",
    "pretrain.rope_theta", "pretrain.save_every", "pretrain.optimizer.learning_rate", "pretrain.optimizer.b1",
    "convert.objective.alpha", "convert.objective.kind", "convert.objective.block_size",
    "convert.objective.masking", "convert.spike_factor", "evaluate.prompts", "mesh.data", "evaluate.tasks",
    "evaluate.samplers", "evaluate.temperatures", "evaluate.beta", "evaluate.seed", "evaluate.batch",
    "evaluate.anchor_budget", "evaluate.samples", "evaluate.phase", "nothere", "data.nothere", "mesh.rules", "data",
)  # fmt: skip
NO_SWEEPS = (
    "", "x", "def get_config(): pass", "def get_config(): return 3", "1/0", "import x_y", "get_config = 3", "\0",
    "def get_config(): return sweep()", "(" * 300,
)  # fmt: skip
COMMANDS = ("inspect_checkpoint", "convert", "merge", "compare", "generate", "evaluate")


class Files(dict):
    """Files of a folder by name; hypothesis prints what a test was given, and these are long."""

    def __repr__(self) -> str:
        return f"Files({sorted(self)})"


def files_of(folder: Path) -> dict[str, bytes]:
    return Files({name: data for name, data in harness.contents(folder).items() if len(data) < 2**22})


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, bytes]:
    """A small model with a tokenizer and a template, as Hugging Face's folders are."""
    folder = tmp_path_factory.mktemp("published") / "model"
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    bos, eos, pad = map(tokenizer.token_to_id, ("<s>", "<|im_end|>", "</s>"))
    config = preset("tiny", vocab_size=size, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    save_huggingface(folder, config, random_variables(config))
    settings = SPELLED | {"chat_template": TEMPLATE, "additional_special_tokens": ["<unk>"]}
    more = {"special_tokens_map": {"eos_token": "<|im_end|>"}, "generation_config": {"eos_token_id": [eos, pad]}}
    publish(folder, tokenizer, tokenizer_config=settings, **more)
    (folder / "LICENSE").write_text("none")
    return files_of(folder)


@pytest.fixture(scope="module")
def sharded(published, tmp_path_factory) -> dict[str, bytes]:
    """The same in several files with an index, its template among named ones."""
    folder = tmp_path_factory.mktemp("sharded")
    convert(hostile.write(folder / "published", published), folder / "sharded", max_shard_bytes=100_000)
    (folder / "sharded" / "additional_chat_templates").mkdir()
    (folder / "sharded" / "additional_chat_templates" / "default.jinja").write_text(TEMPLATE)
    return files_of(folder / "sharded")


@pytest.fixture(scope="module")
def native(published, tmp_path_factory) -> dict[str, bytes]:
    """The same as one of our own checkpoints."""
    folder = tmp_path_factory.mktemp("native")
    convert(hostile.write(folder / "published", published), folder / "native", format="native")
    return files_of(folder / "native")


def test_what_is_whole_is_read(published, sharded, native):
    """Else all that follows would try nothing but the first refusal."""
    with tempfile.TemporaryDirectory() as top:
        for name, files in (("published", published), ("sharded", sharded), ("native", native)):
            folder = hostile.write(Path(top) / name, files)
            for arguments in (["--prompt=the cat"], ["--chat"]):
                ended = command("generate", f"--checkpoint={folder}", *arguments, *GENERATED, stdin="hello\n")
                assert ended.status == 0, ended.errors
            assert command("convert", f"--checkpoint={folder}", f"--output={top}/{name}2").status == 0
            assert command("inspect_checkpoint", f"--checkpoint={folder}", "--stats").status == 0


@pytest.mark.parametrize("name", ["inspect_checkpoint", "convert", "generate", "evaluate"])
@pytest.mark.parametrize("kind", ["published", "sharded", "native"])
@fuzzed
@given(data=st.data())
def test_damaged_checkpoints(name, kind, published, sharded, native, data):
    whole = {"published": published, "sharded": sharded, "native": native}[kind]
    files, which = data.draw(hostile.damaged_folder(whole))
    with tempfile.TemporaryDirectory() as top:
        folder, output = hostile.write(Path(top) / "model", files), Path(top) / "out"
        about = f"{name} of a {kind} folder whose {which} was damaged"
        more = {
            "inspect_checkpoint": ["--stats"],
            "convert": [f"--output={output}", f"--format={'huggingface' if kind == 'native' else 'native'}"],
            "generate": ["--prompt=the cat", *GENERATED],
            "evaluate": [
                "--tasks=addition",
                "--samplers=autoregressive",
                "--temperatures=0",
                "--prompts=1",
                "--samples=1",
                "--max_new_tokens=2",
                f"--output={output}",
            ],
        }[name]
        ended = command(name, f"--checkpoint={folder}", *more, about=about)
        if name == "convert":
            nothing_left(output, ended, about)
            if ended.status == 0 and not output.is_dir():
                harness._report("no error and no output", about)
        if harness.contents(folder) != files:
            harness._report("the input was changed", about)


@fuzzed
@given(template=hostile.damaged(TEMPLATE.encode()), talk=st.lists(hostile.odd_texts, max_size=3))
def test_chats_and_templates(published, template, talk):
    with tempfile.TemporaryDirectory() as top:
        folder = hostile.write(Path(top) / "model", published | {"chat_template.jinja": template})
        command("generate", f"--checkpoint={folder}", "--chat", *GENERATED, stdin="\n".join(talk),
                about=f"template {template[:200]!r}, talk {talk!r:.200}")  # fmt: skip


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@fuzzed
@given(data=st.data())
def test_prompts_files(published, suffix, data):
    whole = "the cat\nsat\n" if suffix == ".txt" else '{"prompt": "the cat"}\n{"prompt": "sat", "id": 1}\n'
    text = data.draw(hostile.damaged(whole.encode()))
    with tempfile.TemporaryDirectory() as top:
        folder, file = hostile.write(Path(top) / "model", published), Path(top) / f"prompts{suffix}"
        file.write_bytes(text)
        about, output = f"prompts {text[:200]!r}", Path(top) / "rows.jsonl"
        ended = command(
            "generate",
            f"--checkpoint={folder}",
            f"--prompts_file={file}",
            f"--output={output}",
            *GENERATED,
            about=about,
        )
        nothing_left(output, ended, about)


CHATS = (
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "s"}]}, {"role": "assistant",
     "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}], "tools": [{"name": "f"}]},
)  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "records", "chats"])
@fuzzed
@given(data=st.data())
def test_data_files(published, kind, data):
    """What `run` does with texts and chats before it trains."""
    lines = {"text": ["the cat", "sät"], "records": [{"text": "the cat", "id": 1}] * 2, "chats": list(CHATS)}[kind]
    whole = "\n".join(line if kind == "text" else json.dumps(line) for line in lines).encode()
    damaged = data.draw(hostile.damaged(whole))
    with tempfile.TemporaryDirectory() as top:
        model = load_tokenizer(hostile.write(Path(top) / "model", published))
        file = Path(top) / ("a.txt" if kind == "text" else "a.jsonl")
        file.write_bytes(damaged)

        def use() -> None:
            if kind == "chats":
                source = ChatSource(prepare_chats([file], Path(top) / "data", "train"), load_template(TEMPLATE, model))
                survey(source, model, 64)
            else:
                source = prepare_text([file], Path(top) / "data", "train")
            next(iter(eval_batches(source, model, 32, 2)))

        run(use, f"{kind} {damaged[:200]!r}")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Files, tuple]:
    """(files of a folder of adapters, the model that they belong to)."""
    config = small_config(mask_token_id=NO_MASK)
    base = config, random_variables(config)
    config, variables = add_mask_token(*base)
    config = config.replace(lora_rank=2, lora_alpha=2.0, lora_rows="drafts")
    flat = traverse_util.flatten_dict(random_variables(config, seed=1)) | traverse_util.flatten_dict(variables)
    folder = tmp_path_factory.mktemp("adapters") / "adapters"
    more = {"draft_vocabulary": [1, 5], "anchors": [1, 3]}
    save_adapters(folder, config, traverse_util.unflatten_dict(flat), base, 4, {"name": "base"}, "", **more)
    return files_of(folder), base


@fuzzed
@given(data=st.data())
def test_adapters(adapters, data):
    whole, base = adapters
    files, which = data.draw(hostile.damaged_folder(whole))
    with tempfile.TemporaryDirectory() as top:
        folder = hostile.write(Path(top) / "adapters", files)
        run(lambda: load_adapters(folder, *base), f"adapters whose {which} was damaged")


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Preparation, Files]:
    """(what packed rows are made of, their files)."""
    top = tmp_path_factory.mktemp("rows")
    what = Preparation((str(write_corpus(top / "texts", 20)),), "bytes", 48)
    prepare_rows(what, top / "rows", quiet=True)
    return what, files_of(top / "rows")


@pytest.mark.parametrize("signed", [False, True])
@fuzzed
@given(data=st.data())
def test_packed_rows(rows, signed, data):
    """`signed`: with a digest that fits, so that what it covers is no protection."""
    files, which = data.draw(hostile.damaged_folder(rows[1]))
    with tempfile.TemporaryDirectory() as top:
        folder = hostile.write(Path(top) / "rows", files)
        if signed and isinstance(made := _json(folder / MANIFEST), dict):
            (folder / MANIFEST).write_text(json.dumps(made | {"digest": digest(made)}))

        def use() -> None:
            for split in SPLITS:
                source = PackedRows(folder, split)
                for number in range(min(3, len(source))):
                    source.read(number, 0)
            verify(folder)

        run(use, f"packed rows whose {which} was damaged")


@fuzzed
@given(data=st.data())
def test_unfinished_rows(rows, data):
    """A preparation that stopped before it wrote its manifest."""
    what, whole = rows
    files, which = data.draw(hostile.damaged_folder({name: data for name, data in whole.items() if name != MANIFEST}))
    with tempfile.TemporaryDirectory() as top:
        folder = hostile.write(Path(top) / "rows", files)
        run(lambda: prepare_rows(what, folder, quiet=True), f"unfinished rows whose {which} was damaged")


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


@fuzzed
@given(data=st.data())
def test_flags(published, data):
    """Odd values of any flags; no --tasks, so that nothing long is begun."""
    name = data.draw(st.sampled_from(COMMANDS))
    known = [flag for flag in harness.names_of_flags(name) if flag not in ("output", "checkpoint", "tasks", "profile")]
    chosen = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
    with tempfile.TemporaryDirectory() as top:
        folder = hostile.write(Path(top) / "model", published)
        checkpoint = data.draw(st.sampled_from([str(folder), top, "", "/nowhere", f"{top}/model/config.json", "~x/y"]))
        arguments = [f"--{flag}={data.draw(hostile.literals)}" for flag in chosen]
        if name in ("convert", "merge", "evaluate"):
            arguments.append(f"--output={top}/out")
        if name == "generate":
            arguments += ["--prompt=the cat", "--max_new_tokens=2"][: 2 - ("max_new_tokens" in chosen)]
        command(name, f"--checkpoint={checkpoint}", *[a.replace("\0", "") for a in arguments])


@fuzzed
@given(config=st.sampled_from(CONFIGS), data=st.data())
def test_overrides_of_configs(config, data):
    """What `run` checks before it makes a folder."""
    chosen = data.draw(st.lists(st.tuples(st.sampled_from(FIELDS), hostile.literals), min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as top:
        arguments = [f"--config={config}", *(f"--config.{field}={value}" for field, value in chosen)]
        module = harness._load("run")
        about = " ".join(arguments)

        def check() -> None:
            with harness._flags_of("run"), harness._replaced(harness.sys, "argv", ["run", *arguments]):
                harness.cli._parse(["run", *arguments])
                module.settings.read(module._CONFIG.value)

        run(check, about)
        assert not list(Path(top).iterdir())


@fuzzed
@given(data=st.data())
def test_workdirs(data):
    """What `run` and `figures` read of a finished run."""
    with tempfile.TemporaryDirectory() as top:
        whole = files_of(build_run(Path(top) / "whole"))
        files, which = data.draw(hostile.damaged_folder(whole))
        folder = hostile.write(Path(top) / "run", files)

        def draw() -> None:
            run_ = load_run(folder)
            write_report(run_, draw_figures(run_, Path(top) / "figures"), folder / "report.html")

        run(draw, f"a workdir whose {which} was damaged: {files.get(which, b'')[:200]!r}")
        if list(folder.glob("*.partial")):
            harness._report("a part of the report was left", which)


@fuzzed
@given(data=st.data())
def test_results_that_figures_are_drawn_from(data):
    with tempfile.TemporaryDirectory() as top:
        table = Path(top) / "results" / "sweeps" / "study" / "results.csv"
        table.parent.mkdir(parents=True)
        runs: dict = {}
        for row in made_up_sweeps.study(blocks=(4,), seeds=(0,)):
            cells = {k: v for k, v in row.items() if k not in ("run", "changes", "parameters")}
            runs.setdefault(row["run"], (row["changes"], []))[1].append(cells)
        write_sweep(table, runs)
        table.write_bytes(data.draw(hostile.damaged(table.read_bytes())))
        bench = Path(top) / "results" / "bench" / "samplers.json"
        bench.parent.mkdir()
        bench.write_bytes(data.draw(hostile.damaged((ROOT / "results" / "bench" / bench.name).read_bytes())))
        for name in ("speedup", "strategies"):
            command("figures", name, f"--results={top}/results", f"--output={top}/figures", about=f"figure {name}")


@fuzzed
@given(data=st.data())
def test_files_of_answers(data):
    made = {"task": "addition", "seed": 0}
    line = {"problem": 0, "correct": [True], "tokens": [[1]], "accepted": [[1]], "seconds": 0.1}
    whole = "".join(json.dumps(x) + "\n" for x in ({"made_by": made}, line, line | {"problem": 1}))
    with tempfile.TemporaryDirectory() as top:
        path = Path(top) / "answers.jsonl"
        path.write_bytes(data.draw(hostile.damaged(whole.encode())))
        read = path.read_bytes()

        def use() -> None:
            lines = Answers(path, made).lines
            wrong = [line for line in lines if sum(map(len, line["tokens"])) < 0 or not np.isfinite(line["seconds"])]
            if wrong:
                raise UserError("seconds: not finite")

        run(use, f"answers {read[:300]!r}")


@fuzzed
@given(data=st.data())
def test_sweep_files(data):
    values = st.sampled_from(["1", "(1, 2)", "'x'", "None", "float('nan')", "'../x'", "''", "[]", "{}", "object()"])
    jobs = data.draw(st.lists(st.tuples(st.sampled_from(FIELDS), values), max_size=3))
    name = data.draw(st.sampled_from(["'s'", "''", "'../../x'", "3", "None"]))
    config = data.draw(st.sampled_from([*map(repr, CONFIGS), "'configs/nothere.py'", "''", "None", "3"]))
    axes = ", ".join(f"*axis({field!r}, {value})" for field, value in jobs)
    text = f"from configs.common import axis, sweep\ndef get_config(): return sweep({name}, {config}, [{axes}])\n"
    if not data.draw(st.integers(0, 3)):
        text = data.draw(st.sampled_from(NO_SWEEPS))
    with tempfile.TemporaryDirectory() as top:
        path = Path(top) / f"sweep_{next(NUMBERS)}.py"
        path.write_text(text)
        command("sweep", f"--config={path}", f"--workdir={top}/out", "--list", about=text)
        if (Path(top) / "out").exists():
            harness._report("--list wrote something", text)


NUMBERS = itertools.count()

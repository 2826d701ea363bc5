"""The generate command: files that survive a kill, what the terminal shows, chat, and a user's mistakes."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from absl import flags
from flax import traverse_util

from experiments import generate as command
from tests import commands
from tests.helpers import random_variables
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax import SamplerConfig, Zaya, for_decoding, generate, load_pretrained, preset
from zaya_jax.command_line import engine as engine_module
from zaya_jax.command_line import sampling_flags
from zaya_jax.errors import UserError
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.formats.adapter_folder import save_adapters
from zaya_jax.sampling.planning.auto import Choice
from zaya_jax.sampling.streaming import QUIET, RESET, RUNS, escape, render
from zaya_jax.text.tokenizers import ByteTokenizer, load_tokenizer

pytestmark = pytest.mark.early

ROOT = Path(__file__).parents[2]
BYTES = ByteTokenizer()
PROMPTS = ["one", "twö", "three\tand", "4"]
SAMPLER = SamplerConfig(block_size=3, stop_tokens=[BYTES.eos_id])
COMMON = ("--block_size=3", "--max_new_tokens=9")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random model of bytes."""
    path = tmp_path_factory.mktemp("model")
    config = preset("tiny", vocab_size=260, mask_token_id=259, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    save_huggingface(path, config, random_variables(config))
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    """In the form in which the command decodes: its programs are these."""
    config, variables = load_pretrained(checkpoint)
    return for_decoding(Zaya(config), variables)


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p, "id": 1}) + "\n" for p in PROMPTS))
    return tmp_path


def run(*args) -> None:
    """The command's main in this process."""
    values = flags.FlagValues()
    command.define_flags(values)
    values(["generate", *map(str, args)])
    command.main(values)


def batch_job(checkpoint: Path, files: Path, *more) -> Path:
    output = files / "rows.jsonl"
    prompts = f"--prompts_file={files / 'prompts.txt'}"
    run(f"--checkpoint={checkpoint}", prompts, "--batch=2", "--samples=2", f"--output={output}", *COMMON, *more)
    return output


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_holds_what_generate_returns(checkpoint, model, files, capsys):
    rows = rows_of(batch_job(checkpoint, files, "--seed=7"))
    assert [(r["index"], r["sample"], r["seed"]) for r in rows] == [(i // 2, i % 2, 7 + i) for i in range(8)]
    for part in (0, 2):
        prompts = [BYTES.encode(p) for p in PROMPTS[part : part + 2]]
        seeds = list(range(7 + 2 * part, 11 + 2 * part))
        wanted = generate(*model, prompts, SAMPLER, 9, seeds, samples=2)
        for i, row in enumerate(rows[2 * part : 2 * part + 4]):
            assert row["prompt"] == PROMPTS[part + i // 2]
            assert row["text"] == BYTES.decode(row["tokens"])
            for name in ("tokens", "accepted", "finish"):
                assert row[name] == getattr(wanted, name)[i]
            np.testing.assert_allclose(row["log_probabilities"], wanted.log_probabilities[i], atol=1e-5)
    asked = {"block_size": 3, "anchors": "all", "temperature": 1.0, "stop_tokens": [257], "seed": 7, "samples": 2}
    assert rows[0]["settings"].items() >= asked.items()
    assert rows[0]["ran"] == {"mode": "single_pass", "block_size": 3, "anchors": "all", "target": "autoregressive"}
    out, err = capsys.readouterr()
    tokens, forwards = (sum(f(r) for r in rows) for f in (lambda r: len(r["tokens"]), lambda r: len(r["accepted"])))
    assert out == ""
    assert err.splitlines()[-1].startswith(
        f"{tokens} tokens in {forwards} forwards (NFE): T {tokens / forwards:.2f} at temperature 1, single_pass, block "
        "3, branch points all, batch 2 x 2 samples; 12 query tokens a forward; "
    )
    assert re.search(r"\d tokens/s, compilation excluded$", err)
    jsonl = files / "again.jsonl"
    prompts = f"--prompts_file={files / 'prompts.jsonl'}"
    run(f"--checkpoint={checkpoint}", prompts, "--batch=2", "--samples=2", f"--output={jsonl}", *COMMON, "--seed=7")
    assert jsonl.read_bytes() == (files / "rows.jsonl").read_bytes()


def test_adapters_draft_for_the_model_they_belong_to_and_are_compared(checkpoint, files, capsys):
    """On mask tokens alone: the greedy text is the plain model's."""
    base = load_pretrained(checkpoint)
    config = base[0].replace(lora_rank=2, lora_rows="drafts")
    flat = traverse_util.flatten_dict(random_variables(config)) | traverse_util.flatten_dict(base[1])
    save_adapters(files / "adapters", config, traverse_util.unflatten_dict(flat), base, 3, {}, "", [1, 2, 3], [1, 3])
    flags = (f"--checkpoint={checkpoint}", f"--prompts_file={files / 'prompts.txt'}", "--max_new_tokens=9")
    run(*flags, f"--adapters={files / 'adapters'}", "--temperature=0", "--compare")
    drafted = capsys.readouterr()
    assert "single_pass, block 3, branch points 1,3," in drafted.err  # what they were trained and measured for
    assert re.search(
        r"autoregressive: .* tokens/s, .*; drafting gives [0-9.]+ times as many tokens a second; ", drafted.err
    )
    assert "4 of 4 texts are the same" in drafted.err
    run(*flags, "--mode=autoregressive", "--temperature=0")
    assert capsys.readouterr().out == drafted.out


def test_a_killed_job_resumes_to_the_identical_file(checkpoint, files, monkeypatch, capsys):
    output = batch_job(checkpoint, files)
    whole = output.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in (0, 5, ends[0] + 20, ends[2], ends[3], ends[5] + 400, len(whole) - 1):
        output.write_bytes(whole[:size])
        batch_job(checkpoint, files)
        assert output.read_bytes() == whole
    monkeypatch.setattr(engine_module, "generate", None)  # all is done: nothing runs
    capsys.readouterr()
    batch_job(checkpoint, files)
    assert output.read_bytes() == whole
    assert capsys.readouterr().err == f"nothing to do: {output} holds all 8 rows\n"


def before(line: dict) -> dict:
    return line | {"settings": {name: value for name, value in line["settings"].items() if name != "weights"}}


def test_a_file_of_other_settings_is_refused_and_left_alone(checkpoint, files, monkeypatch):
    output = batch_job(checkpoint, files)
    whole = output.read_bytes()
    for change, words in [
        ("--temperature=0.5", r"line 1: made with other settings: temperature \(1.0 there, 0.5 now\)"),
        ("--seed=1", r"seed \(0 there, 1 now\)"),
        ("--max_new_tokens=10", r"max_new_tokens \(9 there, 10 now\)"),
        ("--stop_strings=x", "stop_strings"),
    ]:
        with pytest.raises(ValueError, match=words):
            batch_job(checkpoint, files, change)
    with monkeypatch.context() as patch:
        patch.setattr(command, "fingerprint", lambda variables: 3)  # trained on, in the same folder
        with pytest.raises(UserError, match=r"weights \(\d+ there, 3 now\)"):
            batch_job(checkpoint, files)
    output.write_text("".join(json.dumps(before(line)) + "\n" for line in map(json.loads, whole.splitlines())))
    batch_job(checkpoint, files)  # a file of before, which does not say
    output.write_bytes(whole)
    (files / "prompts.txt").write_text("other\n")
    with pytest.raises(ValueError, match="line 1: continues another prompt"):
        batch_job(checkpoint, files)
    assert output.read_bytes() == whole
    for foreign in ("my notes", "my notes\n", '{"prompt": "one"}\n', "[]\n", '{"other": '):
        output.write_text(foreign)
        with pytest.raises(ValueError, match=r"not written by this command|choose another file"):
            batch_job(checkpoint, files)
        assert output.read_text() == foreign


def test_a_full_disk_leaves_no_half_line(checkpoint, files, monkeypatch):
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    output, calls, sync = files / "rows.jsonl", [], os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            batch_job(checkpoint, files)
    assert not output.exists()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: full(number) if calls else calls.append(sync(number)))
        with pytest.raises(OSError, match="No space"):
            batch_job(checkpoint, files)
    assert len(rows_of(output)) == 1


def test_the_terminal_shows_runs_in_colour_and_no_commands(checkpoint, model, capsys):
    prompt = "ask \x1b[2J"
    run(f"--checkpoint={checkpoint}", f"--prompt={prompt}", "--samples=4", "--color=always", *COMMON)
    out, err = capsys.readouterr()
    wanted = generate(*model, [BYTES.encode(prompt)], SAMPLER, 9, [0, 1, 2, 3], samples=4)
    rows = [render(BYTES, *row) for row in zip(wanted.tokens, wanted.accepted, strict=True)]
    shown = f"{QUIET}{escape(prompt)}{RESET}"
    heads = [f"{QUIET}# prompt 1, sample {i + 1}\n{RESET}" for i in range(4)]
    assert out == "".join(f"{head}{shown}{row}\n" for head, row in zip(heads, rows, strict=True))
    bare = re.sub("|".join(map(re.escape, (QUIET, RESET, *RUNS))), "", out)
    assert bare == escape(bare) and r"ask \x1b[2J" in bare
    assert err.count("\n") == 1 and "batch 1 x 4 samples; 12 query tokens a forward" in err


def test_a_stream_is_the_text_whatever_the_terminal_is(checkpoint, capsys, monkeypatch):
    command = (f"--checkpoint={checkpoint}", "--prompt=ask", *COMMON)
    run(*command, "--nostream")
    plain, _ = capsys.readouterr()
    run(*command, "--stream")
    streamed, err = capsys.readouterr()
    assert streamed == plain and plain.startswith("ask") and "\x1b" not in plain
    assert re.search(r"batch 1; 12 query tokens a forward; [0-9.]+ tokens/s, compilation", err)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    run(*command)
    terminal, _ = capsys.readouterr()
    assert "\x1b7" in terminal  # drafts were shown, so it was streamed
    settled = re.sub("\x1b7.*?\x1b8", "", terminal)
    assert re.sub("\x1b\\[[0-9]*[mK]", "", settled) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    run(*command)
    assert capsys.readouterr().out == plain


def talk(monkeypatch, text: str, *args) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    run("--chat", "--temperature=0", *COMMON, *args)


def test_turns_are_one_concatenated_prompt(checkpoint, model, monkeypatch, capsys):
    greedy = dataclasses.replace(SAMPLER, temperature=0.0)

    def answer(text: list[int]) -> list[int]:
        return generate(*model, [text], greedy, 9, [0]).tokens[0]

    first = answer(BYTES.encode("hello"))
    second = answer(BYTES.encode("hello") + first + BYTES.encode("and?"))
    fresh = answer(BYTES.encode("and?"))
    talk(monkeypatch, "hello\n\nand?\n/reset\nand?\n/quit\nnever\n", f"--checkpoint={checkpoint}", "--stop_tokens=257")
    out, err = capsys.readouterr()
    assert out == "".join(f"{escape(BYTES.decode(tokens))}\n" for tokens in (first, second, fresh))
    assert err.startswith(f"{len(first + second + fresh)} tokens in ")
    talk(monkeypatch, "hello\nand?", f"--checkpoint={checkpoint}", "--nostream")
    assert capsys.readouterr().out == "".join(f"{escape(BYTES.decode(tokens))}\n" for tokens in (first, second))


def test_a_turn_too_long_costs_the_turn_only(checkpoint, monkeypatch, capsys):
    talk(monkeypatch, f"hello\n{'x' * 5000}\nhello\n", f"--checkpoint={checkpoint}")
    out, err = capsys.readouterr()
    assert "error: prompts[0]: got 50" in err and "max_position_embeddings" in err
    assert out.count("\n") >= 2


def test_ctrl_c_in_an_answer_is_one_line(checkpoint, monkeypatch, capsys):
    def interrupted(*args, streamer=None, **options):
        streamer.put([[97]])
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_module, "generate", interrupted)
    with pytest.raises(SystemExit) as stop:
        talk(monkeypatch, "hello\n", f"--checkpoint={checkpoint}")
    assert stop.value.code == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("a\n", "error: interrupted\n")


def test_a_budget_of_anchors_is_measured_first(checkpoint, files, capsys):
    run(f"--checkpoint={checkpoint}", "--prompt=ask", "--anchors=1", "--temperature=0", *COMMON)
    first, last = capsys.readouterr().err.splitlines()
    found = re.fullmatch(r"acceptance of slots 1 .. 2: [01]\.\d\d, [01]\.\d\d; anchors \[(\d)\]", first)
    assert found and f"branch points {found[1]}, batch 1; 6 query tokens a forward" in last


def test_a_budget_of_anchors_is_chosen_by_smoothed_evidence(monkeypatch, capsys):
    """Texts that always yield six do not ask for an anchor at 6 alone (`evidence`)."""
    monkeypatch.setattr(
        engine_module, "generate", lambda *args, **options: SimpleNamespace(accepted=[[1, 6, 6, 6, 6]] * 30)
    )
    asked = {"block_size": 8, "anchors": 1, "temperature": 0.0, "min_new_tokens": 0}
    engine: Any = SimpleNamespace(model=None, variables=None, tokenizer=None, max_new_tokens=9, asked=asked)
    assert command.Engine._with_budget(engine, [[1]], 0).anchor_list == (1,)
    assert capsys.readouterr().err.endswith("anchors [1]\n")


def test_auto_chooses_once_and_a_resumed_job_keeps_the_choice(checkpoint, files, monkeypatch, capsys):
    calls = []

    def choose(model, variables, request, sampler) -> Choice:
        calls.append((len(request.prompts), request.samples))
        chosen = dataclasses.replace(sampler, mode="single_pass", block_size=3)
        return Choice(chosen, "because", (), (), {})

    monkeypatch.setattr(engine_module, "choose_sampler", choose)
    output = batch_job(checkpoint, files, "--mode=auto")
    assert calls == [(2, 2)]
    assert "auto: because\n" in capsys.readouterr().err
    whole = output.read_bytes()
    assert rows_of(output)[0]["settings"]["mode"] == "auto" and rows_of(output)[0]["ran"]["mode"] == "single_pass"
    output.write_bytes(whole[: len(whole) // 2])
    batch_job(checkpoint, files, "--mode=auto")
    assert output.read_bytes() == whole and len(calls) == 1


def test_every_field_of_the_sampler_is_a_flag():
    values = flags.FlagValues()
    command.define_flags(values)
    assert set(sampling_flags.FIELDS) < set(values)
    values(["generate"])
    asked = sampling_flags.read(values)
    assert SamplerConfig(**asked | {"stop_tokens": ()}) == SamplerConfig()
    changed = [
        "--mode=single_pass", "--block_size=4", "--anchors=1,", "--target=mix_stale", "--beta=0.25",
        "--temperature=0.5", "--top_k=5", "--top_p=0.9", "--min_p=0.1", "--repetition_penalty=1.5",
        "--draft_temperature=0", "--draft_top_k=3", "--draft_top_p=0.8", "--threshold=0.5", "--reveal=2",
        "--stop_tokens=1,2", "--stop_strings=a,b", "--stop_strings=c", "--min_new_tokens=3", "--acceptance=0.9,0.8,0.7",
    ]  # fmt: skip
    values = flags.FlagValues()
    command.define_flags(values)
    values(["generate", *changed])
    assert SamplerConfig(**sampling_flags.read(values)) == SamplerConfig(
        "single_pass", 4, (1,), "mix_stale", (0.9, 0.8, 0.7), 0.25, 0.5, 5, 0.9, 0.1, 1.5, 0.0, 3, 0.8, 0.5, 2, (1, 2),
        ("a,b", "c"), 3,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "got none, may be exactly one of --prompt, --prompts-file and --chat"),
        (["--prompt=a", "--chat"], "got --prompt and --chat"),
        (["--prompt=a", "--prompts_file=b.txt"], "got --prompt and --prompts-file"),
        (["--chat", "--samples=2"], "--samples: contradicts --chat"),
        (["--chat", "--output=x.jsonl"], "--output: contradicts --chat"),
        (["--prompt=a", "--batch=2"], "--batch: only with --prompts-file"),
        (["--prompt=a", "--stream", "--samples=2"], "--stream: contradicts --samples=2"),
        (["--prompt=a", "--stream", "--output=x.jsonl"], "--stream: contradicts --output"),
        (["--prompt=a", "--output=x.txt"], "--output: got x.txt"),
        (["--prompt=a", "--mode=autoregressive", "--compare"], "--compare: contradicts --mode=autoregressive"),
        (["--chat", "--compare"], "--compare: contradicts --chat"),
        (["--prompt=a", "--adapters=/nowhere"], "adapters /nowhere: holds no adapters.json"),
        (["--prompt=a", "--output=/nowhere/x.jsonl"], "--output /nowhere/x.jsonl: its folder does not exist"),
        (["--prompt="], "--prompt: an empty prompt"),
        (["--prompt=\udcff"], "--prompt: not a text"),
        (["--prompts_file=/nowhere.txt"], "nowhere.txt"),
        (["--prompts_file=prompts.csv"], "--prompts-file: got prompts.csv"),
        (["--prompt=a", "--checkpoint=/nowhere"], "checkpoint /nowhere: not a folder"),
        (["--prompt=a", "--tokenizer=/nowhere.json"], "/nowhere.json"),
        (["--prompt=a", "--mode=fast"], "fast"),
        (["--prompt=a", "--samples=0"], "samples"),
        (["--prompt=a", "--target=best"], "^--target: got 'best'"),
        (["--prompt=a", "--top_p=2"], "^--top_p: got 2"),
        (["--prompt=a", "--temperature=nan"], "^--temperature: got nan"),
        (["--prompt=a", "--anchors=some"], "--anchors: got 'some'"),
        (["--prompt=a", "--anchors=9"], "^--anchors: got 9"),
        (["--prompt=a", "--anchors=2", "--target=mix_fresh"], "^--anchors: .* when target is 'mix_fresh'"),
        (["--prompt=a", "--anchors=2", "--mode=two_pass"], "^--anchors: got 2"),
        (["--prompt=a", "--stop_tokens=x"], "--stop_tokens: got 'x'"),
        (["--prompt=a", "--stop_tokens=999"], "^--stop_tokens: got 999"),
        (["--chat", "--stop_tokens=999"], "^--stop_tokens: got 999"),
        (["--prompt=a", "--max_new_tokens=4096"], "max_position_embeddings"),
        (["--prompt=a", "--min_new_tokens=129"], "^--min_new_tokens: got 129"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(args, words, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("generate", "choose_sampler"):
        monkeypatch.setattr(engine_module, name, None)
    with pytest.raises((ValueError, OSError, flags.Error), match=words) as error:
        run(f"--checkpoint={checkpoint}", *args)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"one\n\ntwo\n", r"a\.txt:2: an empty prompt"),
        ("a.txt", b"", r"a\.txt: empty"),
        ("a.txt", b"one\n\xff\n", r"a\.txt: not UTF-8 \(byte 4\)"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b"\xef\xbb\xbf\r\n\n", r"a\.jsonl: empty"),
        ("a.txt", b"\xef\xbb\xbf\r\n\n", r"a\.txt: empty"),
        ("a.txt", b"one\r\n\r\ntwo", r"a\.txt:2: an empty prompt"),
        ("a.txt", "one".encode("utf-16"), r"a\.txt: not UTF-8 \(UTF-16, may be saved as UTF-8\)"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b"1" * 5000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n', r"""a\.jsonl:1: got '{"text": "x"}'"""),
        ("a.jsonl", b'"x"\n', r"a\.jsonl:1: got"),
        ("a.jsonl", b'{"prompt": ""}\n', r"a\.jsonl:1: an empty prompt"),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', r"a\.jsonl:1: not a text"),
    ],
)
def test_bad_prompt_files_are_named_with_the_line(name, content, words, checkpoint, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        run(f"--checkpoint={checkpoint}", f"--prompts_file={tmp_path / name}")


def test_a_pipe_for_a_file_does_not_hang(checkpoint, tmp_path):
    for name in ("a.txt", "tokenizer.json", "rows.jsonl", "template"):
        os.mkfifo(tmp_path / name)
    prompt = f"--prompts_file={tmp_path / 'a.txt'}"
    for flags_ in (
        [prompt],
        ["--prompt=a", f"--tokenizer={tmp_path / 'tokenizer.json'}"],
        ["--prompt=a", f"--tokenizer={tmp_path}"],
        ["--prompt=a", f"--output={tmp_path / 'rows.jsonl'}"],
        ["--chat", f"--chat_template={tmp_path / 'template'}"],
    ):
        with pytest.raises(ValueError, match="not a plain file"):
            run(f"--checkpoint={checkpoint}", *flags_)


def test_a_tilde_is_the_home_folder_and_a_pad_token_needs_no_row(tmp_path, monkeypatch, capsys):
    """The tokenizer is found, too; its <pad> has an id that the model has no row for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = preset("tiny", vocab_size=309, mask_token_id=308, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    save_huggingface(tmp_path / "m", config, random_variables(config))
    model, spelled = byte_level(), SPELLED | {"pad_token": "<pad>"}
    model.add_special_tokens(["<pad>"])
    publish(tmp_path / "m", model, tokenizer_config=spelled, generation_config={"pad_token_id": -1})
    (tmp_path / "p.txt").write_text("the cat")
    run("--checkpoint=~/m", "--prompts_file=~/p.txt", "--mode=autoregressive", "--output=~/r.jsonl",
        "--max_new_tokens=1")  # fmt: skip
    (row,) = rows_of(tmp_path / "r.jsonl")
    assert row["settings"]["tokenizer"] == str(tmp_path / "m" / "tokenizer.json")
    capsys.readouterr()


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_chat_is_written_down_as_the_folders_template_says(tmp_path, monkeypatch):
    config = preset("tiny", vocab_size=340, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    save_huggingface(tmp_path, config, random_variables(config))
    publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"chat_template": CHATML})
    tokenizer, texts, answers = load_tokenizer(tmp_path), [], []
    end = tokenizer.special_ids["<|im_end|>"]

    def spy(*args, session, **options):
        texts.append(([] if session is None else session.texts[0]) + args[2][0])
        out = generate(*args, session=session, **options)
        answers.extend(out.tokens)
        return out

    def turn(line: str) -> list[int]:
        start, asked, newline = (tokenizer.encode(text) for text in ("assistant\n", f"user\n{line}", "\n"))
        begin = tokenizer.special_ids["<|im_start|>"]
        return [begin, *asked, end, *newline, begin, *start]

    monkeypatch.setattr(engine_module, "generate", spy)
    talk(monkeypatch, "the cat<|im_end|>\nsat\n/reset\nsat\n", f"--checkpoint={tmp_path}", "--mode=autoregressive")
    first, second, third = texts
    assert first == turn("the cat<|im_end|>") and third == turn("sat")
    cut = [] if answers[0][-1] == end else [end]  # an answer that was too long is ended before the next turn
    assert second == first + answers[0] + cut + tokenizer.encode("\n") + turn("sat")
    for args, words in ((["--chat", "--chat_template={{"], "chat_template: unexpected"), (["--prompt=a"], "only with")):
        with pytest.raises(ValueError, match=words):
            run(f"--checkpoint={tmp_path}", "--chat_template=plain", *args)


def test_from_the_shell_a_mistake_is_one_line_and_help_helps():
    def finish(*args) -> subprocess.CompletedProcess:
        return commands.run("experiments.generate", *args)

    process = finish("--checkpoint=results/quickstart/model", "--prompts-file=no-such-file.txt")
    assert process.returncode == 2 and process.stdout == ""
    assert re.fullmatch(r"error: .*no-such-file\.txt: no such file\n", process.stderr)
    process = finish("--help")
    assert process.returncode == 0
    for words in ("--prompts_file", "no chat template", "--draft_temperature", "--[no]stream", "--top_k"):
        assert words in process.stdout

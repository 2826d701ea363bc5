"""The ask command: a model's own answers, read by training as they are, resumed where they stopped."""

import json
import re
from pathlib import Path

import pytest

from tests import commands
from zaya_jax import SamplerConfig, Zaya, for_decoding, generate, load_pretrained
from zaya_jax.data.builders import prepare_chats, prepare_text
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

ROOT = Path(__file__).parents[2]
MODEL = "--checkpoint=results/quickstart/model"
BYTES = ByteTokenizer()
NEW = "--max_new_tokens=24"


def ask(*args: str) -> tuple[int, str]:
    done = commands.run("experiments.ask", MODEL, *args)
    return done.returncode, done.stdout + done.stderr


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# The command's main, and for more prompts after a kill's damage: in one process, so that the second traces nothing.
TWICE = """
    import shutil, sys
    from pathlib import Path
    from absl import flags
    from experiments import ask

    flags.FLAGS(["ask", *sys.argv[2:]])
    ask.main()
    print("AGAIN", flush=True)
    output = Path(sys.argv[1])
    shutil.copy(output, output.with_name("first.jsonl"))
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\\n") + 9])
    flags.FLAGS.prompts = 6
    ask.main()
"""


def test_answers_are_the_models_and_resume(tmp_path):
    output, first = tmp_path / "answers.jsonl", tmp_path / "first.jsonl"
    args = ["--tasks=addition", "--prompts=4", "--temperatures=0,1", "--batch=2", NEW, f"--output={output}", "--seed=5"]
    done = commands.run("tests.snippet", TWICE, str(output), MODEL, *args)
    assert done.returncode == 0, done.stderr
    said, whole, rows = done.stdout.partition("AGAIN")[0], first.read_bytes(), lines_of(first)
    assert sorted((row["index"], row["sample"]) for row in rows) == [(i, j) for i in range(4) for j in range(2)]
    config, variables = load_pretrained(ROOT / "results/quickstart/model")
    model = for_decoding(Zaya(config), variables)
    for row in rows:
        assert row["prompt"] == make_task("addition").problem("train", row["index"], 5).prompt
        assert row["seed"] == 5 + 2 * row["index"] + row["sample"] and row["temperature"] == row["sample"]
        sampler = SamplerConfig("autoregressive", temperature=row["temperature"], stop_tokens=[BYTES.eos_id])
        wanted = generate(*model, [BYTES.encode(row["prompt"])], sampler, 24, row["seed"])
        assert row["tokens"] == wanted.tokens[0] and row["finish"] == wanted.finish[0]
        assert row["text"] == row["prompt"] + BYTES.decode(row["tokens"])
    assert [line.split() for line in said.splitlines() if line.startswith("addition")] == [
        ["addition", temperature, "4", "0"] for temperature in "01"
    ]
    assert len(prepare_text([first], tmp_path / "data", "train")) > 0  # as a config's mixture reads it
    # of what a kill left, the same again, and more of the same
    assert set(whole.splitlines()) < set(output.read_bytes().splitlines()) and len(lines_of(output)) == 12
    status, said = ask(*args, "--prompts=6", "--seed=6")
    assert status == 2 and "made with other settings: seed (5 there, 6 now)" in said


@pytest.mark.slow
def test_a_chats_answer_without_an_end_is_left_out(tmp_path):
    """The quickstart's model never saw a chat; what it writes in one is written down all the same."""
    output, prompts = tmp_path / "answers.jsonl", tmp_path / "prompts.txt"
    prompts.write_text("5+5=\n12+30=\n")
    args = [f"--prompts_file={prompts}", "--chat", "--chat_template=plain", "--temperatures=0", f"--output={output}"]
    status, said = ask(*args, NEW)
    assert status == 0, said
    ended, cut = lines_of(output), lines_of(tmp_path / "answers.unfinished.jsonl")
    assert len(ended) + len(cut) == 2 and all(row["finish"] == "length" for row in cut)
    for row in ended + cut:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"] == row["prompt"]
    if ended:
        assert len(prepare_chats([output], tmp_path / "data", "train")) > 0
    assert ask(*args, NEW)[0] == 0 and lines_of(output) == ended  # nothing is asked twice


def test_what_a_chat_was_written_with_is_one_of_an_answers_settings():
    # in a process of its own: its flags are absl's, which another command's may have taken
    code = """
        from absl import flags
        from experiments import ask
        from zaya_jax.text.templates import load_template
        from zaya_jax.text.tokenizers import ByteTokenizer

        flags.FLAGS(["ask", "--chat", "--tasks=addition"])
        plain, other = (load_template(t, ByteTokenizer()) for t in ("plain", "{{ messages[0].content }}"))
        settings = [ask.settings_of("bytes", template) for template in (plain, other, plain)]
        print(settings[0] == settings[2], settings[0] == settings[1])
    """
    done = commands.run("tests.snippet", code)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.slow
def test_the_beginnings_of_texts_are_continued(tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time there was a number. " * 40)
    output = tmp_path / "continued.jsonl"
    args = [f"--text={tmp_path / 'book.txt'}", "--prefix_tokens=10", "--prompts=2", "--temperatures=1"]
    status, said = ask(*args, NEW, f"--output={output}")
    assert status == 0, said
    rows = lines_of(output)
    assert rows and all(len(BYTES.encode(row["prompt"])) == 10 and row["text"] != row["prompt"] for row in rows)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "got none, may be exactly one of --tasks, --prompts_file, --text"),
        (["--tasks=addition", "--text=stdlib"], "got --tasks and --text, may be exactly one of"),
        (["--tasks=additions"], "task: got 'additions'"),
        (["--tasks=addition", "--temperatures=hot"], "--temperatures: got hot, may be numbers"),
        (["--tasks=addition", "--temperatures=1,1"], "--temperatures: got 1,1, may be one or more, each once"),
        (["--tasks=addition", "--temperatures=-1"], "--temperatures: got -1.0"),
        (["--tasks=addition", "--chat"], "--chat: .* has no chat template"),
        (["--tasks=addition", "--chat_template=plain"], "--chat_template: only with --chat"),
        (["--text=/no/such"], "/no/such"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(args, words, tmp_path):
    status, said = ask(*args, f"--output={tmp_path / 'a.jsonl'}")
    assert status == 2 and said.count("\n") == 1 and re.search(words, said), said
    assert not list(tmp_path.iterdir())


def test_an_output_of_another_kind_is_refused(tmp_path):
    assert "--output: got rows.txt, may be a FILE.jsonl" in ask("--tasks=addition", "--output=rows.txt")[1]
    assert "--output: missing, may be a FILE.jsonl" in ask("--tasks=addition")[1]

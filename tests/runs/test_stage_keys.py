"""Stages are shared by what their inputs hold, not by where these lie."""

import json
import os
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.experiments import tiny
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax.data import contents
from zaya_jax.errors import UserError
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.configuration.stage_keys import stage_keys
from zaya_jax.text.tokenizers import BPETokenizer, load_tokenizer

CHAT = {"messages": [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A folder with one input of every kind."""
    folder = tmp_path / "here"
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "a.txt").write_text("one text")
    (folder / "texts" / "b.jsonl").write_text('{"text": "two", "content": "three"}\n')
    (folder / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    (folder / "template.jinja").write_text(TEMPLATE)
    BPETokenizer.train(["text"], 260).save(folder / "tokenizer.json")
    (folder / "start").mkdir()
    (folder / "start" / "weights").write_bytes(b"weights")
    return folder


def keys(folder: Path, key: str = "text", memory: Path | None = None, date: str | None = None) -> dict[str, str]:
    config = tiny.get_config()
    with config.unlocked():
        config.tokenizer = str(folder / "tokenizer.json")
        config.data.chat_template = str(folder / "template.jinja")
        config.data.chat_date = date
        texts = {"text": {"paths": [str(folder / "texts")], "key": key}, "weight": 1.0}
        config.data.mixture = (*config.data.mixture[:1], ConfigDict(texts))
        config.control.mixture = (ConfigDict({"chat": [str(folder / "chats.jsonl")]}),)
        config.pretrain.start = str(folder / "start")
    return stage_keys(config, settings.read(config), memory)


def test_a_stage_has_one_key_wherever_its_files_lie(inputs, tmp_path):
    base = keys(inputs)
    assert len(set(base.values())) == 3
    moved = tmp_path / "there"
    shutil.copytree(inputs, moved)
    (moved / "texts" / "a.txt").rename(moved / "texts" / "z.txt")  # neither names nor their order reach training
    os.utime(moved / "start" / "weights", (0, 0))
    assert keys(moved) == base


@pytest.mark.parametrize(
    ("file", "text", "stages"),
    [
        ("texts/a.txt", "another text", {"pretrain", "convert", "control"}),
        ("texts/new.txt", "one more", {"pretrain", "convert", "control"}),
        ("texts/b.jsonl", '{"text": "two", "content": "four"}\n', {"pretrain", "convert", "control"}),
        ("chats.jsonl", json.dumps(CHAT) + "\n" + json.dumps(CHAT) + "\n", {"control"}),
        ("template.jinja", TEMPLATE.replace(": ", ":"), {"pretrain", "convert", "control"}),
        ("start/weights", "Weights", {"pretrain", "convert", "control"}),
        ("start/more", "", {"pretrain", "convert", "control"}),
    ],
)
def test_a_stage_has_another_key_where_a_file_holds_something_else(inputs, file, text, stages):
    base = keys(inputs)
    (inputs / file).write_text(text)
    other = keys(inputs)
    assert {name for name in base if other[name] != base[name]} == stages


def test_another_tokenizer_or_another_field_of_the_same_files_is_another_key(inputs):
    base = keys(inputs)
    assert not set(base.values()) & set(keys(inputs, key="content").values())
    model = json.loads((inputs / "tokenizer.json").read_text())
    (inputs / "tokenizer.json").write_text(json.dumps(model, indent=7))
    assert keys(inputs) == base  # the same tokenizer in other words
    vocabulary = model["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (inputs / "tokenizer.json").write_text(json.dumps(model))
    assert not set(base.values()) & set(keys(inputs).values())


def test_large_files_are_read_once_until_they_change(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "REMEMBERED", 0)
    memory = tmp_path / "stages" / "digests.json"
    base = keys(inputs, memory=memory)
    reads: list[Path] = []
    digest = contents.blake2b_of

    def blake2b_of(path: Path) -> str:
        if path.name in ("weights", "a.txt", "b.jsonl"):
            reads.append(path)
        return digest(path)

    monkeypatch.setattr(contents, "blake2b_of", blake2b_of)
    assert contents.Digests(memory).of_folder(inputs / "start") == contents.Digests().of_folder(inputs / "start")
    assert len(reads) == 1  # by the one that remembers nothing
    times = (inputs / "start" / "weights").stat()
    (inputs / "start" / "weights").write_bytes(b"Weights")
    os.utime(inputs / "start" / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert keys(inputs, memory=memory)["pretrain"] != base["pretrain"]  # as large and, it says, as old as before
    for damaged in ("[]", "{", '{"a": 1}'):
        memory.write_text(damaged)
        assert contents.Digests(memory).of_file(inputs / "chats.jsonl") == contents.Digests().of_file(
            inputs / "chats.jsonl"
        )


def test_the_standard_library_is_what_this_interpreter_has(monkeypatch, tmp_path):
    digests = contents.Digests()
    own, with_tests = digests.of_texts("stdlib"), digests.of_texts("stdlib+tests")
    assert own != with_tests and own == contents.Digests().of_texts("stdlib")
    (tmp_path / "a.py").write_text("a = 1")
    monkeypatch.setattr(contents.sysconfig, "get_path", lambda name: str(tmp_path))
    assert digests.of_texts("stdlib") not in (own, with_tests)


def test_a_template_that_writes_the_date_needs_one(inputs):
    """A run that resumes tomorrow would read other text."""
    dated = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
    before = keys(inputs)
    (inputs / "template.jinja").write_text(dated)
    with pytest.raises(UserError, match=r"^data\.chat_date: got None, may be a date such as '2026-11-28'"):
        keys(inputs)
    first, other = (keys(inputs, date=date) for date in ("2024-07-26", "2024-07-27"))
    assert not set(first.values()) & set(other.values()) and not set(first.values()) & set(before.values())
    with pytest.raises(UserError, match=r"^data\.chat_date: got 'tomorrow', may be a date"):
        keys(inputs, date="tomorrow")


def test_a_padding_token_that_no_text_has_needs_no_row(tmp_path):
    model = byte_level()
    rows = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED)).vocab_size
    model.add_special_tokens(["<pad>"])
    config = tiny.get_config()
    with config.unlocked():
        config.tokenizer = str(publish(tmp_path, model, tokenizer_config=SPELLED | {"pad_token": "<pad>"}))
        config.model.update(vocab_size=rows, mask_token_id=model.token_to_id("<|im_start|>"))
    tokenizer = settings.read(config).tokenizer
    assert tokenizer.vocab_size == rows + 1 and tokenizer.pad_id == tokenizer.eos_id < rows
    with config.unlocked():
        config.model.update(vocab_size=rows - 1)
    with pytest.raises(UserError, match=f"^model.vocab_size: got {rows - 1}, may be at least the tokenizer's {rows}$"):
        settings.read(config)

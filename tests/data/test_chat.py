"""Chats: what is answer token by token, what trimming keeps, what is refused, and packing without a cut."""

import json
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.text.published import SPELLED, byte_level, publish
from zaya_jax.data.builders import LocalChats, prepare_chats, prepare_text
from zaya_jax.data.chat import ChatSource, chat_text, check_messages, encode_chat, survey
from zaya_jax.data.pipeline import eval_batches, make_train_iterator
from zaya_jax.errors import UserError
from zaya_jax.tasks import ChatTask, TaskSource, make_task
from zaya_jax.text.templates import folder_template, load_template
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, load_tokenizer

TOKENIZER = ByteTokenizer()
PLAIN = load_template("plain", TOKENIZER)
# As many published ones are: a BOS, a turn marker of its own, content trimmed, the end of a turn a special token.
MARKED = load_template(
    "{{ bos_token }}{% for m in messages %}<start>{{ m.role }}\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}",
    TOKENIZER,
)


def chat(*contents: str, system: str = "") -> list[dict[str, str]]:
    """Contents in turn the user's and the assistant's."""
    turns = [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def written(*parts: str | int) -> list[int]:
    return [i for part in parts for i in ([part] if isinstance(part, int) else part.encode())]


def test_answers_are_the_assistants_words_and_the_end_of_its_turns():
    eos, bos = TOKENIZER.eos_id, TOKENIZER.bos_id
    given_1, given_2 = "<|system|>\ns\n<|user|>\nhi\n<|assistant|>\n", "\n<|user|>\nmore\n<|assistant|>\n"
    encoded = encode_chat(chat("hi", "you", "more", "no", "left out", system="s"), PLAIN, TOKENIZER, 999)
    assert encoded.ids == written(given_1, "you", eos, given_2, "no", eos)
    assert encoded.answer == [0] * len(given_1) + [1] * 4 + [0] * len(given_2) + [1] * 3
    assert not encoded.trimmed

    # One user turn here ends with the same special token, which is no answer.
    encoded = encode_chat(chat("hi", " you ", "more", "no"), MARKED, TOKENIZER, 999)
    first, second = written(bos, "<start>user\nhi", eos, "\n<start>assistant\n"), written("\n<start>user\nmore", eos)
    second += written("\n<start>assistant\n")
    assert encoded.ids == [*first, *written("you", eos), *second, *written("no", eos)]
    assert encoded.answer == [0] * len(first) + [1] * 4 + [0] * len(second) + [1] * 3


def test_what_is_given_is_what_a_sampler_would_be_given():
    tokenizer = BPETokenizer.train(["<|user|>\nhi there<|assistant|>\nyou there\n" * 50], 275)
    messages = chat("hi there", "you there")
    encoded = encode_chat(messages, PLAIN, tokenizer, 999)
    prompt = PLAIN.prompt(messages[:1], tokenizer)
    assert prompt == tokenizer.encode("<|user|>\nhi there\n<|assistant|>\n")
    assert encoded.ids == [*prompt, *tokenizer.encode("you there"), tokenizer.eos_id]
    assert encoded.answer == [int(i >= len(prompt)) for i in range(len(encoded.ids))]
    prompt = MARKED.prompt(messages[:1], tokenizer)
    assert prompt[0] == tokenizer.bos_id and prompt.count(tokenizer.eos_id) == 1


THOUGHT = chat("q", "<think>first</think>a", "r", "<think>0123456789</think>answer")


@pytest.mark.parametrize("over", range(11))
def test_trimming_takes_the_tail_of_the_last_thinking_block_alone(over):
    whole = encode_chat(THOUGHT, PLAIN, TOKENIZER, 999)
    fitted = encode_chat(THOUGHT, PLAIN, TOKENIZER, len(whole.ids) - over)
    kept = chat("q", "<think>first</think>a", "r", f"<think>{'0123456789'[: 10 - over]}</think>answer")
    assert fitted == encode_chat(kept, PLAIN, TOKENIZER, 999)._replace(trimmed=over > 0)


def test_what_does_not_fit_without_its_thinking_is_dropped():
    size = len(encode_chat(THOUGHT, PLAIN, TOKENIZER, 999).ids)
    assert encode_chat(THOUGHT, PLAIN, TOKENIZER, size - 11) is None
    assert encode_chat(chat("q", "a long answer"), PLAIN, TOKENIZER, 30) is None
    # A block of the user's, or one never closed, is no thinking.
    assert encode_chat(chat("<think>01234567</think>", "a<think>b"), PLAIN, TOKENIZER, 50) is None
    other = chat("q", "[0123456789]a")
    assert encode_chat(other, PLAIN, TOKENIZER, 33) is None
    fitted = encode_chat(other, PLAIN, TOKENIZER, 33, thinking=("[", "]"))
    assert bytes(fitted.ids[-8:-1]) == b"[0123]a" and len(fitted.ids) == 33


@given(st.lists(st.text(max_size=8).filter(lambda t: "\0" not in t), min_size=2, max_size=6), st.integers(1, 120))
def test_any_chat_is_whole_trimmed_or_dropped(contents, row_length):
    messages = chat(*contents[:-1], f"<think>{contents[-1]}</think>b")
    messages = messages if messages[-1]["role"] == "assistant" else chat("", *contents, "<think></think>")
    whole, fitted = (encode_chat(messages, PLAIN, TOKENIZER, size) for size in (10**6, row_length))
    if len(whole.ids) <= row_length:
        assert fitted == whole
    elif fitted is not None:
        assert len(fitted.ids) == len(fitted.answer) == row_length and fitted.trimmed
        assert sum(fitted.answer) == sum(whole.answer) - (len(whole.ids) - row_length)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "chat_template: unexpected"),
        ("{{ messages[0].content.__class__.__mro__ }}", "chat_template: access to attribute '__class__'"),
        ("{{ messages.clear() }}", "chat_template: access to attribute 'clear'"),
        ("{{ raise_exception('not so') }}", "chat_template: not so"),
    ],
)
def test_bad_templates_are_refused_at_once(template, message):
    with pytest.raises(ValueError) as error:
        load_template(template, TOKENIZER)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no {{ eos_token }} after"),
        ("{{ messages | length }}{{ eos_token }}", "message 2 of a chat changes how those before it"),
        ("{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ eos_token }}", "one only"),
    ],
)
def test_templates_that_cannot_be_trained_on_are_refused_then(template, message):
    template = load_template(template, TOKENIZER)
    source = ChatSource([{"text": json.dumps(chat("a", "b")), "name": "chats.jsonl:7"}], template)
    assert source.encode(source[0], TOKENIZER, 99) is None
    with pytest.raises(ValueError) as error:
        survey(source, TOKENIZER, 99)
    assert message in str(error.value) and "(first in chat chats.jsonl:7; 1 of 1 chats are refused)" in str(error.value)


def test_a_chat_that_the_template_refuses_is_left_out_and_counted(tmp_path, capsys):
    alternate = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
        "{% endif %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    chats = [chat(f"{i}?", f"{i}!") for i in range(200)]
    chats[70].insert(0, {"role": "assistant", "content": "Hello"})
    paths = write_chats(tmp_path / "chats.jsonl", chats)
    source = ChatSource(prepare_chats(paths, tmp_path / "data", "train"), load_template(alternate, TOKENIZER))
    found = survey(source, TOKENIZER, 96)
    assert (found.chats, found.dropped, found.refused) == (len(source), 1, 1)
    said = capsys.readouterr().out
    assert "1 of " in said and "chats.jsonl:71: chat_template: alternate" in said
    assert len(list(eval_batches(source, TOKENIZER, 96, 4))) > 0  # and no batch ends in it


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "must be parts of type 'text'"),
        ({"role": "user", "content": None}, "must be an object with the strings 'role' and 'content'"),
        ({"role": "user", "content": "a", "name": "\0"}, "holds a NUL"),
    ],
)
def test_messages_hold_words(message, words):
    with pytest.raises(ValueError, match=words):
        check_messages([message, *chat("a", "b")], "here")
    kept = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "1"}]
    assert check_messages(kept, "here") == kept


def test_templates_are_built_in_files_or_texts(tmp_path):
    (tmp_path / "own.jinja").write_text(PLAIN.source)
    assert load_template(str(tmp_path / "own.jinja"), TOKENIZER) == PLAIN == load_template(PLAIN.source, TOKENIZER)
    with pytest.raises(FileNotFoundError, match="chat_template: got 'chatml', may be \"plain\""):
        load_template("chatml", TOKENIZER)


def write_chats(path, chats) -> list[str]:
    path.write_text("".join(json.dumps({"messages": messages, "id": 1}) + "\n" for messages in chats))
    return [str(path)]


def test_chats_of_a_file_become_rows_without_a_cut(tmp_path):
    chats = [chat(f"{i}?", f"<think>{'t' * (i * 37 % 90)}</think>{i}!") for i in range(300)]
    paths = write_chats(tmp_path / "chats.jsonl", chats)
    source = ChatSource(prepare_chats(paths, tmp_path / "data", "train"), PLAIN)
    assert 250 < len(source) < 300
    expected = {tuple(source.encode(source[i], TOKENIZER, 96).ids) for i in range(len(source))}
    iterator = make_train_iterator([(source, 1.0)], TOKENIZER, 96, 8, seed=0, packing="best_fit")
    state, seen = json.dumps(iterator.get_state()), set()
    batches = list(islice(iterator, 60))
    for batch in batches:
        for tokens, document, answer in zip(*(batch[name] for name in ("tokens", "document", "answer")), strict=True):
            for number in range(document.max() + 1):
                ids = tokens[document == number]
                seen.add(tuple(ids.tolist()))
                assert answer[document == number].sum() == len(ids) - bytes(ids[:-1].tolist()).index(b"<think>")
    assert seen == expected
    iterator.set_state(json.loads(state))
    again = list(islice(iterator, 60))
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(batches, again, strict=True) for name in a)

    one, two = survey(source, TOKENIZER, 999), survey(source, TOKENIZER, 96, limit=100)
    assert (one.trimmed, one.dropped) == (0, 0) and two.chats == 100 and two.trimmed > 10 and two.dropped == 0
    with pytest.raises(ValueError, match=r"row_length: got 30, may be more: none of \d+ chats fits"):
        survey(source, TOKENIZER, 30)


def test_a_tasks_problems_are_chats_too():
    source = ChatSource(TaskSource(make_task("addition", digits=2), "train", 0, 50), PLAIN)
    element = source[7]
    encoded = source.encode(element, TOKENIZER, 128)
    solution = element["text"].removeprefix(element["prompt"]).rstrip("\n")
    prompt = f"<|user|>\n{element['prompt']}\n<|assistant|>\n"
    assert encoded.ids == written(prompt, solution, TOKENIZER.eos_id)
    batch = next(iter(eval_batches(source, TOKENIZER, 128, 4)))
    assert batch["answer"].sum() > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"messages": []}', "must be an object whose field 'messages' is a list"),
        ('{"text": "a"}', "must be an object whose field 'messages' is a list"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\]: must be an object with the strings"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "none is an assistant's"),
        ('{"messages": [{"role": "assistant", "content": "\\u0000eos"}]}', r"messages\[0\]: holds a NUL"),
        ('{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "holds a lone surrogate"),
    ],
)
def test_a_line_that_is_no_chat_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps({'messages': chat('a', 'b')})}\n{line}\n")
    with pytest.raises(ValueError, match=f"bad.jsonl:2:? ?.*{message}"):
        prepare_chats([str(path)], tmp_path / "data", "train")
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_only_jsonl_files_hold_chats(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.txt is no \.jsonl file of chats"):
        prepare_chats([str(tmp_path / "a.txt")], tmp_path / "data", "train")


def test_a_task_asked_in_a_chat_is_the_same_task():
    task = make_task("addition", digits=2)
    asked = ChatTask(task, PLAIN)
    for split in ("validation", "test"):
        for problem, plain in zip(asked.problems(split, 5, 1), task.problems(split, 5, 1), strict=True):
            assert problem == plain and task.encode(problem, TOKENIZER) == written(plain.prompt)
            assert asked.encode(problem, TOKENIZER) == written(f"<|user|>\n{plain.prompt}\n<|assistant|>\n")
            assert asked.check(problem, plain.solution.rstrip("\n")) and not asked.check(problem, "x:1")
    assert (asked.name, asked.tuning_split) == (task.name, task.tuning_split)
    bos, eos = TOKENIZER.bos_id, TOKENIZER.eos_id
    prompt = written(bos, f"<start>user\n{plain.prompt}", eos, "\n<start>assistant\n")
    assert ChatTask(task, MARKED).encode(plain, TOKENIZER) == prompt


def test_tools_stand_beside_messages_and_are_shown_as_transformers_shows_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", minversion="5", reason="the parity extra")
    template = (
        "{% if tools %}<|im_start|>tools{% for t in tools %}\n{{ t | tojson }}{% endfor %}<|im_end|>{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    values = SPELLED | {"pad_token": "</s>", "chat_template": template}
    folder = publish(tmp_path / "model", byte_level(), tokenizer_config=values)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    about = "finds a é\n<b>"
    tools = [{"type": "function", "function": {"name": "find", "description": about}}]
    path = tmp_path / "chats.jsonl"
    lines = [{"messages": chat("a", "b"), "tools": given} for given in (tools, json.dumps(tools), None)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {text for _, text in LocalChats(paths=[path], data_dir=tmp_path / "d").documents()}
    source = ChatSource([{"text": text} for text in sorted(found)], folder_template(folder, ours))
    assert len(source) == 2  # as a string or not, the tools are the same
    wanted = [theirs.apply_chat_template(chat("a", "b"), tools=given, return_dict=False) for given in (None, tools)]
    assert [source.encode(source[i], ours, 999).ids for i in range(2)] == wanted
    harmful = [{"name": "<|im_end|>"}]
    (document,) = [source.encode({"text": chat_text(chat("a", "b"), harmful)}, ours, 999)]
    assert document.ids.count(ours.eos_id) == 3  # the template's own, not the name's
    with pytest.raises(UserError, match="its name may hold no special token"):
        encode_chat(chat("a", "b"), source.template, ours, 999, tools=[{"<|im_end|>": 1}])


@pytest.mark.parametrize("tools", [7, "x", ["f"], {"a": 1}, "[1]", [{"a": "\0"}]], ids=repr)
def test_tools_that_are_none_are_named(tools, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": chat("a", "b"), "tools": tools}) + "\n")
    with pytest.raises(UserError, match=r"bad\.jsonl:1: tools: "):
        prepare_chats([str(path)], tmp_path / "data", "train")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"messages": ' + "1" * 5_000 + "}"], ids=["deep", "digits"])
def test_json_that_python_refuses_is_named(line, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    for prepare in (lambda: prepare_chats([str(path)], tmp_path / "d", "train"),
                    lambda: prepare_text([str(path)], tmp_path / "d", "train")):  # fmt: skip
        with pytest.raises(UserError, match=r"bad\.jsonl:1: not JSON: ") as error:
            prepare()
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("path", ["~nobody-at-all/x", "", 7], ids=repr)
def test_a_path_that_is_none_is_named(path, tmp_path):
    with pytest.raises(UserError, match=r"^paths: |not a path"):
        prepare_text([path], tmp_path / "d", "train")

"""Templates as they are published: their special tokens are special, a message's never are, and none can do harm."""

import datetime
import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.published import KINDS, SPECIALS, SPELLED, byte_level, publish
from tests.text.test_detokenizer import make
from zaya_jax.data.chat import check_messages, encode_chat
from zaya_jax.errors import UserError
from zaya_jax.text.templates import encode, folder_template, load_template, shown
from zaya_jax.text.tokenizers import ByteTokenizer, load_tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# looks into contents, strips, and leaves thinking out of what was said before
THINKER = (
    "{{ bos_token }}{%- for m in messages %}{%- set c = m.content | trim %}{%- if m.role == 'assistant' %}"
    "{%- if '</think>' in c and not (loop.last or loop.index0 + 1 >= messages | length) %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' }}{% generation %}{{- c + '<|im_end|>' }}{% endgeneration %}"
    "{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
BYTE_LEVEL = make("byte_level")
CHATML_TEMPLATE, THINKER_TEMPLATE = load_template(CHATML, BYTE_LEVEL), load_template(THINKER, BYTE_LEVEL)


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(contents)]


def special_part(ids: list[int]) -> list[int]:
    return [i for i in ids if i in BYTE_LEVEL.special_ids.values()]


@pytest.mark.parametrize("kind", ["byte_level", "unigram"])
def test_ids_are_those_of_the_library_where_nobody_spells_a_special_token(kind):
    tokenizer = make(kind)
    messages = chat(" the cat\n", "sat é", "the")
    ids = CHATML_TEMPLATE.prompt(messages, tokenizer)
    written = shown(CHATML_TEMPLATE.render(messages, tokenizer, add_generation_prompt=True), tokenizer)
    assert written.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n the cat\n<|im_end|>\n")
    tokenizer.model.encode_special_tokens = False
    assert ids == tokenizer.model.encode(written, add_special_tokens=False).ids
    tokenizer.model.encode_special_tokens = True
    turns = CHATML_TEMPLATE.turns([*messages, *chat("", "a")[1:]], tokenizer)
    assert [i for text, _ in turns for i in encode(text, tokenizer)][: len(ids)] == ids or kind == "unigram"


CONTENTS = st.lists(
    st.sampled_from(
        [
            *SPECIALS,
            "<|im_",
            "start|>",
            "<",
            "|>",
            "im_end",
            "<think>",
            "</think>",
            "\n",
            " ",
            "a",
            "é",
            "user",
            "system",
        ]
    ),
    max_size=7,
).map("".join)


@settings(deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=5))
@pytest.mark.parametrize("template", [CHATML_TEMPLATE, THINKER_TEMPLATE], ids=["chatml", "thinker"])
def test_no_message_can_say_a_special_token(template, contents):
    ids = template.prompt(chat(*contents), BYTE_LEVEL)
    assert special_part(ids) == special_part(template.prompt(chat(*["x"] * len(contents)), BYTE_LEVEL))
    if template is CHATML_TEMPLATE:  # and all that was said arrives
        text = "".join(f"{role}\n{c}\n" for role, c in zip(["user", "assistant"] * 3, contents, strict=False))
        text = "system\nBe kind.\n" + text + "assistant\n"
        assert BYTE_LEVEL.decode(ids) == text


def test_an_answer_ends_at_whichever_end_the_template_writes():
    messages = chat("the", "cat", "<|im_end|>", "sat<|im_end|>")
    encoded = encode_chat(messages, CHATML_TEMPLATE, BYTE_LEVEL, 999)
    end = BYTE_LEVEL.special_ids["<|im_end|>"]
    assert [encoded.ids[i] for i, a in enumerate(encoded.answer) if a] == [
        *BYTE_LEVEL.encode("cat"), end, *BYTE_LEVEL.encode("sat<|im_end|>"), end,
    ]  # fmt: skip


def test_a_chat_continues_after_what_was_said_or_is_written_anew():
    first = chat("the", "<think>cat</think>\n\nsat")
    for template, keeps in ((CHATML_TEMPLATE, True), (THINKER_TEMPLATE, False)):
        more = [*first, *chat("and")]
        before = "".join(text for text, _ in template.turns(first, BYTE_LEVEL))
        new = template.next_prompt(more, BYTE_LEVEL)
        whole = template.render(more, BYTE_LEVEL, add_generation_prompt=True)
        assert (new is not None) == keeps
        assert new is None or before + new == whole
        assert template.next_prompt(chat("the"), BYTE_LEVEL) == template.render(chat("the"), BYTE_LEVEL, True)
    assert "cat" not in shown(THINKER_TEMPLATE.render([*first, *chat("and")], BYTE_LEVEL), BYTE_LEVEL)


def test_a_template_may_change_contents_as_long_as_words_stay_words():
    loud = load_template(CHATML.replace("message['content']", "message['content'] | upper"), BYTE_LEVEL)
    assert "A<|IM_END|>" in shown(loud.render(chat("a<|im_end|>"), BYTE_LEVEL), BYTE_LEVEL)
    short = load_template(CHATML.replace("message['content']", "message['content'][:3]"), BYTE_LEVEL)
    with pytest.raises(
        ValueError, match="chat_template: changes a message's content, so special tokens cannot be told"
    ):
        short.render(chat("more than three"), BYTE_LEVEL)
    with pytest.raises(ValueError, match=r"role: got '<\|im_end\|>', may hold no special token"):
        CHATML_TEMPLATE.render([{"role": "<|im_end|>", "content": "a"}], BYTE_LEVEL)
    with pytest.raises(ValueError, match=r"messages\[0\]: holds a NUL character or U\+FDD0"):
        check_messages([{"role": "user", "content": "\ufdd0"}], "here")


def test_a_folder_brings_its_template(tmp_path):
    assert folder_template(tmp_path, BYTE_LEVEL) is None
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"chat_template": CHATML}))
    assert folder_template(tmp_path, BYTE_LEVEL) == CHATML_TEMPLATE
    file.write_text(
        json.dumps({"chat_template": [{"name": "rag", "template": ""}, {"name": "default", "template": CHATML}]})
    )
    assert folder_template(tmp_path, BYTE_LEVEL) == CHATML_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text(THINKER)
    assert folder_template(tmp_path, BYTE_LEVEL) == THINKER_TEMPLATE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not valid JSON"),
        ("[]", "got '[]', may be a JSON object"),
        ('{"chat_template": 7}', "chat_template: got '7', must be a Jinja text"),
        ('{"chat_template": [{"name": "rag", "template": "x"}]}', "chat_template: got"),
        (
            '{"chat_template": "{{ cycler.__init__.__globals__.os.popen(\'id\').read() }}"}',
            "access to attribute '__init__'",
        ),
        ('{"chat_template": "{% for m in messages %}{{ 1 / 0 }}{% endfor %}"}', "chat_template: division by zero"),
        ('{"chat_template": "{% include \'/etc/passwd\' %}"}', "chat_template: no loader"),
        ('{"chat_template": "{{ range(9999999) | list }}"}', "chat_template: Range too big"),
        ('{"chat_template": ""}', "chat_template: got '', which writes nothing for a question"),
        ('{"chat_template": "{{ messages[7:] | join }}"}', "which writes nothing for a question"),
    ],
)
def test_a_folders_bad_template_is_named_and_does_nothing(content, message, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError) as error:
        folder_template(tmp_path, BYTE_LEVEL)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chats_ids_are_those_of_the_whole_text_in_the_library(kind):
    """Also where every text, part or segment gets a space in front, and where tokens follow tokens."""
    tokenizer, library = make(kind), KINDS[kind]()
    template = load_template(
        "{{ bos_token }}" + CHATML.replace("'\n' }}{% endif %}", "'\n' }}<s>{% endif %}"), tokenizer
    )
    messages = chat("the cat", "a cat", " the", "cat ")
    written = shown(template.render(messages, tokenizer), tokenizer)
    ids = encode(template.render(messages, tokenizer), tokenizer)
    assert ids == library.encode(written, add_special_tokens=False).ids
    encoded = encode_chat(messages, CHATML_TEMPLATE, tokenizer, 999)
    if kind in ("byte_level", "fallback_bpe"):  # without merges across the border of prompt and answer
        written = "".join(shown(text, tokenizer) for text, _ in CHATML_TEMPLATE.turns(messages, tokenizer))
        assert encoded.ids == library.encode(written, add_special_tokens=False).ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe", "unigram"])
def test_flags_of_special_tokens_count(kind, flag, tmp_path):
    library = KINDS[kind]()
    tokens = [tokenizers.AddedToken(t, special=True, **({"normalized": False} | {flag: True})) for t in SPECIALS]
    library.add_special_tokens(tokens)
    tokenizer = load_tokenizer(publish(tmp_path, library, tokenizer_config=SPELLED))
    template = load_template("<s>" + CHATML.replace("'<|im_end|>'", "' <|im_end|> '"), tokenizer)
    messages = chat("the cat\n", " a cat", "the ")
    rendered = template.render(messages, tokenizer, add_generation_prompt=True)
    want = library.encode(shown(rendered, tokenizer), add_special_tokens=False).ids
    assert template.prompt(messages, tokenizer) == want
    # a later part of a chat, after a special token: what the library writes there
    end = tokenizer.special_ids["<|im_end|>"]
    whole = library.encode("the<|im_end|> the cat <s> a", add_special_tokens=False).ids
    later = encode(f" the cat \0{tokenizer.bos_id}\0 a", tokenizer, start=False, after=end)
    assert end not in whole or whole[-len(later) - 1 :] == [end, *later]


def special_in(tokenizer, ids):
    return [i for i in ids if i in tokenizer.special_ids.values()]


def test_words_that_spell_a_special_token_stay_words_beside_tokens_that_strip(tmp_path):
    library = byte_level()
    library.add_special_tokens([tokenizers.AddedToken("<s>", special=True, normalized=False, lstrip=True, rstrip=True)])
    tokenizer = load_tokenizer(publish(tmp_path, library, tokenizer_config=SPELLED))
    template = load_template("{% for m in messages %} <s> {{ m.content }} {{ eos_token }}{% endfor %}", tokenizer)
    ids = template.prompt(chat("a <s> b"), tokenizer)
    assert ids == [
        tokenizer.bos_id, *tokenizer.encode("a "), *tokenizer.encode("<"), *tokenizer.encode("s> b "), tokenizer.eos_id
    ]  # fmt: skip


QWEN3 = (  # an empty thinking block before the last answer only
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
R1 = (  # opened in the generation prompt
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.mark.parametrize("source", [QWEN3, R1], ids=["qwen3", "r1"])
def test_templates_that_rewrite_thinking_ask_but_do_not_train(source):
    template = load_template(source, BYTE_LEVEL)
    prompt = shown(template.render(chat("Hi"), BYTE_LEVEL, add_generation_prompt=True), BYTE_LEVEL)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n" + "<think>\n" * (source == R1)
    with pytest.raises(ValueError, match="message 4 of a chat changes" if source == QWEN3 else "message 2 of a chat"):
        encode_chat(chat("a", "b", "c", "d"), template, BYTE_LEVEL, 999)
    assert template.next_prompt(chat("a", "b", "c", "d", "e"), BYTE_LEVEL) is None  # written anew
    if source == QWEN3:
        assert encode_chat(chat("a", "b"), template, BYTE_LEVEL, 999) is not None


def test_templates_see_what_transformers_shows_them():
    bytes_ = ByteTokenizer()

    def written(source, messages=None, tokenizer=bytes_):
        template = load_template(source + "{{ eos_token }}", tokenizer)
        return shown(template.render(messages or chat("Hi"), tokenizer, True), tokenizer)

    assert written("{{ strftime_now('%Y') }}").isdigit()
    assert written("yes{% if tools is not none or documents is not none %} no{% endif %}") == "yes"
    assert written("{{ messages | tojson(indent=1, separators=(',', ':'), sort_keys=true) }}").startswith("[\n {")
    assert written(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 1 %}{% break %}{% endfor %}{{ ns.n }}"
    )
    thought = [{"role": "assistant", "content": None, "thinking": "hm", "tool_calls": [{"name": "f"}]}]
    text = written(
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.tool_calls }}{{ m.content is defined }}{% endfor %}",
        thought,
    )
    assert text == "hm[{'name': 'f'}]False"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a<|im_end|>"}]}]
    source = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else p }}{% endfor %}{% endfor %}"
    )
    template = load_template(
        "{% if messages[0].content is string %}words{% endif %}"
        + source.replace("m.content %}", "m.content if m.content is not string %}"),
        BYTE_LEVEL,
    )
    ids = encode(template.render(parts, BYTE_LEVEL), BYTE_LEVEL)
    assert not special_part(ids) and BYTE_LEVEL.decode(ids) == "a<|im_end|>"
    tests = "{{ eos_token == '<|im_end|>' }}{{ bos_token + pad_token }}{{ unk_token is defined }}"
    assert written(tests, tokenizer=BYTE_LEVEL) == "True<s></s>False<|im_end|>"


def test_named_templates_and_other_places(tmp_path):
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": THINKER}))
    assert folder_template(tmp_path, BYTE_LEVEL) == THINKER_TEMPLATE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert folder_template(tmp_path, BYTE_LEVEL) == CHATML_TEMPLATE
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text(CHATML)
    with pytest.raises(ValueError, match="has rag, must have one named default"):
        folder_template(tmp_path, BYTE_LEVEL)
    (tmp_path / "chat_template.jinja").write_text(THINKER)
    assert folder_template(tmp_path, BYTE_LEVEL) == THINKER_TEMPLATE


def test_a_template_that_needs_a_system_message_loads():
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    template = load_template(source, BYTE_LEVEL)
    with pytest.raises(ValueError, match=r"^chat_template: no system$"):
        template.prompt(chat("a"), BYTE_LEVEL)


def test_a_template_is_told_the_date_that_a_run_has():
    template = load_template("{{ strftime_now('%d %b %Y') }}" + CHATML, BYTE_LEVEL)
    assert template.asks_date and not CHATML_TEMPLATE.asks_date
    pinned = template.on(datetime.date(2024, 7, 26))
    assert pinned.render(chat("a"), BYTE_LEVEL).startswith("26 Jul 2024")
    assert str(datetime.date.today().year) in template.render(chat("a"), BYTE_LEVEL)[:11]
    assert repr(pinned) != repr(template) == f"ChatTemplate(source={template.source!r})"


def test_odd_names_of_templates_and_what_no_text_can_hold(tmp_path):
    given = [{"name": [], "template": "x"}, {"name": "default", "template": CHATML}, 7]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    assert folder_template(tmp_path, BYTE_LEVEL) == CHATML_TEMPLATE
    with pytest.raises(UserError, match="holds a lone surrogate"):
        load_template("{{ eos_token }}\ud800", BYTE_LEVEL)


def test_a_tokenizer_that_a_run_is_to_train_has_a_template_too():
    own = load_tokenizer("bpe:270")  # encodes nothing yet, and every run's template is tried before its text is read
    assert load_template("plain", own).source == load_template("plain", ByteTokenizer()).source
    with pytest.raises(UserError, match="which writes nothing for a question"):
        load_template("{# nothing #}", own)

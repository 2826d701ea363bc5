"""Tokens that the files beside a tokenizer.json name and add: objects with flags, lists, older releases' files."""

import pytest
from tokenizers import AddedToken, processors

from tests.text.published import KINDS, SPELLED, byte_level, publish
from tests.text.test_published import same_as_transformers
from zaya_jax.errors import UserError
from zaya_jax.interop.formats.folder import weight_files
from zaya_jax.runs.tokens import tokenizer_of
from zaya_jax.text.templates import folder_template
from zaya_jax.text.tokenizers import ByteTokenizer, load_tokenizer

NAMED = SPELLED | {"pad_token": "</s>"}  # as transformers reads it


def marked(content: str = "cat", **flags: bool) -> dict:
    return {"__type": "AddedToken", "content": content, **flags}


LEFT = marked(lstrip=True)
LISTS = ("additional_special_tokens", "extra_special_tokens")
# (tokenizer_config.json, other files), what "the cat sat" then is, and how decoding writes it
CASES = {
    "a word": ({LISTS[0]: ["cat"]}, {}, ["the", "Ġ", "cat", "Ġsat"], "the  sat"),
    "marked, so text": ({LISTS[0]: [LEFT]}, {}, ["the", "cat", "Ġsat"], "thecat sat"),
    "marked special": ({LISTS[1]: [LEFT | {"special": True}]}, {}, ["the", "cat", "Ġsat"], "the sat"),
    "a word's part": ({LISTS[1]: [marked("at", single_word=True)]}, {}, ["the", "Ġcat", "Ġsat"], "the cat sat"),
    "one word": ({LISTS[1]: [marked(single_word=True)]}, {}, ["the", "Ġ", "cat", "Ġsat"], "the cat sat"),
    "right": ({LISTS[1]: [marked(rstrip=True)]}, {}, ["the", "Ġ", "cat", "sat"], "the catsat"),
    "a role": ({LISTS[1]: {"cat_token": LEFT}}, {}, ["the", "cat", "Ġsat"], "the sat"),
    "own name": ({"image_token": LEFT}, {}, ["the", "cat", "Ġsat"], "the sat"),
    "sep": ({"sep_token": LEFT}, {}, ["the", "cat", "Ġsat"], "the sat"),
    "eos": ({"eos_token": LEFT}, {}, ["the", "cat", "Ġsat"], "the sat"),
    "map, marked": ({}, {"special_tokens_map": {LISTS[0]: [LEFT]}}, ["the", "cat", "Ġsat"], "thecat sat"),
    "map": ({}, {"special_tokens_map": {LISTS[1]: [{"content": "cat"}]}}, ["the", "Ġ", "cat", "Ġsat"], "the  sat"),
    "map sep": ({}, {"special_tokens_map": {"sep_token": {"content": "cat"}}}, ["the", "Ġ", "cat", "Ġsat"], "the  sat"),
    "map unread": (
        {"added_tokens_decoder": {}}, {"special_tokens_map": {LISTS[0]: ["cat"]}},
        ["the", "Ġcat", "Ġsat"], "the cat sat",
    ),
    "map of both": (
        {LISTS[1]: ["cat"]}, {"special_tokens_map": {LISTS[0]: ["sat"]}}, ["the", "Ġ", "cat", "Ġsat"], "the  sat"
    ),
    "added": ({}, {"added_tokens": {"cat": 264}}, ["the", "Ġ", "cat", "Ġsat"], "the cat sat"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compared", [False, True], ids=["pinned", "transformers"])
def test_an_objects_flags_count(case, compared, tmp_path, monkeypatch):
    values, files, tokens, text = CASES[case]
    folder = publish(tmp_path, byte_level(), tokenizer_config=NAMED | values, **files)
    if compared:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)
        return
    tokenizer = load_tokenizer(folder)
    cat = tokenizer.special_ids.get("cat")
    words = "the cat sat" if cat is None else ["the ", cat, " sat"]
    ids = tokenizer.encode(words) if cat is None else tokenizer.encode_written(words)
    assert [tokenizer.model.id_to_token(id_) for id_ in ids] == tokens and tokenizer.decode(ids) == text


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe", "unigram"])
def test_files_that_differ_about_a_token_are_read_as_the_library_reads_them(kind, first, tmp_path, monkeypatch):
    """One file calls "the" special, the other does not: the last one is believed of reading, the first of writing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = KINDS[kind]()
    model.add_tokens([AddedToken("the", special=first, normalized=False)])
    token = {"content": "the", "special": not first, "lstrip": False, "rstrip": False, "normalized": False}
    added = {str(model.token_to_id("the")): token}
    folder = publish(tmp_path, model, tokenizer_config=NAMED | {"added_tokens_decoder": added})
    same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)


@pytest.mark.parametrize("single", ["<s> $A </s>", "$A <|im_end|>", "<s> $A", "$A"])
def test_what_a_post_processor_adds_is_what_transformers_adds(single, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = byte_level()
    pairs = [(token, model.token_to_id(token)) for token in ("<s>", "</s>", "<|im_end|>")]
    model.post_processor = processors.TemplateProcessing(single, None, pairs)
    folder = publish(tmp_path, model, tokenizer_config=NAMED)
    same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)


def test_new_tokens_get_the_ids_that_transformers_gives_them(tmp_path):
    """In its order of names; a padding token that is not there has an id only where another comes after it."""
    new = {"pad_token": "<p>", "sep_token": "<sep>", "unk_token": "<u>", "mask_token": "<m>", "x_token": "<x>"}
    size = byte_level().get_vocab_size()
    for more, order in (({}, ["<u>", "<sep>", "<p>", "<m>", "<x>"]), ({LISTS[1]: ["<e>"]}, ["<e>"])):
        values = SPELLED | (new if not more else {"pad_token": "<p>"}) | more
        tokenizer = load_tokenizer(publish(tmp_path, byte_level(), tokenizer_config=values))
        order = order if not more else ["<p>", *order]
        assert [tokenizer.special_ids[token] for token in order] == [*range(size, size + len(order))]
    alone = load_tokenizer(publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"pad_token": "<p>"}))
    assert alone.vocab_size == size and alone.pad_id == alone.eos_id


@pytest.mark.parametrize("compared", [False, True], ids=["pinned", "transformers"])
@pytest.mark.parametrize(
    ("kind", "name", "before"),
    [
        ("byte_level", "GPT2Tokenizer", 1), ("byte_level", "GPTNeoXTokenizer", 1), ("byte_level", "Qwen2Tokenizer", 1),
        ("fallback_bpe", "Qwen2Tokenizer", 1), ("fallback_bpe", "GemmaTokenizer", 1),  # <mask>
        ("fallback_bpe", "LlamaTokenizer", 0), ("byte_level", "PreTrainedTokenizerFast", 0),
    ],
)  # fmt: skip
def test_new_tokens_come_after_those_that_a_class_adds(kind, name, before, compared, tmp_path, monkeypatch):
    """Such as "<|endoftext|>", which nothing names and the vocabulary does not have."""
    model = KINDS[kind]()
    folder = publish(tmp_path, model, tokenizer_config=NAMED | {"tokenizer_class": name, LISTS[0]: ["<new>"]})
    if compared:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)
    assert load_tokenizer(folder).special_ids["<new>"] == model.get_vocab_size() + before
    without = publish(tmp_path / "without", model, tokenizer_config=NAMED | {"tokenizer_class": name})
    assert load_tokenizer(without).vocab_size == model.get_vocab_size()


@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe"])
@pytest.mark.parametrize("compared", [False, True], ids=["pinned", "transformers"])
def test_qwens_class_drops_what_files_say_of_the_tokens_they_list(kind, compared, tmp_path, monkeypatch):
    """By those it would be a part of texts, and take the space before it."""
    spelling = "cat" if compared else "<cat>"  # what the texts that are compared have
    values = {"tokenizer_class": "Qwen2Tokenizer", LISTS[0]: [marked(spelling, lstrip=True, normalized=True)]}
    folder = publish(tmp_path, KINDS[kind](), tokenizer_config=NAMED | values)
    if compared:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)
        return
    tokenizer = load_tokenizer(folder)
    cat = tokenizer.special_ids["<cat>"]
    assert cat not in tokenizer.encode("a <cat> sat")
    ids = tokenizer.encode_written(["a ", cat, " sat"])
    assert ids == [*tokenizer.encode("a "), cat, *tokenizer.encode(" sat", start=False)]


def test_a_class_names_what_its_files_leave_out(tmp_path):
    """transformers' GPT2Tokenizer begins and ends texts with "<|endoftext|>" where no file says otherwise."""
    model = byte_level()
    model.add_special_tokens(["<|endoftext|>"])
    end = model.token_to_id("<|endoftext|>")
    tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"}))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (end, (end,))
    values = {"tokenizer_class": "GPT2Tokenizer", "bos_token": None}
    assert load_tokenizer(publish(tmp_path, model, tokenizer_config=values)).bos_id is None


@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe", "ended_words", "unigram"])
def test_llamas_class_leaves_a_file_as_it_is_that_has_bytes_anywhere(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = KINDS[kind]()
    model.post_processor = processors.ByteLevel(trim_offsets=False)
    folder = publish(tmp_path, model, tokenizer_config=NAMED | {"tokenizer_class": "LlamaTokenizerFast"})
    same_as_transformers(pytest.importorskip("transformers", minversion="5", reason="the parity extra"), folder)


@pytest.mark.parametrize(
    ("values", "files", "wrong"),
    [
        ({LISTS[0]: [marked(lstrip="yes")]}, {}, "additional_special_tokens: lstrip: got 'yes', must be true or false"),
        ({LISTS[0]: ["cat", LEFT]}, {}, "'cat': named twice, with other flags"),
        ({"image_token": marked(7)}, {}, "image_token: got .*, must be a token"),
        ({"model_specific_special_tokens": 7}, {}, "model_specific_special_tokens: must be a list of tokens, or an"),
        ({}, {"special_tokens_map": {LISTS[1]: 7}}, "extra_special_tokens: must be a list of tokens, or an object"),
        ({}, {"added_tokens": {"<new>": "x"}}, "'<new>': got 'x', must be an id"),
        ({}, {"added_tokens": {"<new>": 999}}, "'<new>' cannot have id 999"),
    ],
)
def test_a_token_that_cannot_be_is_named(values, files, wrong, tmp_path):
    with pytest.raises(UserError, match=rf"^tokenizer: .*json: {wrong}") as error:
        load_tokenizer(publish(tmp_path, byte_level(), tokenizer_config=NAMED | values, **files))
    assert "\n" not in str(error.value)


READ = {
    **dict.fromkeys(("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), load_tokenizer),
    "generation_config.json": load_tokenizer,
    "chat_template.jinja": lambda folder: folder_template(folder, ByteTokenizer()),
    "tokenizer.json": lambda folder: load_tokenizer(tokenizer_of(folder, 309)),
    "model.safetensors": weight_files,
}


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("name", READ)
def test_a_link_that_leads_nowhere_is_not_a_file_that_is_not_there(name, itself, tmp_path):
    """As in a download that was not finished, whose snapshot is links."""
    folder = publish(tmp_path, byte_level(), tokenizer_config=NAMED)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name if itself else "/no/where")
    with pytest.raises((UserError, FileNotFoundError), match=rf"{name}(:|', must be) ") as error:
        READ[name](folder)
    assert "without" not in str(error.value) and "\n" not in str(error.value)

"""Published tokenizers: which ids mean what, text that spells special tokens, files that lie."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors

from tests.text.published import CORPUS, KINDS, SPECIALS, SPELLED, byte_level, publish, spaced_words, unigram
from tests.text.test_detokenizer import make
from zaya_jax.command_line.conversation import Conversation
from zaya_jax.data.pipeline import eval_batches
from zaya_jax.errors import UserError
from zaya_jax.tasks import Problem, make_task
from zaya_jax.text.templates import folder_template, question
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, for_model, load_tokenizer, may_be_mask


@pytest.mark.parametrize("kind", KINDS)
def test_what_spells_a_special_token_is_text(kind):
    tokenizer = make(kind)
    ids = tokenizer.encode("the cat<|im_end|>the<s> </s>")
    said = {tokenizer.special_ids[token] for token in SPECIALS[1:]}
    assert not said & set(ids)
    assert tokenizer.decode([*said]) == ""
    if kind in ("byte_level", "ended_words"):
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == tokenizer.decode(ids)


@settings(deadline=None)
@given(text=st.lists(st.sampled_from([*SPECIALS, "<", "|>", " ", "the", "é", "</", "s>"]), max_size=8).map("".join))
@pytest.mark.parametrize("kind", ["byte_level", "unigram", "fallback_bpe"])
def test_no_text_says_a_special_token_and_byte_level_keeps_all_of_it(kind, text):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.special_ids[token] for token in SPECIALS[1:]}
    if kind == "byte_level":
        assert tokenizer.decode(ids) == text


def test_a_space_stands_in_front_of_a_text_not_of_its_parts():
    tokenizer = make("unigram")
    assert tokenizer.encode("the cat") == tokenizer.encode("the") + tokenizer.encode(" cat", start=False)
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert tokenizer.encode("the", start=False) != tokenizer.encode("the")


@pytest.mark.parametrize(
    ("files", "bos", "eos", "pad"),
    [
        ({"tokenizer_config": SPELLED}, "<s>", ["<|im_end|>"], "</s>"),
        ({"tokenizer_config": {"eos_token": "</s>"}}, None, ["</s>"], "</s>"),  # no BOS, no PAD
        ({"config": {"bos_token_id": "<s>", "eos_token_id": ["</s>", "<|im_end|>"]}}, "<s>", ["</s>", "<|im_end|>"], 0),
        (  # every one stops; the tokenizer's is the one to write
            {"config": {"eos_token_id": "</s>"}, "generation_config": {"eos_token_id": ["</s>", "<|im_start|>"]}}
            | {"tokenizer_config": SPELLED},
            "<s>", ["<|im_end|>", "</s>", "<|im_start|>"], "</s>",
        ),
        ({"config": {"pad_token_id": "<unk>"}, "tokenizer_config": SPELLED}, "<s>", ["<|im_end|>"], "<unk>"),
    ],
)  # fmt: skip
def test_special_tokens_are_those_that_the_files_name(files, bos, eos, pad, tmp_path):
    model = byte_level()

    def numbered(value):
        if isinstance(value, list):
            return [numbered(item) for item in value]
        return model.token_to_id(value)

    for name in {"config", "generation_config"} & set(files):
        files = files | {name: {field: numbered(value) for field, value in files[name].items()}}
    tokenizer = load_tokenizer(publish(tmp_path, model, **files))
    assert tokenizer.bos_id == (None if bos is None else numbered(bos))
    assert tokenizer.eos_ids == tuple(numbered(eos)) and tokenizer.eos_id == numbered(eos[0])
    assert tokenizer.pad_id == numbered(pad or eos[0])


LIES = {
    "an id of none": ({"config": {"eos_token_id": 9999}}, r"config\.json: eos_token_id: got 9999, must be an id of"),
    "an unknown id": ({"config": {"bos_token_id": 9999}}, r"config\.json: bos_token_id: got 9999, must be an id of"),
    "a word for an id": ({"config": {"eos_token_id": "</s>"}}, r"eos_token_id: got '</s>', must be an id of"),
    "a truth for an id": ({"config": {"eos_token_id": [True]}}, "eos_token_id: got True, must be an id of"),
    "a list in a list": ({"generation_config": {"eos_token_id": [[1]]}}, r"generation_config\.json: .*got \[1\]"),
    "no such token": ({"tokenizer_config": {"eos_token": "<end>"}}, "eos_token: got '<end>', must be a token of"),
    "no token": ({"tokenizer_config": {"eos_token": 7}}, "eos_token: got 7, must be a token of"),
    "a word of any text": ({"config": {"eos_token_id": 70}}, "eos token: got 70 .*, must be one of its special tokens"),
    "nothing": ({}, r"no EOS token: none of config\.json, generation_config\.json, tokenizer_config\.json"),
    "a list for a file": ({"config": [1]}, r"config\.json: got '\[1\]', may be a JSON object"),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_are_named(lie, tmp_path):
    files, words = LIES[lie]
    with pytest.raises(ValueError, match=words) as error:
        load_tokenizer(publish(tmp_path, byte_level(), **files))
    assert "\n" not in str(error.value)


def test_a_special_token_that_cannot_have_its_id_is_named(tmp_path):
    folder = publish(tmp_path, byte_level(), tokenizer_config=SPELLED)
    description = json.loads((folder / "tokenizer.json").read_text())
    description["added_tokens"][1]["id"] += 100
    (folder / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"added_tokens: '<s>' cannot have id \d+"):
        load_tokenizer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"added_tokens|config\.json: not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r'must be "bytes", the path of a tokenizer json, or a folder with'):
        load_tokenizer(folder)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_file_loads_or_is_refused_in_one_line(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    publish(
        folder, unigram(), tokenizer_config=SPELLED | {"chat_template": "{{ messages }}"}, config={"eos_token_id": 2}
    )
    path = folder / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]))
    text = path.read_bytes()
    at = data.draw(st.integers(0, min(len(text), 3000) - 1) | st.integers(len(text) - 9, len(text) - 1))
    junk = data.draw(st.sampled_from([b"", b"null", b"-7", b"[]", b'"x"', b"\xff", b"{}", b"1e999", b"[" * 2000]))
    path.write_bytes(text[:at] + junk + text[at + data.draw(st.integers(0, 40)) :])
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as refusal:
        error = str(refusal)
    else:
        error = "tokenizer: "
        assert tokenizer.eos_id < tokenizer.vocab_size
        tokenizer.decode(range(tokenizer.vocab_size))
    assert error.startswith("tokenizer: ") and "\n" not in error and len(error) < 600


def test_a_text_opens_and_ends_as_its_publisher_has_it(tmp_path):
    assert make("byte_level").opening == make("byte_level").closing == () == ByteTokenizer().opening
    model = byte_level()
    ids = {token: model.token_to_id(token) for token in SPECIALS}
    bos, end = ids["<s>"], ids["</s>"]
    model.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", bos), ("</s>", end)])
    opened = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED))
    assert (opened.opening, opened.closing) == ((bos,), (end,)) and not {bos, end} & {*opened.encode("a")}
    asked = [bos, *opened.encode("a"), end]
    assert make_task("addition").encode(Problem("a", "b", "c", "d"), opened) == question("a", opened) == asked
    assert Conversation(opened, None).prompt("a") == (asked, None)
    # transformers 5 does not ask add_bos_token where there is a tokenizer.json
    for told, built, opening in ((True, byte_level(), ()), (False, model, (bos,))):
        folder = publish(tmp_path, built, tokenizer_config=SPELLED | {"add_bos_token": told})
        assert load_tokenizer(folder).opening == opening


def test_what_ends_a_text_ends_a_document_once(tmp_path):
    model = byte_level()
    bos, sep, eos = map(model.token_to_id, ("<s>", "</s>", "<|im_end|>"))
    for written, closing in (("<s> $A <|im_end|>", [eos]), ("<s> $A </s>", [sep, eos]), ("<s> $A", [eos])):
        specials = [("<s>", bos), ("</s>", sep), ("<|im_end|>", eos)]
        model.post_processor = processors.TemplateProcessing(written, None, specials)
        tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED))
        documents = [{"text": "the cat"}, {"text": "the cat", "prompt": "the"}]
        batch = next(iter(eval_batches(documents, tokenizer, 24, 1)))
        asked, answer = question("the", tokenizer), tokenizer.encode(" cat", start=False)
        rows = [bos, *tokenizer.encode("the cat"), *closing, *asked, *answer, eos]
        assert batch["tokens"][0, : len(rows)].tolist() == rows
        assert {*batch["tokens"][0, len(rows) :].tolist()} <= {tokenizer.pad_id}


@pytest.mark.parametrize(
    ("processor", "wrong"),
    [
        (processors.TemplateProcessing("$A $A", None, []), "writes a text 2 times, may write it once"),
        (processors.TemplateProcessing("<s>", None, [("<s>", 305)]), "writes a text 0 times, may write it once"),
        (processors.TemplateProcessing("<s> $A", None, [("<s>", 9305)]), "got 9305, must be an id of the tokenizer"),
    ],
)
def test_what_else_a_file_does_to_a_text_is_refused(processor, wrong, tmp_path):
    model = byte_level()
    model.post_processor = processor
    with pytest.raises(UserError, match=rf"tokenizer\.json: post_processor: {wrong}"):
        load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED))


def test_what_a_model_has_beyond_its_tokenizer_is_no_text():
    tokenizer = make("byte_level")
    ids = tokenizer.encode("the cat")
    with pytest.raises(ValueError, match="ids: got 339, must be in"):
        tokenizer.decode([*ids, 339])
    wide = for_model(tokenizer, 340)
    assert wide.decode([339, *ids, 338]) == "the cat" and wide.eos_ids == tokenizer.eos_ids
    assert for_model(tokenizer, tokenizer.vocab_size) is tokenizer


def test_a_mask_token_is_an_id_that_no_text_has():
    tokenizer = make("byte_level")
    size, ids = tokenizer.vocab_size, tokenizer.special_ids
    assert [may_be_mask(tokenizer, i) for i in (0, size - 6, size, size + 7)] == [False, False, True, True]
    assert may_be_mask(tokenizer, ids["<|im_start|>"]) and not may_be_mask(tokenizer, ids["<|im_end|>"])
    assert [may_be_mask(ByteTokenizer(), i) for i in (0, 256, 257, 258, 259, 260)] == [False] * 4 + [True] * 2
    own = BPETokenizer.train(CORPUS, 280)
    assert may_be_mask(own, own.mask_id) and not may_be_mask(own, own.eos_id)


def test_our_own_bpe_stays_ours_beside_a_models_config(tmp_path):
    own = BPETokenizer.train(CORPUS, 280)
    own.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": own.eos_id}))
    assert isinstance(load_tokenizer(tmp_path), BPETokenizer)


def space(model):
    return model.token_to_id("▁")


@pytest.mark.parametrize("kind", ["fallback_bpe", "unigram_always", "unigram"])
def test_later_parts_of_a_text_get_no_space_in_front(kind):
    tokenizer = make(kind)
    inside = tokenizer.encode("the", start=False)
    assert "▁" not in tokenizer.model.id_to_token(inside[0]) and "▁" in tokenizer.model.id_to_token(
        tokenizer.encode("the")[0]
    )
    assert tokenizer.encode("the cat") == tokenizer.encode("the") + tokenizer.encode(" cat", start=False)


def test_byte_level_with_a_space_in_front_is_the_same_kind(tmp_path):
    model = byte_level()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED))
    assert tokenizer.encode("cat") == tokenizer.encode(" cat", start=False) != tokenizer.encode("cat", start=False)


def test_tokenizer_config_adds_tokens_and_flags(tmp_path):
    model = byte_level()
    size = model.get_vocab_size()
    added = {
        str(size): {"content": "<think>", "special": False},
        str(model.token_to_id("<s>")): {"content": "<s>", "special": True, "rstrip": True},
    }
    tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED | {"added_tokens_decoder": added}))
    assert tokenizer.encode("a<think>")[-1] == size == tokenizer.vocab_size - 1
    assert tokenizer.encode_written([tokenizer.bos_id, "  a"]) == [tokenizer.bos_id, *tokenizer.encode("a")]
    for wrong in ({"9999": {"content": "<think>"}}, {"x": {"content": "a"}}, {"7": 7}):
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: added_tokens_decoder: "):
            load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED | {"added_tokens_decoder": wrong}))


def test_a_named_token_is_special_whatever_tokenizer_json_says(tmp_path):
    model = byte_level()
    model.add_tokens(["<end>"])
    tokenizer = load_tokenizer(publish(tmp_path, model, special_tokens_map={"eos_token": {"content": "<end>"}}))
    assert tokenizer.eos_id == model.token_to_id("<end>") and tokenizer.eos_id not in tokenizer.encode("a<end>")
    assert tokenizer.template_tokens["eos_token"] == "<end>"


def test_stored_truncation_and_padding_are_ignored(tmp_path):
    model = byte_level()
    ids = model.encode("the cat sat on the mat").ids
    model.enable_truncation(3)
    model.enable_padding(length=99)
    tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED))
    assert tokenizer.encode("the cat sat on the mat") == ids == tokenizer.encode_written(["the cat sat on the mat"])


@pytest.mark.parametrize("kind", ["bytes", "byte_level", "unigram"])
def test_a_lone_surrogate_is_a_users_mistake(kind):
    with pytest.raises(UserError, match=r"^text: holds a lone surrogate \(U\+D800\) at 1$"):
        make(kind).encode("a\ud800")


TEXTS = ["the cat sat", " the cat", "the<s>the", "<|im_start|>the cat<|im_end|>\ncat", "<s> é12 </s> the", "a  b\n\n",
         "a  12 cats'S 34", "e\u0301 they're\r\n\tb"]  # fmt: skip


@pytest.mark.parametrize("settings_", [{}, {"tokenizer_class": "PreTrainedTokenizerFast"}, {"add_bos_token": True},
    {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "LlamaTokenizerFast", "legacy": True},
    {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, {"legacy": False, "add_prefix_space": False},
    {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
    {"tokenizer_class": "GPTNeoXTokenizer"}, {"tokenizer_class": "Qwen2Tokenizer"},
    {"tokenizer_class": "GemmaTokenizerFast"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe", "unigram", "unigram_always", "word_piece"])
def test_ids_are_those_of_transformers(kind, settings_, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", minversion="5", reason="the parity extra")
    name = settings_.get("tokenizer_class", "")
    folder = publish(tmp_path, KINDS[kind](), tokenizer_config=SPELLED | {"pad_token": "</s>"} | settings_)
    of_kind = ["byte_level"] * (name[:5] != "Gemma") + ["fallback_bpe"]
    if name.startswith(("GPT", "Qwen", "Gemma", "Llama")) and kind not in of_kind:
        with pytest.raises(
            UserError, match=rf"tokenizer_class: got {name[:4]}\w+ over a \w+.*, whose splitting is not"
        ):
            load_tokenizer(folder)
        return
    same_as_transformers(transformers, folder)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gpt2", "gpt_neox", "gemma", "zaya", "llama", "mistral"])
@pytest.mark.parametrize("kind", ["byte_level", "fallback_bpe"])
def test_a_model_type_names_a_class_where_the_tokenizer_does_not(kind, model_type, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", minversion="5", reason="the parity extra")
    if kind == "byte_level" and model_type in ("gemma", "zaya"):
        pytest.skip("of an unknown token that the file does not have")
    config = {"model_type": model_type, "vocab_size": 400}
    files = {"tokenizer_config": SPELLED | {"pad_token": "</s>"}, "config": config}
    same_as_transformers(transformers, publish(tmp_path, KINDS[kind](), **files))


@pytest.mark.parametrize(
    "values", [{"tokenizer_class": "CodeLlamaTokenizer"}, {"tokenizer_class": "T5TokenizerFast"},
               {"split_special_tokens": True}], ids=str,
)  # fmt: skip
def test_what_transformers_reads_in_its_own_way_is_refused(values, tmp_path):
    (field,) = values
    folder = publish(tmp_path, KINDS["fallback_bpe"](), tokenizer_config=SPELLED | values)
    with pytest.raises(UserError, match=rf"{field}: got (\w+Tokenizer over a BPE|true).*, may be"):
        load_tokenizer(folder)


def same_as_transformers(transformers, folder) -> None:
    """Ids, decoded text, opening and end of TEXTS."""
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    specials = {str(token): id_ for token, id_ in ours.special_ids.items()}
    splitter = re.compile("(" + "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) + ")")
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode_written([specials.get(part, part) for part in splitter.split(text) if part]) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        if not splitter.search(text):
            assert question(text, ours) == theirs.encode(text)


@pytest.mark.parametrize("kind", ["spaced_words", "byte_level", "fallback_bpe", "unigram", "word_piece"])
@pytest.mark.parametrize("forced", [False, True])
def test_decoded_spaces_are_tidied_where_transformers_tidies_them(kind, forced, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", minversion="5", reason="the parity extra")
    values = {"clean_up_tokenization_spaces": True, "pad_token": "</s>"}
    values["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = forced
    folder = publish(tmp_path, ({"spaced_words": spaced_words} | KINDS)[kind](), tokenizer_config=SPELLED | values)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    changed = 0
    for text in ("a cat . the 's cat , a ' s the n't ! 've ' ' .", "  . a 're  ?", "the cat 'm ..", " ' ' s ' n't"):
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        changed += ours.decode(ids) != ours.model.decode(ids)
    assert bool(changed) == (forced or kind not in ("byte_level", "fallback_bpe"))


def test_tidying_is_yes_or_no(tmp_path):
    folder = publish(tmp_path, unigram(), tokenizer_config=SPELLED | {"clean_up_tokenization_spaces": "no"})
    with pytest.raises(UserError, match=r"tokenizer_config\.json: clean_up_\w+_spaces: got 'no', must be true"):
        load_tokenizer(folder)


def test_a_models_own_special_tokens_are_those_of_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers", minversion="5", reason="the parity extra")
    template = "{{ image_token }}{{ tool }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    model = byte_level()
    model.add_special_tokens(["<image>"])
    own = {"image_token": "<image>", "extra_special_tokens": {"tool": "<tool>"}, "pad_token": "</s>"}
    folder = publish(tmp_path, model, tokenizer_config=SPELLED | own | {"chat_template": template})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    question = [{"role": "user", "content": "the cat"}]
    ids = theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert folder_template(folder, ours).prompt(question, ours) == ids
    assert theirs.convert_tokens_to_ids("<tool>") == ours.special_ids["<tool>"] == ids[1]


@pytest.mark.parametrize(
    "values", [{"extra_special_tokens": 7}, {"extra_special_tokens": {"a": 7}}, {"additional_special_tokens": [None]}]
)
def test_special_tokens_that_are_none_are_named(values, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer_config\.json: \w+_special_tokens: must be a list of tokens, or"):
        load_tokenizer(publish(tmp_path, byte_level(), tokenizer_config=SPELLED | values))


@pytest.mark.parametrize(
    "values", [{"pad_token": "\ud800"}, {"eos_token": "\ud800"}, {"extra_special_tokens": ["\ud800"]}], ids=str
)
@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map"])
def test_no_file_may_hold_what_no_text_can(name, values, tmp_path):
    folder = publish(tmp_path, byte_level(), **{"tokenizer_config": SPELLED, name: SPELLED | values})
    with pytest.raises(UserError, match=rf"^tokenizer: .*{name}\.json: holds a lone surrogate"):
        load_tokenizer(folder)


def test_a_vocabulary_with_gaps_is_not_ours(tmp_path):
    BPETokenizer.train(CORPUS, 280).save(tmp_path / "bpe.json")
    description = json.loads((tmp_path / "bpe.json").read_text())
    last = max(description["model"]["vocab"], key=description["model"]["vocab"].get)
    description["model"]["vocab"][last] += 1_000  # where another model's special tokens would be
    (tmp_path / "bpe.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="is not a lossless byte-level BPE"):
        BPETokenizer.load(tmp_path / "bpe.json")

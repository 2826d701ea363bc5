"""A run's tokenizer and chat template as files beside its weights: the same anywhere, to us and to transformers."""

import json
import shutil

import pytest

from tests.text.published import CORPUS, SPELLED, byte_level, publish, unigram
from zaya_jax.interop.conversion.companions import ids_of
from zaya_jax.runs.carried import write_tokenizer
from zaya_jax.text.templates import ChatTemplate, folder_template
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, ids_in_texts, load_tokenizer

TEMPLATE = ChatTemplate("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
TEXTS = ["", "a b  c\n", "héllo 日本 \U0001f600", "\0\x7f\xa0\xad", *CORPUS[:2]]


def test_bytes(tmp_path):
    write_tokenizer(tmp_path, "bytes", None)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    assert not (tmp_path / "chat_template.jinja").exists()
    # it is a tokenizer of bytes to others, too
    plain = BPETokenizer.load(tmp_path / "tokenizer.json")
    assert all(plain.encode(text) == ByteTokenizer().encode(text) for text in TEXTS)
    assert plain.decode(range(256)) == ByteTokenizer().decode(range(256))


def test_an_own_bpe_under_any_name(tmp_path):
    own = BPETokenizer.train(CORPUS, 280)
    own.save(tmp_path / "bpe.json")
    write_tokenizer(tmp_path / "x", str(tmp_path / "bpe.json"), TEMPLATE)
    (tmp_path / "bpe.json").unlink()
    shutil.move(tmp_path / "x", tmp_path / "elsewhere")
    found = load_tokenizer(tmp_path / "elsewhere")
    assert isinstance(found, BPETokenizer) and found.vocab_size == own.vocab_size
    assert all(found.encode(text) == own.encode(text) for text in TEXTS)
    assert folder_template(tmp_path / "elsewhere", found) == TEMPLATE
    assert ids_of(tmp_path / "elsewhere") == {"bos": own.bos_id, "eos": [own.eos_id], "pad": own.pad_id}


def test_a_published_one_whose_ends_stand_in_a_model_s_files(tmp_path):
    files = dict(tokenizer_config=SPELLED | {"chat_template": "x", "auto_map": {"AutoTokenizer": ["a.B", None]}})
    source = publish(tmp_path / "a", byte_level(), config={"eos_token_id": [306, 308], "bos_token_id": 305}, **files)
    (source / "chat_template.jinja").write_text("{{ other }}")
    before = load_tokenizer(source)
    for spec in (source, source / "tokenizer.json"):
        write_tokenizer(tmp_path / "b", str(spec), TEMPLATE)
        after = load_tokenizer(tmp_path / "b")
        for name in ("bos_id", "eos_ids", "pad_id", "opening", "special_ids", "vocab_size"):
            assert getattr(after, name) == getattr(before, name), name
        assert all(after.encode(text) == before.encode(text) for text in TEXTS)
        assert folder_template(tmp_path / "b", after) == TEMPLATE
    assert not {"chat_template", "auto_map"} & set(json.loads((tmp_path / "b" / "tokenizer_config.json").read_text()))
    write_tokenizer(tmp_path / "c", str(source), None)
    assert folder_template(tmp_path / "c", load_tokenizer(tmp_path / "c")) is None


def test_a_file_that_windows_saved(tmp_path):
    source = publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"chat_template": TEMPLATE.source})
    for path in source.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = load_tokenizer(source)
    assert folder_template(source, found) == TEMPLATE
    (source / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + TEMPLATE.source.encode())
    assert folder_template(source, found) == TEMPLATE


@pytest.mark.parametrize("value", [-1, 99_999])
def test_what_fills_rows_need_not_be_a_token(tmp_path, value):
    source = publish(tmp_path, byte_level(), tokenizer_config=SPELLED, config={"pad_token_id": value})
    assert load_tokenizer(source).pad_id == 306  # tokenizer_config's
    source = publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"pad_token": "<|none|>"})
    assert load_tokenizer(source).pad_id == 308  # the end's


def test_only_ids_that_texts_have_need_rows(tmp_path):
    model = byte_level()
    largest = load_tokenizer(publish(tmp_path / "a", model, tokenizer_config=SPELLED)).vocab_size
    model.add_special_tokens(["<pad>"])
    padded = load_tokenizer(publish(tmp_path / "b", model, tokenizer_config=SPELLED | {"pad_token": "<pad>"}))
    assert (padded.vocab_size, ids_in_texts(padded)) == (largest + 1, largest)
    model.add_tokens(["word"])  # a text may have it
    assert ids_in_texts(load_tokenizer(publish(tmp_path / "c", model, tokenizer_config=SPELLED))) == largest + 2
    begins = load_tokenizer(publish(tmp_path / "d", unigram(), tokenizer_config={"eos_token": "</s>"}))
    assert ids_in_texts(begins) == begins.vocab_size
    assert ids_in_texts(ByteTokenizer()) == 260


def test_transformers_reads_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    own = BPETokenizer.train(CORPUS, 280)
    own.save(tmp_path / "bpe.json")
    for spec in ("bytes", str(tmp_path / "bpe.json")):
        write_tokenizer(tmp_path / "x", spec, None)
        (tmp_path / "x" / "config.json").write_text(json.dumps({"model_type": "zaya"}))
        theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "x"), load_tokenizer(spec)
        for text in TEXTS:
            assert theirs(text)["input_ids"] == ours.encode(text)
            assert theirs.decode(ours.encode(text)) == text

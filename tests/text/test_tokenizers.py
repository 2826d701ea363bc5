"""Round trips, the shared layout of special tokens, and clear refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

CORPUS = ["def add(a, b):\n    return a + b\n", "the cat sat on the mat; the dog did not\n"] * 4
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train(CORPUS, vocab_size=280)


@given(TEXTS)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(TEXTS)
def test_bpe_round_trip_of_text_it_never_saw(bpe, text):
    ids = bpe.encode(text)
    assert all(i < bpe.bos_id for i in ids)
    assert bpe.decode(ids) == text


def test_bpe_merges(bpe):
    assert len(bpe.encode("the cat")) < len("the cat")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_specials_are_the_last_rows_with_mask_last(kind, bpe):
    tokenizer: Tokenizer = {"bytes": ByteTokenizer(), "bpe": bpe}[kind]
    specials = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id]
    assert specials == list(range(tokenizer.vocab_size - 4, tokenizer.vocab_size))
    assert tokenizer.decode([specials[0], *tokenizer.encode("hi"), *specials]) == "hi"
    assert tokenizer.decode(specials) == ""


def test_byte_ids_are_fixed():
    tokenizer = ByteTokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id) == (
        256,
        257,
        258,
        259,
    )
    assert tokenizer.decode([0xFF, ord("a")]) == "\ufffda"


def test_bpe_save_and_load(bpe, tmp_path):
    path = tmp_path / "new" / "tokenizer.json"
    bpe.save(path)
    again = load_tokenizer(path)
    assert again.vocab_size == bpe.vocab_size == 280
    assert again.encode(CORPUS[0]) == bpe.encode(CORPUS[0])
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize("wrong", [-1, 100_000])
def test_ids_outside_the_vocabulary_are_refused(kind, wrong, bpe):
    tokenizer = {"bytes": ByteTokenizer(), "bpe": bpe}[kind]
    with pytest.raises(ValueError, match=rf"^ids: got {wrong}, must be in"):
        tokenizer.decode([5, wrong])


def test_vocab_size_must_be_reachable():
    with pytest.raises(ValueError, match="vocab_size: got 259, must be at least 260"):
        BPETokenizer.train(CORPUS, vocab_size=259)
    with pytest.raises(ValueError, match="vocab_size: got 5000, but these texts can fill only"):
        BPETokenizer.train(CORPUS, vocab_size=5000)


def test_load_refuses_other_files(tmp_path, bpe):
    with pytest.raises(FileNotFoundError, match="tokenizer: got 'byte', must be"):
        load_tokenizer("byte")
    path = tmp_path / "t.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer json"):
        load_tokenizer(path)
    bpe.save(path)
    description = json.loads(path.read_text())
    description["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"no EOS token: none of config\.json"):
        load_tokenizer(path)

"""Pieces of text add up to what all tokens decode to, for any tokens in any portions, and split no character."""

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.published import CORPUS, KINDS, SPELLED, publish, spaced_words
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer

TEXT = "the cat sät 日本語 🎉🇨🇭\n  def a;"


@functools.cache
def make(kind: str) -> Tokenizer:
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "bpe":
        return BPETokenizer.train([TEXT, *CORPUS], 290)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "tidy":
            tidy = SPELLED | {"clean_up_tokenization_spaces": True}
            return load_tokenizer(publish(Path(folder), spaced_words(), tokenizer_config=tidy))
        return load_tokenizer(publish(Path(folder), KINDS[kind](), tokenizer_config=SPELLED))


ALL = ["bytes", "bpe", *KINDS, "tidy"]


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_pieces_add_up_to_the_whole(kind, start, data):
    tokenizer = make(kind)
    # half of the tokens from the few that depend on their neighbours most
    some = [0, 1, 2, 3, 4, *(tokenizer.encode("é日 the  cats.") or [0]), tokenizer.vocab_size - 1]
    some += [i for i in range(tokenizer.vocab_size) if tokenizer.joins(i)][0xE0:0xE8]
    tokens = data.draw(st.lists(st.sampled_from(some) | st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    portions = data.draw(st.lists(st.integers(0, 4), max_size=24))
    detokenizer = Detokenizer(tokenizer, start)
    whole, text, at = detokenizer.whole(tokens), "", 0
    state = detokenizer.begin
    for portion in [*portions, len(tokens)]:
        state, new = detokenizer.push(state, tokens[at : at + portion])
        text, at = text + new, at + portion
        assert whole.startswith(text)
    assert text + detokenizer.flush(state) == whole
    assert "".join(detokenizer.pieces(tokens)) == whole
    if start:
        assert whole == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_level", "unigram", "fallback_bpe"])
def test_no_character_is_split_and_little_waits(kind):
    tokenizer = make(kind)
    tokens = tokenizer.encode(TEXT)
    detokenizer = Detokenizer(tokenizer)
    state, pieces, most = detokenizer.begin, [], 0
    for token in tokens * 20:
        state, text = detokenizer.push(state, [token])
        pieces.append(text)
        most = max(most, len(state.held))
    pieces.append(detokenizer.flush(state))
    assert "".join(pieces) == tokenizer.decode(tokens * 20)
    assert not any("\ufffd" in piece for piece in pieces)
    assert most < 50  # of 500 and more: state does not grow with the text


def test_a_later_part_keeps_its_space():
    tokenizer = make("unigram")
    the, cat = tokenizer.encode("the cat")
    assert tokenizer.decode([cat]) == "cat"
    assert Detokenizer(tokenizer, start=False).pieces([cat, the]) == [" cat", " the"]
    assert Detokenizer(tokenizer).pieces([cat, the]) == ["cat", " the"]


def test_a_run_of_byte_tokens_waits_for_its_end():
    tokenizer = make("fallback_bpe")
    first, second, third = (tokenizer.model.token_to_id(f"<0x{byte:02X}>") for byte in "日".encode())
    cat = tokenizer.encode("c")[-1]
    assert Detokenizer(tokenizer).pieces([first, second, third, cat]) == ["", "", "", "日c"]
    # one byte more and no byte of the run is a character
    assert Detokenizer(tokenizer).pieces([first, second, third, first, cat])[-1] == tokenizer.decode([first] * 4) + "c"
    # a special token between them is no text, so it ends nothing
    assert Detokenizer(tokenizer).pieces([first, tokenizer.eos_id, second, third, cat])[-1] == "日c"

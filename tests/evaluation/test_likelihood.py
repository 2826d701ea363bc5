"""Bits per byte: the bytes of the text itself, wherever rows cut it."""

import math

import numpy as np
import pytest

from tests.text.test_detokenizer import make
from zaya_jax.evaluation.likelihood import byte_counter, likelihood
from zaya_jax.text.tokenizers import for_model

TEXT = "the cat 日本語 é 🎉🎉 sat\n  def a; \ufffd"


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte_level"])
def test_every_cut_of_a_text_has_its_own_bytes(kind):
    tokenizer = for_model(make(kind), 400)
    ids = np.array(tokenizer.encode(TEXT))
    count, whole = byte_counter(tokenizer), len(TEXT.encode())
    assert count(ids) == whole
    for at in range(len(ids) + 1):
        assert count(ids[:at]) + count(ids[at:]) == whole
    assert count(np.array([tokenizer.eos_id, 399])) == 0


def test_byte_tokens_count_one_each():
    tokenizer = make("unigram")
    ids = np.array(tokenizer.encode("the cat 日 sat"))  # the cat, three byte tokens, sat
    assert sum(tokenizer.joins(int(id_)) for id_ in ids) == 3
    count = byte_counter(tokenizer)
    assert count(ids) == len("the cat 日 sat".encode())
    cut = next(i for i, id_ in enumerate(ids) if tokenizer.joins(int(id_))) + 1
    assert count(ids[:cut]) == len(b"the cat ") + 1


def test_bits_per_byte_of_rows_that_cut_characters():
    """ "日本語é!" is twelve bytes; the first row ends within a character, the second begins within it."""
    tokenizer = make("bytes")
    ids = tokenizer.encode("日本語é!")
    pad = tokenizer.pad_id
    tokens = np.array([[*ids[:4], pad, pad, pad, pad], ids[4:]], np.int32)
    batch = {"tokens": tokens, "document": np.where(tokens == pad, -1, 0)}
    step = lambda variables, batch, index: {  # noqa: E731
        "ar_nll": np.float32(30), "ar_count": np.float32(10), "load": np.zeros((1, 1, 0))
    }  # fmt: skip
    out = likelihood(step, {}, [batch] * 3, tokenizer)
    assert out["bits_per_byte"] == pytest.approx(3 / math.log(2))  # a token is a byte

"""Stop strings: which token ends a row, for every kind of tokenizer."""

import numpy as np
import pytest

from tests.sampling.test_generate import model_of, prompts_of
from tests.sampling.test_turns import MODES, Letters
from tests.text.test_detokenizer import ALL, make
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.stopping import StopStrings
from zaya_jax.text.detokenizer import Detokenizer


def end(tokenizer, tokens, *strings, passed_over=0, stop_tokens=(), before=0) -> int | None:
    """Read at once and token by token."""
    searches = [StopStrings(strings, tokenizer, passed_over, stop_tokens, before) for _ in range(2)]
    whole, found = searches[0].read(tokens), None
    for token in tokens:
        found = searches[1].read([token])
        if found is not None:
            break
    assert found == whole
    return whole


class Words:
    """As SentencePiece's: the space in front of a text is left out. It has `decode` alone."""

    def decode(self, ids):
        return "".join((" the", " cat", "s", " ", "\n")[i] for i in ids).removeprefix(" ")


def test_a_string_that_begins_with_a_space_is_found_at_the_first_token():
    assert end(Words(), [0, 1], " the") == 1  # decoded after the prompt's last token
    assert end(Words(), [1, 2, 0], " cats") == 2
    for kind in ("unigram", "unigram_always", "fallback_bpe"):
        tokenizer = make(kind)
        the, *rest = tokenizer.encode("the cat")
        text = Detokenizer(tokenizer, start=False).whole([the, *rest])
        assert text.startswith(" the")
        assert end(tokenizer, [the, *rest], " the") == end(tokenizer, [the, *rest], "the") == 1, kind


def test_strings_across_tokens_and_within_characters():
    tokenizer = make("bytes")
    ids = list("a日本b日".encode())  # a 3 3 b 3
    assert end(tokenizer, ids, "日") == 4 and end(tokenizer, ids, "本b") == 8
    assert end(tokenizer, ids, "b日") == 11 and end(tokenizer, ids[:-1], "b日") is None
    assert end(tokenizer, ids, "\ufffd") is None  # a character that is not whole yet is none
    assert end(tokenizer, [*b"aab"], "aab", "ab") == 3
    assert end(tokenizer, [*b"xxabxxab"], "zz", "ab") == 4


def test_a_byte_token_ends_a_row_at_once():
    tokenizer = make("fallback_bpe")
    newline = tokenizer.model.token_to_id("<0x0A>")
    the = tokenizer.encode("the")
    assert end(tokenizer, [*the, newline, newline, *the], "\n") == len(the) + 1
    first, second, third = (tokenizer.model.token_to_id(f"<0x{byte:02X}>") for byte in "日".encode())
    assert end(tokenizer, [*the, first, second, third, *the], "日") == len(the) + 3


def test_what_is_complete_among_the_first_tokens_is_passed_over():
    letters = Letters()
    tokens = [*np.frombuffer(b"abcabxabc", np.uint8) - ord("a")]
    assert end(letters, tokens, "abc") == 3
    for passed_over in (3, 4, 8):
        assert end(letters, tokens, "abc", passed_over=passed_over) == 9
    assert end(letters, tokens, "abc", passed_over=2) == 3  # its last token is after them
    assert end(letters, tokens, "abc", passed_over=9) is None
    assert end(letters, tokens, "ab", "zzzz", passed_over=3) == 5  # the first "ab" is still in the tail, and no end
    assert end(letters, [0] * 6, "aa", passed_over=3) == 4  # overlaps what was passed over, complete at the fourth
    assert end(letters, [0] * 6, "aa", "aaaaa", passed_over=4) == 5
    tokenizer = make("bytes")
    assert end(tokenizer, list("日日".encode()), "日", passed_over=2) == 3  # not complete among the first two
    assert end(tokenizer, list("日日".encode()), "日", passed_over=3) == 6


def test_a_special_tokens_spelling_stands_for_the_token():
    tokenizer = make("byte_level")
    token, eos = tokenizer.special_ids["<|im_start|>"], tokenizer.eos_id
    the = tokenizer.encode("the")
    assert end(tokenizer, [*the, token, *the], "<|im_start|>") == len(the) + 1
    assert end(tokenizer, [*the, *tokenizer.encode("<|im_start|>")], "<|im_start|>")  # and for the text
    assert end(tokenizer, [*the, token, *the], "<|im_start") is None
    assert end(tokenizer, [*the, eos, *the], "<|im_end|>", stop_tokens=(eos,)) is None  # it ends the row by itself


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("seed", range(4))
def test_the_search_is_what_decoding_everything_finds(kind, seed):
    """The first n tokens whose text, incomplete characters left out, has the string: by brute force."""
    tokenizer = make(kind)
    rng = np.random.default_rng(seed)
    likely = [*tokenizer.encode("the cat sat"), *(tokenizer.encode("é日") if kind != "word_piece" else [])]
    tokens = rng.choice([*likely, *rng.integers(0, tokenizer.vocab_size, 6)], 60).tolist()
    text = Detokenizer(tokenizer, start=False)
    whole = text.whole(tokens)
    for _ in range(10):
        at, length = rng.integers(0, max(1, len(whole) - 6)), rng.integers(1, 6)
        string = whole[at : at + length]
        if not string or "\ufffd" in string:
            continue
        found = (n for n in range(1, 61) if string in text.whole(tokens[:n]).rstrip("\ufffd"))
        assert end(tokenizer, tokens, string) == next(found, None)


@pytest.mark.parametrize("mode", ["autoregressive", "single_pass", pytest.param("two_pass", marks=pytest.mark.slow)])
def test_generate_passes_over_a_string_among_its_minimum(mode):
    """The row ended one token after its minimum, where nothing is complete."""
    model, variables = model_of()
    prompts, seeds = prompts_of(model), [5, 6, 7, 8]
    base = {**vars(MODES[mode]), "min_new_tokens": 6}
    free = generate(model, variables, prompts, SamplerConfig(**base), 20, seeds)
    texts = [Letters().decode(t) for t in free.tokens]
    stop = texts[0][2:4]
    sampler = SamplerConfig(**{**base, "stop_strings": (stop,)})
    got = generate(model, variables, prompts, sampler, 20, seeds, tokenizer=Letters())
    for row, text in enumerate(texts):
        at = next((i for i in range(5, len(text)) if text[i : i + 2] == stop), len(text) - 2)
        assert got.tokens[row] == free.tokens[row][: at + 2]
        assert got.finish[row] == ("stop_string" if at < len(text) - 2 or text.endswith(stop) else "length")


def test_stop_strings_in_blocks_that_nobody_verifies():
    model, variables = model_of()
    sampler = MODES["block_diffusion"]
    prompts, seeds = prompts_of(model), [3, 4, 5, 6]
    free = generate(model, variables, prompts, sampler, 30, seeds)
    text = Letters().decode(free.tokens[0])
    stopping = SamplerConfig(**{**vars(sampler), "stop_strings": (text[9:12],)})
    cut = generate(model, variables, prompts, stopping, 30, seeds, tokenizer=Letters())
    assert cut.tokens[0] == free.tokens[0][: text.index(text[9:12]) + 3] and cut.finish[0] == "stop_string"

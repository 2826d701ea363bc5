"""The lm-eval adapter: likelihoods are a plain forward's, texts are `generate`'s, and the harness itself agrees."""

import functools
import importlib.util
import subprocess
import sys
import unittest.mock
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import processors

from tests.helpers import random_variables, small_config
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax.architecture import Layout, Zaya
from zaya_jax.evaluation import lm_eval_adapter
from zaya_jax.evaluation.lm_eval_adapter import Adapter, cut, encode_pair, make_lm, rolling_pairs, sampler_for, score
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, load_tokenizer

BYTES = ByteTokenizer()
EOS, BOS = BYTES.eos_id, BYTES.bos_id
GREEDY = {"until": ["\n"], "do_sample": False, "max_gen_toks": 12}
RNG = np.random.default_rng(0)
PAIRS = [(RNG.integers(0, 256, c).tolist(), RNG.integers(0, 256, n).tolist()) for c, n in
         [(1, 1), (7, 3), (1, 9), (30, 2), (40, 12), (3, 33), (2, 1), (11, 5), (20, 20)]]  # fmt: skip


@functools.cache
def model_of(positions: int = 4096):
    config = small_config(vocab_size=BYTES.vocab_size, max_position_embeddings=positions)
    return Zaya(config), random_variables(config)


def adapter_of(sampler=None, **options):
    return Adapter(*model_of(), BYTES, sampler or SamplerConfig("single_pass", 4), **options)


@functools.partial(jax.jit, static_argnames="model")
def distribution(model, variables, tokens, valid):
    return jax.nn.log_softmax(model.apply(variables, Layout.causal(tokens, valid)).logits)


def plain(context, continuation, width=64):
    """The definition: the text alone in one forward (padded, to compile once), log_softmax, sum."""
    text = np.zeros((1, width), np.int32)
    n = len(context) + len(continuation)
    text[0, :n] = context + continuation
    rows = np.asarray(distribution(*model_of(), text, np.arange(width)[None] < n), float)[0, len(context) - 1 : n - 1]
    ids = np.array(continuation)
    return rows[np.arange(len(ids)), ids].sum(), bool((rows.argmax(-1) == ids).all())


def test_scores_are_those_of_a_plain_forward():
    model, variables = model_of()
    got = score(model, variables, PAIRS, batch=4)
    expected = [plain(*pair) for pair in PAIRS]
    np.testing.assert_allclose([g[0] for g in got], [e[0] for e in expected], rtol=1e-5, atol=1e-4)
    assert [g[1] for g in got] == [e[1] for e in expected]
    assert plain(*PAIRS[1], width=10)[0] == pytest.approx(got[1][0], abs=1e-4)  # without padding too


def test_greedy_continuations_are_told_from_others():
    model, variables = model_of()
    prompts = [context for context, _ in PAIRS[:4]]
    out = generate(model, variables, prompts, SamplerConfig("autoregressive", temperature=0.0), 5)
    pairs = list(zip(prompts, out.tokens, strict=True))
    first_off = [(c, [(n[0] + 1) % 256, *n[1:]]) for c, n in pairs]
    last_off = [(c, [*n[:-1], (n[-1] + 1) % 256]) for c, n in pairs]
    greedy = [right for _, right in score(model, variables, pairs + first_off + last_off, batch=8)]
    assert greedy == [True] * len(pairs) + [False] * (2 * len(pairs))


@pytest.mark.parametrize("batch", [1, 3])
def test_neither_order_nor_neighbours_matter(batch):
    model, variables = model_of()
    expected = [value for value, _ in score(model, variables, PAIRS, batch=4)]
    order = np.random.default_rng(batch).permutation(len(PAIRS))
    got = score(model, variables, [PAIRS[i] for i in order], batch)
    np.testing.assert_allclose([value for value, _ in got], [expected[i] for i in order], rtol=1e-5, atol=1e-4)


def test_few_lengths_are_compiled():
    model, variables = model_of()
    score(model, variables, [([1] * 5, [2] * 3)], batch=4)
    before = lm_eval_adapter._forward._cache_size()
    score(model, variables, [([1] * c, [2] * n) for c in range(1, 20, 3) for n in range(1, 8, 3)], batch=4)
    assert lm_eval_adapter._forward._cache_size() == before


def test_long_contexts_are_cut_on_the_left():
    """lm-eval's count: the last token of all is read by nobody, so one more than the positions fits."""
    model, variables = model_of(24)
    context, continuation = PAIRS[4][0], PAIRS[7][1]
    (got,) = score(model, variables, [(context, continuation)], batch=1)
    expected = plain(context[-(25 - len(continuation)) :], continuation)[0]
    assert got[0] == pytest.approx(expected, abs=1e-4)
    one_less = plain(context[-(24 - len(continuation)) :], continuation)[0]
    assert abs(expected - one_less) > 1e-3  # the test can tell
    with pytest.raises(ValueError, match=r"pairs\[0\]: got 1 and 25 tokens, may be .* 1 \.\. 24"):
        score(model, variables, [([1], [2] * 25)], batch=1)
    with pytest.raises(ValueError, match=r"pairs\[1\]: got 0 and 1 tokens"):
        score(model, variables, [([1], [2]), ([], [2])], batch=1)


def test_a_rolling_likelihood_is_the_whole_texts():
    texts = ["one, two", "", "a longer text about nothing at all", "x"]
    got = adapter_of(batch=4).loglikelihood_rolling(texts)
    expected = [plain([BOS], list(t.encode()))[0] if t else 0.0 for t in texts]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    eos = adapter_of(batch=4, prefix=EOS).loglikelihood_rolling(texts[:1])
    assert eos[0] == pytest.approx(plain([EOS], list(texts[0].encode()))[0], abs=1e-4)
    assert abs(eos[0] - got[0]) > 1e-3


def test_texts_beyond_the_positions_roll_through_windows():
    tokens = list(b"a text of sixty bytes, which is more than two windows' worth")
    windows = [([BOS], tokens[:24]), ([tokens[23]], tokens[24:48]), (tokens[35:48], tokens[48:])]
    assert len(tokens) == 60 and rolling_pairs(tokens, BOS, 24) == windows
    (got,) = Adapter(*model_of(24), BYTES, SamplerConfig(), batch=1).loglikelihood_rolling([bytes(tokens).decode()])
    assert got == pytest.approx(sum(plain(*window)[0] for window in windows), abs=1e-3)


def test_a_border_is_where_lm_eval_puts_it():
    encode = adapter_of().encode
    assert encode_pair(encode, BOS, "ab", " c") == ([*b"ab"], [*b" c"])
    assert encode_pair(encode, BOS, "ab  ", "c") == ([*b"ab"], [*b"  c"])
    assert encode_pair(encode, BOS, "", "c") == ([BOS], [*b"c"])
    assert encode_pair(encode, BOS, " \n", "c") == ([BOS], [*b" \nc"])
    with pytest.raises(ValueError, match="continuation: got '', may be"):
        encode_pair(encode, BOS, "ab", "")
    merged = BPETokenizer.train(["abab abab abab"], 262)
    assert len(merged.encode("abab")) == 1  # the merge swallows the border: what is left to score is the one token

    def whole(text, opened=True):
        return merged.encode(text)

    assert encode_pair(whole, merged.bos_id, "ab", "ab") == ([merged.bos_id], merged.encode("abab"))


def test_loglikelihood_reads_text():
    requests = [("the cat", " sat"), ("", "x"), ("a ", "b"), ("the cat", " sat on")]
    got = adapter_of(batch=4).loglikelihood(requests)
    pairs = [encode_pair(adapter_of().encode, BOS, *request) for request in requests]
    assert pairs[2] == ([*b"a"], [*b" b"])
    expected = [plain(*pair) for pair in pairs]
    np.testing.assert_allclose([g[0] for g in got], [e[0] for e in expected], rtol=1e-5, atol=1e-4)


def test_texts_are_generates_own_cut_at_the_stop_string():
    sampler = SamplerConfig("single_pass", 4, temperature=0.0)
    prompts = ["ab", "hello there", "", "q"]
    ids = [list(p.encode()) or [BOS] for p in prompts]
    stops = SamplerConfig("autoregressive", temperature=0.0, stop_tokens=[EOS])
    whole = [BYTES.decode(t) for t in generate(*model_of(), ids, stops, 12).tokens]  # lossless: the same texts
    assert all(len(text) > 4 for text in whole)
    stop = whole[1][3]  # a character that greedy decoding does write
    until = ["\x00never", stop]
    got = adapter_of(sampler, batch=2).generate_until([(p, {**GREEDY, "until": until}) for p in prompts])
    assert got == [cut(text, [stop]) for text in whole]
    assert len(got[1]) <= 3 and stop not in "".join(got)
    assert adapter_of(sampler, batch=2).generate_until([(prompts[1], {**GREEDY, "until": stop})]) == [got[1]]


def test_samples_do_not_depend_on_batches_or_on_what_stands_beside_them():
    sampled = {"do_sample": True, "temperature": 0.9, "max_gen_toks": 6}
    requests = [("ab", sampled), ("hello", GREEDY), ("ab", sampled), ("longer than that", sampled), ("", GREEDY)]
    got = adapter_of(batch=2).generate_until(requests)
    assert adapter_of(batch=1).generate_until(requests[:3]) == got[:3]
    assert got[0] != got[2]  # repeats of one request are samples of their own
    assert adapter_of(batch=2, seed=5).generate_until(requests) != got


def test_long_prompts_are_cut_to_leave_room():
    model, variables = model_of(24)
    adapter = Adapter(model, variables, BYTES, SamplerConfig("autoregressive"))
    options = {"max_gen_toks": 12}
    text = "a long prompt that has to lose its beginning"
    assert adapter.generate_until([(text, options)]) == adapter.generate_until([(text[-12:], options)])
    with pytest.raises(ValueError, match="max_gen_toks: got 24, may be below 24"):
        adapter.generate_until([(text, {"max_gen_toks": 24})])


def test_options_become_the_samplers_run_time_fields():
    base = SamplerConfig(
        "single_pass", 4, anchors=(1, 3), temperature=0.7, top_k=5, stop_tokens=[3], stop_strings=["!"]
    )

    def asked(**options):
        return sampler_for(base, options, 256, BYTES)

    sampler, longest = asked(until="\n")
    assert (sampler.temperature, sampler.stop_strings, sampler.stop_tokens, longest) == (0, ("!", "\n"), (3, EOS), 256)
    assert (sampler.mode, sampler.block_size, sampler.anchors, sampler.top_k) == ("single_pass", 4, (1, 3), 5)
    for options, temperature in [
        (dict(do_sample=False, temperature=0.9), 0),
        (dict(do_sample=True), 0.7),
        (dict(do_sample=True, temperature=0.3), 0.3),
        (dict(temperature=0.3), 0.3),
        (dict(temperature=0.0), 0),
    ]:
        assert asked(**options)[0].temperature == temperature
    processed = asked(top_k=9, top_p=0.5, min_p=0.1, repetition_penalty=1.5)[0]
    assert (processed.top_k, processed.top_p, processed.min_p, processed.repetition_penalty) == (9, 0.5, 0.1, 1.5)
    assert asked(max_new_tokens=7, max_tokens=9)[1] == 7 and asked(max_gen_toks=3, max_new_tokens=7)[1] == 3
    with pytest.raises(ValueError, match=r"^generate_until: got option 'beams', may be until, do_sample"):
        asked(beams=4)
    with pytest.raises(ValueError, match=r"^generate_until: num_beams: got 4, may be 1: nothing else is supported"):
        asked(num_beams=4)
    neutral = {name: values[0] for name, values in lm_eval_adapter.NEUTRAL.items()}
    assert asked(**neutral, until="\n", top_k=None, temperature=None) == asked(until="\n")
    with pytest.raises(ValueError, match=r"SamplerConfig\.top_p: got 2"):
        asked(top_p=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch=0), "batch: got 0, may be an integer"),
        (dict(max_gen_toks=1.5), "max_gen_toks: got 1.5"),
        (dict(prefix=260), r"prefix: got 260, may be in \[0, 260\)"),
    ],
)
def test_bad_adapters_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        adapter_of(**options)
    config = small_config()
    with pytest.raises(ValueError, match=r"^tokenizer: got 260 tokens, may be at most the model's 17"):
        Adapter(Zaya(config), {}, BYTES, SamplerConfig())


def test_the_package_is_needed_by_make_lm_alone(monkeypatch):
    code = "import sys, zaya_jax.evaluation.lm_eval_adapter; sys.exit('lm_eval' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(lm_eval_adapter.importlib, "import_module", missing)
    with pytest.raises(
        ValueError, match=r'^lm_eval_adapter: needs the lm-eval package: pip install -e "\.\[lm-eval\]"$'
    ):
        make_lm(*model_of(), BYTES, SamplerConfig())


# --- beside the harness itself ----------------------------------------------------------------------------------------


@pytest.fixture
def lm_eval(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lm_eval", reason='needs pip install -e ".[lm-eval]"')


def test_windows_and_borders_are_the_harness_own(lm_eval):
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for longest in (1, 2, 5, 8):
        for n in range(30):
            windows = get_rolling_token_windows(list(range(n)), EOS, longest, 1)
            assert rolling_pairs(list(range(n)), EOS, longest) == [make_disjoint_window(w) for w in windows]
    theirs = type("", (), {"backend": "causal", "tok_encode": lambda self, text: BYTES.encode(text)})()
    for pair in [("ab", " c"), ("ab  ", "c"), ("a\n", "b"), ("é", "à ")]:
        assert encode_pair(adapter_of().encode, BOS, *pair) == TemplateLM._encode_pair(theirs, *pair)


def task_of(lm_eval, name, kind, **config):
    """A task over three documents in memory."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = [dict(q=q, a=a) for q, a in [("one", "two"), ("two", "three"), ("three and more", "four")]]
    everything = {"test": datasets.Dataset.from_list(rows)}
    base = dict(task=name, output_type=kind, custom_dataset=lambda **_: everything, test_split="test")
    return ConfigurableTask(config={**base, "doc_to_text": "{{q}}:", "doc_to_target": " {{a}}", **config})


def test_simple_evaluate_runs_offline(lm_eval):
    adapter = adapter_of(SamplerConfig("single_pass", 4))
    lm = make_lm(*model_of(), BYTES, SamplerConfig("single_pass", 4))
    choices = ["two", "three", "four"]
    tasks = [
        task_of(lm_eval, "choose", "multiple_choice", doc_to_choice=choices, doc_to_target="{{a}}"),
        task_of(lm_eval, "continue", "loglikelihood"),
        task_of(lm_eval, "roll", "loglikelihood_rolling", doc_to_text="", doc_to_target="{{q}}"),
        task_of(
            lm_eval, "write", "generate_until", generation_kwargs=dict(until=["\n"], max_gen_toks=6, do_sample=False)
        ),
    ]
    out = lm_eval.simple_evaluate(model=lm, tasks=tasks, bootstrap_iters=0)
    questions = ["one", "two", "three and more"]
    table = [adapter.loglikelihood([(f"{q}:", f" {c}") for c in choices]) for q in questions]
    right = [np.argmax([value for value, _ in row]) == i for i, row in enumerate(table)]
    assert out["results"]["choose"]["acc,none"] == pytest.approx(np.mean(right))
    asked = [table[i][i][0] for i in range(3)]
    assert out["results"]["continue"]["perplexity,none"] == pytest.approx(np.exp(-np.mean(asked)), rel=1e-3)
    bits = -sum(adapter.loglikelihood_rolling(questions)) / np.log(2) / sum(map(len, questions))
    assert out["results"]["roll"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    written = [sample["resps"][0][0] for sample in out["samples"]["write"]]
    assert written == adapter.generate_until(
        [(f"{q}:", dict(until=["\n"], max_gen_toks=6, do_sample=False)) for q in questions]
    )
    assert set(out["results"]) == {"choose", "continue", "roll", "write"}


@pytest.mark.parametrize("around", ["$A", "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_texts_are_read_as_hflm_reads_them(lm_eval, around, add_bos_token, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="the parity extra")
    if importlib.util.find_spec("accelerate") is None:  # HFLM's module imports it, what is tested does not use it
        for name in ("accelerate", "accelerate.utils"):
            monkeypatch.setitem(sys.modules, name, unittest.mock.MagicMock(__spec__=None))
    from lm_eval.models.huggingface import HFLM

    model = byte_level()
    ids = [(token, model.token_to_id(token)) for token in ("<s>", "</s>")]
    model.post_processor = processors.TemplateProcessing(around, None, ids)
    folder = publish(tmp_path, model, tokenizer_config=SPELLED | {"pad_token": "</s>"})
    tokenizer = load_tokenizer(folder)
    config = small_config(vocab_size=tokenizer.vocab_size)
    if around.endswith("</s>") and add_bos_token is not False:  # HFLM scores what follows an end of text
        with pytest.raises(ValueError, match=r"tokenizer: got one that ends every text with .*, may be one that does"):
            Adapter(Zaya(config), {}, tokenizer, SamplerConfig(), add_bos_token=add_bos_token)
        return
    ours = Adapter(Zaya(config), {}, tokenizer, SamplerConfig(), add_bos_token=add_bos_token)
    theirs = object.__new__(HFLM)
    theirs.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_bos_token, theirs.custom_prefix_token_id, theirs.backend = add_bos_token, None, "causal"
    assert ours.before == theirs.prefix_token_id == tokenizer.bos_id
    for text in ["the cat", "", "<s>the cat", "the<|im_end|> cat", " \n"]:
        assert ours.encode(text) == theirs.tok_encode(text), text
    for pair in [("the cat", " sat"), ("the  ", "cat"), ("<s>the", " cat"), ("a\n", "b")]:
        assert encode_pair(ours.encode, ours.before, *pair) == theirs._encode_pair(*pair)


def test_without_a_bos_eos_stands_in_front(tmp_path):
    tokenizer = load_tokenizer(publish(tmp_path, byte_level(), tokenizer_config={"eos_token": "</s>"}))
    config = small_config(vocab_size=tokenizer.vocab_size)
    assert Adapter(Zaya(config), {}, tokenizer, SamplerConfig()).before == tokenizer.eos_id


def test_a_padding_token_that_no_text_has_needs_no_row(tmp_path):
    model = byte_level()
    rows = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED)).vocab_size
    model.add_special_tokens(["<pad>"])
    tokenizer = load_tokenizer(publish(tmp_path, model, tokenizer_config=SPELLED | {"pad_token": "<pad>"}))
    adapter = Adapter(Zaya(small_config(vocab_size=rows)), {}, tokenizer, SamplerConfig())
    assert tokenizer.pad_id >= rows > adapter.tokenizer.pad_id
    with pytest.raises(ValueError, match=rf"^tokenizer: got {rows} tokens, may be at most the model's {rows - 1}"):
        Adapter(Zaya(small_config(vocab_size=rows - 1)), {}, tokenizer, SamplerConfig())

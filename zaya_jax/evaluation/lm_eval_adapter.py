"""EleutherAI's lm-evaluation-harness on a model of ours (lm-eval 0.4.13, the `lm-eval` extra).

    import lm_eval
    from zaya_jax import SamplerConfig, Zaya, load_pretrained
    from zaya_jax.text.tokenizers import ByteTokenizer
    from zaya_jax.evaluation.lm_eval_adapter import make_lm

    config, variables = load_pretrained("results/quickstart/model")
    lm = make_lm(Zaya(config), variables, ByteTokenizer(), SamplerConfig("single_pass", block_size=8))
    print(lm_eval.simple_evaluate(model=lm, tasks=["lambada_openai"])["results"])  # data from the hub

Offline, `tasks` may be `ConfigurableTask`s whose `custom_dataset` returns data in memory, as in the adapter's test.

Likelihoods are the autoregressive distribution's, whatever the sampler; the sampler writes where a task asks for text.
Which tokens are scored in which context follows lm-eval's HFLM, so that numbers can stand beside its. The harness
itself is imported by `make_lm` alone; all else here runs without it.
"""

import dataclasses
import functools
import importlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.checks import COUNT, ROWS, SEED, Rule, Unset, check
from zaya_jax.errors import UserError
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.continuous import Prompt, generate_queue
from zaya_jax.sampling.decoding import bucket
from zaya_jax.text.tokenizers import Tokenizer, for_model, ids_in_texts
from zaya_jax.training.objective import cross_entropy

Array = jax.Array
Pair = tuple[list[int], list[int]]  # context and continuation, each of one or more tokens

# Names for the same thing, the first that is given counts: as in lm-eval.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
PROCESSING = ("top_k", "top_p", "min_p", "repetition_penalty")
# Options of transformers' generate that change nothing at these values (or None): accepted there and nowhere else.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "length_penalty": (0, 1),
    "early_stopping": (False,), "diversity_penalty": (0,), "no_repeat_ngram_size": (0,), "typical_p": (1,),
    "epsilon_cutoff": (0,), "eta_cutoff": (0,), "penalty_alpha": (0,), "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,), "presence_penalty": (0,), "frequency_penalty": (0,), "min_length": (0,),
    "min_new_tokens": (0,), "renormalize_logits": (False,), "use_cache": (True, False), "output_scores": (False,),
    "output_logits": (False,), "return_dict_in_generate": (False,), "remove_invalid_values": (False,), "n": (1,),
}  # fmt: skip


RULES: dict[str, Rule] = {  # of `Adapter`'s numbers
    "batch": ROWS,
    "max_gen_toks": COUNT,
    "seed": SEED,
    "prefix": Unset(SEED),
}


@dataclasses.dataclass(frozen=True)
class Adapter:
    """lm-eval's three questions, on plain values.

    Attributes:
      sampler: writes texts; any mode but "auto": give it what `choose_sampler` returns.
      batch: rows of a forward and of a generation, which a queue of the requests refills.
      max_gen_toks: new tokens where a task does not say.
      seed: request i of a `generate_until` samples with seed + i, whatever batch it falls in.
      prefix: the token that stands before a text without context; None for BOS, or EOS where there is none: as HFLM's
        prefix_token_id.
      add_bos_token: whether contexts and rolling texts open and end as the tokenizer has it; None for yes, as HFLM,
        where a tokenizer that opens none adds none either.
    """

    model: Zaya
    variables: Any
    tokenizer: Tokenizer
    sampler: SamplerConfig
    batch: int = 8
    max_gen_toks: int = 256
    seed: int = 0
    prefix: int | None = None
    add_bos_token: bool | None = None

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)
        rows = self.model.config.vocab_size
        ids = ids_in_texts(self.tokenizer)
        if ids > rows:  # else the embedding would clamp ids, and say nothing
            raise UserError(f"tokenizer: got {ids} tokens, may be at most the model's {rows}")
        object.__setattr__(self, "tokenizer", for_model(self.tokenizer, rows))
        if self.tokenizer.closing and self.add_bos_token is not False:
            ends = self.tokenizer.decode(list(self.tokenizer.closing)) or list(self.tokenizer.closing)
            may_be = "one that does not, or any with add_bos_token=False: contexts would end before what continues them"
            raise UserError(f"tokenizer: got one that ends every text with {ends}, may be {may_be}")
        if not 0 <= self.before < rows:
            raise UserError(f"prefix: got {self.prefix}, may be in [0, {rows})")

    @property
    def before(self) -> int:
        """The token before a text without context."""
        own = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
        return own if self.prefix is None else self.prefix

    def encode(self, text: str, opened: bool = True) -> list[int]:
        """Ids as HFLM's tok_encode: what spells a special token is one; a text that begins with BOS gets no other."""
        ids = read(self.tokenizer, text)
        spelled = {id_: spelling for spelling, id_ in self.tokenizer.special_ids.items()}.get(self.before)
        if not opened or self.add_bos_token is False or (spelled is not None and text.startswith(spelled)):
            return ids
        return [*self.tokenizer.opening, *ids]

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For (context, continuation): ln p(continuation | context), and whether greedy decoding would write it.

        Raises UserError for an empty continuation, or one longer than the model's positions.
        """
        pairs = [encode_pair(self.encode, self.before, *request) for request in requests]
        return score(self.model, self.variables, pairs, self.batch)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text ln p(text), in windows where it is longer than the model's positions; 0 without tokens."""
        longest = self.model.config.max_position_embeddings
        windows = [rolling_pairs(self.encode(text), self.before, longest) for text in texts]
        scores = iter(score(self.model, self.variables, [pair for pairs in windows for pair in pairs], self.batch))
        return [float(sum(next(scores)[0] for _ in pairs)) for pairs in windows]

    def generate_until(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """For (context, options) a continuation, cut before its first stop string; options: see `sampler_for`."""
        texts: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(requests):
            groups.setdefault(json.dumps(options, sort_keys=True), []).append(i)
        prompts = [self.encode(context) or [self.before] for context, _ in requests]
        for members in groups.values():
            members.sort(key=lambda i: -len(prompts[i]))  # what does not fit in memory fails at once
            sampler, longest = sampler_for(self.sampler, requests[members[0]][1], self.max_gen_toks, self.tokenizer)
            room = self._room(longest)
            asked = [Prompt(prompts[i][-room:], self.seed + i) for i in members]
            queue = generate_queue(
                self.model, self.variables, asked, sampler, longest, longest=len(asked[0].tokens), batch=self.batch,
                tokenizer=self.tokenizer,
            )  # fmt: skip
            for done, _ in tqdm(queue, desc="generating", total=len(asked), unit="text", dynamic_ncols=True):
                texts[members[done.index]] = cut(self.tokenizer.decode(done.tokens), sampler.stop_strings)
        return texts

    def _room(self, longest: int) -> int:
        """Tokens of context that fit before `longest` new ones; longer contexts are cut on the left."""
        room = self.model.config.max_position_embeddings - longest
        if room < 1:
            raise UserError(
                f"max_gen_toks: got {longest}, may be below {room + longest} (max_position_embeddings), "
                "so that a token of context has room"
            )
        return room


def make_lm(model: Zaya, variables: Any, tokenizer: Tokenizer, sampler: SamplerConfig, **options: Any) -> Any:
    """An `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`; options: see `Adapter`.

    Raises UserError without lm-eval.
    """
    try:
        base: Any = importlib.import_module("lm_eval.api.model").LM
    except ImportError:
        raise UserError('lm_eval_adapter: needs the lm-eval package: pip install -e ".[lm-eval]"') from None
    adapter = Adapter(model, variables, tokenizer, sampler, **options)

    class ZayaLM(base):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return adapter.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return adapter.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return adapter.generate_until([request.args for request in requests])

    return ZayaLM()


def score(model: Zaya, variables: Any, pairs: Sequence[Pair], batch: int) -> list[tuple[float, bool]]:
    """ln p(continuation | context) in nats, and whether each of its tokens is the likeliest, for every pair.

    A context that does not fit before its continuation in max_position_embeddings is cut on the left. Pairs of like
    length share a forward, and few lengths are compiled; a pair's score does not depend on its neighbours.

    Raises UserError for a continuation longer than max_position_embeddings.
    """
    longest = model.config.max_position_embeddings
    for i, (context, continuation) in enumerate(pairs):
        if not context or not 1 <= len(continuation) <= longest:
            raise UserError(
                f"pairs[{i}]: got {len(context)} and {len(continuation)} tokens, may be a context of at least 1 and a "
                f"continuation of 1 .. {longest} (max_position_embeddings)"
            )
    out: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    # longest first: what does not fit in memory fails at once
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    for part in _batches(order, batch, "scoring"):
        rows = [(pairs[i][0] + pairs[i][1])[-longest - 1 :] for i in part]
        asked = [len(pairs[i][1]) for i in part]
        nll, right = _run(model, variables, rows, asked, batch)
        ends = np.cumsum(asked)
        for i, end, n in zip(part, ends, asked, strict=True):
            out[i] = (-float(nll[end - n : end].sum()), bool(right[end - n : end].all()))
    return out


def _run(
    model: Zaya, variables: Any, rows: list[list[int]], asked: list[int], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the last asked[i] tokens of every row, one row after another: nll (float64) and whether each is likeliest."""
    width, total = bucket(max(map(len, rows)) - 1), sum(asked)
    tokens = np.zeros((batch, width), np.int32)
    length = np.zeros((batch,), np.int32)
    row, column, ids = np.zeros((3, bucket(total)), np.int32)
    at = 0
    for r, (text, n) in enumerate(zip(rows, asked, strict=True)):
        tokens[r, : len(text) - 1], length[r] = text[:-1], len(text) - 1
        row[at : at + n], column[at : at + n], ids[at : at + n] = (
            r,
            np.arange(len(text) - 1 - n, len(text) - 1),
            text[-n:],
        )
        at += n
    nll, right = jax.device_get(_forward(model, variables, tokens, length, row, column, ids, np.int32(total)))
    return nll[:total].astype(np.float64), right[:total]


@functools.partial(jax.jit, static_argnames=("model",))
def _forward(
    model: Zaya, variables: Any, tokens: Array, length: Array, row: Array, column: Array, ids: Array, total: Array
) -> tuple[Array, Array]:
    """The clean rows' distribution at hidden[row, column], for the first `total` entries of row, column and ids."""
    layout = Layout.causal(tokens, jnp.arange(tokens.shape[1]) < length[:, None])
    hidden = cast(tuple[Array, None, Array], model.apply(variables, layout, method="backbone"))[0]
    has = jnp.arange(ids.shape[0]) < total
    nll, right = cross_entropy(model, variables, hidden[row, column][None], ids[None], has[None])
    return nll[0], right[0]


def read(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which what spells a special token is one, as transformers reads it."""
    spelled = {s: id_ for s, id_ in tokenizer.special_ids.items() if len(s) > 1}
    if not any(spelling in text for spelling in spelled):
        return tokenizer.encode(text)
    longest_first = sorted(spelled, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return tokenizer.encode_written([spelled.get(part, part) for part in parts if part])


def encode_pair(encode: Callable[..., list[int]], before: int, context: str, continuation: str) -> Pair:
    """Token lists of a context and its continuation, as lm-eval splits them; `encode` is `Adapter.encode`.

    Both are tokenised as one text, and spaces that end the context begin the continuation. At least one token is
    scored, even where a merge runs across the border. Without context, `before` is the context, unless the continuation
    begins with it.

    Raises UserError for an empty continuation.
    """
    if not continuation:
        raise UserError("continuation: got '', may be one or more characters")
    if not context:
        whole = encode(continuation, opened=False)
        return ([before], whole) if whole[0] != before or len(whole) == 1 else (whole[:1], whole[1:])
    bare = context.rstrip()
    whole = encode(context + continuation)
    border = min(len(encode(bare)), len(whole) - 1)
    return whole[:border] or [before], whole[border:]


def rolling_pairs(tokens: list[int], before: int, longest: int) -> list[Pair]:
    """A text as windows of `longest` positions, every token scored once; the last window looks back as far as it can.

    As lm-eval's get_rolling_token_windows and make_disjoint_window with context_len 1.
    """
    pairs: list[Pair] = []
    for start in range(0, len(tokens), longest):
        end = min(start + longest, len(tokens))
        context = tokens[end - longest - 1 : start] if start else [before]
        pairs.append((context, tokens[start:end]))
    return pairs


def sampler_for(
    sampler: SamplerConfig, options: dict[str, Any], max_gen_toks: int, tokenizer: Tokenizer
) -> tuple[SamplerConfig, int]:
    """The sampler and max_new_tokens that a request's options ask for; all they change are run-time values.

    until: stop strings, beside the sampler's own; EOS ends a row too. max_gen_toks or one of its other names. do_sample
    False, or neither it nor a temperature: greedy; True alone: the sampler's temperature. top_k, top_p, min_p,
    repetition_penalty: the sampler's where not given. None is the same as not given. Those of `NEUTRAL` may be there
    with a value that changes nothing.

    Raises UserError for any other option or value.
    """
    options = {name: value for name, value in options.items() if value is not None}
    for name in [name for name in options if name in NEUTRAL]:
        value = options.pop(name)
        if value not in NEUTRAL[name]:
            may_be = " or ".join(map(repr, NEUTRAL[name]))
            raise UserError(f"generate_until: {name}: got {value!r}, may be {may_be}: nothing else is supported")
    known = ("until", "do_sample", "temperature", *PROCESSING, *LENGTH_NAMES)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"generate_until: got option {unknown[0]!r}, may be {', '.join(known)}")
    until = options.get("until") or []
    temperature, do_sample = options.get("temperature"), options.get("do_sample")
    if do_sample is None:
        do_sample = bool(temperature)
    changes = {name: options[name] for name in PROCESSING if name in options}
    chosen = dataclasses.replace(
        sampler,
        temperature=(sampler.temperature if temperature is None else temperature) if do_sample else 0.0,
        stop_strings=(*sampler.stop_strings, *([until] if isinstance(until, str) else until)),
        stop_tokens=tuple(dict.fromkeys((*sampler.stop_tokens, *tokenizer.eos_ids))),
        **changes,
    )
    longest = next((options[name] for name in LENGTH_NAMES if options.get(name) is not None), max_gen_toks)
    return chosen, int(longest)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _batches(items: list[int], batch: int, label: str) -> Iterator[list[int]]:
    """Lists of at most `batch` items, with a progress bar."""
    starts = range(0, len(items), batch)
    return (items[s : s + batch] for s in tqdm(starts, desc=label, unit="batch", dynamic_ncols=True))

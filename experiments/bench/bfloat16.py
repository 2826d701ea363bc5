"""bfloat16 beside float32: how far its logits are from float32's, whether lossless text is AR's, and what it costs.

    python -m experiments.bench.bfloat16 --only=greedy --models=quickstart --prompts=8
    python -m experiments.bench.bfloat16 --output=results/bench/bfloat16.json

Weights are rounded to bfloat16 first; float32 means the same rounded weights in float32.

1. logits: on worked test problems (SmolLM2: on prompts of bench.smollm2 and the committed answers), error of bfloat16
   logits over the standard deviation of float32's, beside the error of transformers' bfloat16 on the same weights and
   texts, against the same logits. A rounding can change a token's expert, which moves logits by more than any count of
   roundings: errors are given over all positions, and over those of which neither side changed an expert at or before
   them. KL from float32's to bfloat16's next-token distribution, and how often the likeliest token differs or ties.
   transformers' side needs the `parity` extra, SmolLM2 what `experiments.smollm2` does; where they are missing a line
   says so and the rest is measured.
2. greedy: `single_pass` against autoregression, at temperature 0, in both dtypes: the quickstart's model on held-out
   test additions; SmolLM2, given a row for the mask token (it has not learned to draft: almost every draft is refused,
   which losslessness has to bear), on chats, additions and word problems of GSM-Symbolic in turn (the `eval` extra).
   Where texts part: the gap between the two tokens' logits, and whether it is a tie, `tie_bound` of the logits'
   deviation: forwards of other sizes sum in another order, which in two layers may move each logit by 2 U of it,
   U = 2^-8 (tests/architecture/test_bfloat16.py), and in n layers, independent roundings adding as a root, sqrt(n / 2)
   times as far. Whatever is no tie is counted and named.
3. cost: prefill and decode steps in float32, in bfloat16, and in bfloat16 with every product rounded to it and no
   intermediate wider, sides in turn. Only this section needs a quiet machine.

With --checkpoint that folder (ZAYA, bytes, `addition`) is measured in place of --models.
"""

import contextlib
import importlib.metadata
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest import mock

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from experiments.bench._bfloat16_logits import compare, our_side, parting, their_side, tie_bound
from experiments.bench._transformers_reference import require_parity_extra
from zaya_jax import Layout, SamplerConfig, Zaya, ZayaConfig, generate, load_pretrained
from zaya_jax.architecture import init_cache, precision
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.architecture.model import ZayaOutput
from zaya_jax.command_line import cli, measured_device
from zaya_jax.errors import UserError
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.families.smollm2 import find_gguf, write_smollm2
from zaya_jax.paths import absolute
from zaya_jax.reporting.result_files import begun, read_record
from zaya_jax.reporting.tables import benchmarks
from zaya_jax.runs import provenance
from zaya_jax.tasks import make_task
from zaya_jax.tasks.chat_task import ChatTask
from zaya_jax.text.templates import folder_template
from zaya_jax.text.tokenizers import ByteTokenizer, load_tokenizer
from zaya_jax.timing import medians

RESULTS = Path(__file__).parents[2] / "results"
LIST_PROGRAMS = ("list_programs", {"max_operations": 2})  # as its config has it; the others learned `addition`
MODELS = ("quickstart", "samplers", "list_programs", "smollm2")
ORDER = ("checkpoint", *MODELS)
ADDITION = ("checkpoint", "quickstart")  # learned `addition`, drafts blocks of --block_size
GREEDY = (*ADDITION, "smollm2")
SEED = 1000  # of the test problems: the quickstart's evaluation's
DTYPES = ("bfloat16", "float32")
CONTEXT, PREFILL, STEPS = 256, 256, 32  # of the cost section

SHOW: dict[str, Callable[[list[dict]], str]] = {
    "logits": benchmarks.bfloat16_logits_table,
    "greedy": benchmarks.bfloat16_greedy_table,
    "cost": benchmarks.bfloat16_cost_table,
}

_ONLY = flags.DEFINE_list("only", list(SHOW), f"Sections to run, of {', '.join(SHOW)}.")
_MODELS = flags.DEFINE_list("models", list(MODELS), f"Models, of {', '.join(MODELS)}.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A ZAYA folder to measure in place of --models.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file; what it holds of other sections and models stays.")
_BLOCK_SIZE = flags.DEFINE_integer("block_size", 8, "Of greedy drafting.", lower_bound=2, upper_bound=65_536)
_BATCH = flags.DEFINE_integer("batch", 64, "Greedy texts decoded together.", lower_bound=1, upper_bound=65_536)
_DTYPES = flags.DEFINE_list("dtypes", list(DTYPES), f"Of the greedy section, of {', '.join(DTYPES)}.")
_PROMPTS = flags.DEFINE_integer(
    "prompts", 200, "Test prompts of the greedy section.", lower_bound=1, upper_bound=1_000_000
)
_TEXTS = flags.DEFINE_integer("texts", 32, "Texts of the logits section.", lower_bound=1, upper_bound=100_000)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens a text may grow by.", lower_bound=1, upper_bound=2**24)
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed calls of each side of a ratio.", lower_bound=1, upper_bound=10_000)


class Model(NamedTuple):
    """A model with its weights rounded to bfloat16, and texts for it."""

    name: str
    config: ZayaConfig
    variables: Any  # bfloat16
    rows: list[list[int]]  # of the logits section
    prompts: list[list[int]]  # of the greedy section
    stop: int  # where its texts end

    def in_dtype(self, dtype: str) -> tuple[Zaya, Any]:
        """The same rounded numbers, held and computed with in `dtype`."""
        params = jax.tree.map(lambda x: x.astype(dtype), self.variables["params"])
        return Zaya(self.config.replace(dtype=dtype, param_dtype=dtype)), {**self.variables, "params": params}


def main() -> None:
    """Runs the sections, prints a table."""
    cli.check_output(_OUTPUT.value)
    lists = (("only", _ONLY.value, SHOW), ("models", _MODELS.value, MODELS), ("dtypes", _DTYPES.value, DTYPES))
    for flag, values, known in lists:
        for value in values:
            if value not in known:
                raise UserError(f"--{flag}: got {value!r}, may be some of {', '.join(known)}")
    measured_device.check()
    path = absolute(_OUTPUT.value) if _OUTPUT.value else None
    numbers = dict(begun(path, check_numbers) or {})
    names = ["checkpoint"] if _CHECKPOINT.value else _MODELS.value
    run: dict[str, Callable[[Model], Iterable[dict]]] = {
        "logits": lambda model: [logits_of(model)],
        "greedy": lambda model: (greedy(model, dtype) for dtype in _DTYPES.value),
        "cost": cost,
    }
    for section in _ONLY.value:
        for model in load_models([n for n in names if section != "greedy" or n in GREEDY]):
            for row in run[section](model):
                row |= {"hardware": provenance.hardware(), "environment": described()}
                others = [other for other in numbers.get(section, []) if measured_of(other) != measured_of(row)]
                numbers[section] = sorted([*others, row], key=lambda row: ORDER.index(row["model"]))
                cli.write_numbers(path, numbers)  # after every row: an interrupted run keeps what it has
    for section in _ONLY.value:
        print(SHOW[section](numbers[section]) if section in numbers else f"{section}: no model for it", flush=True)


def check_numbers(numbers: dict[str, Any]) -> None:
    """Reads what an earlier command has measured as this one will."""
    for section in (name for name in SHOW if numbers.get(name)):
        SHOW[section](numbers[section])
        for row in numbers[section]:
            hash(measured_of(row)), ORDER.index(row["model"])


def measured_of(row: dict) -> tuple:
    """What a row is of: a later measurement of the same takes its place."""
    return row["model"], row.get("dtype"), row.get("kind")


def described() -> dict[str, Any]:
    """The environment, transformers' side included."""
    out = provenance.describe()
    for package in ("torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out["packages"][package] = importlib.metadata.version(package)
    return out


def load_models(names: Sequence[str]) -> Iterator[Model]:
    """The models of these names, one at a time; SmolLM2 only where its packages are."""
    for name in names:
        if name == "smollm2":
            yield from load_smollm2()
            continue
        config, variables = load_pretrained(_CHECKPOINT.value or RESULTS / name / "model")
        kind, options = LIST_PROGRAMS if name == LIST_PROGRAMS[0] else ("addition", {})
        task, tokenizer = make_task(kind, **options), ByteTokenizer()
        problems = task.problems("test", _TEXTS.value, SEED)
        rows = [[*task.encode(p, tokenizer), *tokenizer.encode(p.solution)] for p in problems]
        prompts = [task.encode(p, tokenizer) for p in task.problems("test", _PROMPTS.value, SEED)]
        yield Model(name, config, rounded(variables), rows, prompts, tokenizer.eos_id)


def load_smollm2() -> Iterator[Model]:
    try:
        find_gguf()
        transformers = importlib.import_module("transformers")
    except (FileNotFoundError, ImportError) as error:
        print(f"smollm2: left out: {error}", flush=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        write_smollm2(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rows = []
        for row in read_record(RESULTS / "bench" / "smollm2_parity.json")["prompts"][: _TEXTS.value]:
            prompt = row["prompt"]
            if row["chat"]:
                turns = [{"role": "user", "content": prompt}]
                prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            rows.append(tokenizer(prompt + row["text"], add_special_tokens=False)["input_ids"])
        config, variables = load_pretrained(folder)
        prompts = chats(folder) if "greedy" in _ONLY.value else []
        yield Model("smollm2", config, rounded(variables), rows, prompts, cast(int, config.eos_token_id))


def chats(folder: Path) -> list[list[int]]:
    """Additions and word problems in turn, each a user's first message in the folder's template."""
    tokenizer, half = load_tokenizer(folder), math.ceil(_PROMPTS.value / 2)
    template = folder_template(folder, tokenizer)
    assert template is not None
    asked = []
    for name in ("addition", "gsm_symbolic"):
        task = ChatTask(make_task(name), template)
        asked.append([task.encode(p, tokenizer) for p in task.problems("test", half, SEED)])
    return [prompt for pair in zip(*asked, strict=True) for prompt in pair][: _PROMPTS.value]


def rounded(variables: Any) -> Any:
    params = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), variables["params"])
    return {**variables, "params": params}


def logits_of(model: Model) -> dict[str, Any]:
    """`compare` of our bfloat16, and transformers' where it is, with our float32."""
    width = max(map(len, model.rows))
    low = model.in_dtype("bfloat16")
    sides = {"zaya_jax": our_side(*low, width)}
    try:
        require_parity_extra("bench.bfloat16's comparison")
        sides["transformers"] = their_side(*low, "bfloat16")
    except UserError as error:
        print(f"{model.name}: transformers left out: {error}", flush=True)
    return {"model": model.name, **compare(our_side(*model.in_dtype("float32"), width), sides, model.rows)}


def greedy(model: Model, dtype: str) -> dict[str, Any]:
    """Greedy texts of single_pass against autoregression's."""
    if model.config.mask_token_id == NO_MASK:
        config, variables = add_mask_token(*model[1:3])
        model = model._replace(config=config, variables=variables)
    (zaya, variables), prompts, batch = model.in_dtype(dtype), model.prompts, _BATCH.value
    texts = {}
    for mode in ("autoregressive", "single_pass"):
        sampler = SamplerConfig(mode, _BLOCK_SIZE.value, temperature=0.0, stop_tokens=(model.stop,))
        parts = [prompts[at : at + batch] for at in range(0, len(prompts), batch)]
        outs = [
            generate(zaya, variables, part, sampler, _NEW_TOKENS.value)
            for part in tqdm(parts, f"{model.name}, {dtype}, {mode}", leave=False)
        ]
        texts[mode] = [list(map(int, text)) for out in outs for text in out.tokens]
        forwards = sum(int(out.forwards.sum()) for out in outs)  # of single_pass, the last
    width = max(map(len, prompts)) + _NEW_TOKENS.value
    forward, bound = our_side(zaya, variables, width), tie_bound(model.config.num_hidden_layers)
    differences = []
    for index, (prompt, one, other) in enumerate(zip(prompts, *texts.values(), strict=True)):
        if one != other:
            row = {"prompt": index, **parting(prompt, one, other, forward, bound)}
            differences.append(row)
            if not row["tie"]:
                print(f"{model.name}, {dtype}: NOT A TIE: {row}", flush=True)
    return {
        "model": model.name, "dtype": dtype, "block_size": _BLOCK_SIZE.value, "batch": batch, "texts": len(prompts),
        "new_tokens": _NEW_TOKENS.value, "tokens": sum(map(len, texts["single_pass"])), "forwards": forwards,
        "identical": len(prompts) - len(differences), "ties": sum(row["tie"] for row in differences),
        "failures": sum(not row["tie"] for row in differences), "tie_bound": bound, "differences": differences,
    }  # fmt: skip


@contextlib.contextmanager
def rounding_everywhere() -> Iterator[None]:
    """While a program is traced: products in the dtype of their factors, and nothing wider between them.

    What the architecture would compute without `precision`; norms, softmax and logits then widen what was rounded.
    """
    narrow = {
        "product": lambda equation, a, b: precision._contract(equation, a, b).astype(precision.wide_dtype(a.dtype)),
        "rounded_once": lambda f, *args: f(*args),
    }
    with contextlib.ExitStack() as stack:
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("zaya_jax.architecture."):
                for name, plain in narrow.items():
                    if getattr(module, name, None) is getattr(precision, name) and module is not precision:
                        stack.enter_context(mock.patch.object(module, name, plain))
        yield


def cost(model: Model) -> list[dict]:
    """Milliseconds of a prefill and of a decoding step, sides in turn."""
    out = []
    for kind, rows, steps in (("prefill", PREFILL, 1), ("decode", 1, STEPS)):
        sides = {dtype: timed(model, dtype, rows, steps) for dtype in DTYPES}
        with rounding_everywhere():
            sides["bfloat16, rounded everywhere"] = timed(model, "bfloat16", rows, steps)
        times = {name: time / steps for name, time in medians(sides, _REPEATS.value, model.name).items()}
        row = {"model": model.name, "kind": kind, "query_tokens": rows, "batch": 1, "milliseconds": times}
        out.append(row | {"over_float32": {name: time / times["float32"] for name, time in times.items()}})
    return out


def timed(model: Model, dtype: str, rows: int, steps: int) -> Callable[[], object]:
    """A compiled call: `steps` forwards of `rows` tokens each after CONTEXT tokens, argmax of the last logits."""
    zaya, variables = model.in_dtype(dtype)
    cache = init_cache(zaya.config, 1, CONTEXT + rows)
    if rows == 1:
        cache = cache.replace(length=jnp.full((1,), CONTEXT, jnp.int32))
    tokens = jax.random.randint(jax.random.key(0), (steps, 1, rows), 0, zaya.config.vocab_size)

    def loop(variables, cache, tokens):
        def step(cache, tokens):
            layout = Layout.verify_and_draft(tokens, start=cache.length)
            out = cast(ZayaOutput, zaya.apply(variables, layout, cache))
            assert out.cache is not None
            return out.cache.commit(jnp.zeros((1,), jnp.int32)), out.logits[:, -1].argmax(-1)

        return jax.lax.scan(step, cache, tokens)[1]

    compiled = jax.jit(loop).lower(variables, cache, tokens).compile()
    return lambda: compiled(variables, cache, tokens)


if __name__ == "__main__":
    cli.run(main)

"""What sampling costs and yields on this machine, as ratios of medians whose sides take turns.

    python -m experiments.bench.sampling --only=rows --large= --batches=1 --repeats=3
    python -m experiments.bench.sampling --only=rows,context --output=results/bench/forward.json

1. rows: one forward's cost against its rows, over the one-row autoregressive forward (experts gathered per token), for
   the trained model and for a larger one with random weights; beside it nothing but matrix products over the same
   weights, where the time goes, and the lossless sampler that the cost model would take at that price if drafts
   survived like the trained model's (predicted, not run).
2. context: a step's cost after 1,024 and after 32,768 tokens.
3. anchors: acceptance, and for each budget K of anchors T, query tokens, speed-up over AR and accuracy, batch by batch.
   The list of a budget is found on validation problems, T is measured on test problems.
4. strategies: every mode and target on the same prompts and seeds: T, query tokens, accuracy, speed-up.
5. auto: what mode="auto" chooses for several prompt sets and why, and its speed-up over AR.
6. predicted: what the cost model would choose on GPUs that are not here, from their published peaks and the acceptance
   measured here: a bound, nothing was run there.

The trained model is that of configs/samplers.py (block 16, bytes, `addition`; committed). On a GPU, a model of a size
that matters is trained and measured by one line (a slow test runs it on a CPU, in small):

    python -m experiments.run --config=configs/samplers.py:preset=zaya1_200m --workdir=runs/gpu && \\
    python -m experiments.bench.sampling --checkpoint=runs/gpu/checkpoints/convert --batches=1,8,64 --output=gpu.json
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from zaya_jax import SamplerConfig, Zaya, generate, load_pretrained, preset
from zaya_jax.checks import natural
from zaya_jax.command_line import cli, measured_device
from zaya_jax.costs.flops import parameter_count
from zaya_jax.costs.roofline import HARDWARE, forward_seconds
from zaya_jax.errors import UserError
from zaya_jax.evaluation.forward_parts import forward_parts, gemm_cost, ratios, row_plans
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, NamedSampler, run_sampler
from zaya_jax.paths import absolute
from zaya_jax.reporting.run_files import training_seed
from zaya_jax.runs import provenance
from zaya_jax.sampling import Request, acceptance_curve, choose_sampler
from zaya_jax.sampling.planning.auto import candidates
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, forward_cost
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.tasks import make_task
from zaya_jax.tasks.base import Problem
from zaya_jax.text.tokenizers import ByteTokenizer
from zaya_jax.timing import medians
from zaya_jax.training.state import init_variables

TRAINED = Path(__file__).parents[2] / "results" / "samplers" / "model"
TASK = "addition"
MODES = ("autoregressive", "single_pass", "two_pass", "block_diffusion")
_CHECKPOINT = flags.DEFINE_string("checkpoint", str(TRAINED), "A converted model, trained on bytes and `addition`.")
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", 16, "The block size it was converted with.", lower_bound=2, upper_bound=1024
)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_LARGE = flags.DEFINE_string("large", "zaya1_200m", "Preset of the larger model (random weights); '' for none.")
_LARGE_EXPERTS = flags.DEFINE_integer(
    "large_experts",
    None,
    "Its experts; default: the preset's. With 1 more rows read no more weights.",
    lower_bound=1,
    upper_bound=65_536,
)
_BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Prompts decoded together.")
_PROMPTS = flags.DEFINE_integer(
    "prompts", 256, "Test problems for T and accuracy; an eighth of them for times.", 8, upper_bound=1_000_000
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls of each side of a ratio.", lower_bound=1, upper_bound=10_000)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens a row may grow by.", lower_bound=8, upper_bound=2**24)
_MODES = flags.DEFINE_list("modes", list(MODES), f"Of the strategies section, of {', '.join(MODES)}.")
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0", "1"], "Of the strategies section, 0 and 1.")
_SECTIONS = ("rows", "context", "anchors", "strategies", "auto", "predicted")
_ONLY = flags.DEFINE_list("only", list(_SECTIONS), f"Sections to run, of {', '.join(_SECTIONS)}.")


class Bench(NamedTuple):
    """What all sections share."""

    model: Zaya
    variables: Any
    problems: list[Problem]
    block_size: int
    batches: list[int]
    repeats: int
    new_tokens: int

    @property
    def prompts(self) -> list[list[int]]:
        return [ByteTokenizer().encode(p.prompt) for p in self.problems]

    def sampler(self, mode: str, temperature: float, **fields: Any) -> SamplerConfig:
        stop = (ByteTokenizer().eos_id,)
        return SamplerConfig(mode, self.block_size, temperature=temperature, stop_tokens=stop, **fields)


def main() -> None:
    """Runs the sections and prints them."""
    cli.check_output(_OUTPUT.value)
    for value in _BATCHES.value:
        if not natural(value):
            raise UserError(f"--batches: got {value!r}, may be integers of at least 1")
    for name in _ONLY.value:
        if name not in _SECTIONS:
            raise UserError(f"--only: got {name!r}, may be some of {_SECTIONS}")
    for flag, values, known in (("modes", _MODES.value, MODES), ("temperatures", _TEMPERATURES.value, ("0", "1"))):
        for value in values:
            if value not in known:
                raise UserError(f"--{flag}: got {value!r}, may be some of {', '.join(known)}")
    measured_device.check()
    config, variables = load_pretrained(_CHECKPOINT.value)
    task = make_task(TASK)
    bench = Bench(
        Zaya(config), variables, [task.problem("test", i, 5) for i in range(_PROMPTS.value)], _BLOCK_SIZE.value,
        [int(b) for b in _BATCHES.value], _REPEATS.value, _NEW_TOKENS.value,
    )  # fmt: skip
    numbers: dict = {"hardware": provenance.hardware(), "environment": provenance.describe()}
    numbers["model"] = {
        "checkpoint": _CHECKPOINT.value, "training_seed": training_seed(absolute(_CHECKPOINT.value)),
        "parameters": parameter_count(config).total, "task": TASK,
    }  # fmt: skip
    sections: dict[str, Callable[[Bench], Any]] = {
        "rows": lambda bench: rows_section(bench, _LARGE.value, _LARGE_EXPERTS.value),
        "context": context_section,
        "anchors": anchors_section,
        "strategies": strategies_section,
        "auto": auto_section,
        "predicted": predicted_section,
    }
    for name in _ONLY.value:
        numbers[name] = sections[name](bench)
        cli.write_numbers(_OUTPUT.value, numbers)  # after every section: an interrupted run keeps what it has


def rows_section(bench: Bench, large: str, experts: int | None = None) -> list[dict]:
    """Cost by query tokens, plain products likewise, and parts, for both models and every batch."""
    models = {"trained": (bench.model, bench.variables)}
    if large:
        # A spread of 1 / sqrt(width) keeps variance through every matrix, so that tokens spread over the experts.
        config = preset(large, initializer_range=preset(large).hidden_size ** -0.5)
        config = config.replace(num_experts=experts or config.num_experts)
        models[large] = (Zaya(config), init_variables(Zaya(config), 0))
    out, accepted = [], accepted_everywhere(bench, 0.0)
    for name, (model, variables) in models.items():
        for batch in bench.batches:
            plans = row_plans()
            times = forward_cost(model, variables, list(plans.values()), batch, steps=16, repeats=bench.repeats)
            cost = {rows: times[plan] for rows, plan in plans.items()}
            row: dict = {"model": name, "parameters": parameter_count(model.config).total, "batch": batch}
            row |= {"milliseconds": cost, "ratio": ratios(cost)}
            products = gemm_cost(model.config, list(plans), batch, repeats=bench.repeats)
            row["plain_products"] = {kind: {"milliseconds": ms, "ratio": ratios(ms)} for kind, ms in products.items()}
            row["parts"] = {
                rows: forward_parts(model, variables, plans[rows], batch, repeats=bench.repeats) for rows in (1, 20, 72)
            }
            best = candidates(accepted, cost, bench.block_size)[0]
            row |= {"experts": model.config.num_experts, "predicted_best": dataclasses.asdict(best)}
            out.append(row)
            say(f"predicted, not run: {name}, batch {batch}: {best}")
            say(f"query tokens, {name}, batch {batch}: one {cost[1]:.3f} ms; over it " + _curve(row["ratio"]))
            for kind, values in row["plain_products"].items():
                say(f"  plain products, {kind} weights: {values['milliseconds'][1]:.3f} ms; " + _curve(values["ratio"]))
            for rows, parts in row["parts"].items():
                say(f"  where {rows} rows spend it: " + ", ".join(f"{k} {v:.3f} ms" for k, v in parts.items()))
    return out


def context_section(bench: Bench) -> dict:
    """Milliseconds of an autoregressive and of a 20-row step after a short and a long context, batch 1."""
    config = bench.model.config.replace(max_position_embeddings=65_536)
    plans = {1: AUTOREGRESSIVE, 20: Plan("single_pass", 4, (1, 2, 3, 4), "autoregressive")}
    out: dict = {}
    for context in (1_024, 32_768):
        times = forward_cost(Zaya(config), bench.variables, list(plans.values()), 1, context, 8, bench.repeats)
        out[context] = {rows: times[plan] for rows, plan in plans.items()}
        say(f"context {context}: " + ", ".join(f"{rows} rows {ms:.3f} ms" for rows, ms in out[context].items()))
    return out


def race(bench: Bench, samplers: dict[str, SamplerConfig], prompts: list[list[int]], batch: int) -> dict[str, dict]:
    """Tokens, forwards and milliseconds of each sampler over the prompts, `batch` at a time; prefill included."""
    produced: dict[str, list] = {}

    def runner(name: str) -> Callable[[], object]:
        def call() -> None:
            produced[name] = [
                generate(
                    bench.model, bench.variables, prompts[at : at + batch], samplers[name], bench.new_tokens, seed=at
                )
                for at in range(0, len(prompts), batch)
            ]

        return call

    times = medians({name: runner(name) for name in samplers}, bench.repeats, f"race, batch {batch}")
    return {
        name: {
            "tokens": sum(len(t) for g in produced[name] for t in g.tokens),
            "forwards": sum(int(g.forwards.sum()) for g in produced[name]),
            "milliseconds": times[name],
        }
        for name in samplers
    }


def anchors_section(bench: Bench) -> list[dict]:
    """Budgets of anchors, at temperatures 0 and 1: T and accuracy over all prompts, the speed-up over some."""
    size, out = bench.block_size, []
    for temperature in (0.0, 1.0):
        accepted = accepted_everywhere(bench, temperature)
        say(
            f"acceptance of slots 1 .. {size - 1}, temperature {temperature:g}: "
            + " ".join(f"{a:.2f}" for a in acceptance_curve(accepted, size))
        )
        budgets = [k for k in (1, 2, 3, 4, 8, 16) if k <= size]
        samplers = {k: bench.sampler("single_pass", temperature, anchors=k, acceptance=accepted) for k in budgets}
        plain = bench.sampler("autoregressive", temperature)
        speedups = {}
        for batch in bench.batches:
            some = bench.prompts[: max(batch, len(bench.prompts) // 8) // batch * batch]
            times = race(bench, {"AR": plain, **{f"K={k}": s for k, s in samplers.items()}}, some, batch)
            speed = {name: t["tokens"] / t["milliseconds"] for name, t in times.items()}
            speedups[batch] = {name: speed[name] / speed["AR"] for name in times}
        for k, sampler in samplers.items():
            row = {"temperature": temperature, "anchors": k, **measured(bench, sampler, f"K={k}")}
            row["list"] = list(sampler.anchor_list)
            row["speedup"] = {batch: speed[f"K={k}"] for batch, speed in speedups.items()}
            out.append(row)
            say(
                f"block {size}, temperature {temperature:g}, K={k} {row['list']}: T {row['tokens_per_forward']:.2f}, "
                f"{row['rows_per_forward']:g} rows, accuracy {row['accuracy']:.3f}, speed-up over AR "
                + ", ".join(f"{x:.2f} (batch {b})" for b, x in row["speedup"].items())
            )
    return out


def accepted_everywhere(bench: Bench, temperature: float) -> list[list[int]]:
    """Tokens each forward yielded with an anchor after every accepted length, on validation problems."""
    task, tokenizer = make_task(TASK), ByteTokenizer()
    prompts = [tokenizer.encode(task.problem("validation", i, 5).prompt) for i in range(len(bench.problems))]
    sampler = bench.sampler("single_pass", temperature)
    return generate(bench.model, bench.variables, prompts, sampler, bench.new_tokens, 1).accepted


def measured(bench: Bench, sampler: SamplerConfig, name: str) -> dict:
    """T, rows and accuracy over all problems, one batch."""
    protocol = EvaluationProtocol(len(bench.problems), 1, len(bench.problems), bench.new_tokens, seed=1_000)
    named = NamedSampler(name, sampler)
    result = run_sampler(
        bench.model, bench.variables, ByteTokenizer(), make_task(TASK), bench.problems, named, protocol
    )
    row = result.row(protocol)
    kept = ("batch", "prompts", "seed", "tokens_per_forward", "rows_per_forward", "tokens_per_second", "accuracy",
            "accuracy_low", "accuracy_high")  # fmt: skip
    return {"block_size": sampler.block_size, **{name: row[name] for name in kept}}


def strategies_section(bench: Bench) -> list[dict]:
    """TiDAR's table of decoding strategies and more, on one model: every mode, lossless or not."""
    samplers: dict[str, dict[str, Any]] = {
        "autoregressive": dict(mode="autoregressive"),
        "lossless": dict(mode="single_pass"),
        "lossless, two passes": dict(mode="two_pass"),
        "mix_stale(0.5)": dict(mode="single_pass", target="mix_stale", beta=0.5),
        "mix_fresh(0.5)": dict(mode="single_pass", target="mix_fresh", beta=0.5),
        "most confident, 1": dict(mode="block_diffusion", target="threshold", threshold=1.0, reveal=1),
        "most confident, 2": dict(mode="block_diffusion", target="threshold", threshold=1.0, reveal=2),
        "left to right, 1": dict(mode="block_diffusion", target="left_to_right", reveal=1),
        "left to right, 2": dict(mode="block_diffusion", target="left_to_right", reveal=2),
        **{
            f"confidence > {t}": dict(mode="block_diffusion", target="threshold", threshold=t)
            for t in (0.9, 0.8, 0.7, 0.6)
        },
    }
    out = []
    chosen = {name: fields for name, fields in samplers.items() if fields["mode"] in _MODES.value}
    for temperature in map(float, _TEMPERATURES.value):
        for name, fields in chosen.items():
            row = {
                "strategy": name, "temperature": temperature,
                **measured(bench, bench.sampler(temperature=temperature, **fields), name),
            }  # fmt: skip
            out.append(row)
            say(
                f"temperature {temperature:g}, {name}: T {row['tokens_per_forward']:.2f}, {row['rows_per_forward']:g} "
                f"rows, accuracy {row['accuracy']:.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}), "
                f"{row['tokens_per_second']:.0f} tokens/s at batch {row['batch']}"
            )
    return out


def auto_section(bench: Bench) -> list[dict]:
    """What "auto" takes for additions and for plain text, and its speed-up over AR on prompts it has not seen."""
    text = Path(json.__file__).read_bytes()
    sets = {
        "addition": bench.prompts,
        "python": [list(text[at : at + 48]) for at in range(0, 48 * len(bench.prompts), 48) if at + 48 < len(text)],
    }
    out = []
    for name, prompts in sets.items():
        for batch in bench.batches:
            for temperature in (0.0, 1.0):
                fresh = prompts[: batch * max(1, min(len(prompts) // 8, 16) // batch)]
                asked = bench.sampler("auto", temperature)
                request = Request(prompts[-batch:], bench.new_tokens)
                choice = choose_sampler(bench.model, bench.variables, request, asked, bench.repeats)
                sides = {"AR": choice.sampler.plain, "auto": choice.sampler}
                times = race(bench, sides, fresh, batch)
                speed = {side: t["tokens"] / t["milliseconds"] for side, t in times.items()}
                # one program under two names: any other ratio would be noise
                if choice.sampler.plain == choice.sampler:
                    speed["auto"] = speed["AR"]
                row = {
                    "prompts": name, "batch": batch, "temperature": temperature, "reason": choice.reason,
                    "mode": choice.sampler.mode, "block_size": choice.sampler.block_size,
                    "anchors": list(choice.sampler.anchor_list), "speedup": speed["auto"] / speed["AR"],
                    "tokens_per_forward": times["auto"]["tokens"] / times["auto"]["forwards"],
                    "rows_per_forward": choice.sampler.rows_per_forward,
                }  # fmt: skip
                out.append(row)
                say(
                    f"auto, {name}, batch {batch}, temperature {temperature:g}: {row['speedup']:.2f} of AR's "
                    f"speed at T {row['tokens_per_forward']:.2f}; {choice.reason}"
                )
    return out


def predicted_section(bench: Bench) -> list[dict]:
    """The cost model's choice for ZAYA1-8B on other hardware, if its drafts survived like this model's do here."""
    accepted = accepted_everywhere(bench, 1.0)
    config, out = preset("zaya1_8b"), []
    for name, hardware in HARDWARE.items():
        for batch in bench.batches:
            shapes = [1, *range(2, bench.block_size * (bench.block_size + 1) + 1)]
            cost = {n: 1e3 * forward_seconds(config, hardware, n, batch, head_rows=min(n, 32)) for n in shapes}
            best = candidates(accepted, cost, bench.block_size)[0]
            row = {"hardware": name, "batch": batch, "context": 4096, "run": False, **dataclasses.asdict(best)}
            out.append({**row, "autoregressive_cost": cost[1]})
            say(f"predicted, not run: zaya1_8b on {name}, batch {batch}, context 4096: {best}")
    return out


def say(line: str) -> None:
    print(line, flush=True)


def _curve(ratio: dict[int, float]) -> str:
    return ", ".join(f"{rows}: {x:.2f}x" for rows, x in ratio.items())


if __name__ == "__main__":
    cli.run(main)

"""pass@k, tokens per forward and wall-clock of one sampler over a task's test problems."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from zaya_jax.architecture import Zaya
from zaya_jax.checks import KEY, ROWS, SEED, Integer, check_fields
from zaya_jax.errors import UserError
from zaya_jax.evaluation.answers import Answers, fingerprint
from zaya_jax.evaluation.pass_at_k import mean_interval, paired_difference, pass_at_k, permutation_p_value
from zaya_jax.evaluation.same_texts import texts_p_value
from zaya_jax.evaluation.samplers import NamedSampler
from zaya_jax.files import make_folder
from zaya_jax.reporting.results import wilson
from zaya_jax.sampling import SamplerConfig, best_anchors, evidence, find_target
from zaya_jax.sampling.continuous import Prompt, compile_queue, generate_queue, in_order
from zaya_jax.sampling.drafting import Yield
from zaya_jax.sampling.planning.work import StepWork, step_work
from zaya_jax.sampling.values import plain
from zaya_jax.tasks.base import Problem, Task
from zaya_jax.text.detokenizer import Detokenizer
from zaya_jax.text.tokenizers import Tokenizer

BUDGET_PROBLEMS = 128  # validation problems that choose a budget's anchors
FEW_BATCHES = 4  # the least from which a speed-up's interval is taken
BOOTSTRAPS = 2_000
KS = (4, 16)  # of pass@k, beside pass@1, which is the accuracy


@dataclasses.dataclass(frozen=True)
class EvaluationProtocol:
    """What every sampler goes through: the same problems, the same seed for each sequence."""

    prompts: Annotated[int, ROWS]  # test problems of each task, as far as it has so many
    samples: Annotated[int, Integer(1, 65_536)]  # of each problem, at temperatures above 0
    batch: Annotated[int, ROWS]  # sequences at once: prompts x samples
    max_new_tokens: Annotated[int, Integer(1, 2**24)]
    seed: Annotated[int, SEED]  # of the problems, and of the first sequence; the r-th after it has seed + r

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        check_fields("EvaluationProtocol", self)
        if not KEY.allows(self.seed + self.prompts * self.samples):
            may_be = f"such that seed + prompts * samples (the last sequence's seed) is at most {KEY.most}"
            raise UserError(f"EvaluationProtocol.samples: got {self.samples}, may be {may_be}")

    def problems(self, task: Task, split: str = "test") -> list[Problem]:
        return task.problems(split, self.prompts, self.seed)


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """All of one sampler's completions; the samples of a problem stand side by side."""

    sampler: NamedSampler
    samples: int  # of each problem
    tokens: list[list[int]]
    accepted: list[list[int]]
    correct: list[bool | None]  # None where a task has no right answer
    seconds: float  # of generation, compilation excluded
    rows_per_forward: float
    times: Sequence[tuple[int, float]] = ()  # tokens and seconds of each batch of problems, in their order
    work: StepWork | None = None  # of one step
    log_target: Sequence[float] = ()  # of each text, its log-probability under the sampler's target; () if not known

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds

    @property
    def drafted(self) -> Yield:
        """What verified blocks yielded, and its warning where that is nothing."""
        out = Yield()
        out.add(self.sampler.config, self.accepted)
        return out

    @property
    def solved(self) -> np.ndarray:
        """How many samples of each problem are right, int [problem]."""
        return np.array(self.correct, int).reshape(-1, self.samples).sum(1)

    def row(self, protocol: EvaluationProtocol, baseline: "TaskResult | None" = None) -> dict[str, Any]:
        """This result's cells of results.csv.

        Args:
          baseline: the autoregressive sampler at the same temperature, over the same problems with as many samples.
        """
        config = self.sampler.config
        tokens, forwards = sum(map(len, self.tokens)), sum(map(len, self.accepted))
        row = {
            "sampler": self.sampler.name,
            "temperature": config.temperature,
            "beta": config.beta if find_target(str(config.target)).beta else None,
            "block_size": _block_size(config),
            "anchors": _anchors(config),
            "batch": protocol.batch,
            "prompts": len(self.tokens) // self.samples,
            "seed": protocol.seed,
            "max_new_tokens": protocol.max_new_tokens,
            "draft_temperature": config.draft_temperature,
            "samples": self.samples,
            **self._passes(),
            "tokens": tokens,
            "forwards": forwards,
            "tokens_per_forward": tokens / forwards,
            "most_tokens_per_forward": most_tokens_per_forward(map(len, self.tokens), config),
            "tokens_per_decoding_forward": tokens_per_decoding_forward(self.accepted),
            "rows_per_forward": self.rows_per_forward,
            "forwards_by_tokens": np.bincount([n for text in self.accepted for n in text]).tolist(),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "entropy": self._entropy(),
            **self._work(tokens / forwards),
        }
        return row | ({} if baseline is None else self._against(baseline))

    def _entropy(self) -> float | None:
        """Nats a token of the target at its temperature, by its own samples; None where nothing is left to chance."""
        config = self.sampler.config
        if config.temperature == 0 or find_target(str(config.target)).reveal is not None or not self.log_target:
            return None
        return -sum(self.log_target) / sum(map(len, self.tokens))

    def _work(self, tokens_per_forward: float) -> dict[str, Any]:
        """What a step computes, and tokens by what it costs where memory bounds it, and where arithmetic does."""
        work, config = self.work, self.sampler.config
        if work is None:
            return {}
        tokens = tokens_per_forward * work.target_forwards  # of a step
        return {
            "draft_length": config.draft_length if config.mode == "drafter" else None,
            "tree_size": config.tree_size if config.mode == "drafter" else None,
            "target_forwards": work.target_forwards,
            "target_rows": work.target_rows,
            "draft_passes": work.draft_passes,
            "forward_equivalents": work.forward_equivalents,
            "row_equivalents": work.row_equivalents,
            "tokens_per_forward_equivalent": tokens / work.forward_equivalents,
            "tokens_per_row_equivalent": tokens / work.row_equivalents,
        }

    def _texts_p_value(self, baseline: "TaskResult") -> float | None:
        """Of the texts, and of their log-probabilities where both samplers have one target."""
        targets = {find_target(str(result.sampler.config.target)).name for result in (self, baseline)}
        known = len(targets) == 1 and self.log_target and baseline.log_target
        numbers = [(self.log_target, baseline.log_target)] if known else []
        return texts_p_value(self.tokens, baseline.tokens, self.samples, numbers)

    def _passes(self) -> dict[str, float]:
        """pass@1 (the accuracy) and pass@k with 95% intervals: Wilson's, or the bootstrap over problems."""
        if None in self.correct:
            return {}
        if self.samples == 1:
            right = np.array(self.correct, bool)
            low, high = wilson(int(right.sum()), len(right))
            return {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}
        cells = {}
        for name, k in (("accuracy", 1), *((f"pass_at_{k}", k) for k in KS)):
            if k <= self.samples:
                interval = mean_interval(pass_at_k(self.samples, self.solved, k))
                cells |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return cells

    def _against(self, baseline: "TaskResult") -> dict[str, float]:
        """Speed-up, sameness of greedy texts, paired difference of pass@16, and whether chance explains the rest."""
        cells = {"speedup": self.tokens_per_second / baseline.tokens_per_second}
        if self is not baseline and (interval := speedup_interval(self.times, baseline.times)):
            cells |= dict(zip(("speedup_low", "speedup_high"), interval, strict=True))
        if self.sampler.config.temperature == 0:
            same = [a == b for a, b in zip(self.tokens, baseline.tokens, strict=True)]
            cells["identical_to_autoregressive"] = sum(same) / len(same)
        elif self is not baseline and (p := self._texts_p_value(baseline)) is not None:
            cells["texts_p_value"] = p
        if self is baseline or None in self.correct:
            return cells
        cells["p_value"] = permutation_p_value(self.solved / self.samples, baseline.solved / self.samples)
        if self.samples >= KS[-1]:
            mine, other = (pass_at_k(self.samples, result.solved, KS[-1]) for result in (self, baseline))
            difference = paired_difference(mine, other)
            names = (f"pass_at_{KS[-1]}_difference{end}" for end in ("", "_low", "_high"))
            cells |= dict(zip(names, difference, strict=True))
        return cells


def speedup_interval(
    mine: Sequence[tuple[int, float]], others: Sequence[tuple[int, float]]
) -> tuple[float, float] | None:
    """95% interval of the ratio of tokens per second: the bootstrap over batches, which both went through.

    None with fewer than FEW_BATCHES, or where the batches are not the same: one measurement has no interval. It
    tells how much batches differ, not what another machine, or other work on this one, would change.

    Args:
      mine, others: (tokens, seconds) of each batch.
    """
    if len(mine) != len(others) or len(mine) < FEW_BATCHES:
        return None
    drawn = np.random.default_rng(0).integers(0, len(mine), (BOOTSTRAPS, len(mine)))
    a, b = (np.asarray(times, float)[drawn].sum(1) for times in (mine, others))
    low, high = np.quantile(a[:, 0] / a[:, 1] * b[:, 1] / b[:, 0], (0.025, 0.975))
    return float(low), float(high)


def most_tokens_per_forward(lengths: Iterable[int], sampler: SamplerConfig) -> float | None:
    """T of texts of these lengths if no draft were refused: short answers leave little room, whatever the model.

    The prefill yields one token and every further forward a block, the last one what is left. None where a step is not
    one forward (two_pass, block_diffusion).
    """
    size = {"autoregressive": 1, "single_pass": sampler.block_size}.get(sampler.mode)
    if size is None:
        return None
    lengths = list(lengths)
    return sum(lengths) / sum(1 + math.ceil((n - 1) / size) for n in lengths)


def tokens_per_decoding_forward(accepted: Iterable[Sequence[int]]) -> float | None:
    """T without the prefills and the token that each yields: what a long text's T would tend to, were it like these.

    Args:
      accepted: tokens of each forward, one list a text (`Generation.accepted`).
    """
    after = [a[1:] for a in accepted]
    forwards = sum(map(len, after))
    return sum(map(sum, after)) / forwards if forwards else None


def _block_size(sampler: SamplerConfig) -> int:
    """Tokens that a step can yield at most."""
    if sampler.mode == "drafter":
        return 1 + sampler.draft_length
    return 1 if sampler.mode == "autoregressive" else sampler.block_size


def _anchors(sampler: SamplerConfig) -> str | list[int] | None:
    if sampler.mode != "single_pass":
        return None
    return sampler.anchors if isinstance(sampler.anchors, str) else list(sampler.anchor_list)


def run_sampler(
    model: Zaya,
    variables: dict,
    tokenizer: Tokenizer,
    task: Task,
    problems: Sequence[Problem],
    sampler: NamedSampler,
    protocol: EvaluationProtocol,
    path: Path | None = None,
) -> TaskResult:
    """Completes every problem, `protocol.batch` sequences side by side, the next in the place of one that ended.

    All is compiled before, which is not timed.

    Args:
      problems: `protocol.problems(task)`, mostly.
      path: of a file that gets a line a problem, in order, as soon as all before it are answered too, and that a killed
        evaluation resumes from.

    Raises:
      UserError: `path` holds another evaluation's answers.
      SandboxError: a task that runs code, where that cannot be done safely.
    """
    samples = protocol.samples if sampler.config.temperature > 0 else 1  # greedy samples would all be the same
    prompts = [task.encode(problem, tokenizer) for problem in problems]
    answers_text = Detokenizer(tokenizer, start=False)
    made_by = _made_by(variables, task, problems, sampler, protocol) | {"first_prompt": prompts[0]}
    answers = Answers(path, made_by)
    done = len(answers.lines)
    batch, longest = min(protocol.batch, len(prompts) * samples), max(map(len, prompts))

    def asked(rows: Iterable[int]) -> Iterator[Prompt]:
        return (Prompt(prompts[row // samples], protocol.seed + row) for row in rows)

    left = range(done * samples, len(prompts) * samples)
    run, sizes = (sampler.config, protocol.max_new_tokens), {"longest": longest, "batch": batch}
    compile_queue(model, variables, asked(left[::samples]), *run, **sizes)
    sequences = in_order(generate_queue(model, variables, asked(left), *run, **sizes))
    label = f"{task.name} {sampler.name} T={sampler.config.temperature:g}"
    bar = tqdm(total=len(problems), initial=done, desc=label, unit="problem", dynamic_ncols=True)
    for i in range(done, len(prompts)):
        mine = list(itertools.islice(sequences, samples))
        line = {
            "problem": i,
            "correct": [task.check(problems[i], answers_text.whole(each.tokens)) for each in mine],
            "tokens": [each.tokens for each in mine],
            "accepted": [each.accepted for each in mine],
            "log_target": [sum(each.log_probabilities) for each in mine],
            "seconds": sum(each.seconds for each in mine),
        }
        answers.add([line])
        bar.update()
    bar.close()
    lines = answers.lines[: len(problems)]  # the file may be of a longer evaluation
    together = {key: [x for line in lines for x in line[key]] for key in ("tokens", "accepted", "correct")}
    log_target = [x for line in lines for x in line.get("log_target", ())]  # files of before have none
    seconds = sum(line["seconds"] for line in lines)
    at_once = max(1, protocol.batch // samples)
    times = [
        (sum(len(tokens) for line in part for tokens in line["tokens"]), sum(line["seconds"] for line in part))
        for start in range(0, len(lines), at_once)
        for part in [lines[start : start + at_once]]
    ]
    return TaskResult(
        sampler, samples, **together, seconds=seconds, rows_per_forward=sampler.config.rows_per_forward, times=times,
        work=None if sampler.config.mode == "auto" else step_work(model, variables, sampler.config),
        log_target=log_target if len(log_target) == len(together["tokens"]) else (),
    )  # fmt: skip


def _made_by(
    variables: dict, task: Task, problems: Sequence[Problem], sampler: NamedSampler, protocol: EvaluationProtocol
) -> dict[str, Any]:
    """What decides an answer; the number of problems does not, so a longer evaluation resumes after a shorter one."""
    settings = dataclasses.asdict(sampler.config)
    if not settings["lookup"]:  # older files do not have it
        del settings["lookup"]
    return {
        "task": repr(task),
        "first_problem": problems[0].identity,
        "seed": protocol.seed,
        "samples": protocol.samples,
        "max_new_tokens": protocol.max_new_tokens,
        "sampler": settings,
        "weights": fingerprint(variables),
    }


def run_task(
    model: Zaya,
    variables: dict,
    tokenizer: Tokenizer,
    task: Task,
    samplers: Sequence[NamedSampler],
    protocol: EvaluationProtocol,
    folder: Path | None = None,
    anchor_budget: int = 0,
) -> list[TaskResult]:
    """Every sampler over the same problems.

    Args:
      folder: where the answers are streamed to, one file for each sampler; made if it is not there.
      anchor_budget: anchors of single_pass samplers, the best list for what lossless accepts on problems of the task's
        tuning split at the samplers' highest temperature; 0 for all.

    Raises:
      UserError, SandboxError: as `run_sampler`.
    """
    if folder is not None:
        make_folder(folder)
    problems = protocol.problems(task)
    budgeted = [sampler.config for sampler in samplers if chooses_anchors(sampler.config)]
    if anchor_budget and budgeted:
        hottest = max(budgeted, key=lambda config: config.temperature)
        samplers = with_anchors(
            samplers, _best_list(model, variables, tokenizer, task, hottest, protocol, anchor_budget)
        )
    results = []
    for sampler in samplers:
        name = f"{task.name}-{sampler.name}-temperature-{sampler.config.temperature:g}.jsonl"
        path = None if folder is None else folder / name
        results.append(run_sampler(model, variables, tokenizer, task, problems, sampler, protocol, path))
    return results


def chooses_anchors(config: SamplerConfig) -> bool:
    """Whether a sampler drafts after some accepted lengths or after all, as one likes."""
    return config.mode == "single_pass" and not config.reads_next_block


def with_anchors(samplers: Sequence[NamedSampler], anchors: Sequence[int]) -> tuple[NamedSampler, ...]:
    """The samplers, those that have a choice with these anchors."""
    return tuple(
        dataclasses.replace(each, config=dataclasses.replace(each.config, anchors=anchors))
        if chooses_anchors(each.config)
        else each
        for each in samplers
    )


def _best_list(
    model: Zaya,
    variables: dict,
    tokenizer: Tokenizer,
    task: Task,
    like: SamplerConfig,
    protocol: EvaluationProtocol,
    budget: int,
) -> Sequence[int]:
    """The best list of `budget` anchors for problems of the tuning split."""
    few = dataclasses.replace(protocol, prompts=min(BUDGET_PROBLEMS, protocol.prompts), samples=1)
    lossless = dataclasses.replace(like, target=None)
    problems = few.problems(task, task.tuning_split)
    probe = run_sampler(model, variables, tokenizer, task, problems, NamedSampler("all anchors", lossless), few)
    return best_anchors(evidence(probe.accepted, like.block_size), like.block_size, budget)


def task_rows(results: Sequence[TaskResult], protocol: EvaluationProtocol) -> list[dict[str, Any]]:
    """The cells of results.csv of every result, each against the autoregressive one at its temperature."""
    baseline = {r.sampler.config.temperature: r for r in results if r.sampler.name == "autoregressive"}
    return [result.row(protocol, baseline.get(result.sampler.config.temperature)) for result in results]

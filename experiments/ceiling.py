"""How many tokens per forward list programs allow a sampler whose distributions are exact: where training can lead at
best.

    python -m experiments.ceiling --problems=16
    python -m experiments.ceiling --output=results/bench/ceiling.json

The verifier's distribution is the posterior over all programs that fit the shown examples; a mask token's distribution
is the posterior's marginal at that position, given the text that the block stands after. What is left to refuse is what
no model of TiDAR's kind can know: drafts of one block are drawn independently, and examples leave several programs
open.
Sampled at temperature 1 by the rule of single_pass with every anchor; a ten-thousandth of each distribution is spread
evenly, since no trained model is surer than that and mixing needs no zeros.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from zaya_jax.command_line import cli
from zaya_jax.evaluation.task_accuracy import most_tokens_per_forward, tokens_per_decoding_forward
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.core.distributions import log_acceptance, log_residual, mix
from zaya_jax.tasks.list_programs import OPERATIONS, ListPrograms, substitute

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_PROBLEMS = flags.DEFINE_integer("problems", 256, "Test problems of each kind.", lower_bound=1, upper_bound=1_000_000)
_SEED = flags.DEFINE_integer("seed", 1_000, "Of the problems and the draws.", lower_bound=0, upper_bound=2**31 - 1)

END = "$"  # stands for EOS; no program has it
SPREAD = 1e-4
BLOCK_SIZE = 16
BETAS = (0.0, 0.5)


def main() -> None:
    cli.check_output(_OUTPUT.value)
    rows, tokens = [], []
    for operations, examples in ((1, 3), (2, 3), (2, 5)):
        task = ListPrograms(max_operations=operations, examples=examples)
        problems = task.problems("test", _PROBLEMS.value, _SEED.value)
        for beta in BETAS:
            rng, accepted = np.random.default_rng(_SEED.value), []
            for problem in tqdm(problems, desc=f"{operations} operations, {examples} examples, beta {beta:g}"):
                accepted.append(sample(Posterior(task, problem.answer[:examples]), BLOCK_SIZE, beta, rng))
            row = {"max_operations": operations, "examples": examples, "beta": beta, **summary(accepted)}
            rows.append(row)
            tokens.append(float(row["tokens_per_forward"] or 0))
            print(f"{operations} operations, {examples} examples, beta {beta:g}: T {row['tokens_per_forward']:.2f}")
    least, most = min(tokens), max(tokens)
    print(
        f"At best a forward yields {least:.2f} to {most:.2f} tokens on list programs ({_PROBLEMS.value} test problems "
        f"of each kind, block size {BLOCK_SIZE}, temperature 1, all branch points, seed {_SEED.value}). What a trained "
        "model reaches: docs/results/cpu_study.md"
    )
    conditions = {"block_size": BLOCK_SIZE, "temperature": 1.0, "seed": _SEED.value, "problems": _PROBLEMS.value}
    cli.write_numbers(_OUTPUT.value, {"conditions": conditions, "rows": rows})


def summary(accepted: list[list[int]]) -> dict[str, float | None]:
    """T as results.csv has it, from the tokens of each forward of each text."""
    sampler = SamplerConfig("single_pass", block_size=BLOCK_SIZE)
    return {
        "tokens_per_forward": sum(map(sum, accepted)) / sum(map(len, accepted)),
        "most_tokens_per_forward": most_tokens_per_forward(map(sum, accepted), sampler),
        "tokens_per_decoding_forward": tokens_per_decoding_forward(accepted),
    }


@functools.cache
def programs(max_operations: int) -> dict[str, tuple[float, tuple[int, ...]]]:
    """Every text a problem may have for an answer, its END included: (prior probability, operations that make it)."""
    found: dict[str, tuple[float, tuple[int, ...]]] = {}
    for count in range(1, max_operations + 1):
        for chosen in itertools.product(range(len(OPERATIONS)), repeat=count):
            text = "x"
            for index in chosen:
                text = substitute(OPERATIONS[index][0], text)
            before, _ = found.get(f"{text}\n{END}", (0.0, ()))
            found[f"{text}\n{END}"] = before + 1 / (max_operations * len(OPERATIONS) ** count), chosen
    return found


class Posterior:
    """The exact distributions of a problem's answer, given what its prompt shows."""

    def __init__(self, task: ListPrograms, shown) -> None:
        def fits(chosen: tuple[int, ...]) -> bool:
            return all(functools.reduce(lambda x, i: OPERATIONS[i][1](x), chosen, x) == y for x, y in shown)

        every = programs(task.max_operations)
        self.letters = sorted(set("".join(every)))
        self.weights = {text: prior for text, (prior, chosen) in every.items() if fits(chosen)}

    def distribution(self, prefix: str, slot: int = 0) -> np.ndarray:
        """Log-probabilities [letter] of what stands `slot` places after `prefix`; END repeats itself."""
        distribution, at = np.zeros(len(self.letters)), len(prefix) + slot
        for text, weight in self.weights.items():
            if text.startswith(prefix):
                distribution[self.letters.index(text[at] if at < len(text) else END)] += weight
        distribution = (
            distribution / distribution.sum()
            if distribution.any()
            else np.full_like(distribution, 1 / len(distribution))
        )
        return np.log((1 - SPREAD) * distribution + SPREAD / len(distribution))


def sample(distributions: Posterior, block_size: int, beta: float, rng: np.random.Generator) -> list[int]:
    """Tokens that each forward yields, the prefill's first, by the rule of `sampling.strategies.single_pass`."""

    def draw(distribution: np.ndarray) -> int:
        return int(np.argmax(distribution + rng.gumbel(size=distribution.shape)))

    after, text = (
        "",
        distributions.letters[draw(distributions.distribution(""))],
    )  # the block is drafted after a text without the pending token
    accepted = [1]
    while not text.endswith(END):
        log_q = np.stack([distributions.distribution(after, slot) for slot in range(1, block_size)])
        drafts = [draw(distribution) for distribution in log_q]
        whole = [text + "".join(distributions.letters[d] for d in drafts[:n]) for n in range(block_size)]
        log_p = np.stack([distributions.distribution(prefix) for prefix in whole])
        tested = (
            log_p[:-1] if not beta else np.asarray(mix(jnp.asarray(log_p[:-1]), jnp.asarray(log_q), jnp.asarray(beta)))
        )
        tested = tested - np.log(np.exp(tested).sum(-1, keepdims=True))
        ratio = np.asarray(log_acceptance(jnp.asarray(tested), jnp.asarray(log_q), jnp.asarray(drafts)))
        refused = np.flatnonzero(np.log(rng.random(block_size - 1)) > ratio)
        kept = int(refused[0]) if refused.size else block_size - 1
        left = (
            np.asarray(log_residual(jnp.asarray(tested[kept]), jnp.asarray(log_q[kept]))) if refused.size else log_p[-1]
        )
        after = whole[kept]
        new = after[len(text) :] + distributions.letters[draw(left)]
        end = new.find(END)
        accepted.append(len(new) if end < 0 else end + 1)
        text += new[: accepted[-1]]
    return accepted


if __name__ == "__main__":
    cli.run(main)

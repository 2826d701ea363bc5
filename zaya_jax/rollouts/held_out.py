"""How often a policy solves problems that it is not trained on, and how far its drafts reach meanwhile."""

from collections.abc import Sequence
from typing import Any

from zaya_jax.architecture import Zaya
from zaya_jax.evaluation.pass_at_k import pass_at_k
from zaya_jax.parallel import Placement
from zaya_jax.rollouts.batches import answer, judge
from zaya_jax.sampling import SamplerConfig
from zaya_jax.tasks.base import Task
from zaya_jax.text.tokenizers import Tokenizer

KS = (1, 16)


def held_out(
    model: Zaya,
    variables: Any,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    sampler: SamplerConfig,
    problems: int,
    samples: int,
    new: int,
    batch: int,
    seed: int,
    placement: Placement | None = None,
) -> dict[str, float]:
    """pass@k, mean reward and tokens per forward on the tuning split's first problems; names begin with the task's.

    The same problems and the same keys at every call, so that two calls differ by the variables alone.

    Args:
      samples: of each problem.
      batch: sequences side by side, a multiple of the devices of `placement` that share them.
    """
    out: dict[str, float] = {}
    for task in tasks:
        chosen = [(task, problem) for problem in task.problems(task.tuning_split, problems, seed)]
        prompts = [prompt for _, each in chosen for prompt in [task.encode(each, tokenizer)] * samples]
        seeds, longest = range(seed, seed + len(prompts)), max(map(len, prompts))
        sequences, _ = answer(model, variables, prompts, seeds, sampler, new, longest, batch, placement)
        rewards, solved = judge(chosen, sequences, samples, tokenizer)
        forwards = sum(len(each.accepted) for each in sequences)
        out |= {
            f"{task.name}/pass_at_{k}": float(pass_at_k(samples, solved.sum(1), k).mean()) for k in KS if k <= samples
        }
        out[f"{task.name}/reward"] = float(rewards.mean())
        out[f"{task.name}/tokens_per_forward"] = sum(len(each.tokens) for each in sequences) / forwards
    return out

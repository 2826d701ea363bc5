"""Which sampler is fastest here: the cost model behind `SamplerConfig(mode="auto")`.

Tokens per second = tokens per step / seconds per step. The first follows from measured acceptance rates and the
anchors (branch_points.py), the second from the measured (or assumed: `zaya_jax.costs.roofline`) cost of a forward
against its query tokens (cost.py). What the model predicts to be fastest is then timed beside autoregression, and is
chosen where it is faster by MARGIN. The race is needed: on the two cores of results/bench/samplers.json forwards alone
predicted 1.8x where drafting then ran at 0.8x to 0.9x, and "auto" has chosen autoregression in every case there.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zaya_jax.architecture import Zaya
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.errors import UserError
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.decoding import decode
from zaya_jax.sampling.drafters import all_drafters
from zaya_jax.sampling.options import plan_of
from zaya_jax.sampling.planning.branch_points import (
    Acceptance,
    acceptance_curve,
    best_anchors,
    evidence,
    expected_tokens,
)
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, cost_at, forward_cost, rows_of
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.sampling.types import Generation, Request
from zaya_jax.timing import medians

MARGIN = 1.05  # drafting must be predicted, and then measured, to be this much faster than autoregression
HEATS = 4  # generations of a race whose batch is smaller than the request
LOOKUP = 3  # what is tried where the sampler's `lookup` is None
PROBE_TOKENS = 64  # new tokens of each prompt that measure acceptance and the race


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to spend a forward, and what is expected of it."""

    block_size: int
    anchors: tuple[int, ...]  # none: autoregression, or a drafter
    rows: int  # query tokens per forward
    tokens: float  # per forward
    cost: float  # of a step: a forward and a drafter's own passes, in the unit of the cost curve
    speedup: float  # tokens per second over autoregression's
    drafter: str = ""  # which proposes block_size - 1 tokens
    lookup: int = 0  # of SamplerConfig

    def __str__(self) -> str:
        name = "autoregressive"
        if self.anchors:
            name = f"single_pass, block {self.block_size}, anchors {list(self.anchors)}"
            name += f", lookup {self.lookup}" if self.lookup else ""
        elif self.drafter:
            name = f"drafter {self.drafter}, {self.block_size - 1} drafts"
        return f"{name}: {self.rows} query tokens, T {self.tokens:.2f}, {self.speedup:.2f}x"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What "auto" chose and why."""

    sampler: SamplerConfig
    reason: str
    candidates: tuple[Candidate, ...] = ()  # fastest first, autoregression among them; none where nothing was measured
    acceptance: tuple[float, ...] = ()
    cost: dict[int, float] = dataclasses.field(default_factory=dict)  # milliseconds of a forward by query tokens


def candidates(
    acceptance: Acceptance, cost: Mapping[int, float], block_size: int, lookup: int = 0
) -> tuple[Candidate, ...]:
    """Block sizes up to `block_size` (2, 3, 4, 6, 8, 12, ... and itself), each with its best anchors for every budget.

    Args:
      acceptance: runs or rates, as for `best_anchors`. A smaller block's drafts are taken to be as good.
      cost: of a forward by query tokens, in any unit; must hold 1, the autoregressive forward.
      lookup: with which the acceptance was measured. What look-ups add where a block is missing is not counted.

    Returns:
      By predicted tokens per second, fastest first; autoregression is among them.

    Raises:
      UserError: no cost for one query token.
    """
    if 1 not in cost:
        raise UserError(f"cost: got rows {sorted(cost)}, may be any that include 1 (the autoregressive forward)")
    out = [Candidate(1, (), 1, 1.0, cost[1], 1.0)]
    sizes = {part * 2**i for part in (2, 3) for i in range(block_size.bit_length())} | {block_size}
    for size in sorted(size for size in sizes if 1 < size <= block_size):
        for budget in range(1, size + 1):
            anchors = best_anchors(acceptance, size, budget)
            rows, tokens = size * (1 + budget), expected_tokens(acceptance, size, anchors)
            price = cost_at(cost, rows)
            out.append(Candidate(size, anchors, rows, tokens, price, tokens / price * cost[1], lookup=lookup))
    return tuple(sorted(out, key=lambda c: -c.speedup))


def drafter_candidates(
    name: str, accepted: Sequence[Sequence[int]], cost: Mapping[int, float], plain: float, draft_length: int
) -> tuple[Candidate, ...]:
    """A drafter with 1, 2, 3, 5, 7, ... drafts up to `draft_length`.

    Args:
      accepted: of generations with draft_length drafts (`Generation.accepted`). A step that yielded n tokens is taken
        to become as few as can yield them, where fewer are drafted: what was accepted was foreseen.
      cost: of its step by draft length.
      plain: of an autoregressive step.
    """
    runs = [n for row in accepted for n in row[1:] if n]
    if not runs:
        return ()
    lengths = {part * 2**i - 1 for part in (2, 3) for i in range(draft_length.bit_length())} | {draft_length}
    out = []
    for length in sorted(n for n in lengths if 1 <= n <= draft_length):
        tokens = sum(runs) / sum(-(-n // (length + 1)) for n in runs)
        price = cost_at(cost, length)
        out.append(Candidate(length + 1, (), length + 1, tokens, price, tokens / price * plain, name))
    return tuple(out)


def choose_sampler(
    model: Zaya, variables: Any, request: Request, sampler: SamplerConfig, repeats: int = 3, batch: int | None = None
) -> Choice:
    """What mode="auto" stands for with these prompts on this machine: measures acceptance and cost, predicts, races.

    Takes about as long as compiling ten small programs and generating a few times PROBE_TOKENS tokens; use the
    choice's sampler for every later batch of the same size.

    Args:
      request: as it will be generated; the batch size matters to the cost. A session's texts are read anew.
      sampler: mode "auto"; its other fields hold for whatever is chosen.
      batch: the request's prompts are examples (at least so many), and texts will be generated so many at a time:
        acceptance is measured on all of them side by side, cost and race at this batch. None: it is the batch.
    """
    size, new = sampler.block_size, min(request.max_new_tokens, PROBE_TOKENS)
    probe = request.replace(prompts=request.texts, max_new_tokens=new, session=None, streamer=None)
    fewest = min(sampler.min_new_tokens, new)
    plain = dataclasses.replace(
        sampler, mode="autoregressive", target="autoregressive", lookup=0, min_new_tokens=fewest
    )

    def choice(chosen: SamplerConfig, reason: str, *found: Any) -> Choice:
        return Choice(dataclasses.replace(chosen, min_new_tokens=sampler.min_new_tokens), reason, *found)

    if size == 1 or new < 4:
        reason = f"nothing to draft with block size {size} and {request.max_new_tokens} new tokens"
        return choice(plain, f"autoregressive: {reason}")
    lookups = (0, LOOKUP) if sampler.lookup is None and sampler.target == "autoregressive" else (sampler.lookup or 0,)
    found = _measure(model, variables, probe, plain, (sampler.target, lookups), batch or probe.rows, repeats)
    if found is None:
        return choice(plain, "autoregressive: no text is long enough to measure acceptance")
    (best, *_), _, cost = found
    curve = ", ".join(f"{rows} {ms / cost[1]:.2f}x" for rows, ms in cost.items())
    why = f"(a forward's cost by query tokens: {curve}; predicted best: {best})"
    if best.speedup < MARGIN:
        return choice(plain, f"autoregressive: drafting is not predicted to pay {why}", *found)
    racer = _drafting(plain, best.drafter, best.block_size - 1) if best.drafter else None
    racer = racer or _single_pass(plain, sampler.target, best.block_size, best.anchors, best.lookup)
    heats = [probe]
    if batch:  # a seed is one for all rows, or one for each
        starts = range(0, len(probe.texts) - batch + 1, batch)
        groups = [probe.texts[start : start + batch] for start in starts][:HEATS]
        heats = [probe.replace(prompts=group, seed=i, samples=1) for i, group in enumerate(groups)]

    def heats_of(one: SamplerConfig) -> Callable[[], list[Generation]]:
        return lambda: [decode(model, variables, heat, one) for heat in heats]

    won = _race(heats_of(plain), heats_of(racer), repeats)
    if won < MARGIN:
        return choice(
            plain, f"autoregressive: drafting lost the race with {won:.2f}x the tokens per second {why}", *found
        )
    return choice(racer, f"{best}: drafting won the race with {won:.2f}x the tokens per second {why}", *found)


def drafters_of(model: Zaya, variables: Any) -> tuple[str, ...]:
    """The drafters that this model has: those that need no training, and what it was trained with.

    Not those that make forwards of the target before the verifying one: a step then costs as much as two.
    """
    out = []
    for drafter in all_drafters():
        try:
            drafter.require(model.config, variables)
        except UserError:
            continue
        if not drafter.target_forwards(1) and not (drafter.masks and model.config.mask_token_id == NO_MASK):
            out.append(drafter.name)
    return tuple(out)


def _single_pass(
    plain: SamplerConfig, target: str | None, size: int, anchors: str | tuple[int, ...], lookup: int
) -> SamplerConfig:
    shape = dict(block_size=size, anchors=anchors, target=target, lookup=lookup)
    return dataclasses.replace(plain, mode="single_pass", **shape)


def _drafting(plain: SamplerConfig, drafter: str, length: int) -> SamplerConfig:
    return dataclasses.replace(plain, mode="drafter", drafter=drafter, draft_length=length)


def _measure(
    model: Zaya, variables: Any, probe: Request, plain: SamplerConfig, asked: tuple[str | None, tuple[int, ...]],
    rows: int, repeats: int,
) -> tuple[tuple[Candidate, ...], tuple[float, ...], dict[int, float]] | None:  # fmt: skip
    """(candidates, fastest first; acceptance of single_pass's slots; cost by query tokens); None: texts too short.

    Args:
      asked: single_pass's target, and the look-ups to try; the acceptance told is the first's.
    """
    (target, lookups), size, masks = asked, plain.block_size, model.config.mask_token_id != NO_MASK
    names = drafters_of(model, variables) if target == "autoregressive" else ()
    samplers = {name: _drafting(plain, name, size - 1) for name in names}
    ours = {f"single_pass {n}": _single_pass(plain, target, size, "all", n) for n in lookups} if masks else {}
    samplers |= ours
    accepted = {name: decode(model, variables, probe, each).accepted for name, each in samplers.items()}
    if all(len(row) <= 2 for runs in accepted.values() for row in runs):
        return None
    acceptance = [evidence(accepted[name], size) for name in ours]
    lengths = sorted({max(1, (size - 1) // 2), size - 1})
    theirs = {name: {n: plan_of(_drafting(plain, name, n)) for n in lengths} for name in names}
    plans = [AUTOREGRESSIVE, *(_probes(acceptance[0], size) if masks else ())]
    plans += [plan for by_length in theirs.values() for plan in by_length.values()]
    longest = max(map(len, probe.prompts))
    times = forward_cost(model, variables, plans, rows, longest, repeats=repeats, label="auto: cost")
    cost = {rows_of(plan): ms for plan, ms in times.items() if not plan.drafter}
    ranked = (Candidate(1, (), 1, 1.0, cost[1], 1.0),)
    for lookup, runs in zip(lookups, acceptance, strict=False):  # no runs where nothing is masked
        ranked += tuple(each for each in candidates(runs, cost, size, lookup) if each.anchors)
    for name, by_length in theirs.items():
        costs = {n: times[plan] for n, plan in by_length.items()}
        ranked += drafter_candidates(name, accepted[name], costs, cost[1], size - 1)
    ranked = tuple(sorted(ranked, key=lambda c: -c.speedup))
    return ranked, next((acceptance_curve(accepted[name], size) for name in ours), ()), cost


def _race(plain: Callable[[], list[Generation]], racer: Callable[[], list[Generation]], repeats: int) -> float:
    """The racer's tokens per second over the plain one's."""
    produced: dict[str, int] = {}

    def timed(name: str, side: Callable[[], list[Generation]]) -> Callable[[], None]:
        def call() -> None:
            produced[name] = sum(len(tokens) for made in side() for tokens in made.tokens)

        return call

    seconds = medians({"plain": timed("plain", plain), "racer": timed("racer", racer)}, repeats, "auto: race")
    return (produced["racer"] / seconds["racer"]) / (produced["plain"] / seconds["plain"])


def _probes(acceptance: Acceptance, size: int) -> list[Plan]:
    """The forwards whose cost is measured: few query tokens and many, so that the curve need not be extrapolated."""
    small = max(2, size // 2)
    shapes = {(small, 1), (size, 1), (size, min(3, size)), (size, size)}
    return [
        Plan("single_pass", block, best_anchors(acceptance, block, budget), "autoregressive")
        for block, budget in sorted(shapes)
    ]

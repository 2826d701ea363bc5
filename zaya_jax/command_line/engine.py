"""A model that answers batch after batch, under `sampling_flags`: its sampler chosen once, all metered."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from zaya_jax.architecture import Zaya
from zaya_jax.command_line import sampling_flags
from zaya_jax.command_line.meter import Meter
from zaya_jax.errors import UserError
from zaya_jax.runs.tokens import INSTEAD
from zaya_jax.sampling import (
    Generation,
    Request,
    SamplerConfig,
    Session,
    Streamer,
    acceptance_curve,
    choose_sampler,
    evidence,
    generate,
)
from zaya_jax.sampling.continuous import Prompt, generate_queue, in_order
from zaya_jax.sampling.decoding import Finished, check
from zaya_jax.sampling.drafting import Yield
from zaya_jax.text.tokenizers import Tokenizer

PROBES, PROBE_TOKENS = 16, 64  # sequences and new tokens that measure the acceptance curve


@dataclasses.dataclass
class Engine:
    """A model, and the sampler that is chosen before its first use."""

    model: Zaya
    variables: Any
    tokenizer: Tokenizer
    asked: dict[str, Any]
    max_new_tokens: int
    samples: int
    meter: Meter
    sampler: SamplerConfig | None = None  # as it runs
    why: str = ""  # its drafts may yield nothing, in words
    drafted: Yield = dataclasses.field(default_factory=Yield)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises UserError for what `generate` would refuse."""
        sampler = sampling_flags.provisional(self.asked)
        check(self.model.config, self.request(prompts), sampler)

    def request(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] = (0,)) -> Request:
        """What is to be continued, with this engine's options."""
        return Request(prompts, self.max_new_tokens, seeds, self.samples, tokenizer=self.tokenizer)

    def choose(self, probes: Sequence[Sequence[int]], first: Sequence[Sequence[int]], seeds: Sequence[int]) -> None:
        """Measures what is left to measurement: the anchors of a budget on `probes`, mode auto on the first batch."""
        if sampling_flags.wants_acceptance(self.asked):
            self.sampler = self._with_budget(probes[:PROBES], seeds[0])
        elif self.asked["mode"] == "auto":
            asked = SamplerConfig(**self.asked)
            choice = choose_sampler(self.model, self.variables, self.request(first, seeds), asked)
            print(f"auto: {choice.reason}", file=sys.stderr)
            self.sampler = choice.sampler
        else:
            self.sampler = SamplerConfig(**self.asked)

    def _with_budget(self, probes: Sequence[Sequence[int]], seed: int) -> SamplerConfig:
        new, budget = min(self.max_new_tokens, PROBE_TOKENS), self.asked["anchors"]
        fewest = min(self.asked["min_new_tokens"], new)
        sampler = SamplerConfig(**self.asked | {"anchors": "all", "min_new_tokens": fewest})
        samples = 1 if sampler.temperature == 0 else max(1, PROBES // len(probes))  # greedy ones would be all the same
        measured = generate(
            self.model, self.variables, probes, sampler, new, seed, samples=samples, tokenizer=self.tokenizer
        )
        try:
            curve = acceptance_curve(measured.accepted, sampler.block_size)
        except UserError:
            raise UserError(
                f"--anchors: got {budget} (a budget) and texts that end too soon to measure acceptance; may be a list"
            ) from None
        chosen = SamplerConfig(**self.asked | {"acceptance": evidence(measured.accepted, len(curve) + 1)})
        rates = ", ".join(f"{rate:.2f}" for rate in curve)
        print(f"acceptance of slots 1 .. {len(curve)}: {rates}; anchors {list(chosen.anchor_list)}", file=sys.stderr)
        return chosen

    def run(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], session: Session | None = None,
        streamer: Streamer | None = None, again: bool = False,
    ) -> Generation:  # fmt: skip
        """One batch, metered."""
        assert self.sampler is not None  # `choose`

        def call(streamer: Streamer | None) -> Generation:
            return generate(
                self.model, self.variables, prompts, self.sampler, self.max_new_tokens, seeds, samples=self.samples,
                session=session, tokenizer=self.tokenizer, streamer=streamer,
            )  # fmt: skip

        try:
            generation = self.meter.count(call, streamer, again)
        finally:
            if streamer is not None:
                streamer.end()
        if not again:
            self.drafted.add(generation.sampler, generation.accepted)
        return generation

    def queue(self, prompts: Iterable[Prompt], longest: int, batch: int, again: bool = False) -> Iterator[Finished]:
        """Sequences of any number of prompts, in their order, `batch` side by side; metered.

        Args:
          longest: tokens of a prompt, at most.
          again: they were counted before: only the time matters.
        """
        assert self.sampler is not None  # `choose`
        sampler = self.sampler
        sequences = generate_queue(
            self.model, self.variables, prompts, sampler, self.max_new_tokens, longest=longest, batch=batch,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        for sequence in in_order(self.meter.follow(sequences, again)):
            if not again:
                self.drafted.add(sampler, [sequence.accepted])
            yield sequence

    def close(self, rows: str) -> None:
        """The closing lines, on stderr; `rows`: the batch, in words."""
        assert self.sampler is not None  # `choose`
        if warning := self.drafted.warning(INSTEAD, self.why):
            print(f"warning: {warning}", file=sys.stderr)
        print(self.meter.line(self.sampler, rows), file=sys.stderr)

"""What a user says to the sampler."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral

MODES = ("autoregressive", "single_pass")
TARGETS = ("autoregressive", "mix_stale", "mix_fresh")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample. `mode`, `block_size`, `anchors` and `target` are static; the rest are run-time values.

    Attributes:
      mode: "autoregressive" (one token a forward) or "single_pass" (draft a block and verify it in one forward).
      block_size: tokens verified a forward, of which block_size - 1 are drafts (TiDAR's B).
      anchors: behind which accept lengths (1 .. block_size) a next block is drafted: "all", or a list of them. Where an
        accept length has none, the nearest lower anchor's remaining slots are used; that costs tokens per forward,
        never exactness.
      target: whose distribution is sampled.
        "autoregressive" (also "lossless"): exactly the AR law.
        "mix_stale": at a position whose draft is tested, softmax of (1 - beta) * AR logits + beta * the logits that
          drew that draft (Zyphra's logit mixing); the AR law where no draft is tested. Depends on where blocks fall.
        "mix_fresh": (1 - beta) * AR logits + beta * the logits of the block that starts at that very position (TiDAR's
          "trust diffusion"); needs anchors="all".
      beta: weight of the draft in the mixing targets, in [0, 1].
      temperature: of the target; 0 is exact greedy.
      draft_temperature: of the drafts; None follows temperature, 0 drafts the likeliest token. Changes speed only.
      stop_tokens: ids that end a row (and are kept as its last token).

    Raises:
      ValueError: naming the field.
    """

    mode: str = "single_pass"
    block_size: int = 8
    anchors: str | Sequence[int] = "all"
    target: str = "autoregressive"
    beta: float = 0.5
    temperature: float = 1.0
    draft_temperature: float | None = None
    stop_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.target == "lossless":
            object.__setattr__(self, "target", "autoregressive")
        if not isinstance(self.anchors, str):
            object.__setattr__(self, "anchors", tuple(self.anchors))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        _one_of("mode", self.mode, MODES)
        _one_of("target", self.target, TARGETS)
        if not isinstance(self.block_size, Integral) or isinstance(self.block_size, bool) or self.block_size < 1:
            _fail("block_size", self.block_size, "an integer of at least 1")
        self._check_anchors()
        if self.mode == "autoregressive" and self.target != "autoregressive":
            _fail("target", self.target, "'autoregressive' when mode is 'autoregressive' (nothing is drafted)")
        _number("beta", self.beta, 0, 1)
        _number("temperature", self.temperature, 0)
        if self.draft_temperature is not None:
            _number("draft_temperature", self.draft_temperature, 0)
        if any(not isinstance(t, Integral) or isinstance(t, bool) or t < 0 for t in self.stop_tokens):
            _fail("stop_tokens", self.stop_tokens, "a sequence of token ids")

    def _check_anchors(self) -> None:
        if isinstance(self.anchors, str):
            _one_of("anchors", self.anchors, ("all",))
            return
        allowed = range(1, self.block_size + 1)
        may_be = f"'all' or increasing integers in 1 .. block_size ({self.block_size})"
        increasing = all(isinstance(a, Integral) for a in self.anchors) and list(self.anchors) == sorted(
            set(self.anchors)
        )
        if not self.anchors or not increasing or any(a not in allowed for a in self.anchors):
            _fail("anchors", self.anchors, may_be)
        if self.target == "mix_fresh" and self.anchors != tuple(allowed):
            _fail("anchors", self.anchors, "'all' when target is 'mix_fresh' (it reads every block's first slot)")

    @property
    def rows_verified(self) -> int:
        """Clean rows a forward computes for each sequence."""
        return 1 if self.mode == "autoregressive" else self.block_size

    @property
    def anchor_list(self) -> tuple[int, ...]:
        """Accept lengths behind which a block is drafted."""
        if self.rows_verified == 1 and self.target != "mix_fresh":
            return ()  # nothing is ever drafted with one row
        if isinstance(self.anchors, str):
            return tuple(range(1, self.block_size + 1))
        return tuple(self.anchors)

    @property
    def rows_per_forward(self) -> int:
        """All rows a forward computes for each sequence."""
        return self.rows_verified + self.block_size * len(self.anchor_list)


def _fail(field: str, got: object, may_be: str) -> None:
    raise ValueError(f"SamplerConfig.{field}: got {got!r}, may be {may_be}")


def _one_of(field: str, got: object, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        _fail(field, got, f"one of {allowed}")


def _number(field: str, got: object, low: float, high: float = float("inf")) -> None:
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not low <= got <= high or got == float("inf"):
        _fail(
            field, got, f"a finite number of at least {low}" + (f" and at most {high}" if high < float("inf") else "")
        )

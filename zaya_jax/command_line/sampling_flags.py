"""Sampling options: every field of `SamplerConfig` as a flag."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from zaya_jax.errors import UserError
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.core.targets import MODES, targets_of
from zaya_jax.sampling.drafters import all_drafters

FIELDS = tuple(field.name for field in dataclasses.fields(SamplerConfig))


def define(values: flags.FlagValues) -> None:
    """Adds the flags; defaults are `SamplerConfig`'s own."""
    default = SamplerConfig()

    def number(name: str, text: str) -> None:
        kind = flags.DEFINE_integer if isinstance(getattr(default, name), int) else flags.DEFINE_float
        kind(name, getattr(default, name), text, flag_values=values)

    def text(name: str, value: str | None, words: str) -> None:
        flags.DEFINE_string(name, value, words, flag_values=values)

    targets = "; ".join(f"{mode}: {', '.join(targets_of(mode))}" for mode in MODES)
    flags.DEFINE_enum(
        "mode", default.mode, MODES,
        "How a forward is spent: autoregressive (one token), single_pass (verify a block and draft the next in one "
        "forward), two_pass (draft, then verify), drafter (--drafter proposes, one forward verifies), "
        "block_diffusion (unmask without verifying), auto (autoregressive or single_pass, whichever is measured to be "
        "faster here).",
        flag_values=values,
    )  # fmt: skip
    number("block_size", "Slots of a drafted block, in tokens; an upper bound in mode auto.")
    text(
        "anchors", "all",
        "single_pass: after which accepted lengths a block is drafted. all; a number: a budget of that many, the best "
        "list is found from the acceptance (measured on the prompts unless --acceptance gives it); or a comma list "
        "such as 1,4 (a list of one: 4 and a comma, '4,').",
    )  # fmt: skip
    text("acceptance", None, "Acceptance rates of a block's drafts, block_size - 1 numbers with commas, for a budget.")
    text("target", None, f"Whose distribution is sampled; default: the mode's first. {targets}.")
    number("beta", "Weight of the draft in the mixing targets, 0 to 1.")
    number("temperature", "Of the target; 0 is greedy.")
    number("top_k", "Sample among the k likeliest tokens; 0: all.")
    number("top_p", "Sample among the likeliest tokens that hold this much probability; 1: all.")
    number("min_p", "Sample among tokens at least this likely relative to the likeliest; 0: all.")
    number("repetition_penalty", "Makes tokens the text already holds less likely (above 1); 1: none.")
    flags.DEFINE_float("draft_temperature", None, "Of the drafts; default: --temperature.", flag_values=values)
    number("draft_top_k", "--top_k of the drafts (changes speed only).")
    number("draft_top_p", "--top_p of the drafts (changes speed only).")
    number("threshold", "block_diffusion, target threshold: probability from which a slot is revealed.")
    number("reveal", "block_diffusion: slots revealed a forward, at least.")
    text("stop_tokens", None, "Token ids that end a row, with commas; default: the tokenizer's EOS; empty: none.")
    flags.DEFINE_multi_string(
        "stop_strings", None, "A text that ends a row; repeat the flag for several ($'\\n' is a newline in bash).",
        flag_values=values,
    )  # fmt: skip
    number("min_new_tokens", "Tokens a row has at least before anything stops it.")
    flags.DEFINE_integer(
        "lookup", None, "single_pass: where the text's last so many tokens occurred before, what followed them is "
        "verified in place of the drafts; 0, the default: never (auto tries both).", flag_values=values,
    )  # fmt: skip
    text("drafter", None, f"Mode drafter: what proposes. {', '.join(each.name for each in all_drafters())}.")
    number("draft_length", "Mode drafter: tokens proposed after one another, at most.")
    number("tree_size", "Mode drafter: nodes of a tree of drafts; 0: a chain.")
    number("ngram_weight", "Mode drafter: weight of the text's own 3-grams in a tree's scores.")


def read(values: flags.FlagValues) -> dict[str, Any]:
    """What was asked for, by field, ready for JSON; stop_tokens None where it is left to the tokenizer.

    Raises:
      UserError: naming the flag or, checked as far as that goes without a tokenizer, the field.
    """
    asked: dict[str, Any] = {name: values[name].value for name in FIELDS}
    asked["anchors"] = _anchors(asked["anchors"])
    asked["acceptance"] = _items("acceptance", asked["acceptance"], float)
    asked["stop_tokens"] = _items("stop_tokens", asked["stop_tokens"], int)
    asked["stop_strings"] = asked["stop_strings"] or []
    provisional(asked | {"stop_tokens": asked["stop_tokens"] or []})
    return asked


def in_flags(mistake: str) -> str:
    """A mistake of `SamplerConfig`'s with the flag in its field's place."""
    return f"--{mistake.removeprefix('SamplerConfig.')}" if mistake.startswith("SamplerConfig.") else mistake


def wants_acceptance(asked: dict[str, Any]) -> bool:
    """Is this a budget of anchors that has to be measured before a list of them can be chosen?"""
    anchors = asked["anchors"]
    budget = isinstance(anchors, int) and 1 <= anchors < asked["block_size"]
    return budget and asked["mode"] == "single_pass" and asked["acceptance"] is None


def provisional(asked: dict[str, Any]) -> SamplerConfig:
    """The sampler asked for; with a budget that is not measured yet, one of its lists stands in for the chosen one."""
    if wants_acceptance(asked):
        asked = asked | {"anchors": range(1, asked["anchors"] + 1)}
    return SamplerConfig(**asked)


def _anchors(text: str) -> str | int | list[int]:
    if text == "all":
        return text
    try:
        if "," not in text:
            return int(text)
        return [int(item) for item in text.removesuffix(",").split(",")]
    except ValueError:
        raise UserError(f"--anchors: got {text!r}, may be all, a number (a budget) or a list such as 1,4") from None


def branch_points(given: Sequence[str], block_size: int) -> list[int]:
    """The accepted lengths of an --anchors flag that is a list; none for none. UserError: naming the flag."""
    if not given:
        return []
    anchors = _anchors(f"{','.join(given)},")
    try:
        SamplerConfig("single_pass", block_size=block_size, anchors=anchors)
    except UserError as error:
        raise UserError(in_flags(str(error))) from None
    assert isinstance(anchors, list)
    return anchors


def _items(name: str, text: str | None, kind: Callable[[str], Any]) -> Sequence[Any] | None:
    if not text:
        return None if text is None else []
    try:
        return [kind(item) for item in text.split(",")]
    except ValueError:
        raise UserError(f"--{name}: got {text!r}, may be numbers with commas between them") from None


def temperatures(given: Sequence[str]) -> list[float]:
    """The numbers of a --temperatures flag. UserError for what is none."""
    try:
        return [float(text) for text in given]
    except ValueError:
        raise UserError(f"--temperatures: got {','.join(given)}, may be numbers with commas") from None

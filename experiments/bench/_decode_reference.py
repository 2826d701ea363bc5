"""transformers' side of `experiments.bench.decode`: a process that times forwards of one model as it is asked to.

    python -m experiments.bench._decode_reference FOLDER

Reads one JSON object a line, {"batch", "rows", "context", "steps"}, and answers with {"milliseconds", "setting"}: the
median of `steps` forwards over `rows` query tokens a sequence (logits of all of them) after `context` cached ones; with
one row, each forward reads the token that the one before found likeliest. Before a shape is first timed, every setting
that changes no result (attention, experts, threads) is tried, and the fastest is kept for it. float32, inference mode.
"""

import copy
import importlib
import itertools
import json
import statistics
import sys
import time
from typing import Any

from experiments.bench._transformers_reference import EXPERT_KERNELS, Setting, use
from zaya_jax.runs import provenance

TRIAL_STEPS = 3


def main(folder: str) -> None:
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"ready": model.config.model_type, **versions}), flush=True)
    chosen: dict[tuple[int, int], Setting] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        shape = (asked["batch"], asked["rows"])
        with torch.inference_mode():
            if shape not in chosen:
                chosen[shape] = fastest(model, asked)
            milliseconds = timed(model, chosen[shape], asked, asked["steps"])
        print(json.dumps({"milliseconds": milliseconds, "setting": chosen[shape]._asdict()}), flush=True)


def fastest(model: Any, asked: dict[str, int]) -> Setting:
    """The setting of the smallest median."""
    experts = EXPERT_KERNELS if model.config.model_type == "zaya" else (EXPERT_KERNELS[0],)
    settings = itertools.product(("eager", "sdpa"), experts, sorted({1, provenance.cores()}))
    return min((Setting(*s) for s in settings), key=lambda setting: timed(model, setting, asked, TRIAL_STEPS))


def timed(model: Any, setting: Setting, asked: dict[str, int], steps: int) -> float:
    """Median milliseconds of a forward; the prompt, one forward and copies of the cache are not timed."""
    torch = importlib.import_module("torch")
    use(model, setting)
    generator = torch.Generator().manual_seed(0)
    shape = (asked["batch"], asked["context"] + asked["rows"])
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    past = model(ids[:, : asked["context"]], use_cache=True, logits_to_keep=1).past_key_values
    tokens, times = ids[:, asked["context"] :], []
    for _ in range(steps + 1):
        kept = past if asked["rows"] == 1 else copy.deepcopy(past)
        began = time.perf_counter()
        likeliest = model(tokens, past_key_values=kept, use_cache=True).logits.argmax(-1)
        times.append(1e3 * (time.perf_counter() - began))
        tokens = likeliest  # other tokens each time: experts differ
    return statistics.median(times[1:])


if __name__ == "__main__":
    main(sys.argv[1])

"""Logits in bfloat16 against float32's of the same rounded weights, ours and transformers', text by text; and texts."""

import dataclasses
import importlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zaya_jax import Layout, Zaya
from zaya_jax.architecture.model import ZayaOutput
from zaya_jax.evaluation.agreement import agreement
from zaya_jax.interop import save_huggingface

U = 2.0**-8  # bfloat16's unit roundoff
# One side's forward of a text's tokens: (logits float32 [row, vocab], experts int [layer, row]; no layers if dense).
Forward = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Errors:
    """Errors of one side, collected text by text; the square root of a mean is taken over all logits."""

    squares: float = 0.0
    count: int = 0
    largest: float = 0.0

    def add(self, error: np.ndarray) -> None:
        error = error.astype(np.float64)
        self.squares, self.count = self.squares + float((error**2).sum()), self.count + error.size
        self.largest = max(self.largest, float(abs(error).max(initial=0)))

    def over(self, deviation: float) -> dict[str, float | int | None]:
        rms = np.sqrt(self.squares / self.count) / deviation if self.count else None
        return {"logits": self.count, "rms": rms, "max": self.largest / deviation if self.count else None}


def compare(reference: Forward, sides: dict[str, Forward], rows: list[list[int]]) -> dict[str, Any]:
    """Every side against the reference.

    Returns:
      deviation: of the reference's logits; positions; `unchanged_positions`, of which no side changed an expert at or
      before them in their text; and by side: errors over the deviation, of `all` and of `unchanged` positions;
      changed_experts, the share of choices that differ; KL from the reference in nats, mean and largest; the share of
      positions whose likeliest token differs, and at which the side's likeliest two have equal logits.
    """
    found = {name: {"all": Errors(), "unchanged": Errors()} for name in sides}
    per_text: dict[str, list[dict]] = {name: [] for name in sides}
    own, positions, unchanged_positions = [], 0, 0
    for row in tqdm(rows, "logits", leave=False):
        wide, experts = reference(row)
        outs = {name: side(row) for name, side in sides.items()}
        changed = {name: other != experts for name, (_, other) in outs.items()}
        anywhere = np.any([c.any(0) for c in changed.values()], 0) if experts.size else np.zeros(len(row), bool)
        unchanged = np.cumsum(anywhere) == 0
        own.append((len(row), wide.mean(dtype=np.float64), (wide.astype(np.float64) ** 2).mean()))
        positions, unchanged_positions = positions + len(row), unchanged_positions + int(unchanged.sum())
        for name, (logits, _) in outs.items():
            found[name]["all"].add(logits - wide)
            found[name]["unchanged"].add((logits - wide)[unchanged])
            top = np.sort(logits, -1)[:, -2:]
            per_text[name].append(
                agreement(wide, logits)
                | {"ties": (top[:, 0] == top[:, 1]).mean(), "changed": changed[name].mean() if experts.size else 0.0}
            )
    weights, means, squares = np.array(own).T
    mean = np.average(means, weights=weights)
    deviation = float(np.sqrt(np.average(squares, weights=weights) - mean**2))
    out: dict[str, Any] = {
        "deviation": deviation, "texts": len(rows), "positions": positions, "unchanged_positions": unchanged_positions
    }  # fmt: skip
    for name, texts in per_text.items():

        def average(key: str, texts=texts) -> float:
            return float(np.average([text[key] for text in texts], weights=weights))

        out[name] = {where: errors.over(deviation) for where, errors in found[name].items()} | {
            "changed_experts": average("changed"), "kl": average("kl"), "kl_max": max(t["kl_max"] for t in texts),
            "top1_differs": 1 - average("top1"), "top1_ties": average("ties"),
        }  # fmt: skip
    return out


def tie_bound(layers: int) -> float:
    """The gap of two tokens' logits, over the logits' deviation, up to which a text may part in bfloat16."""
    return 4 * U * max(1.0, math.sqrt(layers / 2))


def parting(prompt: list[int], one: list[int], other: list[int], forward: Forward, bound: float) -> dict[str, Any]:
    """Where two continuations part, and the gap of the two tokens' logits over the logits' deviation there."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    row: dict[str, Any] = {"at": at, "gap": None, "tie": False}
    if at < min(len(one), len(other)):  # else one ended where the other did not: no tie
        logits = forward(prompt + one[:at])[0][-1]
        row["gap"] = float(abs(logits[one[at]] - logits[other[at]]) / logits.std())
        row["tie"] = row["gap"] <= bound
    return row


def our_side(model: Zaya, variables: Any, width: int) -> Forward:
    """Ours; texts travel right-padded to `width`, so that one program serves all.

    A token's expert is read off `load` of the text up to it and up to the one before it: the same program, since
    padding counts nowhere.
    """

    def forward(variables, tokens, valid) -> ZayaOutput:
        return cast(ZayaOutput, model.apply(variables, Layout.causal(tokens, valid)))

    @jax.jit
    def logits(variables, tokens, valid):
        return forward(variables, tokens, valid).logits[0]

    @jax.jit
    def loads(variables, tokens):
        def up_to(length):
            return forward(variables, tokens, jnp.arange(width)[None] < length).load.sum(1)

        return jax.lax.map(up_to, jnp.arange(width + 1))  # [length, layer, class]

    def run(row: list[int]) -> tuple[np.ndarray, np.ndarray]:
        tokens = jnp.asarray([row + [0] * (width - len(row))], jnp.int32)
        out = np.asarray(logits(variables, tokens, jnp.arange(width)[None] < len(row)))[: len(row)]
        if model.config.feed_forward == "dense":
            return out, np.zeros((0, len(row)), int)
        chosen = np.diff(np.asarray(loads(variables, tokens)), axis=0).argmax(-1)
        return out, chosen[: len(row)].T

    return run


def their_side(model: Zaya, variables: Any, dtype: str) -> Forward:
    """transformers' `from_pretrained` in `dtype` of our weights, and the balancing biases that it resets put back."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    load_file = importlib.import_module("safetensors.torch").load_file
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_huggingface(folder, model.config, variables)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        for tensor in (*theirs.parameters(), *theirs.buffers()):
            tensor.data = tensor.data.clone()  # memory of its own, not the mapped file about to be removed
        stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        for name, _ in list(theirs.named_buffers()):
            if name in stored:
                parent, _, last = name.rpartition(".")
                setattr(theirs.get_submodule(parent), last, stored[name].float().clone())
    routers = [layer.mlp.gate for layer in theirs.model.layers if hasattr(layer.mlp, "gate")]

    def run(row: list[int]) -> tuple[np.ndarray, np.ndarray]:
        seen: list[np.ndarray] = []

        def record(router, _, outputs) -> None:
            biased = torch.softmax(outputs[0], dim=-1) + router.balancing_biases  # as the router itself adds them
            seen.append(biased.argmax(-1).numpy())

        hooks = [router.register_forward_hook(record) for router in routers]
        with torch.inference_mode():
            logits = theirs(torch.tensor([row]), use_cache=False).logits[0].float().numpy()
        for hook in hooks:
            hook.remove()
        return logits, np.array(seen, int).reshape(len(routers), len(row))

    return run

"""Writes tests/parity/fixtures: tiny random ZAYA1 models and the logits transformers computes from them.

Needs torch and transformers 5.23.0 (the `parity` extra); the tests that read the fixtures do not:

    python tests/parity/make_fixtures.py

Each case becomes a directory in Hugging Face's layout plus expected.npz: tokens int32 [batch, row], valid bool
[batch, row], logits float32 [batch, row, vocab] and, where transformers' cached decoding is defined, cached_logits of
the same row fed in chunks. Every parameter and buffer is random, so that nothing passes by being zero or one; seeds are
checked for spread-out expert choices with margins far above rounding, so that no comparison hangs on a near tie.

bfloat16.npz beside it: rows of their own (tokens, valid), what transformers computes in bfloat16 from the weights
rounded to bfloat16 (logits), and in float32 from the same rounded weights (float32_logits). bfloat16 moves a router's
probabilities by up to 0.01, so these rows are those of many whose narrowest margin between two experts is the widest,
and no token of theirs changes its expert: what a changed expert does to the logits, no count of roundings bounds.
"""

import copy
import pathlib
import sys

import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
BFLOAT16_ROWS, BFLOAT16_LENGTH = 4, 16  # of bfloat16.npz, where a case's own rows are not shorter
CANDIDATES = 600  # rows of which they are the ones with the widest margins
PATTERN = ["hybrid", "hybrid_sliding", "hybrid"]
TINY = dict(
    vocab_size=48, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    moe_intermediate_size=12, num_experts=8, router_hidden_size=12, max_position_embeddings=256,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


def rope(full: float, sliding: float, share: float) -> dict:
    """transformers' rope_parameters."""
    return {
        kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": share}
        for kind, theta in (("hybrid", full), ("hybrid_sliding", sliding))
    }


# name -> (config fields beyond TINY, row length, how): how may hold `padding` (left padding of each row), `skip` (the
# skip expert's balancing bias) and `chunks` (cached decoding).
CASES: dict[str, tuple[dict, int, dict]] = {
    "plain": ({}, 5, dict(chunks=(3, 2))),
    "long": (dict(rope_parameters=rope(10_000.0, 10_000.0, 0.5)), 96, dict(chunks=(40, 56), batch=1)),
    "one_kv_head": (dict(num_key_value_heads=1, num_experts=16, moe_intermediate_size=8), 24, dict(chunks=(3, 21))),
    "biases_untied": (
        dict(attention_bias=True, lm_head_bias=True, tie_word_embeddings=False), 12, dict(chunks=(3, 9)),
    ),
    "bias_tied": (dict(lm_head_bias=True, num_hidden_layers=2), 12, {}),
    "sliding": (
        dict(layer_types=PATTERN, sliding_window=7, rope_parameters=rope(500_000.0, 100.0, 0.5)), 40,
        dict(chunks=(3, 37)),
    ),
    "kernels_3_4": (dict(cca_time0=3, cca_time1=4), 16, dict(chunks=(3, 13))),
    "kernels_1_3": (dict(cca_time0=1, cca_time1=3), 16, dict(chunks=(3, 13))),
    "kernels_1_1": (dict(cca_time0=1, cca_time1=1), 16, {}),  # transformers' cache has no empty convolution state
    "full_rotary": (dict(rope_parameters=rope(10_000.0, 10_000.0, 1.0)), 20, {}),
    "left_padding": (
        dict(layer_types=PATTERN, sliding_window=6, rope_parameters=rope(10_000.0, 300.0, 0.5)), 18,
        dict(padding=(0, 7, 17), batch=3),
    ),
    "skip": ({}, 32, dict(skip=0.05)),
    "one_layer": (dict(num_hidden_layers=1, rms_norm_eps=1e-3), 12, {}),
}  # fmt: skip


def build(fields: dict, seed: int, skip: float = -1.0):
    """A ZayaForCausalLM in float32 with every parameter and buffer random."""
    import torch
    from transformers import ZayaConfig, ZayaForCausalLM

    config = ZayaConfig(**{**TINY, **fields}, attn_implementation="eager")
    model = ZayaForCausalLM(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue  # not persistent: computed from the config
            noise = torch.randn(value.shape, generator=generator)
            last = name.rsplit(".", 1)[-1]
            if name.endswith("balancing_biases"):
                value.copy_(0.05 * noise)
                value[-1] += skip
            elif last == "temp" or last.endswith("_scale") or "norm.weight" in name:
                value.copy_(1 + 0.3 * noise)
            elif value.ndim == 1:  # biases of every kind
                value.copy_(0.2 * noise)
            elif "conv_qk" in name:
                value.copy_(noise / (value.shape[1] * value.shape[2]) ** 0.5)
            elif "embed_tokens" in name:
                value.copy_(noise)
            else:  # linears and experts, [..., out, in]
                gain = 3.0 if "out_proj" in name else 1.5
                value.copy_(gain * noise / value.shape[-1] ** 0.5)
    return model


def prompts(seed: int, batch: int, row: int, vocab: int, padding: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, valid bool), [batch, row]; the first padding[b] tokens of row b are padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, vocab, (batch, row)).astype(np.int32)
    valid = np.arange(row) >= np.array(padding or (0,) * batch)[:, None]
    return np.where(valid, tokens, 0).astype(np.int32), valid


def forward(model, tokens: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(logits [batch, row, vocab], each layer's biased class probabilities [batch, row, class])."""
    import torch

    seen = []

    def record(router, _, outputs):
        probability = torch.softmax(outputs[0], dim=-1) + router.balancing_biases
        seen.append(probability.reshape(*tokens.shape, -1).numpy())

    hooks = [layer.mlp.gate.register_forward_hook(record) for layer in model.model.layers]
    mask = torch.tensor(valid.astype(np.int64))
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ids = torch.tensor(tokens.astype(np.int64))
        logits = model(ids, attention_mask=None if valid.all() else mask, position_ids=position, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits.float().numpy(), seen


def forward_cached(model, tokens: np.ndarray, chunks: tuple[int, ...]) -> np.ndarray:
    """The same logits, fed chunk by chunk through transformers' cache."""
    import torch

    ids = torch.tensor(tokens.astype(np.int64))
    assert sum(chunks) == ids.shape[1], (chunks, ids.shape)
    cache, out, start = None, [], 0
    with torch.no_grad():
        for size in chunks:
            result = model(ids[:, start : start + size], past_key_values=cache, use_cache=True)
            cache, start = result.past_key_values, start + size
            out.append(result.logits)
    return torch.cat(out, 1).numpy()


def healthy(model, choices: list[np.ndarray], valid: np.ndarray, wants_skip: bool) -> bool:
    """Spread-out experts in every layer, no near ties, and the skip expert where it is wanted."""
    experts = model.config.num_experts
    skipped = 0
    for biased in choices:
        real = biased[valid]
        chosen = real.argmax(-1)
        top = np.sort(real, -1)
        used = len(set(chosen[chosen < experts]))
        if used < min(experts // 2, len(real) // 3) or used < 2 or (top[:, -1] - top[:, -2]).min() < 1e-4:
            return False
        skipped += int((chosen == experts).sum())
    total = len(choices) * int(valid.sum())
    return 0 < skipped < total // 2 if wants_skip else skipped == 0


def make(name: str, first_seed: int):
    """The first healthy model of a case from `first_seed` on: (model, tokens, valid, logits, cached logits or None)."""
    fields, row, how = CASES[name]
    for seed in range(first_seed, first_seed + 200):
        model = build(fields, seed, how.get("skip", -1.0))
        batch = how.get("batch", 2)
        tokens, valid = prompts(seed, batch, row, model.config.vocab_size, how.get("padding", ()))
        logits, choices = forward(model, tokens, valid)
        if healthy(model, choices, valid, "skip" in how):
            cached = forward_cached(model, tokens, how["chunks"]) if "chunks" in how else None
            return model, tokens, valid, logits, cached
    raise RuntimeError(f"{name}: no healthy model among 200 seeds")


def in_bfloat16(model):
    """(model in bfloat16, the same rounded weights in float32).

    `to` rounds buffers too. transformers keeps them in float32: rotary frequencies, and balancing biases, which it adds
    to float32 probabilities. Experts are computed one by one: torch's grouped product refuses rows of 24 bytes.
    """
    import torch

    low = copy.deepcopy(model).to(torch.bfloat16)
    wide = copy.deepcopy(low).float()
    for other in (low, wide):
        for name, value in model.named_buffers():
            parent, _, last = name.rpartition(".")
            setattr(other.get_submodule(parent), last, value.clone())
        if hasattr(model.config, "num_experts"):
            other.set_experts_implementation("eager")
    return low, wide


def bfloat16_case(model, name: str, seed: int) -> dict[str, np.ndarray]:
    """The arrays of bfloat16.npz."""
    _, row, how = CASES[name]
    length = min(row, BFLOAT16_LENGTH)
    padding = tuple(np.resize([n for n in how.get("padding", (0,)) if n < length], CANDIDATES))
    tokens, valid = prompts(seed, CANDIDATES, length, model.config.vocab_size, padding)
    low, wide = in_bfloat16(model)
    choices = [np.sort(biased, -1) for biased in forward(wide, tokens, valid)[1]]
    margin = np.min([np.where(valid, biased[..., -1] - biased[..., -2], 1).min(-1) for biased in choices], 0)
    best = np.argsort(-margin)[:BFLOAT16_ROWS]
    tokens, valid = tokens[best], valid[best]
    (logits, low_choices), (float32_logits, wide_choices) = (forward(m, tokens, valid) for m in (low, wide))
    for one, other in zip(low_choices, wide_choices, strict=True):  # biased probabilities
        assert (one.argmax(-1) == other.argmax(-1))[valid].all(), f"{name}: bfloat16 changed an expert"
    print(f"{name:>14} bfloat16: narrowest margin {margin[best].min():.4f}")
    return dict(tokens=tokens, valid=valid, logits=logits, float32_logits=float32_logits)


def main() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for number, name in enumerate(CASES):
        model, tokens, valid, logits, cached = make(name, 1000 * (number + 1))
        directory = FIXTURES / name
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        extra = {} if cached is None else {"cached_logits": cached}
        np.savez_compressed(directory / "expected.npz", tokens=tokens, valid=valid, logits=logits, **extra)
        np.savez_compressed(directory / "bfloat16.npz", **bfloat16_case(model, name, 1000 * (number + 1)))
        size = sum(file.stat().st_size for file in directory.iterdir())
        drift = 0.0 if cached is None else float(np.abs(cached - logits).max() / logits.std())
        print(f"{name:>14} {size / 1024:6.0f} KiB  logits' std {logits.std():.2f}  cached against whole {drift:.1e}")


if __name__ == "__main__":
    sys.exit(main())

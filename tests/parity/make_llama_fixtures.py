"""Writes tests/parity/llama_fixtures: tiny random Llama, Mistral, Qwen2 and Qwen3 models and transformers' logits.

Needs torch and transformers 5.23.0 (the `parity` extra); the tests that read the fixtures do not:

    python tests/parity/make_llama_fixtures.py

A case is a directory as in make_fixtures: Hugging Face's layout plus expected.npz with tokens, valid and logits. Every
parameter is random, biases and norms too, so that nothing passes by being zero or one. bfloat16.npz holds, for the same
tokens, transformers' logits in bfloat16 from the weights rounded to it, and float32_logits from those rounded weights.
"""

import pathlib
import sys

import numpy as np
from make_fixtures import in_bfloat16, prompts

FIXTURES = pathlib.Path(__file__).parent / "llama_fixtures"
TINY = dict(
    vocab_size=48, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
# 1 turn in 24 positions and 4 in 96: at head_dim 6 and theta 30 one frequency each is kept, scaled and between.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=30.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=24,
)  # fmt: skip
# name -> (transformers' model, its config's fields beyond TINY, row length, left padding of each row)
CASES: dict[str, tuple[str, dict, int, tuple[int, ...]]] = {
    "llama": ("Llama", dict(tie_word_embeddings=True, rms_norm_eps=1e-3), 40, (0, 7)),
    "llama_biases": (
        "Llama", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=4, eos_token_id=[2, 5]), 12, (),
    ),
    "llama3_rope": ("Llama", dict(rope_parameters=LLAMA3, num_key_value_heads=1), 96, ()),
    "linear_rope": (
        "Llama", dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=500.0), head_dim=10), 40, (),
    ),
    "mistral_sliding": ("Mistral", dict(sliding_window=5), 40, (3, 0)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True), 16, ()),
    "qwen2_sliding": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1), 40, ()),
    "qwen3": (
        "Qwen3", dict(head_dim=8, attention_bias=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)), 24,
        (0, 5),
    ),
}  # fmt: skip


def build(name: str, seed: int):
    """A case's model in float32, every parameter random."""
    import torch
    import transformers

    kind, fields, _, _ = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **fields}, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm.weight" in parameter_name:
                value.copy_(1 + 0.3 * noise)
            elif value.ndim == 1:
                value.copy_(0.2 * noise)
            elif "embed_tokens" in parameter_name:
                value.copy_(noise)
            else:
                value.copy_(1.5 * noise / value.shape[-1] ** 0.5)
    return model


def forward(model, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits [batch, row, vocab]; padding stands left."""
    import torch

    mask = torch.tensor(valid.astype(np.int64))
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ids = torch.tensor(tokens.astype(np.int64))
        return model(ids, attention_mask=mask, position_ids=position, use_cache=False).logits.float().numpy()


def make(name: str, seed: int):
    """(model, tokens, valid, logits) of a case."""
    _, _, row, padding = CASES[name]
    model = build(name, seed)
    tokens, valid = prompts(seed, 2, row, TINY["vocab_size"], padding)
    return model, tokens, valid, forward(model, tokens, valid)


def main() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for number, name in enumerate(CASES):
        model, tokens, valid, logits = make(name, 5000 + number)
        directory = FIXTURES / name
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(directory / "expected.npz", tokens=tokens, valid=valid, logits=logits)
        low, float32_logits = (forward(m, tokens, valid) for m in in_bfloat16(model))
        np.savez_compressed(directory / "bfloat16.npz", logits=low, float32_logits=float32_logits)
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{name:>16} {size / 1024:6.0f} KiB  logits' std {logits.std():.2f}")


if __name__ == "__main__":
    sys.exit(main())

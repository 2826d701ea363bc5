"""The sampler's slow twin: one row, a python loop, no cache; every forward reads the whole text again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import Layout, Zaya
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.laws import draw, log_law, log_residual, mix
from zaya_jax.sampling.noise import KeyedNoise, Purpose

WIDTH = 64  # texts are right-padded to this, so that one program serves all


@functools.cache
def _logits(model: Zaya):
    def run(variables, tokens, count, anchors, block_size):
        layout = Layout.verify_and_draft(tokens, 0, anchors, block_size, count)
        return model.apply(variables, layout).logits[0]

    return jax.jit(run, static_argnames="block_size")


def reference_generate(model: Zaya, variables, prompt, sampler: SamplerConfig, max_new_tokens: int, key) -> list[int]:
    """What `generate` must return for one prompt, by the book (tidar.md section 2.2)."""
    noise = KeyedNoise(key[None])
    size, temperature = sampler.rows_verified, jnp.float32(sampler.temperature)
    draft_temperature = temperature if sampler.draft_temperature is None else jnp.float32(sampler.draft_temperature)
    beta = jnp.float32(sampler.beta)

    def forward(text: list[int], anchor: int):
        """Logits after each token of the text, and of the block behind its first `anchor` tokens."""
        padded = np.zeros((1, WIDTH), np.int32)
        padded[0, : len(text)] = text
        out = _logits(model)(variables, padded, np.array([len(text)]), np.array([[anchor]]), block_size=size)
        return out[: len(text)], out[WIDTH:]

    def settle(law, position):
        gumbel = noise.gumbel(Purpose.SETTLE, jnp.array([position]), law.shape, law.dtype)[0]
        return int(draw(law, gumbel))

    def propose(text: list[int], k: int, committed: int):
        """Drafts behind text (its last k tokens just committed), from the nearest anchor at or below k."""
        lower = [a for a in sampler.anchor_list if a <= k]
        if not lower:
            return []
        late = k - lower[-1]
        slots = forward(text, len(text) - late)[1][late + 1 :]
        drafts = []
        for i, logits in enumerate(slots):
            law = log_law(logits, draft_temperature)
            gumbel = noise.gumbel(Purpose.DRAFT, jnp.array([committed + 1 + i]), law.shape, law.dtype)[0]
            drafts.append((int(draw(law, gumbel)), logits, law))
        return drafts

    def target(text: list[int], stale):
        """The target's law after the text."""
        plain, block = forward(text, len(text))
        logits = plain[-1]
        if sampler.target == "mix_stale" and stale is not None:
            logits = mix(logits, stale, beta)
        if sampler.target == "mix_fresh":
            logits = mix(logits, block[0], beta)
        return log_law(logits, temperature)

    text = list(prompt)
    out = [settle(target(text, None), len(text))]
    # Behind the prompt a block is always drafted, whatever the anchors.
    drafts = propose(text, sampler.anchor_list[-1], len(text)) if sampler.anchor_list else []
    while len(out) < max_new_tokens and out[-1] not in sampler.stop_tokens:
        block = [out[-1]]  # settled
        law = None
        for token, stale, log_q in drafts:
            p = target(text + block, stale)
            log_u = noise.log_uniform(Purpose.ACCEPT, jnp.array([len(text) + len(block)]), p.dtype)[0]
            if log_u > p[token] - log_q[token]:
                law = log_residual(p, log_q)
                break
            block.append(token)
        if law is None:  # nothing was rejected: the position behind the block
            law = target(text + block, None)
        settled = settle(law, len(text) + len(block))
        text += block
        drafts = propose(text, len(block), len(text))
        for token in block[1:] + [settled]:
            out.append(token)
            if token in sampler.stop_tokens:
                break
    return out[:max_new_tokens]

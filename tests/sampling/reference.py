"""The sampler's reference implementation: one row, no cache; every forward reads the whole text again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import MASK, Layout, Zaya
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.core import distributions
from zaya_jax.sampling.core.distributions import mix
from zaya_jax.sampling.core.random_streams import KeyedNoise, Purpose
from zaya_jax.sampling.options import options_of, plan_of

WIDTH = 64  # texts are right-padded to this, so that one program serves all
log_distribution, log_residual = jax.jit(distributions.log_distribution), jax.jit(distributions.log_residual)


@functools.cache
def _logits(model: Zaya):
    def run(variables, tokens, count, anchors, block, block_size):
        layout = Layout.verify_and_draft(tokens, 0, anchors, block_size, count)
        layout = layout.replace(tokens=jnp.concatenate([tokens, block], axis=1))
        return model.apply(variables, layout).logits[0]

    return jax.jit(run, static_argnames="block_size")


@jax.jit
def _draw(key, purpose, position, distribution):
    return jax.lax.switch(
        purpose,
        [lambda p=p: KeyedNoise.of(key[None]).draw(p, position[None], distribution[None], True)[0] for p in Purpose],
    )


@jax.jit
def _draw_again(key, position, distribution, again):
    return KeyedNoise.of(key[None]).draw(Purpose.DRAFT, position[None], distribution[None], True, again[None])[0]


@jax.jit
def _accept(key, position, log_probability):
    return KeyedNoise.of(key[None]).accept(position[None], log_probability[None])[0]


class Reference:
    """By the book: docs/method.md#one-step."""

    def __init__(self, model: Zaya, variables, prompt, sampler: SamplerConfig, key) -> None:
        self.model, self.variables, self.sampler, self.key = model, variables, sampler, key
        self.options, self.size, self.prompt = options_of(sampler), plan_of(sampler).block_size, list(prompt)

    def forward(self, text: list[int], anchor: int, block=None):
        """Logits after each token of the text, and of the block after its first `anchor` tokens."""
        padded = np.zeros((1, WIDTH), np.int32)
        padded[0, : len(text)] = text
        block = np.array([[MASK] * self.size if block is None else block], np.int32)
        args = (self.variables, padded, np.array([len(text)]), np.array([[anchor]]), block)
        out = np.asarray(_logits(self.model)(*args, block_size=self.size))
        return out[: len(text)], out[WIDTH:]

    def draw(self, purpose: Purpose, position: int, distribution) -> int:
        return int(_draw(self.key, int(purpose), jnp.int32(position), distribution))

    def target(self, text: list[int], stale):
        """The target's distribution after the text; `stale` drew the draft that is tested there."""
        plain, block = self.forward(text, len(text))
        logits = np.array(plain[-1])
        if self.sampler.target == "mix_stale" and stale is not None:
            logits = np.array(mix(logits, stale, self.options.beta))
        if self.sampler.target == "mix_fresh":
            logits = np.array(mix(logits, block[0], self.options.beta))
        penalty = self.sampler.repetition_penalty
        for token in set(text):  # transformers' rule
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        if len(text) - len(self.prompt) < self.sampler.min_new_tokens:
            logits[list(self.sampler.stop_tokens)] = -np.inf
        return log_distribution(jnp.asarray(logits), self.options.processing)

    def draft(self, logits, first: int) -> list:
        """(token, logits, distribution) for each draft of the positions first, first + 1, ..."""
        drafts = []
        for i, row in enumerate(logits):
            distribution = log_distribution(jnp.asarray(row), self.options.draft_processing)
            drafts.append((self.draw(Purpose.DRAFT, first + i, distribution), row, distribution))
        return drafts

    def verified(self, text: list[int], drafts: list) -> list[int]:
        """Accepted drafts and the pending token after them; the text ends with the token before the drafts."""
        kept = []
        for token, stale, log_q in drafts:
            p = self.target(text + kept, stale)
            if not bool(_accept(self.key, jnp.int32(len(text) + len(kept)), p[token] - log_q[token])):
                return [*kept, self.draw(Purpose.PENDING, len(text) + len(kept), log_residual(p, log_q))]
            kept.append(token)
        distribution = self.target(text + kept, None)
        return [*kept, self.draw(Purpose.PENDING, len(text) + len(kept), distribution)]

    def single_pass(self):
        anchors = self.sampler.anchor_list
        text = self.prompt + [self.draw(Purpose.PENDING, len(self.prompt), self.target(self.prompt, None))]
        yield text[-1:]
        # After the prompt a block is always drafted, whatever the anchors.
        slots = self.forward(self.prompt, len(self.prompt))[1][1:] if anchors else []
        while True:
            new = self.verified(text, self.draft(slots, len(text)))
            text += new
            yield new
            lower = [a for a in anchors if a <= len(new)]
            late = len(new) - lower[-1] if lower else self.size
            # everything before the pending token was in the forward, and the block stands after the nearest anchor
            slots = self.forward(text[:-1], len(text) - 1 - late)[1][late + 1 :] if lower else []

    def two_pass(self):
        text = self.prompt + [self.draw(Purpose.PENDING, len(self.prompt), self.target(self.prompt, None))]
        yield text[-1:]
        while True:
            yield []  # the drafting forward
            new = self.verified(text, self.draft(self.forward(text, len(text))[1], len(text)))
            text += new
            yield new

    def block_diffusion(self):
        text, sampler = list(self.prompt), self.sampler
        while True:
            block, forwards = [MASK] * self.size, 0
            while MASK in block:
                logits = self.forward(text, len(text), block)[1]
                drafts, forwards = self.draft_with(logits, len(text), forwards), forwards + 1
                hidden = [i for i in range(self.size) if block[i] == MASK]
                sure = {i: float(jax.nn.softmax(logits[i])[drafts[i]]) for i in hidden}
                if sampler.target == "left_to_right":
                    chosen = hidden[: sampler.reveal]
                elif sampler.target == "entropy_bounded":
                    chosen, spent = [], 0.0
                    entropy = {i: -float((p := jax.nn.softmax(logits[i])) @ jnp.log(p)) for i in hidden}
                    for i in sorted(hidden, key=entropy.__getitem__):
                        if spent <= sampler.threshold or len(chosen) < sampler.reveal:
                            chosen.append(i)
                        spent += entropy[i]
                else:
                    chosen = sorted(hidden, key=lambda i: -sure[i])[: sampler.reveal]
                    chosen += [i for i in hidden if sure[i] >= sampler.threshold]
                for i in chosen:
                    block[i] = drafts[i]
                yield [] if MASK in block else block
            text += block

    def draft_with(self, logits, first: int, forwards: int) -> list[int]:
        """Drawn with noise of this forward's own."""
        distributions = [log_distribution(jnp.asarray(row), self.options.processing) for row in logits]
        return [
            int(_draw_again(self.key, jnp.int32(first + i), distribution, jnp.int32(forwards)))
            for i, distribution in enumerate(distributions)
        ]


def reference_generate(model, variables, prompt, sampler: SamplerConfig, max_new_tokens: int, key):
    """What `generate` must return for one prompt: (tokens, tokens yielded by each forward)."""
    reference = Reference(model, variables, prompt, sampler, key)
    mode = "single_pass" if sampler.mode == "autoregressive" else sampler.mode
    out, accepted = [], []
    for new in getattr(reference, mode)():
        accepted.append(0)
        for token in new:
            out.append(token)
            accepted[-1] += 1
            if token in sampler.stop_tokens or len(out) == max_new_tokens:
                return out, accepted

"""Numbers of others, as printed there: TiDAR's tables and Zyphra's figures for ZAYA1-8B-Diffusion-Preview.

Copied from TiDAR (arXiv 2511.08923, tables 2 to 5 and figure 4) and Zyphra's post on ZAYA1-8B-Diffusion-Preview.
Qualities are percent; T is tokens per forward (T/NFE in the paper). Nothing here was measured by us, and what these
sources leave open is said in `ZYPHRA_NOTE`.
"""

import dataclasses

TIDAR = "TiDAR (arXiv 2511.08923v1), Qwen2.5-1.5B after 50B tokens"
TIDAR_STRATEGIES = f"{TIDAR}, table of decoding strategies (full-mask model)"
TIDAR_MASKING = f"{TIDAR}, table of masking strategies"
ZYPHRA = "Zyphra, post on ZAYA1-8B-Diffusion-Preview, 14 May 2026"
ZYPHRA_NOTE = (
    'plotted there as "theoretical speedup"; temperature, batch and tasks are not stated, and the values fit mean '
    "tokens per forward"
)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One line of TiDAR's ablation tables."""

    tokens_per_forward: float
    human_eval: float  # mean of HumanEval and HumanEval+, percent
    mbpp: float  # mean of MBPP and MBPP+, percent
    gsm8k: float  # percent

    @property
    def average(self) -> float:
        """Mean of the three columns, percent: TiDAR's own "Avg"."""
        return (self.human_eval + self.mbpp + self.gsm8k) / 3


# The first four lines are the "max" and "left to right" baselines at one and at two tokens a forward; their
# order follows the table as extracted from the PDF.
STRATEGIES = {
    "confidence max, 1": Decoded(1.00, 34.45, 43.92, 53.07),
    "confidence max, 2": Decoded(2.00, 23.78, 22.19, 38.06),
    "left to right, 1": Decoded(1.00, 36.28, 46.51, 53.37),
    "left to right, 2": Decoded(2.00, 21.95, 18.61, 41.32),
    "confidence > 0.9": Decoded(2.63, 32.01, 42.50, 51.40),
    "confidence > 0.8": Decoded(3.06, 28.96, 39.28, 47.54),
    "confidence > 0.7": Decoded(3.42, 27.74, 33.90, 43.44),
    "confidence > 0.6": Decoded(3.81, 22.56, 26.47, 37.60),
    "TiDAR, block 4": Decoded(3.47, 38.42, 50.96, 55.87),
    "TiDAR, block 8": Decoded(5.49, 39.94, 52.13, 54.74),
    "TiDAR, block 16": Decoded(6.97, 41.16, 51.26, 53.90),
}
BLOCK_SIZES = {size: STRATEGIES[f"TiDAR, block {size}"] for size in (4, 8, 16)}
MASKING = {
    ("random", 4): Decoded(3.42, 32.62, 48.63, 55.11),
    ("random", 8): Decoded(5.22, 33.85, 48.77, 54.43),
    ("full", 4): Decoded(3.47, 38.42, 50.96, 55.87),
    ("full", 8): Decoded(5.49, 39.94, 52.13, 54.74),
}
SPEEDUP = {"autoregressive": 1.0, "lossless": 4.6, "mix_stale": 7.7}  # block size 16
BLOCKS = {"mi300x": 3, "mi355x": 5}  # "roughly" so many 16-token proposals a forward

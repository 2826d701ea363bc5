"""How far two models' predictions are apart."""

import numpy as np

BYTES = 2 * (4 + 8 + 8)  # of memory for a logit of either model: float32, float64 and its logarithm of a softmax


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Compares logits of the same tokens.

    Args:
      a, b: float [..., V]; `a` is the reference.

    Returns:
      max_abs: the largest |a - b|; max_abs_over_std: the same over the standard deviation of a's logits;
      kl, kl_max: KL(softmax a || softmax b) in nats, over positions the mean and the largest;
      top1: the share of positions at which both rank the same token first.
      NaN where either has a value that is not finite.
    """
    one, two = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (a, b))
    gap = float(np.abs(one - two).max())
    log_p, log_q = _log_softmax(one), _log_softmax(two)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return {
        "max_abs": gap,
        "max_abs_over_std": gap / float(one.std()),
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float((one.argmax(-1) == two.argmax(-1)).mean()),
    }


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))

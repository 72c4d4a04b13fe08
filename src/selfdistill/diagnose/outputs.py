"""What collapse looks like in numbers, on distributions over K outputs: pure functions of q [N, K] to a float, entropies in nats."""

import torch
from torch import Tensor


def entropy(q: Tensor) -> float:
    """Mean entropy in nats of distributions q [N, K]: ln K when uniform, 0 when sure of one output (DINO Fig. 7)."""
    return float(-torch.special.xlogy(q.float(), q.float()).sum(-1).mean())


def usage_entropy(q: Tensor) -> float:
    """Entropy in nats of the mean of distributions q [N, K]: ln K when all outputs are used alike, 0 when one dominates."""
    return entropy(q.float().mean(0, keepdim=True))


def kl(q: Tensor, log_p: Tensor) -> float:
    """Mean KL(q || p) in nats of distributions q [N, K] and log-probabilities log_p of the same rows. With q the teacher's and p the
    student's, cross-entropy = entropy(q) + KL; a KL of 0 means that both say the same of every image (DINO Fig. 7, right)."""
    q = q.float()
    return float((torch.special.xlogy(q, q) - q * log_p.float()).sum(-1).mean())


def usage(q: Tensor) -> float:
    """Share of outputs that are the largest of at least one q [N, K], of the min(N, K) that could be: near 0 when few are used."""
    return len(q.argmax(-1).unique()) / min(q.shape)


def same_output(q: Tensor, p: Tensor) -> float:
    """Share of rows in which distributions q and p [N, K], or their logarithms, have the same largest output."""
    return float((q.argmax(-1) == p.argmax(-1)).float().mean())

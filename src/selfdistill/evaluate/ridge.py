"""A linear probe in closed form: cheap enough to ask while a run trains."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.evaluate.linear import moments

STRENGTH = 0.01
"""of the features' variance, 1 after standardising: enough for banks smaller than the features are wide"""


def ridge_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, targets: Tensor, strength: float = STRENGTH) -> float:
    """Share of `queries` [Q, F] that a ridge classifier on `bank` [N, F], labels [N], gets right, in [0, 1]; nan where features are
    not finite. Features are standardised by the bank's mean and std, labels are one-hot:
    W = (X'X / N + strength I)^-1 X'Y / N, the largest of x W + mean(Y) wins. In float64: one product and one F x F solve."""
    mean, std = moments(bank)
    if not torch.isfinite(mean).all():
        return float("nan")
    x, test = ((features.double() - mean) / std for features in (bank, queries))
    y = F.one_hot(labels).double()
    gram = x.T @ x / len(x)
    gram.diagonal().add_(strength)
    W = torch.linalg.solve(gram, x.T @ y / len(x))  # [F, C]: x is centred, so Y's mean stands apart
    return float(((test @ W + y.mean(0)).argmax(1) == targets).float().mean())

"""Linear probe on frozen features: one linear layer by SGD, all learning rates at once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.parts.denormal import denormals_flushed
from selfdistill.views.draw import permutation

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TENTH = 0.1
"""share of the bank on which a choice is made"""

Labelled = tuple[Tensor, Tensor]
"""features [N, F] and labels [N]"""
Layers = tuple[Tensor, Tensor]
"""weight [F, R, C] and bias [R, C] of R classifiers"""


class Probe(NamedTuple):
    """A linear classifier of standardised features."""

    mean: Tensor
    std: Tensor
    layers: Layers
    rate: float

    def logits(self, features: Tensor) -> Tensor:
        """[N, C] of features [N, F]."""
        return _logits(standardised(features, self.mean, self.std), self.layers)[:, 0]

    def accuracy(self, queries: Tensor, targets: Tensor) -> float:
        """Share of `queries` [Q, F] that it gets right, in [0, 1]."""
        return float((self.logits(queries).argmax(1) == targets).float().mean())


def linear_accuracy(bank: Tensor, labels: Tensor, queries: Tensor, targets: Tensor, **settings: Any) -> float:
    """Share of `queries` [Q, F] that `linear_probe`, trained on `bank` [N, F] with `labels` [N], gets right, in [0, 1]. It looks at
    the queries once."""
    return linear_probe(bank, labels, **settings).accuracy(queries, targets)


def linear_probe(
    bank: Tensor,
    labels: Tensor,
    rates: tuple[float, ...] = RATES,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    validation: Labelled | None = None,
) -> Probe:
    """A linear classifier of `bank` [N, F] with `labels` [N].

    The learning rate is the best of `rates` on `validation`, or on a tenth of the bank where there is none; the classifier is then
    trained on all of the bank. SGD with momentum 0.9, cosine, no weight decay (SimSiam App. A, DINO App. F.2), on features
    standardised by the bank's mean and std, as a BatchNorm without scale and shift would (MAE App. A.1).
    Raises `Misuse` for a bank too small to hold a tenth out, where there is a choice, and for rates that are all too high.
    """
    mean, std = moments(bank)
    x, classes = standardised(bank, mean, std), int(labels.max()) + 1
    rate, best, tried = rates[0], 0, None
    if len(rates) > 1:
        if validation is None:
            held, rest = held_out(labels, "linear probe", seed)
            learnt, judged = (x[rest], labels[rest]), (x[held], labels[held])
        else:
            learnt, judged = (x, labels), (standardised(validation[0], mean, std), validation[1])
        tried = train_linear(*learnt, classes, rates, epochs, batch_size, seed)
        right = (predict(judged[0], tried) == judged[1]).float().mean(1)  # [R]
        best = int(right.where(tried[0].isfinite().all(0).all(1), -1.0).argmax())
        rate = rates[best]
    if tried is None or validation is None:  # else the chosen one has learnt from all of the bank
        layers = train_linear(x, labels, classes, (rate,), epochs, batch_size, seed)
    else:
        layers = tried[0][:, best : best + 1], tried[1][best : best + 1]
    if not all(layer.isfinite().all() for layer in layers):
        raise Misuse(f"linear probe: at a learning rate of {rate:g} it diverged: name lower rates, as linear.rates=[0.1]")
    return Probe(mean, std, layers, rate)


def held_out(labels: Tensor, who: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(the tenth of a bank on which a choice is made, the rest), as places. Raises `Misuse` for a bank of less than 20."""
    if len(labels) < 20:
        raise Misuse(f"{who}: {len(labels)} labelled images are too few to choose settings on a tenth of them")
    order = permutation(seed, 0, len(labels))
    n = round(TENTH * len(labels))
    return order[:n], order[n:]


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std [F] over N in float64; a constant feature's std is 1e-6, as are all of one image."""
    return features.double().mean(0), features.double().std(0, correction=int(len(features) > 1)).clamp(min=1e-6)


def standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((features.double() - mean) / std).float()


@denormals_flushed()
def train_linear(
    x: Tensor, labels: Tensor, classes: int, rates: tuple[float, ...], epochs: int = 100, batch_size: int = 256, seed: int = 0
) -> Layers:
    """A classifier for each learning rate, in one pass over `x` [N, F]: their losses are added, their gradients do not meet.

    Classes come first and images last inside: a softmax over rows of ten costs a CPU 50 times one down columns of ten.
    """
    C, R, steps = classes, len(rates), -(-len(x) // batch_size)
    W, b = x.new_zeros(C * R, x.shape[1]), x.new_zeros(C * R, 1)
    velocity = [torch.zeros_like(W), torch.zeros_like(b)]
    lr = x.new_tensor(rates).repeat(C)[:, None] * min(batch_size, len(x)) / 256  # [C R, 1]
    for epoch in range(epochs):
        for i, rows in enumerate(permutation(seed, epoch, len(x)).split(batch_size)):
            batch = x[rows]  # [n, F]
            q = torch.addmm(b, W, batch.T).view(C, -1).softmax(0).view(C, R, -1)
            truth = F.one_hot(labels[rows], C).T[:, None]  # [C, 1, n]
            error = q.sub_(truth).div_(len(rows)).view(C * R, -1)  # the gradient of the cross-entropy
            decayed = lr * ((1 + math.cos(math.pi * (epoch * steps + i) / (epochs * steps))) / 2)
            grads = (error @ batch, error.sum(1, keepdim=True))
            for parameter, v, grad in zip((W, b), velocity, grads, strict=True):
                v.mul_(0.9).add_(grad)
                parameter.addcmul_(v, decayed, value=-1)
    return W.view(C, R, -1).permute(2, 1, 0).contiguous(), b.view(C, R).T.contiguous()


def predict(x: Tensor, layers: Layers) -> Tensor:
    """[R, N] int64, the labels that each classifier gives `x` [N, F]."""
    return _logits(x, layers).argmax(-1).T


def _logits(x: Tensor, layers: Layers) -> Tensor:
    """[N, R, C]: one product for all classifiers."""
    W, b = layers
    return (x @ W.flatten(1)).unflatten(1, b.shape) + b

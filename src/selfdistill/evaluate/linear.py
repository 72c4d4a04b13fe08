"""Linear probe on frozen features: one linear layer by SGD, all learning rates at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.views.draw import permutation

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT = 0.1
"""share of the bank on which the learning rate is chosen"""


def linear_accuracy(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    targets: Tensor,
    rates: tuple[float, ...] = RATES,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Share of `queries` [Q, F] that a linear classifier, trained on `bank` [N, F] with `labels` [N], gets right, in [0, 1].

    The learning rate is the best of `rates` on a tenth of the bank; the classifier is then trained on all of it and looks at the
    queries once, after the last epoch. SGD with momentum 0.9, cosine, no weight decay (SimSiam App. A, DINO App. F.2), on features
    standardised by the bank's mean and std, as a BatchNorm without scale and shift would (MAE App. A.1).
    Raises `Misuse` for a bank too small to hold a tenth out.
    """
    if len(bank) < 20:
        raise Misuse(f"linear probe: {len(bank)} labelled images are too few to choose a learning rate on a tenth of them")
    mean, std = bank.double().mean(0), bank.double().std(0).clamp(min=1e-6)
    x, test = ((features.double() - mean).div_(std).float() for features in (bank, queries))
    order = permutation(seed, 0, len(x))
    held, rest = order[: round(HELD_OUT * len(x))], order[round(HELD_OUT * len(x)) :]
    classes = int(labels.max()) + 1
    tried = train_linear(x[rest], labels[rest], classes, rates, epochs, batch_size, seed)
    best = rates[int((predict(x[held], tried) == labels[held]).float().mean(1).argmax())]
    chosen = train_linear(x, labels, classes, (best,), epochs, batch_size, seed)
    return float((predict(test, chosen)[0] == targets).float().mean())


Layers = tuple[Tensor, Tensor]
"""weight [F, R, C] and bias [R, C] of R classifiers"""


def train_linear(
    x: Tensor, labels: Tensor, classes: int, rates: tuple[float, ...], epochs: int = 100, batch_size: int = 256, seed: int = 0
) -> Layers:
    """A classifier for each learning rate, in one pass over `x` [N, F]: their losses are added, their gradients do not meet."""
    W, b = x.new_zeros(x.shape[1], len(rates), classes), x.new_zeros(len(rates), classes)
    velocity = [torch.zeros_like(W), torch.zeros_like(b)]
    lr = x.new_tensor(rates)[:, None] * min(batch_size, len(x)) / 256
    truth = F.one_hot(labels, classes).to(x.dtype)
    steps = -(-len(x) // batch_size)
    for step in range(epochs * steps):
        if step % steps == 0:
            order = permutation(seed, step // steps, len(x))
        rows = order[step % steps * batch_size :][:batch_size]
        q = _logits(x[rows], (W, b)).softmax(-1)  # [n, R, C]
        error = (q - truth[rows][:, None]) / len(rows)  # the gradient of the cross-entropy
        decayed = lr * (1 + math.cos(math.pi * step / (epochs * steps))) / 2
        grads = ((x[rows].T @ error.flatten(1)).view_as(W), error.sum(0))
        for parameter, v, grad in zip((W, b), velocity, grads, strict=True):
            v.mul_(0.9).add_(grad)
            parameter.sub_(decayed * v)
    return W, b


def predict(x: Tensor, layers: Layers) -> Tensor:
    """[R, N] int64, the labels that each classifier gives `x` [N, F]."""
    return _logits(x, layers).argmax(-1).T


def _logits(x: Tensor, layers: Layers) -> Tensor:
    """[N, R, C]: one product for all classifiers."""
    W, b = layers
    return (x @ W.flatten(1)).unflatten(1, b.shape) + b

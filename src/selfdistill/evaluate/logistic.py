"""Multinomial logistic regression on frozen features, solved to the end: what a linear probe by SGD stands beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.evaluate.linear import held_out, moments, standardised

STRENGTHS = (0.01, 1.0, 100.0)
"""of C, the inverse of the l2 penalty"""


class Solved(NamedTuple):
    """Accuracy, the C that was chosen, and L-BFGS's steps to convergence."""

    accuracy: float
    C: float
    steps: int


def logistic(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    targets: Tensor,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 1000,
    seed: int = 0,
) -> Solved:
    """scikit-learn's L-BFGS on standardised features, C the best of `strengths` on a tenth of the bank, as Radford et al. 2021 (CLIP,
    App. A.3) sweep it; at most `steps`. Features [N, F] and [Q, F], labels [N] and [Q]. Raises `Misuse` for a bank of one class, or
    of less than 20 where there is a choice.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = moments(bank)
    x, test = (standardised(of, mean, std).numpy() for of in (bank, queries))
    y, best = labels.numpy(), strengths[0]

    def solved(C: float, rows: np.ndarray) -> LogisticRegression:
        if len(np.unique(y[rows])) < 2:
            raise Misuse("logistic regression: all images to learn from are of one class")
        return LogisticRegression(C=C, max_iter=steps).fit(x[rows], y[rows])

    if len(strengths) > 1:
        held, rest = (rows.numpy() for rows in held_out(labels, "logistic regression", seed))
        tried = {C: solved(C, rest).score(x[held], y[held]) for C in strengths}
        best = max(tried, key=lambda C: tried[C])
    final = solved(best, np.arange(len(x)))
    return Solved(float(final.score(test, targets.numpy())), best, int(final.n_iter_.max()))

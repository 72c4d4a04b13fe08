"""The ridge probe against scikit-learn's."""

import math

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from selfdistill.evaluate.ridge import ridge_accuracy


@pytest.mark.parametrize(("n", "f"), [(200, 10), (30, 60)])
def test_it_is_scikit_learns(n, f):
    """scikit-learn codes labels as -1 and 1, which changes scores by one affine map for all classes: the same winner."""
    g = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, f, generator=g).double(), torch.arange(n) % 3
    x[:, 0] += y
    test = torch.randn(100, f, generator=g).double()
    scaler = StandardScaler().fit(x.numpy())
    x_std = scaler.transform(x.numpy()) * math.sqrt((n - 1) / n)  # torch's std counts N - 1
    reference = RidgeClassifier(alpha=0.01 * n).fit(x_std, y.numpy())
    said = torch.from_numpy(reference.predict(scaler.transform(test.numpy()) * math.sqrt((n - 1) / n)))
    assert ridge_accuracy(x, y, test, said) == 1.0
    assert ridge_accuracy(x, y, test, (said + 1) % 3) == 0.0


def test_constant_and_broken_features():
    y = torch.tensor([0, 0, 1])
    assert ridge_accuracy(torch.ones(3, 4), y, torch.ones(2, 4), torch.tensor([0, 1])) == 0.5  # the commonest class
    assert math.isnan(ridge_accuracy(torch.full((3, 4), math.nan), y, torch.ones(2, 4), torch.tensor([0, 1])))

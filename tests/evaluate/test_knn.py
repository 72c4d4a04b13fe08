"""Weighted kNN against scikit-learn's, on the same features, to the last prediction."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from selfdistill.errors import Misuse
from selfdistill.evaluate import knn


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 80), q=st.integers(1, 40), dim=st.integers(2, 10), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_equals_scikit_learn(n, q, dim, k, seed):
    g = torch.Generator().manual_seed(seed)
    bank, queries = torch.randn(n, dim, generator=g), torch.randn(q, dim, generator=g)
    labels = torch.randint(0, 3, (n,), generator=g)
    labels[:3] = torch.arange(3)

    def votes(distance):  # scikit-learn gives the Euclidean distance of unit vectors: cos = 1 - d^2 / 2
        return np.exp((1 - distance**2 / 2) / 0.07)

    reference = KNeighborsClassifier(k, weights=votes).fit(F.normalize(bank).double(), labels)
    expected = reference.predict(F.normalize(queries).double())
    assert (knn.knn_predict(bank, labels, queries, k).numpy() == expected).all()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 90),
    q=st.integers(1, 20),
    k=st.integers(1, 90),
    bank=st.integers(1, 40),
    queries=st.integers(1, 8),
    block=st.integers(1, 9),
    copies=st.booleans(),
    seed=st.integers(0, 999),
)
def test_however_it_is_cut_the_nearest_are_the_nearest(n, q, k, bank, queries, block, copies, seed):
    """Against a full sort in float64, also where half the bank is there twice, and as if there were one chunk."""
    g = torch.Generator().manual_seed(seed)
    x, y, k = torch.randn(n, 4, generator=g), torch.randn(q, 4, generator=g), min(k, n)
    if copies:
        x[n // 2 :] = x[: n - n // 2].clone()
    similarity = F.normalize(y.double()) @ F.normalize(x.double()).T
    with mock.patch.multiple(knn, BANK=bank, QUERIES=queries, BLOCK=block):
        found, place = knn.nearest(x, y, k)
    torch.testing.assert_close(found.double(), similarity.sort(1, descending=True).values[:, :k], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.double(), similarity.gather(1, place), atol=1e-5, rtol=0)
    assert all(len(row.unique()) == k for row in place)
    if not copies:
        assert torch.equal(place, knn.nearest(x, y, k)[1])


def test_all_k_from_one_search_are_each_alone():
    g = torch.Generator().manual_seed(1)
    bank, labels, queries = torch.randn(300, 6, generator=g), torch.arange(300) % 4, torch.randn(100, 6, generator=g)
    targets = torch.arange(100) % 4
    together = knn.knn_accuracies(bank, labels, queries, targets, (1, 20, 200))
    assert together == {k: knn.knn_accuracy(bank, labels, queries, targets, k) for k in (1, 20, 200)}
    assert len(set(together.values())) == 3


def test_a_bank_knows_itself_and_length_does_not_matter():
    bank, labels = torch.randn(60, 8), torch.arange(60) % 6
    assert knn.knn_accuracy(bank, labels, 3.7 * bank, labels, k=1) == 1.0
    assert knn.knn_accuracy(bank, labels, bank, labels, k=5, temperature=0.001) == 1.0


@pytest.mark.parametrize("k", [0, 61])
def test_k_out_of_range(k):
    with pytest.raises(Misuse, match=f"k={k}"):
        knn.knn_predict(torch.randn(60, 8), torch.zeros(60).long(), torch.randn(2, 8), k)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_none_is_refused(temperature):
    bank, labels = torch.eye(4), torch.arange(4)
    with pytest.raises(Misuse, match="temperature"):
        knn.knn_accuracy(bank, labels, bank, labels, k=2, temperature=temperature)

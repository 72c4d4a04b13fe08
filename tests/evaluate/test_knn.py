"""Weighted kNN against scikit-learn's, on the same features, to the last prediction."""

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


def test_chunks_do_not_change_the_answer(monkeypatch):
    bank, labels, queries = torch.randn(50, 4), torch.arange(50) % 5, torch.randn(33, 4)
    whole = knn.knn_predict(bank, labels, queries, 7)
    monkeypatch.setattr(knn, "CHUNK", 120)
    assert torch.equal(knn.knn_predict(bank, labels, queries, 7), whole)


def test_a_bank_knows_itself_and_length_does_not_matter():
    bank, labels = torch.randn(60, 8), torch.arange(60) % 6
    assert knn.knn_accuracy(bank, labels, 3.7 * bank, labels, k=1) == 1.0
    assert knn.knn_accuracy(bank, labels, bank, labels, k=5, temperature=0.001) == 1.0


@pytest.mark.parametrize("k", [0, 61])
def test_k_out_of_range(k):
    with pytest.raises(Misuse, match=f"k={k}"):
        knn.knn_predict(torch.randn(60, 8), torch.zeros(60).long(), torch.randn(2, 8), k)

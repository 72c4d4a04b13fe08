"""Retrieval against a loop over queries; clustering against what it must not depend on; logistic regression's end."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from selfdistill.errors import Misuse
from selfdistill.evaluate import retrieval as module
from selfdistill.evaluate.clustering import clustering
from selfdistill.evaluate.linear import linear_accuracy, linear_probe
from selfdistill.evaluate.logistic import logistic
from selfdistill.evaluate.retrieval import retrieval


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 40), classes=st.integers(1, 5), chunk=st.integers(1, 200), seed=st.integers(0, 999))
def test_retrieval_is_a_loop_over_the_images(n, classes, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    x, labels = torch.randn(n, 5, generator=g), torch.randint(0, classes, (n,), generator=g)
    precision, hits = [], {1: [], 3: []}
    for i in range(n):
        others = [j for j in range(n) if j != i]
        relevant = (labels[others] == labels[i]).numpy()
        if not relevant.any():
            continue
        similarity = F.cosine_similarity(x[others].double(), x[i].double(), dim=1)
        precision.append(average_precision_score(relevant, similarity.numpy()))
        nearest = similarity.argsort(descending=True)
        for k, found in hits.items():
            found.append(bool(relevant[nearest[:k].numpy()].any()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        if not precision:
            with pytest.raises(Misuse, match="no class has two"):
                retrieval(x, labels)
            return
        found = retrieval(x, labels, (1, 3))
    assert found.queries == len(precision)
    assert found.mean_average_precision == pytest.approx(sum(precision) / len(precision), abs=1e-5)
    assert found.recall == {k: pytest.approx(sum(of) / len(of), abs=1e-9) for k, of in hits.items()}


def test_retrieval_of_equals_goes_to_the_earlier_and_of_one_class_is_one():
    x, labels = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    # Images 0 and 1 find [1, 2, 3] and [0, 2, 3], theirs at ranks 2 and 3; images 2 and 3 find [0, 1, 3] and [0, 1, 2], at 1 and 2.
    assert retrieval(x, labels).mean_average_precision == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 / 2) / 4)
    assert retrieval(torch.randn(9, 3), torch.zeros(9).long()) == (1.0, {1: 1.0, 5: 1.0, 10: 1.0}, 9)
    with pytest.raises(Misuse, match="k=0"):
        retrieval(x, labels, (0, 1))


def blobs(n=120, classes=4, spread=0.1):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    return torch.eye(classes)[labels] + spread * torch.randn(n, classes, generator=g), labels


def test_clustering_finds_blobs_and_cares_for_no_name_and_no_length():
    x, labels = blobs(spread=0.1)
    assert clustering(x, labels) == (1.0, 1.0)
    x, labels = blobs(spread=0.6)
    found = clustering(x, labels)
    assert 0 < found.ari < 0.95
    assert clustering(x, torch.tensor([7, 2, 9, 0])[labels]) == pytest.approx(found, abs=1e-12)  # sums in another order
    assert clustering(3 * x, labels) == pytest.approx(found, abs=1e-6)


def test_clustering_of_shuffled_labels_is_chance():
    x, labels = blobs(4000)
    assert abs(clustering(x, labels[torch.randperm(4000, generator=torch.Generator().manual_seed(0))], starts=1).ari) < 0.01


def test_logistic_regression_is_solved_and_the_probe_is_within_half_a_point_of_it():
    """On 4,000 images of classes that overlap: L-BFGS stops before its limit, at scikit-learn's own answer with a tighter tolerance."""
    x, labels = blobs(8000, spread=0.5)
    bank, queries = (x[:4000], labels[:4000]), (x[4000:], labels[4000:])
    found = logistic(*bank, *queries, strengths=(1.0,))
    assert found.steps < 1000
    mean, std = bank[0].mean(0), bank[0].std(0)
    exact = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit((bank[0] - mean) / std, bank[1])
    assert found.accuracy == pytest.approx(exact.score((queries[0] - mean) / std, queries[1]), abs=0.0005)
    assert linear_accuracy(*bank, *queries, epochs=20) == pytest.approx(found.accuracy, abs=0.005)


def test_a_penalty_is_chosen_where_features_outnumber_images():
    """60 images, 300 features of noise beside one that tells: without a penalty the noise is learnt."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(460) % 2
    x = torch.randn(460, 300, generator=g)
    x[:, 0] += 3 * labels
    loose, chosen = (logistic(x[:60], labels[:60], x[60:], labels[60:], strengths=of) for of in ((100.0,), (1e-3, 100.0)))
    assert chosen.accuracy >= loose.accuracy


def test_a_probe_with_images_to_choose_on_learns_from_all_of_its_own():
    """The rate that the validation images prefer, and no image of the bank left out: 3 images are enough."""
    x, labels = blobs(400, spread=0.3)
    few, validation = (x[:4], labels[:4]), (x[4:200], labels[4:200])
    probe = linear_probe(*few, epochs=50, validation=validation)
    assert probe.accuracy(x[200:], labels[200:]) > 0.8
    alone = {rate: linear_probe(*few, rates=(rate,), epochs=50, validation=validation).accuracy(*validation) for rate in (0.003, 0.1, 10.0)}
    best = linear_probe(*few, rates=(0.003, 0.1, 10.0), epochs=50, validation=validation)
    assert best.accuracy(*validation) == max(alone.values())
    assert alone[best.rate] == max(alone.values())


def test_clustering_is_the_best_of_as_many_starts_as_asked_for_and_drawn_by_seed(monkeypatch):
    import sklearn.cluster

    seen = []
    original = sklearn.cluster.KMeans
    monkeypatch.setattr(sklearn.cluster, "KMeans", lambda k, **how: seen.append((k, how)) or original(k, **how))
    x, labels = blobs()
    clustering(x, labels)
    clustering(x, labels, starts=2, seed=5)
    assert seen == [(4, {"n_init": 10, "random_state": 0}), (4, {"n_init": 2, "random_state": 5})]

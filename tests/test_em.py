"""The EM view: k-means against scikit-learn's, and what must hold of SimSiam's alternation."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import selfdistill as sd
from selfdistill import api
from selfdistill.ablate import em
from selfdistill.data.sources import open_source
from selfdistill.methods import METHODS
from selfdistill.train.resolve import resolve
from selfdistill.views.draw import permutation

SHORT = {"rounds": 3, "steps": 3, "augmentations": 2, "images": 60}


def objectives(rounds):
    """After each step, in order."""
    return [value for r in rounds for value in (r.e_step, r.m_step)]


@pytest.mark.parametrize("rounds", [1, 3, 10])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kmeans_is_scikit_learns(rounds, seed):
    """Which ends on an E-step: that of one round more."""
    x = torch.tensor(load_digits().data[:400])
    *_, last = em.kmeans(x, 10, rounds + 1, seed)
    init = x[permutation(seed, 0, len(x))[:10]]
    reference = KMeans(10, init=init.numpy(), n_init=1, algorithm="lloyd", max_iter=rounds, tol=0).fit(x.numpy())
    assert last.e_step == pytest.approx(reference.inertia_ / len(x), rel=1e-9)


@pytest.mark.parametrize("images", [2, 3, 5])
def test_batches_of_two_leave_no_image_alone(images):
    """Which BatchNorm refuses."""
    assert len(list(api.alternate("data=digits", "batch_size=2", **{**SHORT, "images": images}, clusters=2))) == 3


@pytest.mark.parametrize(
    "word",
    [
        "teacher=ema",
        "predictor=mlp",
        "stop_gradient=false",
        "terms.views.loss=mse",
        "init_from=nowhere.pth",
        "accumulate=4",
        "views.locals.count=2",
        "views.second.blur=1",
        "epochs=7",
    ],
)
def test_a_part_that_the_alternation_has_not_is_refused(word):
    with pytest.raises(sd.Misuse, match=f"{word}: the alternation has no such part"):
        next(sd.alternate(word))


def test_one_image_is_refused():
    with pytest.raises(sd.Misuse, match="images=1: two at least"):
        next(api.alternate("data=digits", **{**SHORT, "images": 1}, clusters=1))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), dim=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_kmeans_never_rises(n, dim, share, seed):
    """Images on a grid, so that some are the same and some clusters empty."""
    x = torch.randint(0, 4, (n, dim), generator=torch.Generator().manual_seed(seed)).double()
    values = objectives(em.kmeans(x, max(1, round(share * n)), 6, seed))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values))
    assert 0 <= values[-1] <= x.var(0, correction=0).sum() + 1e-12


def test_kmeans_of_one_and_of_all_clusters():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert next(em.kmeans(x, 1, 1)).m_step == pytest.approx(float(x.var(0, correction=0).sum()))
    assert objectives(em.kmeans(x, 20, 2)) == [0.0] * 4


def test_an_empty_cluster_keeps_its_centre():
    """Of 1, 1 and 7 with both centres at 1: the first takes all and moves to 3, and the second, still at 1, takes the ones."""
    x = torch.tensor([[1.0], [1.0], [7.0]])
    seed = next(s for s in itertools.count() if 2 not in permutation(s, 0, 3)[:2])
    assert objectives(em.kmeans(x, 2, 2, seed)) == pytest.approx([36 / 3, (4 + 4 + 16) / 3, 16 / 3, 0])


@pytest.mark.parametrize("clusters", [0, 61])
def test_clusters_out_of_range(clusters):
    with pytest.raises(sd.Misuse, match=rf"clusters={clusters}.*1\.\.60"):
        next(em.kmeans(torch.zeros(60, 2), clusters, 1))


@pytest.fixture(scope="module")
def rounds():
    return list(api.alternate("data=digits", **SHORT))


def test_the_e_step_is_the_exact_minimiser(rounds):
    """An E-step follows the M-step of the round before, on the same draws: it cannot raise the objective of either."""
    assert len(rounds) == SHORT["rounds"]
    for of in zip(*rounds, strict=True):
        for before, after in itertools.pairwise(of):
            assert after.e_step < before.m_step


def test_the_objective_is_that_of_unit_vectors(rounds):
    """E |z - eta|^2 with eta the mean of unit vectors lies in [0, 1], with an eta of before in [0, 4]; and nothing collapses."""
    for _, simsiam in rounds:
        assert 0 < simsiam.e_step < 1
        assert 0 < simsiam.m_step < 4
        assert simsiam.output_std > 0.5
        assert simsiam.effective_rank > 10


def test_the_order_in_which_images_are_stored_does_not_matter(monkeypatch):
    """Folders are sorted by class. BatchNorm over a batch of one class would take the class out of eta."""
    etas, distance = [], em.distance
    monkeypatch.setattr(em, "distance", lambda z, eta: (etas.append(eta), distance(z, eta))[1])
    images, labels, _, _ = open_source("digits").labelled()
    rows = torch.cat([(labels == label).nonzero()[:40, 0] for label in (0, 1)])  # by class
    recipe = resolve(METHODS["simsiam"], ["data=digits", "batch_size=40"])[0].edit(em.ALTERNATION)
    apart = []
    for order in (torch.arange(80), permutation(0, 0, 80)):
        etas.clear()
        list(em.alternation(recipe, images.pixels[rows[order]], 1, 1, 4))
        eta, label = etas[0], labels[rows[order]]
        apart.append(float((eta[label == 0].mean(0) - eta[label == 1].mean(0)).norm()))
    assert apart[0] == pytest.approx(apart[1], rel=0.2)


def test_the_mean_is_the_e_step():
    g = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(5, 7, 4, generator=g, dtype=torch.float64), dim=-1)  # [A, N, D]
    assert float(em.distance(z, z.mean(0))) == pytest.approx(float((1 - z.mean(0).square().sum(-1)).mean()))
    for _ in range(10):
        other = z.mean(0) + 0.01 * torch.randn(7, 4, generator=g, dtype=torch.float64)
        assert em.distance(z, other) > em.distance(z, z.mean(0))


def test_of_one_augmentation_the_e_step_leaves_nothing():
    assert [r.e_step for _, r in api.alternate("data=digits", **{**SHORT, "augmentations": 1})] == [0.0] * SHORT["rounds"]


def test_same_seed_same_numbers_and_another_seed_others(rounds):
    assert list(api.alternate("data=digits", **SHORT)) == rounds
    others = list(api.alternate("data=digits", "seed=1", **SHORT))
    for which in (0, 1):
        assert others[0][which].e_step != rounds[0][which].e_step


def test_an_objective_that_is_not_finite_is_no_success(run):
    code, _, err = run("em", "data=digits", "lr.base=1e30", "--rounds", "2", "--steps", "3", "--images", "60", "--augmentations", "2")
    assert code == 1
    assert "SimSiam: the objective is not finite: lower lr.base" in err


def test_the_user_chooses_recipe_and_clusters(rounds):
    """The steps' rate reaches SimSiam alone, clusters k-means alone."""
    still = list(api.alternate("data=digits", "lr.base=0", **SHORT, clusters=20))
    assert [r[0] for r in still] != [r[0] for r in rounds]
    assert still[0][1].e_step == rounds[0][1].e_step
    assert len({r[1].m_step for r in still}) == 1
    assert math.isclose(still[0][1].e_step, still[-1][1].m_step)


@pytest.mark.parametrize("name", ["rounds", "steps", "augmentations"])
def test_nothing_is_no_number_of_steps(name):
    with pytest.raises(sd.Misuse, match=f"{name}=0: one at least"):
        list(sd.alternate("data=digits", **{name: 0}))

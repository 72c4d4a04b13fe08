"""The linear probe against scikit-learn's logistic regression, and its steps against PyTorch's."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from selfdistill.errors import Misuse
from selfdistill.evaluate.linear import RATES, held_out, linear_accuracy, linear_probe, predict, train_linear
from selfdistill.evaluate.logistic import logistic
from selfdistill.views.draw import permutation


def digits():
    """Pixels [1797, 64] and labels."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x), torch.tensor(y)


def blobs(n=90, dim=5, classes=3, dtype=torch.float64):
    """Three overlapping classes."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    return torch.randn(n, dim, generator=g, dtype=dtype) + 0.8 * torch.eye(dim, dtype=dtype)[labels], labels


def test_on_digits_it_is_as_good_as_logistic_regression():
    """Within half a point over five splits, and two points on each: the pixels can be separated, and where SGD stops on the way
    and which rate 130 images prefer is worth a point or so, either way."""
    x, y = digits()
    gaps = []
    for seed in range(5):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        train, test = order[:1297], order[1297:]
        mean, std = x[train].mean(0), x[train].std(0).clamp(min=1e-6)
        reference = LogisticRegression(C=1e4, max_iter=3000, tol=1e-5).fit((x[train] - mean) / std, y[train])
        expected = reference.score((x[test] - mean) / std, y[test])
        gaps.append(linear_accuracy(x[train], y[train], x[test], y[test]) - expected)
    assert abs(sum(gaps) / len(gaps)) < 0.005
    assert max(map(abs, gaps)) < 0.02


def test_it_converges_to_logistic_regression():
    """On classes that overlap there is one solution: the same probabilities to three digits."""
    x, labels = blobs()
    W, b = train_linear(x, labels, 3, (3.0,), epochs=3000)
    reference = LogisticRegression(C=1e9, max_iter=10_000, tol=1e-10).fit(x, labels)
    torch.testing.assert_close((x @ W[:, 0] + b[0]).softmax(1), torch.tensor(reference.predict_proba(x)), atol=1e-3, rtol=0)


def test_all_rates_in_one_pass_are_each_on_its_own():
    x, labels = blobs()
    together = train_linear(x, labels, 3, RATES, epochs=5, batch_size=32)
    for i, rate in enumerate(RATES):
        alone = train_linear(x, labels, 3, (rate,), epochs=5, batch_size=32)
        for all_of_them, one in zip(together, alone, strict=True):
            torch.testing.assert_close(all_of_them.select(-2, i), one.select(-2, 0))
    assert predict(x, together).shape == (len(RATES), len(x))
    assert len({float(W.norm()) for W in together[0].unbind(1)}) == len(RATES)


@pytest.mark.parametrize("batch_size", [90, 32, 256])
def test_its_steps_are_those_of_sgd(batch_size):
    """Autograd's gradient of the cross-entropy, momentum 0.9, a cosine to 0; the last batch of an epoch is smaller."""
    x, labels = blobs()
    epochs, rate, seed = 3, 2.0, 5
    W, b = train_linear(x, labels, 3, (rate,), epochs, batch_size, seed)
    layer = nn.Linear(x.shape[1], 3).double()
    for p in layer.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.SGD(layer.parameters(), momentum=0.9)
    steps = math.ceil(len(x) / batch_size)
    for step in range(epochs * steps):
        rows = permutation(seed, step // steps, len(x)).split(batch_size)[step % steps]
        decay = (1 + math.cos(math.pi * step / (epochs * steps))) / 2
        optimizer.param_groups[0]["lr"] = rate * min(batch_size, len(x)) / 256 * decay
        optimizer.zero_grad()
        F.cross_entropy(layer(x[rows]), labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(W[:, 0].T, layer.weight.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(b[0], layer.bias.detach(), atol=1e-10, rtol=0)


def test_units_do_not_matter():
    """Features are standardised by the bank, each on its own."""
    x, labels = blobs(200)
    scale = torch.logspace(-3, 3, x.shape[1], dtype=x.dtype)
    plain, scaled = (linear_accuracy(z[:120], labels[:120], z[120:], labels[120:], epochs=20) for z in (x, 7 + x * scale))
    assert plain == scaled > 0.5


@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
def test_constant_features_do_no_harm(constant):
    x, labels = blobs(200, dtype=torch.float32)
    bank, queries, answers = x[:120], x[120:], (labels[:120], labels[120:])
    without = linear_accuracy(bank, answers[0], queries, answers[1], epochs=20)
    dead = [torch.cat([z, z.new_full((len(z), 3), constant)], 1) for z in (bank, queries)]
    assert linear_accuracy(dead[0], answers[0], dead[1], answers[1], epochs=20) == without
    if constant == 0:  # a ReLU that no image of the bank has woken
        dead[1][:, -3:] = 5.0
        assert linear_accuracy(dead[0], answers[0], dead[1], answers[1], epochs=20) == without


def test_nothing_but_constant_features_is_a_guess():
    """The most frequent class, not nan."""
    labels = torch.tensor([0, 1, 1, 1] * 15)
    assert linear_accuracy(torch.ones(60, 4), labels, torch.ones(60, 4), labels, epochs=5) == 0.75


def test_a_bank_too_small_to_hold_a_tenth_out():
    x, labels = blobs(20)
    with pytest.raises(Misuse, match="19 labelled images are too few"):
        linear_accuracy(x[:19], labels[:19], x, labels)
    assert 0 <= linear_accuracy(x, labels, x, labels, epochs=2) <= 1


def test_one_rate_is_no_choice_and_needs_no_tenth():
    x, labels = blobs(15)
    probe = linear_probe(x, labels, rates=(0.1,), epochs=3)
    assert torch.equal(probe.layers[0], train_linear(((x - x.mean(0)) / x.std(0)).float(), labels, 3, (0.1,), 3)[0])
    assert logistic(x.float(), labels, x.float(), labels, strengths=(1.0,)).accuracy > 0.3
    with pytest.raises(Misuse, match="one class"):
        logistic(x.float(), torch.zeros_like(labels), x.float(), labels, strengths=(1.0,))


@pytest.mark.parametrize("n", [20, 97])
def test_a_tenth_is_held_out_by_seed_and_with_the_rest_is_the_whole_bank(n):
    parts = [held_out(torch.zeros(n), "probe", seed) for seed in (0, 0, 1, 2)]
    for held, rest in parts:
        assert len(held) == round(n / 10)
        assert torch.equal(torch.cat([held, rest]).sort().values, torch.arange(n))
    sets = [frozenset(held.tolist()) for held, _ in parts]
    assert sets[0] == sets[1]
    assert len(set(sets)) == 3


def test_a_seed_reaches_the_tenth_and_both_trainings(monkeypatch):
    """All of the bank is learnt from in the second, at the one rate that the tenth chose."""
    from selfdistill.evaluate import linear as module

    seen = []
    tenth, train = module.held_out, module.train_linear
    monkeypatch.setattr(module, "held_out", lambda y, who, seed=0: seen.append(("tenth", seed)) or tenth(y, who, seed))
    monkeypatch.setattr(
        module, "train_linear", lambda x, y, C, rates, *how: seen.append((len(x), len(rates), *how)) or train(x, y, C, rates, *how)
    )
    x, labels = blobs()
    probe = linear_probe(x, labels, (0.1, 1.0), epochs=2, batch_size=40, seed=7)
    assert seen == [("tenth", 7), (81, 2, 2, 40, 7), (90, 1, 2, 40, 7)]
    assert probe.rate in (0.1, 1.0)


def test_a_probe_that_diverged_is_no_result():
    """Its argmax is the first class. A rate that diverges is not chosen where another does not."""
    x, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    with pytest.raises(Misuse, match=r"learning rate of 1e\+38 it diverged"):
        linear_probe(x, labels, rates=(1e38,), epochs=2)
    with pytest.raises(Misuse, match="diverged"):
        linear_probe(x, labels, rates=(1e37, 1e38), epochs=2)
    assert linear_probe(x, labels, rates=(1e38, 0.1), epochs=2).rate == 0.1

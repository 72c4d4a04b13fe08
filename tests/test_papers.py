"""Each recipe against its paper: four training steps, in float64, from the same weights and on the same views."""

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfdistill.recipe import Recipe
from tests.papers import byol, simsiam
from tests.papers.tiny import STEPS_PER_EPOCH, build, draw, tiny, train

STEPS = 4
SIMSIAM_NAMES = {
    "student.backbone.net": "f",
    "student.projector.0": "g.fc1",
    "student.projector.1": "g.bn1",
    "student.projector.3": "g.fc2",
    "student.projector.4": "g.bn2",
    "student.projector.6": "g.fc3",
    "student.projector.7": "g.bn3",
    "predictor.0": "h.fc1",
    "predictor.1": "h.bn1",
    "predictor.3": "h.fc2",
}
BYOL_NAMES = {
    "student.backbone.net": "f",
    "student.projector.0": "g.fc1",
    "student.projector.1": "g.bn1",
    "student.projector.3": "g.fc2",
    "predictor.0": "q.fc1",
    "predictor.1": "q.bn1",
    "predictor.3": "q.fc2",
}
TARGET_NAMES = {ours.replace("student", "teacher.net"): papers for ours, papers in BYOL_NAMES.items() if ours.startswith("student")}

# The papers' own values move a tiny net so little that a wrong weight decay would hide below the tolerance; loud ones do not.
SIMSIAM_SETTINGS = {"paper's": [], "loud": ["lr.base=3", "weight_decay.base=0.1"]}
BYOL_SETTINGS = {
    "paper's": ["lr.warmup=1"],
    "loud": ["lr.warmup=1", "lr.base=30", "weight_decay.base=0.1", "teacher.tau.base=0.3"],
}


def by_papers_name(tensors: Iterable[tuple[str, Tensor]], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors that `names` knows, copied, under the names that the paper's code has for them."""
    found = {}
    for name, tensor in tensors:
        for ours, papers in names.items():
            if name.startswith(f"{ours}."):
                found[papers + name.removeprefix(ours)] = tensor.detach().clone()
    return found


def agree(ours: object, papers: object) -> None:
    """To nine digits: all that timm's LARS leaves, which adds 1e-8 to the norms that it divides by."""
    torch.testing.assert_close(ours, papers, atol=1e-9, rtol=1e-9)


def check_simsiam(recipe: Recipe, seed: int) -> None:
    model = build(recipe, seed)
    backbone = copy.deepcopy(model.student.backbone.net)
    weights, statistics = (by_papers_name(tensors, SIMSIAM_NAMES) for tensors in (model.named_parameters(), model.named_buffers()))
    assert len(weights) + len(statistics) == len(model.state_dict())
    state = simsiam.State(weights, statistics, {name: torch.zeros_like(w) for name, w in weights.items()})

    batches = [draw(recipe, seed + i) for i in range(STEPS)]
    for i, (loss, grads) in enumerate(train(model, batches)):
        lr, lr_h = simsiam.learning_rates(i // STEPS_PER_EPOCH, recipe.epochs, recipe.batch_size, recipe.lr.base)
        x1, x2 = batches[i].crops[0]
        papers_loss, papers_grads, state = simsiam.step(backbone, state, x1, x2, lr, lr_h, recipe.weight_decay.base)
        agree(loss, papers_loss)
        agree(by_papers_name(grads.items(), SIMSIAM_NAMES), papers_grads)
        agree(by_papers_name(model.named_parameters(), SIMSIAM_NAMES), state.weights)
        agree(by_papers_name(model.named_buffers(), SIMSIAM_NAMES), state.statistics)


def check_byol(recipe: Recipe, seed: int) -> None:
    model = build(recipe, seed)
    for p in model.teacher.parameters():  # a target of its own, so that a mix-up with the online network shows from the first step
        torch.nn.init.normal_(p, std=0.5)
    encoder = copy.deepcopy(model.student.backbone.net)
    theta, statistics, xi, target_statistics = (
        by_papers_name(tensors(), names)
        for names in (BYOL_NAMES, TARGET_NAMES)
        for tensors in (model.named_parameters, model.named_buffers)
    )
    assert len(theta) + len(statistics) + len(xi) + len(target_statistics) == len(model.state_dict())
    state = byol.State(theta, statistics, xi, target_statistics, {name: torch.zeros_like(w) for name, w in theta.items()})

    batches = [draw(recipe, seed + i) for i in range(STEPS)]
    K, warmup = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH)
    for i, (loss, grads) in enumerate(train(model, batches)):
        eta = byol.eta(i + 1, K, warmup, recipe.batch_size, recipe.lr.base)
        tau = byol.tau(i + 1, K, recipe.teacher.tau.base)
        v, w = batches[i].crops[0]
        papers_loss, papers_grads, state = byol.step(encoder, state, v, w, eta, tau, recipe.weight_decay.base)
        agree(loss, papers_loss)
        agree(by_papers_name(grads.items(), BYOL_NAMES), papers_grads)
        agree(by_papers_name(model.named_parameters(), BYOL_NAMES), state.theta)
        agree(by_papers_name(model.named_buffers(), BYOL_NAMES), state.statistics)
        agree(by_papers_name(model.named_parameters(), TARGET_NAMES), state.xi)
        agree(by_papers_name(model.named_buffers(), TARGET_NAMES), state.target_statistics)


@pytest.mark.parametrize("oracle", [simsiam, byol])
def test_an_oracle_knows_nothing_of_the_package(oracle):
    assert "selfdistill" not in Path(oracle.__file__).read_text()


@pytest.mark.parametrize("values", SIMSIAM_SETTINGS)
def test_simsiam_trains_as_its_paper_says(values):
    check_simsiam(tiny("simsiam", *SIMSIAM_SETTINGS[values]), seed=0)


@pytest.mark.parametrize("values", BYOL_SETTINGS)
def test_byol_trains_as_its_paper_says(values):
    check_byol(tiny("byol", *BYOL_SETTINGS[values]), seed=0)


def test_lars_adapts_without_weight_decay():
    """What LARS adapts does not depend on the decay: eq. 6 with decay 0, and two separate filters in BYOL's code."""
    recipe = tiny("byol", "weight_decay.base=0", "lr.base=1", "lr.warmup=0", "lr_scaling=none")
    model = build(recipe)
    before = by_papers_name(model.named_parameters(), BYOL_NAMES)
    _, grads = next(train(model, [draw(recipe, 0)]))
    grads, after = by_papers_name(grads.items(), BYOL_NAMES), by_papers_name(model.named_parameters(), BYOL_NAMES)
    for name, w in before.items():
        expected = byol.lars(name, w, grads[name], weight_decay=0.0)
        moved = w - after[name]
        assert torch.allclose(moved, expected), f"{name} moved by {moved.norm() / expected.norm():.0f} times what LARS says: not adapted"


SIZES = {"seed": st.integers(0, 2**20), "batch": st.integers(4, 8), "width": st.integers(12, 16), "dim": st.integers(3, 8)}


@settings(max_examples=10, deadline=None, derandomize=True)
@given(**SIZES)
def test_simsiam_at_any_size(seed, batch, width, dim):
    check_simsiam(tiny("simsiam", *SIMSIAM_SETTINGS["loud"], width=width, dim=dim, batch=batch), seed)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(**SIZES)
def test_byol_at_any_size(seed, batch, width, dim):
    check_byol(tiny("byol", *BYOL_SETTINGS["loud"], width=width, dim=dim, batch=batch), seed)

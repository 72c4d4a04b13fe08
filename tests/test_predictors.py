"""Predictors in closed form: BYOL with one, in float64 against the formulas; and what reaches a predictor that learns.

least-squares   Q* = argmin_Q |Z Q - T|^2 over both directions of a batch, no gradient through it (BYOL App. I.2)
directpred      F <- rho F + (1 - rho) mean(z z'), F = U diag(s) U', W = U diag(max(sqrt(s / max s) + eps, 1e-4)) U' from the
                next step on, set every k steps (Tian et al. 2021, and its code)
"""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts.optim import SGD, AdamW
from selfdistill.parts.predictor import DirectPred, LeastSquares
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.siamese import Siamese
from selfdistill.train.loop import set_schedules
from tests.papers import byol
from tests.papers.tiny import LOUD, STEPS_PER_EPOCH, build, draw, tiny, train, without_bn
from tests.test_papers import NAMES, SETTINGS, Named, agree, by_papers_name, zeros_like

STEPS = 3
CLOSED = ("least-squares", "directpred")
SIZES = {"rows": st.integers(1, 12), "dim": st.integers(2, 6), "seed": st.integers(0, 2**20)}


def least_squares(Z: Tensor, T: Tensor) -> Tensor:
    return torch.linalg.lstsq(Z, T).solution


class Spectrum:
    """Of the rows Z of one step, W as the steps before it have left it."""

    def __init__(self, rho: float = 0.3, eps: float = 0.1, every: int = 1):
        self.rho, self.eps, self.every, self.steps = rho, eps, every, 0

    def __call__(self, Z: Tensor, T: Tensor | None = None) -> Tensor:
        self.used = self.W if self.steps else torch.eye(Z.shape[1]).to(Z)
        mean = sum(torch.outer(z, z) for z in Z) / len(Z)
        self.F = self.rho * self.F + (1 - self.rho) * mean if self.steps else mean
        self.steps += 1
        self.W = self.set() if self.steps % self.every == 0 else self.used
        return self.used

    def set(self) -> Tensor:
        s, U = torch.linalg.eigh(self.F)
        p = [max((max(value, 0) / max(s)) ** 0.5 + self.eps, 1e-4) for value in s]
        return sum(value * torch.outer(u, u) for value, u in zip(p, U.T, strict=True))


CASES = {
    "least-squares": (["predictor=least-squares"], least_squares),
    "directpred": (["predictor=directpred"], Spectrum()),
    "directpred, other values": (["predictor=directpred", "momentum=0.8", "epsilon=0.4", "every=2"], Spectrum(0.8, 0.4, 2)),
}


def networks(model: Siamese) -> list[Named]:
    """Parameters and buffers by the paper's names, of the student and then of the teacher; no counters, which nothing reads."""
    found = []
    for of in ("student", "teacher.net"):
        names = {ours.replace("student", of): papers for ours, papers in NAMES["byol"].items() if ours.startswith("student")}
        found += [by_papers_name(model.named_parameters(), names), by_papers_name(model.named_buffers(), names)]
    return [{name: t for name, t in tensors.items() if not name.endswith("tracked")} for tensors in found]


@pytest.mark.parametrize("case", CASES)
def test_byol_trains_as_the_formulas_say(case):
    """Loss, gradients, both networks, W and F after each step."""
    changes, solve = CASES[case]
    recipe = tiny("byol", *SETTINGS["byol"]["loud"], "lr.warmup=0", *changes)
    model = build(recipe)
    for p in model.teacher.parameters():  # a mix-up with the student shows from the first step
        nn.init.normal_(p, std=0.5)
    encoder = copy.deepcopy(model.student.backbone.net)
    batches = [draw(recipe, i) for i in range(STEPS)]
    weights, statistics, teacher, teachers = networks(model)
    counters = {f"{name}.num_batches_tracked": torch.tensor(0) for name in ("f.bn", "g.bn1")}
    state = byol.State(weights, statistics | counters, teacher, teachers | counters, zeros_like(weights))
    K, known = recipe.epochs * STEPS_PER_EPOCH, []

    def remembered(Z: Tensor, T: Tensor) -> Tensor:
        known.append(solve(Z, T))
        return known[-1]

    for i, (loss, grads) in enumerate(train(model, batches)):
        eta, tau = byol.eta(i + 1, K, 0, recipe.batch_size, recipe.lr.base), byol.tau(i + 1, K, recipe.teacher.tau.base)
        papers_loss, papers_grads, state = byol.step(
            encoder, state, *batches[i].crops[0], eta, tau, recipe.weight_decay.base, solve=remembered
        )
        agree(loss, papers_loss)
        agree(by_papers_name(grads.items(), NAMES["byol"]), papers_grads)
        for ours, papers in zip(networks(model), state, strict=False):
            agree(ours, {name: t for name, t in papers.items() if name not in counters})
        W = getattr(solve, "W", known[-1])  # what is set in a step is used in it, or from the next one on
        agree(dict(model.predictor.named_buffers()), {"W": W, "F": solve.F} if isinstance(solve, Spectrum) else {"W": W})
    assert (known[-1] - torch.eye(len(known[-1]))).abs().max() > 0.01


@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_least_squares_of_any_rows_is_the_solution_of_least_norm(rows, dim, seed):
    """Fewer rows than dimensions as well: then it fits them exactly."""
    z, t = torch.randn(2, 2, rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    h = LeastSquares().build(dim).double()
    h.solve(z, t)
    Z, T = z.flatten(0, 1), t.flip(0).flatten(0, 1)  # view 0 predicts target 1
    s = torch.linalg.svdvals(Z)
    assume(s[-1] > 0.01 * s[0])  # Z'Z squares the condition
    torch.testing.assert_close(h.W, torch.linalg.pinv(Z) @ T, atol=1e-8, rtol=1e-8)
    assert h(z).shape == z.shape


@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_the_spectrum_of_any_rows(rows, dim, seed):
    """Of fewer rows than dimensions too: with eps 0 what has no correlation is kept at the floor of 1e-4."""
    h, oracle = DirectPred(epsilon=0).build(dim).double(), Spectrum(eps=0)
    for step in range(2):
        z = torch.randn(1, rows, dim, generator=torch.Generator().manual_seed(seed + step), dtype=torch.float64)
        h.solve(z, z)
        h.update(Progress(step + 1, 2, 1))
        oracle(z[0])
    torch.testing.assert_close(h.W, oracle.W, atol=1e-6, rtol=0)  # the root of an eigenvalue that is rounding
    torch.testing.assert_close(h.F, oracle.F)
    if 2 * rows < dim:
        assert float(torch.linalg.eigvalsh(h.W)[0]) == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(("batch", "accumulate"), [(3, 1), (6, 2), (12, 4)])
def test_an_exact_fit_is_refused(batch, accumulate):
    """Six projections of six dimensions; two more are let through."""
    with pytest.raises(Misuse, match=r"predictor=least-squares: 6 projections of projector.out=6 are fitted exactly"):
        tiny("byol", "predictor=least-squares", f"accumulate={accumulate}", batch=batch)
    tiny("byol", "predictor=least-squares", f"accumulate={accumulate}", batch=batch + accumulate)


@pytest.mark.parametrize("pairs", ["one-way", "one-way-doubled"])
def test_least_squares_of_one_direction_is_refused(pairs):
    with pytest.raises(Misuse, match="least-squares is solved for both directions"):
        tiny("byol", "predictor=least-squares", f"terms.views.pairs={pairs}")


def test_the_spectrum_moves_once_a_step():
    """Without BatchNorm two micro-batches are the batch: the same F and W, and all else."""
    settings = [*LOUD["byol"], *without_bn("byol"), "predictor=directpred"]
    found = []
    for accumulate in (1, 2):
        recipe = tiny("byol", *settings, f"accumulate={accumulate}")
        model = build(recipe, norm=nn.LayerNorm)
        list(train(model, [draw(recipe, i) for i in range(STEPS)]))
        found.append(model.state_dict())
    agree(*found)
    assert found[0]["predictor.F"].any()


def test_a_look_without_gradient_leaves_the_spectrum_alone():
    recipe = tiny("byol", "predictor=directpred")
    model = build(recipe)
    with torch.no_grad():
        model(draw(recipe, 0), Progress(0, STEPS_PER_EPOCH, recipe.epochs))
    model.after_step(Progress(1, STEPS_PER_EPOCH, recipe.epochs))
    assert not model.predictor.F.any()


def test_a_first_step_that_is_refused_leaves_the_matrix_as_it_was():
    model = build(tiny("byol", "predictor=directpred"))
    W = model.predictor.W.clone()
    model.forget(Progress(1, STEPS_PER_EPOCH, 1))
    assert torch.equal(model.predictor.W, W)


@pytest.mark.parametrize("kind", CLOSED)
def test_autocast_does_not_reach_a_closed_form(kind):
    z, t = torch.randn(2, 2, 20, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for enabled in (False, True):
        h = tiny("byol", f"predictor={kind}").predictor.build(6)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            h.solve(z, t)
        h.update(Progress(1, 2, 1))
        found.append(h.W)
    assert torch.equal(*found)


def test_an_undecayed_rate_is_the_base_to_the_end():
    composed = Schedule(base=1.0, end=0.5, warmup=1, until=2, then=Schedule(base=0.1))
    assert [composed.undecayed().at(Progress(step, 2, 4)) for step in range(8)] == [0.0, 0.5, *[1.0] * 6]
    assert composed.at(Progress(7, 2, 4)) == 0.1
    assert composed.course == "1 to 0.1"
    assert Schedule(base=1.0, until=2, then=Schedule(base=0.5, end=0.2)).course == "1 to 0.2"


def test_a_schedules_second_half_is_within_bounds_too():
    with pytest.raises(Misuse, match=r"teacher\.tau: 2\.0 is out of range"):
        METHODS["byol"].edit(["teacher.tau={base: 0.9, until: 1, then: {base: 2}}"])


def test_an_optimiser_has_the_recipes_values():
    group = [{"params": [nn.Parameter(torch.ones(1))]}]
    assert AdamW(betas=(0.5, 0.9)).build(group).defaults["betas"] == (0.5, 0.9)
    assert SGD(momentum=0.3, nesterov=True).build(group).defaults["momentum"] == 0.3


def test_a_predictors_rate_is_its_own():
    """lr_scale reaches its group and no other (BYOL Table 21)."""
    recipe = tiny("byol", "predictor.lr_scale=10", "lr.warmup=0")
    model = build(recipe)
    optimizer = recipe.optimizer.build(model.param_groups())
    lr = set_schedules(optimizer, recipe, Progress(3, STEPS_PER_EPOCH, recipe.epochs))
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[p] for p in model.predictor.parameters()} == {10 * lr}
    assert {rates[p] for p in model.student.parameters()} == {lr}
    assert lr > 0


@pytest.mark.parametrize("kind", CLOSED)
def test_a_closed_form_has_nothing_to_train(kind):
    model = build(tiny("byol", f"predictor={kind}"))
    assert not list(model.predictor.parameters())
    assert {p for group in model.param_groups() for p in group["params"]} == set(model.student.parameters())

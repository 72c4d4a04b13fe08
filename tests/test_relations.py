"""What must hold between recipes, and of each slot on its own: in float64, over a few training steps."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill.ablate.edits import EDITS, without
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts.loss import MSE, Cosine, CrossEntropy, Term
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.recipe import Recipe, diff
from tests.papers.tiny import STEPS_PER_EPOCH, build, draw, tiny, train

LOUD = {"simsiam": ["lr.base=3"], "byol": ["lr.base=30", "lr.warmup=0", "optimizer.trust=0.03"]}
"""steps that move the weights of a tiny net by several percent"""


def run(recipe: Recipe, steps: int = 3, norm=nn.BatchNorm1d):
    """(losses, model) of a few training steps, the same weights and views for the same sizes."""
    model = build(recipe, norm=norm)
    losses = [loss for loss, _ in train(model, [draw(recipe, seed) for seed in range(steps)])]
    return torch.stack(losses), model


def agree(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def student(model):
    """Parameters and buffers of student and predictor."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}


def same_training(a: Recipe, b: Recipe, steps: int = 3):
    (losses, model), (other_losses, other) = run(a, steps), run(b, steps)
    agree(losses, other_losses)
    agree(student(model), student(other))
    return model, other


# Teachers.


@pytest.mark.parametrize("method", METHODS)
def test_an_average_that_forgets_at_once_is_the_student_itself(method):
    """EMA(0) = Shared: BYOL without a momentum encoder is SimSiam's teacher (SimSiam Sec. 6.2)."""
    recipe = tiny(method, *LOUD[method])
    same_training(recipe.edit(["teacher=ema", "tau.base=0", "tau.end=none"]), recipe.edit(["teacher=shared"]))


@pytest.mark.parametrize("method", METHODS)
def test_a_snapshot_of_every_step_is_an_average_that_forgets_at_once(method):
    recipe = tiny(method, *LOUD[method])
    model, other = same_training(recipe.edit(["teacher=snapshot", "every=1"]), recipe.edit(["teacher=ema", "tau.base=0", "tau.end=none"]))
    agree(model.teacher.state_dict(), other.teacher.state_dict())


@pytest.mark.parametrize(("every", "period"), [("3", 3), ("2", 2), ("epoch", STEPS_PER_EPOCH)])
def test_a_snapshot_is_the_student_of_the_last_multiple(every, period):
    recipe = tiny("byol", *LOUD["byol"], "epochs=5", "teacher=snapshot", f"every={every}")
    model = build(recipe)
    students = [[p.detach().clone() for p in model.student.parameters()]]
    for step, _ in enumerate(train(model, [draw(recipe, seed) for seed in range(7)]), start=1):
        students.append([p.detach().clone() for p in model.student.parameters()])
        agree(list(model.teacher.parameters()), students[step - step % period], atol=0)
        assert not torch.equal(students[step][0], students[step - 1][0]), "the student did not move"


def test_an_average_of_one_never_moves():
    """tau = 1: BYOL Table 5a's constant random network."""
    recipe = tiny("byol", *LOUD["byol"], "teacher.tau.base=1")
    start = [p.clone() for p in build(recipe).teacher.parameters()]
    _, model = run(recipe)
    agree(list(model.teacher.parameters()), start, atol=0)


@pytest.mark.parametrize("teacher", [["teacher=ema", "tau.base=0.5"], ["teacher=snapshot", "every=1"]])
def test_a_copy_follows_in_parameters_and_integers_and_keeps_its_own_statistics(teacher):
    recipe = tiny("byol", *LOUD["byol"], *teacher)
    model = build(recipe)
    for name, buffer in model.student.named_buffers():
        buffer.fill_(100 if name.endswith("num_batches_tracked") else 7.0)
    statistics = {n: b.clone() for n, b in model.teacher.named_buffers() if b.is_floating_point()}
    model.after_step(Progress(1, STEPS_PER_EPOCH, recipe.epochs))
    assert all(int(b) == 100 for b in model.teacher.buffers() if not b.is_floating_point())
    agree({n: b for n, b in model.teacher.named_buffers() if b.is_floating_point()}, statistics, atol=0)


@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
def test_no_gradient_reaches_a_copy(teacher):
    recipe = tiny("byol", f"teacher={teacher}")
    model = build(recipe)
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    views = draw(recipe, 0)
    made = model(views)
    made.loss.backward()
    crops = views.crops[0].clone().requires_grad_()
    assert not model.teacher(crops, views.ids, made.z).requires_grad  # by itself, before the skeleton detaches
    assert all(not p.requires_grad and p.grad is None and id(p) not in trained for p in model.teacher.parameters())
    assert {id(p) for part in (model.student, model.predictor) for p in part.parameters()} == trained


@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_into_a_copy_are_refused(method, teacher):
    with pytest.raises(Misuse, match=rf"stop_gradient=false.*teacher={teacher}"):
        METHODS[method].edit([f"teacher={teacher}", "stop_gradient=false"])


def test_the_expectation_is_a_moving_average_per_image():
    """SimSiam Sec. 5.2: eta_x <- m eta_x + (1 - m) z(T'(x)), l2-normalised; an image's first visit sets it."""
    m = 0.8
    recipe = tiny("simsiam", "predictor=none", "teacher=expectation", f"momentum={m}")
    model = build(recipe)
    eta = torch.zeros_like(model.teacher.eta)
    seen = torch.zeros(len(eta), dtype=torch.bool)
    for step in range(4):
        views = draw(recipe, step)
        rows = views.ids
        made = model(views)
        z = nn.functional.normalize(made.z.detach(), dim=-1)  # [2, B, D]
        memory = torch.where(seen[rows, None], m * eta[rows] + (1 - m) * z, z)
        agree(made.t, memory)
        agree(model.teacher.eta, eta, atol=0)  # nothing moves before the optimiser's step

        eta[rows], seen[rows] = memory.mean(0), True
        others = [i for i in range(len(eta)) if i not in rows.tolist()]
        before = model.teacher.eta[others].clone()
        model.after_step(Progress(step + 1, STEPS_PER_EPOCH, recipe.epochs))
        agree(model.teacher.eta, eta)
        agree(model.teacher.eta[others], before, atol=0)
    assert 0 < int(seen.sum()) <= len(eta)


def test_the_expectation_of_micro_batches_is_that_of_the_batch():
    settings = ["predictor=none", "teacher=expectation", "projector.bn=none", "lr.base=3"]
    (_, model), (_, other) = (run(tiny("simsiam", *settings, f"accumulate={n}"), norm=nn.LayerNorm) for n in (1, 4))
    agree(model.teacher.state_dict(), other.teacher.state_dict())


# Methods.


def test_byol_with_simsiams_slots_is_simsiam():
    slots = [
        *("views.augment.scale=[0.2, 1.0]", "views.augment.saturation=0.4", "views.augment.blur=0.5", "views.second=none"),
        "encoder.zero_init_residual=true",
        *("projector.hidden=[2048, 2048]", "projector.out=2048", "projector.bn=all", "projector.bias=true"),
        *("predictor.hidden=[512]", "predictor.bias=true", "predictor.lr_decay=false"),
        "teacher=shared",
        *("terms.views.loss=cosine", "terms.views.weight=1"),
        "optimizer=sgd",
        *("lr.base=0.05", "lr.warmup=0", "lr.per_epoch=true"),
        *("weight_decay.base=1e-4", "decay_norm_and_bias=true"),
        *("epochs=100", "batch_size=512"),
    ]
    made = METHODS["byol"].edit(slots)
    assert diff(made, METHODS["simsiam"]) == [("method", "byol", "simsiam")]

    sizes = ["views.size=8", "encoder.channels=1", "views.mean=[0.5]", "views.std=[0.5]", "batch_size=8", "epochs=3", "lr.base=3"]
    heads = ["projector.hidden=[12, 12]", "projector.out=6", "predictor.hidden=[12]"]
    same_training(made.edit([*sizes, *heads]), METHODS["simsiam"].edit([*sizes, *heads]))


@pytest.mark.parametrize("method", METHODS)
def test_without_predictor_the_stop_gradient_only_halves_the_gradient(method):
    """SimSiam Sec. 4.2: the gradient of D(z1, sg z2)/2 + D(z2, sg z1)/2 has the direction of that of D(z1, z2), and half its length."""
    recipe = tiny(method, "predictor=none", "teacher=shared")
    (stopped,), (free,) = (list(train(build(r), [draw(r, 0)])) for r in (recipe, recipe.edit(["stop_gradient=false"])))
    agree(stopped[0], free[0])
    agree({name: 2 * grad for name, grad in stopped[1].items()}, free[1])
    assert max(grad.abs().max() for grad in free[1].values()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_squared_distance_of_directions_is_the_cosine_twice(method):
    """|p/|p| - t/|t||^2 = 2 - 2 cos(p, t), so MSE at half the weight trains as the cosine, and its loss lies 1 higher."""
    recipe = tiny(method, *LOUD[method])
    losses, model = run(recipe.edit(["terms.views.loss=mse", "terms.views.weight=0.5"]))
    cosines, other = run(recipe.edit(["terms.views.loss=cosine", "terms.views.weight=1"]))
    agree(losses, 1 + cosines)
    agree(student(model), student(other))


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_make_one_step(method):
    """Without BatchNorm, n micro-batches are the batch: the same mean loss and gradient, and the teacher moves once."""
    recipe = tiny(method, *LOUD[method], "projector.bn=none", "predictor.bn=none")
    whole = build(recipe, norm=nn.LayerNorm)
    whole_steps = list(train(whole, [draw(recipe, seed) for seed in range(3)]))
    for n in (2, 4, 8):
        parts = build(recipe, norm=nn.LayerNorm)
        parts.recipe = recipe.edit([f"accumulate={n}"])
        agree(list(train(parts, [draw(recipe, seed) for seed in range(3)])), whole_steps)
        agree(parts.state_dict(), whole.state_dict())


def test_the_average_moves_once_a_step():
    recipe = tiny("byol", *LOUD["byol"], "teacher.tau.base=0.7", "teacher.tau.end=none", "accumulate=4")
    model = build(recipe)
    start = [p.clone() for p in model.teacher.parameters()]
    next(train(model, [draw(recipe, 0)]))
    agree(
        list(model.teacher.parameters()),
        [0.7 * xi + 0.3 * theta.detach() for xi, theta in zip(start, model.student.parameters(), strict=True)],
    )


# Terms.

LOSSES = [Cosine(), MSE(), MSE(l2=False), CrossEntropy(student_temperature=0.5)]


def grads_of(term, p, t):
    p, t = p.clone().requires_grad_(), t.clone().requires_grad_()
    loss = term(p, t)
    return loss.detach(), *torch.autograd.grad(loss, (p, t))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), b=st.integers(1, 6), d=st.integers(2, 9), weight=st.floats(0.1, 4))
def test_mse_is_two_plus_two_cosines_in_value_and_gradient(seed, b, d, weight):
    p, t = torch.randn(2, 2, b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assume(min(p.norm(dim=-1).min(), t.norm(dim=-1).min()) > 0.05)
    mse, mse_dp, mse_dt = grads_of(Term(loss=MSE(), weight=weight), p, t)
    cosine, cosine_dp, cosine_dt = grads_of(Term(loss=Cosine(), weight=weight), p, t)
    agree(mse, 2 * weight + 2 * cosine)
    agree((mse_dp, mse_dt), (2 * cosine_dp, 2 * cosine_dt))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}{'' if getattr(loss, 'l2', True) else ' without l2'}")
@pytest.mark.parametrize(
    ("pairs", "views", "compared"),
    [("cross", 2, [(0, 1), (1, 0)]), ("one-way", 2, [(0, 1)]), ("one-way-doubled", 4, [(0, 1), (2, 3)])],
)
def test_a_term_compares_its_pairs_and_no_other(loss, pairs, views, compared):
    p, t = torch.randn(2, views, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, dp, dt = grads_of(Term(loss=loss, pairs=pairs, weight=3.0), p, t)
    agree(value, 3.0 * sum(loss(p[i], t[j]) for i, j in compared) / len(compared))
    assert [i for i in range(views) if dp[i].abs().max() > 0] == sorted(i for i, _ in compared)
    assert [j for j in range(views) if dt[j].abs().max() > 0] == sorted(j for _, j in compared)


@pytest.mark.parametrize(("pairs", "views"), [("cross", 2), ("one-way", 2), ("one-way-doubled", 4)])
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_asks_for_the_views_that_its_pairs_need(method, pairs, views):
    recipe = tiny(method, f"terms.views.pairs={pairs}")
    assert recipe.global_views == views
    losses, _ = run(recipe)
    assert losses.isfinite().all()


def test_a_doubled_loss_is_the_mean_of_two_one_way_losses():
    """Without BatchNorm; SimSiam Sec. 4.6, asymmetric 2x."""
    recipe = tiny("simsiam", "terms.views.pairs=one-way-doubled", "projector.bn=none", "predictor.bn=none")
    views = draw(recipe, 0)
    doubled = build(recipe, norm=nn.LayerNorm)(views).loss
    single = build(recipe.edit(["terms.views.pairs=one-way"]), norm=nn.LayerNorm)
    agree(
        doubled, (single(views._replace(crops=(views.crops[0][:2],))).loss + single(views._replace(crops=(views.crops[0][2:],))).loss) / 2
    )


# Edits.

NOT_THERE = {("simsiam", "momentum-teacher"), ("byol", "output-bn")}
REFUSED = {("byol", "stop-gradient")}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("method", METHODS)
def test_an_edit_changes_one_key(method, name):
    recipe = METHODS[method]
    if (method, name) in NOT_THERE:
        with pytest.raises(Misuse, match=f"{name}.*{method} has none to take out"):
            without(recipe, [name])
        return
    if (method, name) in REFUSED:
        with pytest.raises(Misuse, match=r"stop_gradient=false.*teacher=ema"):
            without(recipe, [name])
        return
    (setting,) = without(recipe, [name])
    key = setting.partition("=")[0]
    paths = [path for path, _, _ in diff(recipe, recipe.edit([setting]))]
    assert paths
    assert all(path == key or path.startswith(f"{key}.") for path in paths)


@pytest.mark.parametrize(("method", "name"), [(m, e) for m in METHODS for e in EDITS if (m, e) not in NOT_THERE | REFUSED])
def test_an_edited_recipe_trains(method, name):
    _, model = run(tiny(method, *LOUD[method], EDITS[name].setting))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_fixed_predictor_stays_and_passes_gradients_on():
    """SimSiam Table 1b."""
    recipe = tiny("simsiam", *LOUD["simsiam"], "predictor.trainable=false")
    start = build(recipe)
    _, model = run(recipe)
    agree(list(model.predictor.parameters()), list(start.predictor.parameters()), atol=0)
    assert all((a - b).abs().max() > 1e-6 for a, b in zip(model.student.parameters(), start.student.parameters(), strict=True))


# Schedules.

FINITE = st.floats(-10, 10, allow_nan=False)
RUN = {"steps_per_epoch": st.integers(1, 50), "epochs": st.integers(1, 40)}


def values(schedule, steps_per_epoch, epochs):
    """At each step of a run, and where it ends."""
    return [schedule.at(Progress(step, steps_per_epoch, epochs)) for step in range(epochs * steps_per_epoch + 1)]


@settings(max_examples=40, deadline=None)
@given(**RUN, base=FINITE, end=FINITE, shape=st.sampled_from(["cosine", "linear"]), per_epoch=st.booleans())
def test_a_schedule_goes_from_base_to_end_and_never_back(steps_per_epoch, epochs, base, end, shape, per_epoch):
    v = values(Schedule(base=base, end=end, shape=shape, per_epoch=per_epoch), steps_per_epoch, epochs)
    assert v[0] == pytest.approx(base, abs=1e-12)
    assert v[-1] == pytest.approx(end, abs=1e-12)
    assert all((b - a) * (end - base) >= -1e-12 for a, b in pairwise(v))
    if shape == "linear" and not per_epoch:
        total = len(v) - 1
        assert v == pytest.approx([base + (end - base) * k / total for k in range(total + 1)], abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(**RUN, base=st.floats(0, 1))
def test_byols_tau_is_its_papers_formula(steps_per_epoch, epochs, base):
    K = steps_per_epoch * epochs
    expected = [1 - (1 - base) * (math.cos(math.pi * k / K) + 1) / 2 for k in range(K + 1)]
    assert values(Schedule(base=base, end=1.0), steps_per_epoch, epochs) == pytest.approx(expected, abs=1e-14)


@settings(max_examples=40, deadline=None)
@given(**RUN, base=FINITE, start=FINITE, end=st.none() | FINITE, part=st.floats(0.01, 0.9))
def test_a_warm_up_is_linear_and_the_rest_is_a_run_of_its_own(steps_per_epoch, epochs, base, start, end, part):
    warmup = part * epochs
    v = values(Schedule(base=base, end=end, warmup=warmup, warmup_from=start), steps_per_epoch, epochs)
    for step, value in enumerate(v):
        done = step / steps_per_epoch
        if done < warmup:
            assert value == pytest.approx(start + (base - start) * done / warmup, abs=1e-10)
        elif end is None:
            assert value == base
        else:
            f = (done - warmup) / (epochs - warmup)
            assert value == pytest.approx(end + (base - end) * (1 + math.cos(math.pi * f)) / 2, abs=1e-10)
    assert v[0] == start


@settings(max_examples=40, deadline=None)
@given(**RUN, base=FINITE, end=FINITE, warmup=st.integers(0, 5))
def test_per_epoch_holds_the_value_of_the_epochs_first_step(steps_per_epoch, epochs, base, end, warmup):
    """After a warm-up, which moves every step: else a warm-up's first epoch would be lost at lr 0."""
    moving = values(Schedule(base=base, end=end, warmup=warmup), steps_per_epoch, epochs)
    held = values(Schedule(base=base, end=end, warmup=warmup, per_epoch=True), steps_per_epoch, epochs)
    cut = warmup * steps_per_epoch
    assert held[:cut] == moving[:cut]
    assert held[cut:] == [moving[step - step % steps_per_epoch] for step in range(cut, len(held))]


FIRST = Schedule(base=0.9, end=0.1, shape="linear")


@settings(max_examples=40, deadline=None)
@given(**RUN, until=st.integers(1, 39), base=FINITE, end=st.none() | FINITE, warmup=st.floats(0, 3))
def test_a_composition_is_two_runs_in_a_row(steps_per_epoch, epochs, until, base, end, warmup):
    assume(until < epochs)
    second = Schedule(base=base, end=end, warmup=warmup)
    v = values(FIRST.model_copy(update={"until": float(until), "then": second}), steps_per_epoch, epochs)
    cut = until * steps_per_epoch
    assert v[:cut] == pytest.approx(values(FIRST, steps_per_epoch, until)[:-1], abs=1e-10)
    assert v[cut:] == pytest.approx(values(second, steps_per_epoch, epochs - until), abs=1e-10)


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_each_schedule_of_a_composition_has_its_own_per_epoch(first, second):
    a, b = Schedule(base=1, end=0, per_epoch=first), Schedule(base=2, end=1, per_epoch=second)
    v = values(a.model_copy(update={"until": 2.0, "then": b}), 4, 5)
    assert v[:8] == pytest.approx(values(a, 4, 2)[:-1])
    assert v[8:] == pytest.approx(values(b, 4, 3)), f"then.per_epoch={second} is ignored for the first schedule's {first}"

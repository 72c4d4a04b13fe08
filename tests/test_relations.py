"""What must hold between recipes, and of each slot on its own: in float64, over a few training steps."""

import math
from itertools import pairwise, permutations

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill.ablate.edits import EDITS, lacking, settings_of, without
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts.contrast import InfoNCE, NTXent, Swapped
from selfdistill.parts.encoder import Encoder
from selfdistill.parts.loss import MSE, Cosine, CrossEntropy, Output, Term, pairs_of
from selfdistill.parts.schedule import Progress, Schedule
from selfdistill.parts.target import Centre, Sinkhorn, Softmax, sinkhorn
from selfdistill.parts.teacher import Copy
from selfdistill.recipe import Recipe
from selfdistill.spec import diff
from tests.papers import swav
from tests.papers.tiny import LOUD, SIX, STEPS_PER_EPOCH, build, draw, tiny, train, without_bn

ANY_TEACHER = ["stop_gradient=true", "keep=student"]
"""what fits a teacher with weights of its own and one without"""
START = Progress(0, STEPS_PER_EPOCH, 3)


def run(recipe: Recipe, steps: int = 3, norm=nn.BatchNorm1d):
    """(losses, model) of a few training steps, the same weights and views for the same sizes."""
    model = build(recipe, norm=norm)
    losses = [loss for loss, _ in train(model, [draw(recipe, seed) for seed in range(steps)])]
    return torch.stack(losses), model


def agree(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def student(model):
    """Parameters and buffers of all but the teacher."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}


def same_training(a: Recipe, b: Recipe, steps: int = 3):
    (losses, model), (other_losses, other) = run(a, steps), run(b, steps)
    agree(losses, other_losses)
    agree(student(model), student(other))
    return model, other


# Teachers.


@pytest.mark.parametrize("method", [method for method in SIX if method != "moco"])
def test_an_average_that_forgets_at_once_is_the_student_itself(method):
    """EMA(0) = Shared: BYOL without a momentum encoder is SimSiam's teacher (SimSiam Sec. 6.2).

    Without local crops, which a BN in the student's head would see and the copy's would not. MoCo's copy sees other views than its
    student: one way, each has its own.
    """
    recipe = tiny(method, *LOUD[method], *ANY_TEACHER, "views.locals=none")
    same_training(recipe.edit(["teacher=ema", "tau.base=0", "tau.end=none"]), recipe.edit(["teacher=shared"]))


@pytest.mark.parametrize("method", SIX)
def test_a_snapshot_of_every_step_is_an_average_that_forgets_at_once(method):
    recipe = tiny(method, *LOUD[method], *ANY_TEACHER)
    model, other = same_training(recipe.edit(["teacher=snapshot", "every=1"]), recipe.edit(["teacher=ema", "tau.base=0", "tau.end=none"]))
    agree(list(model.teacher.parameters()), list(other.teacher.parameters()))


def test_a_snapshot_that_lags_is_the_student_of_one_step_ago():
    """DINO Fig. 6 sets the student's copy, which every=1 is, beside that of the previous iteration."""
    recipe = tiny("dino", *LOUD["dino"], "teacher=snapshot", "every=1", "lag=1")
    model = build(recipe)
    model.teacher.next.load_state_dict(model.student.state_dict())
    students = [[p.detach().clone() for p in model.student.parameters()]]
    for _ in train(model, [draw(recipe, seed) for seed in range(4)]):
        students.append([p.detach().clone() for p in model.student.parameters()])
        agree(list(model.teacher.net.parameters()), students[-2], atol=0)
        assert not torch.equal(students[-1][0], students[-2][0]), "the student did not move"


@pytest.mark.parametrize(("every", "period"), [("3", 3), ("2", 2), ("epoch", STEPS_PER_EPOCH)])
def test_a_snapshot_is_the_student_of_the_last_multiple(every, period):
    recipe = tiny("byol", *LOUD["byol"], "epochs=5", "teacher=snapshot", f"every={every}")
    model = build(recipe)
    students = [[p.detach().clone() for p in model.student.parameters()]]
    for step, _ in enumerate(train(model, [draw(recipe, seed) for seed in range(7)]), start=1):
        students.append([p.detach().clone() for p in model.student.parameters()])
        agree(list(model.teacher.parameters()), students[step - step % period], atol=0)
        assert not torch.equal(students[step][0], students[step - 1][0]), "the student did not move"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"drop_rate": 0.5}),
        ("resnet18", {"drop_block_rate": 0.5}),
        ("timm:vit_tiny_patch16_224", {"patch_drop_rate": 0.5, "depth": 2}),
        ("timm:vit_small_patch16_dinov3", {"patch_drop_rate": 0.5, "depth": 2}),
        ("timm:vit_tiny_patch16_224", {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "depth": 2}),
        ("timm:vit_tiny_patch16_224", {"attn_drop_rate": 0.5, "pos_drop_rate": 0.5, "depth": 2}),
    ],
)
def test_a_copy_drops_no_part_of_the_network(name, options):
    """It runs in train mode, and a target is drawn from augmentation alone."""
    student = Encoder(name=name, options=options, zero_init_residual=False).build(64)
    x = torch.rand(4, 3, 64, 64)
    teacher = Copy(student).net
    assert teacher.training
    assert not torch.equal(student(x), student(x))
    agree(teacher(x), teacher(x), atol=0)


@pytest.mark.parametrize("made", [torchvision.models.convnext_tiny, torchvision.models.efficientnet_b0])
def test_a_copy_of_torchvisions_drops_no_path(made):
    teacher, x = Copy(Encoder().build(32, made())).net, torch.rand(4, 3, 32, 32)
    assert teacher.training
    agree(teacher(x), teacher(x), atol=0)


def test_a_field_of_a_users_own_network_is_left_as_it_is():
    class Own(nn.Linear):
        drop_rate = property(lambda self: 0.5)

    class Rates(nn.Linear):
        def __init__(self, *args):
            super().__init__(*args)
            self.drop_rate = [0.1, 0.2]

    copied = Copy(nn.Sequential(Own(2, 2), Rates(2, 2))).net
    assert [part.drop_rate for part in copied] == [0.5, [0.1, 0.2]]


def test_an_average_of_one_never_moves():
    """tau = 1: BYOL Table 5a's constant random network."""
    recipe = tiny("byol", *LOUD["byol"], "teacher.tau.base=1")
    start = [p.clone() for p in build(recipe).teacher.parameters()]
    _, model = run(recipe)
    agree(list(model.teacher.parameters()), start, atol=0)


def test_a_snapshot_has_the_statistics_of_the_weights_that_it_has():
    recipe = tiny("byol", *LOUD["byol"], "teacher=snapshot", "every=2")
    _, model = run(recipe, steps=2)
    agree(model.teacher.net.state_dict(), model.student.state_dict(), atol=0)


def test_an_average_follows_in_parameters_and_integers_and_keeps_its_own_statistics():
    recipe = tiny("byol", *LOUD["byol"], "teacher=ema", "tau.base=0.5")
    model = build(recipe)
    for name, buffer in model.student.named_buffers():
        buffer.fill_(100 if name.endswith("num_batches_tracked") else 7.0)
    statistics = {n: b.clone() for n, b in model.teacher.named_buffers() if b.is_floating_point()}
    model.after_step(Progress(1, STEPS_PER_EPOCH, recipe.epochs))
    assert all(int(b) == 100 for b in model.teacher.buffers() if not b.is_floating_point())
    agree({n: b for n, b in model.teacher.named_buffers() if b.is_floating_point()}, statistics, atol=0)


@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
@pytest.mark.parametrize("method", SIX)
def test_no_gradient_reaches_a_copy(method, teacher):
    recipe = tiny(method, *ANY_TEACHER, f"teacher={teacher}")
    model = build(recipe)
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    views = draw(recipe, 0)
    made = model(views, START)
    made.loss.backward()
    crops = views.crops[0].clone().requires_grad_()
    assert not model.teacher(crops, views.ids, None, made.z).cls.requires_grad  # by itself, before the skeleton detaches
    assert all(not p.requires_grad and p.grad is None and id(p) not in trained for p in model.teacher.parameters())
    others = {id(p): p for part in (model.student, model.predictor, model.terms) for p in part.parameters()}
    assert set(others) == trained
    assert all(p.grad is not None for p in others.values())


@pytest.mark.parametrize("teacher", ["ema", "snapshot"])
@pytest.mark.parametrize("method", SIX)
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
        made = model(views, START)
        z = nn.functional.normalize(made.z.cls.detach(), dim=-1)  # [2, B, D]
        memory = torch.where(seen[rows, None], m * eta[rows] + (1 - m) * z, z)
        agree(made.t.cls, memory)
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


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_without_predictor_the_stop_gradient_only_halves_the_gradient(method):
    """SimSiam Sec. 4.2: the gradient of D(z1, sg z2)/2 + D(z2, sg z1)/2 has the direction of that of D(z1, z2), and half its length."""
    recipe = tiny(method, "predictor=none", "teacher=shared")
    (stopped,), (free,) = (list(train(build(r), [draw(r, 0)])) for r in (recipe, recipe.edit(["stop_gradient=false"])))
    agree(stopped[0], free[0])
    agree({name: 2 * grad for name, grad in stopped[1].items()}, free[1])
    assert max(grad.abs().max() for grad in free[1].values()) > 1e-3


@pytest.mark.parametrize("method", SIX)
def test_squared_distance_of_directions_is_the_cosine_twice(method):
    """|p/|p| - t/|t||^2 = 2 - 2 cos(p, t), so MSE at half the weight trains as the cosine, and its loss lies 1 higher."""
    recipe = tiny(method, *LOUD[method])
    losses, model = run(recipe.edit(["terms.views.loss=mse", "terms.views.weight=0.5"]))
    cosines, other = run(recipe.edit(["terms.views.loss=cosine", "terms.views.weight=1"]))
    agree(losses, 1 + cosines)
    agree(student(model), student(other))


@pytest.mark.parametrize(("norm", "passes"), [(nn.LayerNorm, 1), (nn.BatchNorm1d, 2)])
def test_views_of_one_size_are_one_pass_where_no_batchnorm_is_to_see_them_apart(norm, passes):
    recipe, seen = tiny("simsiam", *without_bn("simsiam")), []
    model = build(recipe, norm=norm)
    model.student.backbone.net.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    views = draw(recipe, 0)
    model(views, Progress(0, STEPS_PER_EPOCH, recipe.epochs))
    assert seen == [2 // passes * len(views.ids)] * passes


@pytest.mark.parametrize("method", ["moco", "byol", "simsiam", "dino"])
def test_micro_batches_make_one_step(method):
    """Without BatchNorm, n micro-batches are the batch: the same mean loss and gradient, and teacher, queue and centre move once.

    Not in SimCLR and SwAV, whose loss compares the images of a batch with each other.
    """
    recipe = tiny(method, *LOUD[method], *without_bn(method))
    whole = build(recipe, norm=nn.LayerNorm)
    whole_steps = list(train(whole, [draw(recipe, seed) for seed in range(3)]))
    for n in (2, 4, 8):
        parts = build(recipe, norm=nn.LayerNorm)
        parts.recipe = recipe.edit([f"accumulate={n}"])
        agree(list(train(parts, [draw(recipe, seed) for seed in range(3)])), whole_steps)
        agree(parts.state_dict(), whole.state_dict())


def test_swavs_queue_of_micro_batches_is_that_of_the_batch():
    recipe = tiny("swav", *without_bn("swav"), "terms.views.loss.queue=12", "terms.views.loss.queue_from=0")
    queues = []
    for n in (1, 2, 4):
        model = build(recipe, norm=nn.LayerNorm)
        model.recipe = recipe.edit([f"accumulate={n}"])
        next(train(model, [draw(recipe, 0)]))
        queues.append(model.terms["views"].loss.queue)
    assert queues[0].any()
    agree(queues[1:], [queues[0]] * 2)


@pytest.mark.parametrize(("method", "weight"), [("dino", "student.projector.5.weight"), ("swav", "terms.views.loss.prototypes.weight")])
def test_frozen_prototypes_get_no_update_until_their_epoch(method, weight):
    """No step, no decay, no momentum; and only they are frozen."""
    recipe = tiny(method, *LOUD[method], "weight_decay.base=0.1")
    model = build(recipe)
    frozen = [p for group in model.param_groups() if group["frozen_epochs"] == 1 for p in group["params"]]
    assert [id(p) for p in frozen] == [id(model.get_parameter(weight))]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step, (_, grads) in enumerate(train(model, [draw(recipe, seed) for seed in range(3)])):
        assert grads[weight].abs().max() > 1e-6  # it is not for want of a gradient
        moved = {name for name, p in model.named_parameters() if name in grads and (p - before[name]).abs().max() > 1e-12}
        assert moved == set(grads) - ({weight} if step < STEPS_PER_EPOCH else set())


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

DISTANCES = {
    "cosine": (Cosine(), lambda p, t: -cosine(p, t).mean()),
    "mse": (MSE(), lambda p, t: (2 - 2 * cosine(p, t)).mean()),
    "mse without l2": (MSE(l2=False), lambda p, t: (p - t).square().sum(1).mean()),
    "cross-entropy": (CrossEntropy(temperature=0.5), lambda p, t: -(t.softmax(1) * (p / 0.5).softmax(1).log()).sum(1).mean()),
}
"""each with its formula"""


def loss_of(term, p, t, now=START):
    return term.build(p.shape[-1], views=len(t)).double()(Output(p), Output(t), now)


def grads_of(term, p, t):
    p, t = p.clone().requires_grad_(), t.clone().requires_grad_()
    loss = loss_of(term, p, t)
    return loss.detach(), *torch.autograd.grad(loss, (p, t))


def cosine(p, t):
    return (p * t).sum(1) / (p.norm(dim=1) * t.norm(dim=1))


@pytest.mark.parametrize(
    "loss", [NTXent(), InfoNCE(queue=30), Swapped(prototypes=5), Cosine(), MSE(), CrossEntropy()], ids=lambda loss: loss.kind
)
def test_a_loss_is_in_fp32_under_autocast(loss):
    """To the last bit, with its gradient; products with a queue or with prototypes would come in bf16, and of bf16 it is fp32 as well."""
    torch.manual_seed(0)
    term, (p, t) = Term(loss=loss).build(7, views=2), random(2, 2, 6, 7).float()
    p.requires_grad_()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = term(Output(p), Output(t), START)
            low = term(Output(p.bfloat16()), Output(t.bfloat16()), START)
        assert value.dtype == low.dtype == torch.float32
        found.append((value.detach(), *torch.autograd.grad(value, p)))
    agree(*found, atol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), b=st.integers(1, 6), d=st.integers(2, 9), weight=st.floats(0.1, 4))
def test_mse_is_two_plus_two_cosines_in_value_and_gradient(seed, b, d, weight):
    p, t = torch.randn(2, 2, b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assume(min(p.norm(dim=-1).min(), t.norm(dim=-1).min()) > 0.05)
    mse, mse_dp, mse_dt = grads_of(Term(loss=MSE(), weight=Schedule(base=weight)), p, t)
    cosine, cosine_dp, cosine_dt = grads_of(Term(loss=Cosine(), weight=Schedule(base=weight)), p, t)
    agree(mse, 2 * weight + 2 * cosine)
    agree((mse_dp, mse_dt), (2 * cosine_dp, 2 * cosine_dt))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("pairs", "students", "teachers", "compared"),
    [
        ("cross", 2, 2, [(0, 1), (1, 0)]),
        ("cross", 4, 2, [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]),
        ("one-way", 2, 2, [(0, 1)]),
        ("one-way", 4, 2, [(0, 1), (2, 1), (3, 1)]),
        ("one-way-doubled", 4, 4, [(0, 1), (2, 3)]),
        ("one-way-doubled", 5, 4, [(0, 1), (2, 3), (4, 1), (4, 3)]),
    ],
)
def test_a_term_compares_its_pairs_and_no_other(distance, pairs, students, teachers, compared):
    p, t = random(students, 5, 7), random(teachers, 5, 7, seed=1)
    loss, formula = DISTANCES[distance]
    value, dp, dt = grads_of(Term(loss=loss, pairs=pairs, weight=Schedule(base=3.0)), p, t)
    agree(value, 3.0 * sum(formula(p[i], t[j]) for i, j in compared) / len(compared))
    assert [i for i in range(students) if dp[i].abs().max() > 0] == sorted({i for i, _ in compared})
    assert [j for j in range(teachers) if dt[j].abs().max() > 0] == sorted({j for _, j in compared})


def test_without_symmetry_local_crops_still_predict_the_view_that_the_teacher_sees():
    """One word takes one thing out: DINO keeps its multi-crop."""
    recipe = tiny("dino", "projector.bottleneck=5")
    recipe = recipe.edit(without(recipe, ["symmetry"]))
    model, views = build(recipe), draw(recipe, 0)
    z, _, t = model.outputs(views)
    q = model.terms["views"].loss.target(t.cls, START)[0]
    log_p = (z.cls / recipe.terms["views"].loss.temperature).log_softmax(-1)
    assert (len(z.cls), len(t.cls)) == (1 + recipe.views.locals.count, 1)
    agree(model(views, START).loss, -(q * log_p).sum(-1).mean())


@pytest.mark.parametrize(("pairs", "views"), [("cross", 2), ("one-way", 2), ("one-way-doubled", 4)])
@pytest.mark.parametrize("method", SIX)
def test_a_recipe_asks_for_the_views_that_its_pairs_need(method, pairs, views):
    recipe = tiny(method, f"terms.views.pairs={pairs}")
    assert recipe.global_views == views
    losses, _ = run(recipe)
    assert losses.isfinite().all()


def test_a_doubled_loss_is_the_mean_of_two_one_way_losses():
    """Without BatchNorm; SimSiam Sec. 4.6, asymmetric 2x."""
    recipe = tiny("simsiam", "terms.views.pairs=one-way-doubled", "projector.bn=none", "predictor.bn=none")
    views = draw(recipe, 0)
    doubled = build(recipe, norm=nn.LayerNorm)(views, START).loss
    single = build(recipe.edit(["terms.views.pairs=one-way"]), norm=nn.LayerNorm)
    agree(doubled, sum(single(views._replace(crops=(views.crops[0][two],)), START).loss for two in (slice(0, 2), slice(2, 4))) / 2)


# Targets.


def seen_by(target, *batches):
    """A target that has made a step on each of the batches [G, B, K]."""
    built = target.build(batches[0].shape[-1]).double()
    for t in batches:
        built(t, START)
        built.update()
    return built


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 9), k=st.integers(2, 7), eps=st.floats(0.02, 1), iterations=st.integers(1, 4))
def test_sinkhorn_in_logarithms_is_the_authors(seed, n, k, eps, iterations):
    scores = random(n, k, seed=seed).tanh().requires_grad_()  # as cosines
    ours, theirs = sinkhorn(scores / eps, iterations), swav.sinkhorn(scores, eps, iterations)
    agree(ours, theirs)
    on = random(n, k, seed=seed + 1)
    agree(*(torch.autograd.grad((on * codes).sum(), scores)[0] for codes in (ours, theirs)), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 9), k=st.integers(2, 7))
def test_sinkhorn_gives_each_sample_one_and_each_prototype_an_equal_share(seed, n, k):
    scores = random(n, k, seed=seed)
    for iterations in (1, 3, 500):
        codes = sinkhorn(scores, iterations)
        assert codes.min() >= 0
        agree(codes.sum(1), torch.ones(n, dtype=torch.float64))
    agree(codes.sum(0), torch.full((k,), n / k, dtype=torch.float64), atol=1e-6)


def test_sinkhorn_does_not_overflow():
    """exp(100 / 0.05) is infinite in any format."""
    codes = sinkhorn(torch.tensor([[100.0, -100.0], [99.0, -100.0]]) / 0.05, 3)
    agree(codes.sum(1), torch.ones(2), atol=1e-6)


def test_sinkhorn_takes_each_view_on_its_own():
    t = random(2, 6, 4)
    target = Sinkhorn(temperature=Schedule(base=0.5), iterations=2).build(4)
    agree(target(t, START), torch.stack([swav.sinkhorn(view, 0.5, 2) for view in t]))


def test_sinkhorn_takes_masked_patches_together_however_many_there_are():
    t = random(7, 4)
    target = Sinkhorn(temperature=Schedule(base=0.5), iterations=2).build(4)
    agree(target(t, START), swav.sinkhorn(t, 0.5, 2))
    assert target(t[:0], START).shape == (0, 4)


def test_a_centre_that_never_moves_is_a_softmax():
    """momentum = 1 takes centring out, and sharpening stays."""
    temperature = "temperature: {base: 0.07, warmup: 30, warmup_from: 0.04}"
    recipe = tiny("dino", *LOUD["dino"])
    still = recipe.edit([f"terms.views.loss.target={{kind: centre, {temperature}, momentum: 1}}"])
    plain = recipe.edit([f"terms.views.loss.target={{kind: softmax, {temperature}}}"])
    (losses, model), (other_losses, other) = run(still), run(plain)
    agree(losses, other_losses)
    agree({n: t for n, t in student(model).items() if not n.endswith("centre")}, student(other))
    assert not model.terms["views"].loss.target.centre.any()
    with pytest.raises(AssertionError):
        agree(run(recipe)[0], losses)  # the paper's centre makes a difference


def test_the_centre_is_the_moving_average_of_the_logits():
    """DINO eq. 4: over images and views, once a step; what is only looked at leaves no trace."""
    m, batches = 0.7, [random(2, 5, 4, seed=seed) for seed in range(3)]
    target, centre = Centre(momentum=m).build(4).double(), torch.zeros(4, dtype=torch.float64)
    for t in batches:
        tau = target.temperature.at(START)
        agree(target(t, START), torch.softmax((t - centre) / tau, -1))
        with torch.no_grad():
            target(t + 10, START)
        agree(target.centre, centre)  # nothing moves before the optimiser's step
        target.update()
        centre = m * centre + (1 - m) * t.flatten(0, 1).mean(0)
        agree(target.centre, centre)
    target.update()
    agree(target.centre, centre)  # a step without a batch is none


def test_the_centre_of_micro_batches_is_that_of_the_batch():
    t = random(2, 8, 4)
    whole = seen_by(Centre(momentum=0.5), t)
    parts = Centre(momentum=0.5).build(4).double()
    for micro in t.chunk(4, dim=1):
        parts(micro, START)
    parts.update()
    agree(parts.centre, whole.centre)


TARGETS = [Softmax(temperature=Schedule(base=0.5)), Centre(), Sinkhorn(temperature=Schedule(base=0.5))]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
@pytest.mark.parametrize(("students", "teachers"), [(2, 2), (5, 2), (4, 4)])
def test_a_cross_entropy_of_summed_targets_is_that_of_each_pair(target, students, teachers):
    """DINO's nested loops, in value and gradients."""
    earlier, p, t = (random(v, 6, 4, seed=n) for n, v in enumerate([teachers, students, teachers]))
    loss = CrossEntropy(temperature=0.3, target=target).build(4).double()
    loss.target = seen_by(target, earlier)  # a centre that is not 0
    pairs = [(i, j) for j in range(teachers) for i in range(students) if i != j]
    p, t = p.requires_grad_(), t.requires_grad_()
    value = loss(p, t, pairs, START)
    q = seen_by(target, earlier)(t, START)
    loops = sum(-(q[j] * (p[i] / 0.3).softmax(-1).log()).sum(-1).mean() for i, j in pairs) / len(pairs)
    agree(value, loops)
    agree(torch.autograd.grad(value, (p, t)), torch.autograd.grad(loops, (p, t)))


# Contrast.


@pytest.mark.parametrize("K", [3, 8, 10, 20])
def test_the_queue_is_first_in_first_out(K):
    """As one list of all keys that ever came, of which the last K are kept; K below, at and above the batch of 8."""
    loss = InfoNCE(queue=K).build(4).double()
    came = loss.queue.clone()
    agree(came.norm(dim=1), torch.ones(K, dtype=torch.float64), atol=1e-6)
    for step in range(4):
        p, t = random(2, 8, 4, seed=2 * step), random(2, 8, 4, seed=2 * step + 1)
        for micro in range(2):  # micro-batches
            images = slice(4 * micro, 4 * micro + 4)
            loss(p[:, images], t[:, images], [(0, 1)], START)
        with torch.no_grad():
            loss(p + 1, t + 1, [(0, 1)], START)  # is only looked at
        agree(loss.queue, came[-K:], atol=0)  # the step's own keys are no negatives of it
        loss.update()
        came = torch.cat([came, nn.functional.normalize(t[1], dim=1)])
        agree(loss.queue, came[-K:])


def test_a_target_of_several_pairs_enters_the_queue_once():
    loss = InfoNCE(queue=6).build(4).double()
    before, p, t = loss.queue.clone(), random(3, 2, 4), random(2, 2, 4, seed=1)
    loss(p, t, [(0, 1), (2, 1)], START)
    loss.update()
    agree(loss.queue, torch.cat([before[2:], nn.functional.normalize(t[1], dim=1)]))


def test_a_contrast_is_of_directions():
    """And against the queue: the loss is the same whatever the lengths, and falls as the positive comes closer."""
    loss = InfoNCE(queue=6).build(4).double()
    p, t = random(2, 5, 4), random(2, 5, 4, seed=1)
    value = loss(p, t, [(0, 1)], START)
    agree(loss(3 * p, 0.2 * t, [(0, 1)], START), value)
    assert loss(p, torch.stack([t[0], p[0]]), [(0, 1)], START) < value


def test_nt_xent_is_info_nce_whose_queue_is_the_rest_of_the_batch():
    """SimCLR eq. 1: of the 2B views, all but itself and the positive are negatives, 2B - 2."""
    B, tau = 5, 0.3
    z = random(2, B, 4)
    views = [(v, b) for v in range(2) for b in range(B)]
    losses = []
    for v, b in views:
        others = [z[w, c] for w, c in views if (w, c) not in ((v, b), (1 - v, b))]
        assert len(others) == 2 * B - 2
        info = InfoNCE(temperature=tau, queue=len(others)).build(4).double()
        info.queue.copy_(nn.functional.normalize(torch.stack(others), dim=1))
        losses.append(info(z[None, v, b : b + 1], z[None, 1 - v, b : b + 1], [(0, 0)], START))
    agree(loss_of(Term(loss=NTXent(temperature=tau)), z, z), torch.stack(losses).mean())


@pytest.mark.parametrize(("views", "globals", "kind"), [(2, 2, "cross"), (5, 2, "cross"), (4, 4, "one-way-doubled"), (2, 2, "same")])
def test_views_of_one_image_are_no_negatives_of_each_other(views, globals, kind):
    """However many there are: where all are alike and images are not, each finds its own for nothing."""
    z = nn.functional.normalize(random(6, 64), dim=-1).expand(views, 6, 64)
    loss = NTXent(temperature=0.01).build(64)
    for pair in pairs_of(kind, views, globals):
        assert float(loss(z, z[:globals], [pair], START)) < 1e-6


# SwAV's queue.

AT_ONCE, LATER = Progress(0, STEPS_PER_EPOCH, 3), Progress(2 * STEPS_PER_EPOCH, STEPS_PER_EPOCH, 3)
EPSILON, TAU = 0.3, 0.5


def swapped(queue, **fields):
    torch.manual_seed(0)
    loss = Swapped(prototypes=5, temperature=TAU, epsilon=EPSILON, queue=queue, **fields).build(4).double()
    loss.update()
    return loss


def swapped_by_hand(loss, p, t, queue):
    """queue: [2, L, D], L = 0 for none."""
    p, t = (x / x.norm(dim=-1, keepdim=True) for x in (p, t))
    C = loss.prototypes.weight.detach()
    codes = [swav.sinkhorn(torch.cat([t[j], queue[j]]) @ C.T, EPSILON)[: t.shape[1]] for j in range(2)]
    pairs = [(i, j) for i in range(len(p)) for j in range(2) if i != j]
    return sum(-(codes[j] * (p[i] @ C.T / TAU).softmax(-1).log()).sum(-1).mean() for i, j in pairs) / len(pairs)


CROSS = [(i, j) for i in range(3) for j in range(2) if i != j]
NO_QUEUE = torch.zeros(2, 0, 4, dtype=torch.float64)


@pytest.mark.parametrize("length", [6, 12])
def test_a_full_queue_joins_the_batch_when_codes_are_made_and_only_then(length):
    """Two batches of 6 came in the epochs that have a queue: each view's codes are an equal partition of the batch and what came as
    that view, the latest first."""
    loss = swapped(length, queue_from=2)
    came = []
    for seed in range(2):
        t = random(2, 6, 4, seed=seed)
        loss(random(3, 6, 4), t, CROSS, LATER)
        loss.update()
        came.insert(0, nn.functional.normalize(t, dim=-1))
    queue = torch.cat(came, 1)[:, :length]
    agree(loss.queue, queue)
    p, t = random(3, 6, 4, seed=7), random(2, 6, 4, seed=8)
    agree(loss(p, t, CROSS, LATER), swapped_by_hand(loss, p, t, queue))
    agree(loss(p, t, CROSS, AT_ONCE), swapped_by_hand(loss, p, t, NO_QUEUE))  # before epoch `queue_from`


def test_a_queue_that_is_not_full_is_not_used():
    """SwAV's code: `if not torch.all(queue[i, -1, :] == 0)`. The rows that are still 0 are no images."""
    loss = swapped(12, queue_from=2)
    loss(random(3, 6, 4), random(2, 6, 4, seed=1), CROSS, LATER)
    loss.update()
    p, t = random(3, 6, 4, seed=7), random(2, 6, 4, seed=8)
    agree(loss(p, t, CROSS, LATER), swapped_by_hand(loss, p, t, NO_QUEUE))


@pytest.mark.parametrize("queue", [0, 8])
def test_swav_of_two_pairs_of_views_has_a_queue_for_each(queue):
    recipe = tiny("swav", "terms.views.pairs=one-way-doubled", f"terms.views.loss.queue={queue}", "terms.views.loss.queue_from=0")
    losses, _ = run(recipe)
    assert losses.isfinite().all()
    # beside a term of four views, the queue of one of two remembers four as well
    terms = {"views": recipe.terms["views"].model_copy(update={"pairs": "one-way"}), "more": Term(loss=MSE(), pairs="one-way-doubled")}
    losses, _ = run(recipe.model_copy(update={"terms": terms}))
    assert losses.isfinite().all()


# Edits.

FITTING = {
    "simclr": ["symmetry", "output-bn", "projector-bn", "projector"],
    "moco": ["momentum-teacher", "projector"],
    "swav": ["stop-gradient", "symmetry", "projector-bn", "projector", "multi-crop"],
    "byol": [
        *("predictor", "predictor-training", "momentum-teacher", "symmetry", "cosine"),
        *("projector-bn", "predictor-bn", "projector"),
    ],
    "simsiam": [
        *("stop-gradient", "predictor", "predictor-training", "symmetry", "cosine"),
        *("output-bn", "projector-bn", "predictor-bn", "projector"),
    ],
    "dino": ["momentum-teacher", "symmetry", "projector", "centring", "sharpening", "multi-crop"],
}
"""what each method has that can be taken out by itself"""
REFUSED = {
    ("moco", "stop-gradient"): r"stop_gradient=false.*teacher=ema",
    ("byol", "stop-gradient"): r"stop_gradient=false.*teacher=ema",
    ("dino", "stop-gradient"): r"stop_gradient=false.*teacher=ema",
}
"""what another slot rests on, and what the message says of it"""
LACKING = [(method, name) for method in SIX for name in EDITS if name not in FITTING[method] and (method, name) not in REFUSED]


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in SIX for name in FITTING[method]])
def test_an_edit_changes_one_key(method, name):
    recipe = METHODS[method]
    (setting,) = without(recipe, [name])
    key = setting.partition("=")[0]
    paths = [path for path, _, _ in diff(recipe, recipe.edit([setting]))]
    assert paths
    assert all(path == key or path.startswith(f"{key}.") for path in paths)


@pytest.mark.parametrize("method", SIX)
def test_what_is_taken_out_together_is_gone_in_any_order(method):
    """Also a part and its whole, which set the same field (projector-bn, output-bn) or one inside the other (projector, output-bn)."""
    for pair in permutations(FITTING[method], 2):
        made = METHODS[method].edit(without(METHODS[method], pair))
        assert made == METHODS[method].edit(without(METHODS[method], pair[::-1]))
        assert lacking(made, pair) == list(pair)


@pytest.mark.parametrize(("method", "name"), LACKING)
def test_what_a_method_lacks_cannot_be_taken_out(method, name):
    with pytest.raises(Misuse, match=f"{name}.*{method} has none to take out|is none here|has no|unknown key"):
        without(METHODS[method], [name])


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_an_edit_that_contradicts_another_slot_says_so(method, name):
    with pytest.raises(Misuse, match=REFUSED[method, name]):
        without(METHODS[method], [name])


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in SIX for name in FITTING[method]])
def test_an_edited_recipe_trains(method, name):
    loud = tiny(method, *LOUD[method])
    recipe = loud.edit(settings_of(loud, [name]))
    start = {n: p.clone() for n, p in build(recipe).student.named_parameters()}
    _, model = run(recipe)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all((p - start[n]).abs().max() > 0 for n, p in model.student.named_parameters())


def test_a_kept_teacher_without_weights_of_its_own_is_the_student():
    """DINO Fig. 6: the student's copy as its teacher."""
    model = build(tiny("dino", EDITS["momentum-teacher"].setting))
    assert model.recipe.keep == "teacher"
    assert model.backbone is model.student.backbone


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


def test_sharpening_is_a_target_below_the_students_temperature_and_ibot_has_two_terms():
    """Taken out it leaves the student's own temperature, whatever that is; a target as soft as that has none."""
    soft = METHODS["dino"].edit(["terms.views.loss.temperature=0.3"])
    assert soft.edit(without(soft, ["sharpening"])).terms["views"].loss.target.temperature == Schedule(base=0.3)
    assert lacking(METHODS["simsiam"].edit(["terms.views.loss=cross-entropy"]), ["sharpening"]) == ["sharpening"]
    ibot = METHODS["ibot"].edit(without(METHODS["ibot"], ["centring", "sharpening"]))
    for term in ("views", "patches"):
        assert ibot.terms[term].loss.target == Centre(momentum=1, temperature=Schedule(base=0.1))

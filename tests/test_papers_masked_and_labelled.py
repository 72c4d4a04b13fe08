"""The two recipes that look at more than views, iBOT at masks and Mean Teacher at labels, against their papers as in test_papers.py."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.views.batch import Views
from tests.papers import dino, ibot, mean_teacher
from tests.papers.tiny import IMAGES, STEPS_PER_EPOCH, build, draw, tiny, train
from tests.test_papers import agree

STEPS = 4
Named = dict[str, Tensor]
NAMES = {
    "mean-teacher": {"backbone.net.": "f.", "projector.0.": "c."},
    "ibot": {
        "backbone.net.": "f.",
        "projector.0.": "g.fc1.",
        "projector.2.": "g.fc2.",
        "projector.4.": "g.fc3.",
        "projector.5.": "g.last.",
        "mask_token": "mask",
    },
}


def renamed(method: str, tensors: dict[str, Tensor], prefix: str = "") -> Named:
    """Those under `prefix`, copied, by the paper's names."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            ours = next(o for o in NAMES[method] if name.removeprefix(prefix).startswith(o))
            found[NAMES[method][ours] + name.removeprefix(prefix + ours)] = tensor.detach().clone()
    return found


def networks(model: Siamese) -> tuple[Named, Named, Named, Named]:
    """Parameters and buffers of the student, then of the teacher; without the batch counters, which nothing reads."""
    return tuple(
        {n: t for n, t in renamed(model.recipe.method, dict(tensors)).items() if not n.endswith("num_batches_tracked")}
        for net in (model.student, model.teacher.net)
        for tensors in (net.named_parameters(), net.named_buffers())
    )


def steps(model: Siamese, batches: list[Views]) -> Iterator[tuple[Tensor, Named]]:
    """The loss and the gradients by the paper's names, after each step."""
    for loss, grads in train(model, batches):
        yield loss, renamed(model.recipe.method, grads, "student.")


@pytest.mark.parametrize("oracle", [ibot, mean_teacher], ids=lambda oracle: oracle.__name__.rpartition(".")[2])
def test_an_oracle_knows_nothing_of_the_package(oracle):
    assert "selfdistill" not in Path(oracle.__file__).read_text()


RAMP = [
    "terms.consistency.weight.warmup=1.5",
    "teacher.tau={base: 0.99, until: 1.5, then: {base: 0.999}}",
]
"""three steps, of the four that are made"""
MEAN_TEACHER = {
    "code's": RAMP,
    "ten times less": [*RAMP, "terms.consistency.weight.base=10"],
    "loud": [
        *("terms.consistency.weight.base=30", "terms.consistency.weight.warmup=1.5", "lr.base=3", "weight_decay.base=0.1"),
        "teacher.tau={base: 0.3, until: 1.5, then: {base: 0.8}}",
    ],
}


@pytest.mark.parametrize("values", MEAN_TEACHER)
@pytest.mark.parametrize("labelled", [0, 3, 8])
def test_mean_teacher_trains_as_its_paper_says(values, labelled):
    recipe = tiny("mean-teacher", *MEAN_TEACHER[values])
    model = build(recipe)
    for p in model.teacher.parameters():  # a teacher of its own, so that a mix-up with the student shows from the first step
        nn.init.normal_(p, std=0.5)
    net = copy.deepcopy(model.student.backbone.net)
    batches = []
    for i in range(STEPS):
        classes = torch.randint(recipe.projector.out, (recipe.batch_size,), generator=torch.Generator().manual_seed(i))
        classes[torch.arange(recipe.batch_size) >= labelled] = -1
        batches.append(draw(recipe, i)._replace(labels=classes.roll(i)))

    theta, statistics, teacher, teacher_statistics = networks(model)
    counters = {n: torch.tensor(0) for n in ("f.bn.num_batches_tracked",)}
    state = mean_teacher.State(
        theta, statistics | counters, teacher, teacher_statistics | counters, {n: torch.zeros_like(p) for n, p in theta.items()}
    )
    weight, tau = recipe.terms["consistency"].weight, recipe.teacher.tau
    ramp = round(weight.warmup * STEPS_PER_EPOCH)
    for i, (loss, grads) in enumerate(steps(model, batches)):
        now = mean_teacher.Now(
            eta=mean_teacher.cosine(i, recipe.epochs * STEPS_PER_EPOCH, recipe.lr.base * recipe.lr_factor),
            w=weight.base * mean_teacher.ramp_up(i, ramp),
            alpha=mean_teacher.alpha(i + 1, ramp, tau.base, tau.then.base),
        )
        papers_loss, papers_grads, state = mean_teacher.step(
            net, state, tuple(batches[i].crops[0]), batches[i].labels, now, recipe.weight_decay.base
        )
        agree(loss, papers_loss)
        agree(grads, papers_grads)
        for ours, papers in zip(networks(model), state, strict=False):
            agree(ours, {n: t for n, t in papers.items() if n not in counters})


MASKS = torch.tensor(
    [
        [[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [0, 1]], [[0, 1], [0, 1]]],
        [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 1], [1, 1]]],
    ]
).bool()  # [G, B, h, w]
WITHOUT = 2
"""the step in which no view is masked"""
SHORT = ["lr.warmup=1", "views.masks.patch=4", "views.locals.size=4"]
IBOT = {
    "paper's": [
        *SHORT,
        *("terms.views.loss.target.temperature.warmup=2", "terms.patches.loss.target.temperature.warmup=2"),
    ],
    "loud": [
        *SHORT,
        *("lr.base=1", "lr.end=0.1", "weight_decay.base=1", "weight_decay.end=5", "clip.norm=0.01", "teacher.tau.base=0.3"),
        *("terms.views.loss.temperature=0.4", "terms.patches.loss.temperature=0.3"),
        "terms.views.loss.target.temperature={base: 0.3, warmup: 2, warmup_from: 0.1}",
        "terms.patches.loss.target.temperature={base: 0.2, warmup: 1, warmup_from: 0.15}",
        *("terms.views.loss.target.momentum=0.5", "terms.patches.loss.target.momentum=0.7"),
    ],
}


def masked_model(recipe: Recipe) -> Siamese:
    """A ViT of one layer that cuts 8 x 8 pixels into 2 x 2 patches; every parameter random, the teacher's as well."""
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        **{"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2},
        **{"num_classes": 0, "in_chans": 1, "dynamic_img_size": True},
    )
    model = Siamese(recipe, IMAGES, recipe.encoder.build(recipe.views.size, vit)).double()
    for p in [*model.student.parameters(), *model.teacher.parameters()]:
        nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("values", IBOT)
def test_ibot_trains_as_its_paper_says(values, count):
    recipe = tiny("ibot", "projector.bottleneck=5", *IBOT[values], f"views.locals.count={count}", batch=MASKS.shape[1])
    model = masked_model(recipe)
    vit = copy.deepcopy(model.student.backbone.net)
    batches = [draw(recipe, i)._replace(masks=MASKS.roll(i, 1) if i != WITHOUT else torch.zeros_like(MASKS)) for i in range(STEPS)]

    student, _, teacher, _ = networks(model)
    centres = [model.terms[name].loss.target.centre.clone() for name in ("views", "patches")]
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w), 0) for n, w in student.items()}
    state = ibot.State(student, teacher, *centres, moments)
    K, warmup, lr, decay = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH), recipe.lr, recipe.weight_decay
    cls, patch = recipe.terms["views"].loss, recipe.terms["patches"].loss
    fixed = ibot.Fixed(cls.temperature, patch.temperature, cls.target.momentum, patch.target.momentum, recipe.clip.norm)
    for i, (loss, grads) in enumerate(steps(model, batches)):
        tpt_cls, tpt_patch = (
            dino.warmed(i, round(t.warmup * STEPS_PER_EPOCH), t.warmup_from, t.base)
            for t in (cls.target.temperature, patch.target.temperature)
        )
        now = ibot.Now(
            lr=recipe.batch_size / 256 * (lr.base * i / warmup if i < warmup else dino.cosine(i - warmup, K - warmup, lr.base, lr.end)),
            weight_decay=dino.cosine(i, K, decay.base, decay.end),
            tpt_cls=tpt_cls,
            tpt_patch=tpt_patch,
            l=dino.cosine(i + 1, K, recipe.teacher.tau.base, 1.0),
            frozen=i < recipe.projector.frozen_epochs * STEPS_PER_EPOCH,
        )
        whole, local = batches[i].crops
        papers_loss, papers_grads, state = ibot.step(vit, state, list(whole), list(batches[i].masks), list(local), now, fixed)
        agree(loss, papers_loss)
        agree(grads, papers_grads)
        agree(networks(model)[0], state.student)
        agree(networks(model)[2], state.teacher)
        agree(model.terms["views"].loss.target.centre, state.C_cls)
        agree(model.terms["patches"].loss.target.centre, state.C_patch)


@pytest.mark.parametrize("hidden", [0, 1])
def test_batchnorm_in_ibots_head_bears_a_batch_with_few_masked_patches(hidden):
    """Of a single patch the batch's mean is itself and its variance 0."""
    recipe = tiny("ibot", "projector.bottleneck=5", "projector.bn=hidden", *SHORT, batch=MASKS.shape[1])
    model, masks = masked_model(recipe), torch.zeros_like(MASKS)
    masks[0, 1, 0, 0] = bool(hidden)
    ((loss, grads),) = train(model, [draw(recipe, 0)._replace(masks=masks)])
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())
    patch = model.outputs(draw(recipe, 0)._replace(masks=masks))[0].patch
    assert patch.shape == (hidden, recipe.projector.out)
    *_, norm, act, linear, prototypes = model.student.projector
    torch.testing.assert_close(patch, prototypes(linear(act(norm.bias))).expand(hidden, -1))


COPIED = ["teacher=ema", "tau.base=0", "tau.end=none"]


@pytest.mark.parametrize("name", ["ibot", "dino"])
def test_a_student_that_is_its_own_teacher_sees_whole_views_as_a_copy_does(name):
    """teacher=shared is EMA of 0 under masks too: the targets are of what the student does not see."""
    loud = ["lr.base=1", "lr.warmup=0", "views.masks={patch: 4}", "views.locals=none"]
    recipe = tiny(name, "projector.bottleneck=5", *loud, batch=MASKS.shape[1])
    shared, copied = (masked_model(recipe.edit(["keep=student", *teacher])) for teacher in (["teacher=shared"], COPIED))
    copied.teacher.net.load_state_dict(copied.student.state_dict())
    batches = [draw(recipe, i)._replace(masks=MASKS.roll(i, 1)) for i in range(STEPS)]
    for (loss, grads), (other, copys) in zip(train(shared, batches), train(copied, batches), strict=True):
        agree(loss, other)
        agree(grads, copys)
    z, _, t = shared.outputs(batches[0])
    assert not torch.allclose(z.cls, t.cls)

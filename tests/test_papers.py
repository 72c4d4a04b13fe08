"""Each recipe against its paper: four training steps, in float64, from the same weights and on the same views."""

import copy
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.views.batch import Views
from tests.papers import byol, dino, ibot, mean_teacher, moco, simclr, simsiam, swav
from tests.papers.tiny import STEPS_PER_EPOCH, build, draw, tiny, train

STEPS = 4
NAMES = {
    "simsiam": {
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
    },
    "byol": {
        "student.backbone.net": "f",
        "student.projector.0": "g.fc1",
        "student.projector.1": "g.bn1",
        "student.projector.3": "g.fc2",
        "predictor.0": "q.fc1",
        "predictor.1": "q.bn1",
        "predictor.3": "q.fc2",
    },
    "simclr": {
        "student.backbone.net": "f",
        "student.projector.0": "g.fc1",
        "student.projector.1": "g.bn1",
        "student.projector.3": "g.fc2",
        "student.projector.4": "g.bn2",
    },
    "moco": {
        "student.backbone.net": "f",
        "student.projector.0": "g.fc1",
        "student.projector.2": "g.fc2",
    },
    "swav": {
        "student.backbone.net": "f",
        "student.projector.0": "g.fc1",
        "student.projector.1": "g.bn1",
        "student.projector.3": "g.fc2",
        "terms.views.loss.prototypes": "C",
    },
    "dino": {
        "student.backbone.net": "f",
        "student.projector.0": "g.fc1",
        "student.projector.2": "g.fc2",
        "student.projector.4": "g.fc3",
        "student.projector.5": "g.last",
    },
}

# The papers' own values move a tiny net so little that a wrong weight decay would hide below the tolerance; loud ones do not.
SETTINGS = {
    "simsiam": {"paper's": [], "loud": ["lr.base=3", "weight_decay.base=0.1"]},
    "byol": {
        "paper's": ["lr.warmup=1"],
        "loud": ["lr.warmup=1", "lr.base=30", "weight_decay.base=0.1", "teacher.tau.base=0.3"],
    },
    "simclr": {
        "paper's": ["lr.warmup=1"],
        "loud": ["lr.warmup=1", "lr.base=30", "weight_decay.base=0.1", "terms.views.loss.temperature=0.4"],
    },
    "moco": {
        "paper's": [],
        "loud": ["lr.base=3", "weight_decay.base=0.1", "teacher.tau.base=0.3", "terms.views.loss.temperature=0.4"],
    },
    "swav": {
        "paper's": ["lr.warmup=1"],
        "loud": [
            *("lr.warmup=1", "lr.base=300", "lr.end=3", "lr.warmup_from=100", "weight_decay.base=0.1"),
            *("terms.views.loss.temperature=0.4", "terms.views.loss.epsilon=0.2"),
        ],
    },
    "dino": {
        "paper's": ["lr.warmup=1", "terms.views.loss.target.temperature.warmup=2"],
        "loud": [
            *("lr.warmup=1", "lr.base=1", "lr.end=0.1", "weight_decay.base=1", "weight_decay.end=5", "clip.norm=0.01"),
            *("teacher.tau.base=0.3", "terms.views.loss.temperature=0.4"),
            *("terms.views.loss.target.temperature={base: 0.3, warmup: 2, warmup_from: 0.1}", "terms.views.loss.target.momentum=0.5"),
        ],
    },
}

Named = dict[str, Tensor]
Memory = dict[str, Named]
"""weights, statistics (of BatchNorm), the same two of the teacher, and what the loss remembers"""
Said = Iterator[tuple[Tensor, Named, Memory]]
"""loss, gradients, and what there is after the step"""


def by_papers_name(tensors: Iterable[tuple[str, Tensor]], names: dict[str, str]) -> Named:
    """The tensors that `names` knows, copied, under the names that the paper's code has for them."""
    found = {}
    for name, tensor in tensors:
        for ours, papers in names.items():
            if name.startswith(f"{ours}."):
                found[papers + name.removeprefix(ours)] = tensor.detach().clone()
    return found


def memory(model: Siamese) -> Memory:
    """All that a step changes."""
    names = NAMES[model.recipe.method]
    teachers = {ours.replace("student", "teacher.net"): papers for ours, papers in names.items() if ours.startswith("student")}
    found = {
        "weights": by_papers_name(model.named_parameters(), names),
        "statistics": by_papers_name(model.named_buffers(), names),
        "teacher": by_papers_name(model.named_parameters(), teachers),
        "teacher's statistics": by_papers_name(model.named_buffers(), teachers),
        "loss": {name.rpartition(".")[2]: b.clone() for name, b in model.terms.named_buffers()},
    }
    assert sum(len(tensors) for tensors in found.values()) == len(model.state_dict())
    return found


def zeros_like(weights: Named) -> Named:
    return {name: torch.zeros_like(w) for name, w in weights.items()}


def simsiam_says(recipe: Recipe, backbone: nn.Module, start: Memory, batches: list[Views]) -> Said:
    state = simsiam.State(start["weights"], start["statistics"], zeros_like(start["weights"]))
    for i, views in enumerate(batches):
        lr, lr_h = simsiam.learning_rates(i // STEPS_PER_EPOCH, recipe.epochs, recipe.batch_size, recipe.lr.base)
        x1, x2 = views.crops[0]
        loss, grads, state = simsiam.step(backbone, state, x1, x2, lr, lr_h, recipe.weight_decay.base)
        yield loss, grads, {"weights": state.weights, "statistics": state.statistics}


def byol_says(recipe: Recipe, encoder: nn.Module, start: Memory, batches: list[Views]) -> Said:
    state = byol.State(*list(start.values())[:4], zeros_like(start["weights"]))
    K, warmup = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH)
    for i, views in enumerate(batches):
        eta = byol.eta(i + 1, K, warmup, recipe.batch_size, recipe.lr.base)
        tau = byol.tau(i + 1, K, recipe.teacher.tau.base)
        v, w = views.crops[0]
        loss, grads, state = byol.step(encoder, state, v, w, eta, tau, recipe.weight_decay.base)
        yield (
            loss,
            grads,
            {
                "weights": state.theta,
                "statistics": state.statistics,
                "teacher": state.xi,
                "teacher's statistics": state.target_statistics,
            },
        )


def simclr_says(recipe: Recipe, encoder: nn.Module, start: Memory, batches: list[Views]) -> Said:
    state = simclr.State(start["weights"], start["statistics"], zeros_like(start["weights"]))
    K, warmup = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH)
    for i, views in enumerate(batches):
        lr = simclr.learning_rate(i, K, warmup, recipe.batch_size, recipe.lr.base)
        first, second = views.crops[0]
        tau = recipe.terms["views"].loss.temperature
        loss, grads, state = simclr.step(encoder, state, first, second, lr, tau, recipe.weight_decay.base)
        yield loss, grads, {"weights": state.weights, "statistics": state.statistics}


def moco_says(recipe: Recipe, encoder: nn.Module, start: Memory, batches: list[Views]) -> Said:
    state = moco.State(*list(start.values())[:4], list(start["loss"]["queue"]), zeros_like(start["weights"]))
    for i, views in enumerate(batches):
        lr = moco.learning_rate(i // STEPS_PER_EPOCH, recipe.epochs, recipe.batch_size, recipe.lr.base)
        x_q, x_k = views.crops[0]
        m, t = recipe.teacher.tau.base, recipe.terms["views"].loss.temperature
        loss, grads, state = moco.step(encoder, state, x_q, x_k, lr, m, t, recipe.weight_decay.base)
        yield (
            loss,
            grads,
            {
                "weights": state.query,
                "statistics": state.query_statistics,
                "teacher": state.key,
                "teacher's statistics": state.key_statistics,
                "loss": {"queue": torch.stack(state.queue)},
            },
        )


def swav_says(recipe: Recipe, convnet: nn.Module, start: Memory, batches: list[Views]) -> Said:
    state = swav.State(start["weights"], start["statistics"], zeros_like(start["weights"]))
    K, warmup = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH)
    lr, spec = recipe.lr, recipe.terms["views"].loss
    for i, views in enumerate(batches):
        loss, grads, state = swav.step(
            convnet,
            state,
            [crop for size in views.crops for crop in size],
            swav.learning_rate(i, K, warmup, recipe.batch_size, lr.warmup_from, lr.base, lr.end),
            frozen=i < spec.frozen_epochs * STEPS_PER_EPOCH,
            queue_length=spec.queue,
            queue_started=i // STEPS_PER_EPOCH >= spec.queue_from,
            temp=spec.temperature,
            eps=spec.epsilon,
            weight_decay=recipe.weight_decay.base,
        )
        C = swav.unit(state.weights["C.weight"])  # at once, not before the next step
        queue = start["loss"]["queue"] if state.queue is None else state.queue
        yield loss, grads, {"weights": {**state.weights, "C.weight": C}, "statistics": state.statistics, "loss": {"queue": queue}}


def dino_says(recipe: Recipe, backbone: nn.Module, start: Memory, batches: list[Views]) -> Said:
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w), 0) for name, w in start["weights"].items()}
    state = dino.State(*list(start.values())[:4], start["loss"]["centre"], moments)
    K, warmup = recipe.epochs * STEPS_PER_EPOCH, round(recipe.lr.warmup * STEPS_PER_EPOCH)
    ce, lr, decay, scale = recipe.terms["views"].loss, recipe.lr, recipe.weight_decay, recipe.batch_size / 256
    tpt = ce.target.temperature
    for i, views in enumerate(batches):
        now = dino.Now(
            lr=scale * (lr.base * i / warmup if i < warmup else dino.cosine(i - warmup, K - warmup, lr.base, lr.end)),
            weight_decay=dino.cosine(i, K, decay.base, decay.end),
            tpt=dino.warmed(i, round(tpt.warmup * STEPS_PER_EPOCH), tpt.warmup_from, tpt.base),
            l=dino.cosine(i + 1, K, recipe.teacher.tau.base, 1.0),
            frozen=i < recipe.projector.frozen_epochs * STEPS_PER_EPOCH,
        )
        crops = [crop for size in views.crops for crop in size]
        loss, grads, state = dino.step(backbone, state, crops, now, ce.temperature, ce.target.momentum, recipe.clip.norm)
        yield (
            loss,
            grads,
            {
                "weights": state.student,
                "statistics": state.student_statistics,
                "teacher": state.teacher,
                "teacher's statistics": state.teacher_statistics,
                "loss": {"centre": state.center},
            },
        )


PAPERS = {"simsiam": simsiam_says, "byol": byol_says, "simclr": simclr_says, "moco": moco_says, "swav": swav_says, "dino": dino_says}


def agree(ours: object, papers: object) -> None:
    """To nine digits: all that timm's LARS leaves, which adds 1e-8 to the norms that it divides by."""
    torch.testing.assert_close(ours, papers, atol=1e-9, rtol=1e-9)


def uncounted(what: str, tensors: Named) -> Named:
    """A teacher's batch counter is the student's by the package's rule, its own in the papers' code; nothing reads it."""
    return {name: t for name, t in tensors.items() if not (what == "teacher's statistics" and name.endswith("num_batches_tracked"))}


def check(method: str, recipe: Recipe, seed: int) -> None:
    """Each of STEPS steps."""
    model = build(recipe, seed)
    for p in model.teacher.parameters():  # a teacher of its own, so that a mix-up with the student shows from the first step
        torch.nn.init.normal_(p, std=0.5)
    batches = [draw(recipe, seed + i) for i in range(STEPS)]
    start = memory(model)
    papers = PAPERS[method](recipe, copy.deepcopy(model.student.backbone.net), start, batches)
    for (loss, grads), (papers_loss, papers_grads, papers_memory) in zip(train(model, batches), papers, strict=True):
        agree(loss, papers_loss)
        agree(by_papers_name(grads.items(), NAMES[method]), papers_grads)
        for what, tensors in memory(model).items():
            agree(uncounted(what, tensors), uncounted(what, papers_memory.get(what, {})))


ELSEWHERE = {"ibot", "mean-teacher"}
"""in test_papers_masked_and_labelled.py"""


def test_every_method_has_its_executable_paper():
    assert set(METHODS) - ELSEWHERE == set(NAMES) == set(PAPERS) == set(SETTINGS)
    for method in METHODS:
        assert Path(simsiam.__file__).with_name(f"{method.replace('-', '_')}.py").exists()


@pytest.mark.parametrize(
    "oracle", [simsiam, byol, simclr, moco, swav, dino, ibot, mean_teacher], ids=lambda oracle: oracle.__name__.rpartition(".")[2]
)
def test_an_oracle_knows_nothing_of_the_package(oracle):
    assert "selfdistill" not in Path(oracle.__file__).read_text()


@pytest.mark.parametrize(("method", "values"), [(method, values) for method in PAPERS for values in SETTINGS[method]])
def test_a_method_trains_as_its_paper_says(method, values):
    check(method, tiny(method, *SETTINGS[method][values]), seed=0)


def test_swavs_queue_is_that_of_its_code():
    """Made in the epoch `queue_from`, used once it is full: here from the fourth step on."""
    check("swav", tiny("swav", *SETTINGS["swav"]["loud"], "terms.views.loss.queue=8", "terms.views.loss.queue_from=1"), seed=0)


SIMSIAMS_CROPS = {
    "views.size": 224,
    "views.augment.scale": (0.2, 1.0),
    "views.augment.flip": 0.5,
    "views.augment.brightness": 0.4,
    "views.augment.contrast": 0.4,
    "views.augment.saturation": 0.4,
    "views.augment.hue": 0.1,
    "views.augment.jitter": 0.8,
    "views.augment.grey": 0.2,
    "views.augment.blur": 0.5,
    "views.augment.sigma": (0.1, 2.0),
    "views.augment.solarize": 0.0,
    "views.second": None,
    "views.locals": None,
}
"""MoCo v2's as well: "aug+"."""
SIMCLRS_CROPS = {
    **SIMSIAMS_CROPS,
    **{f"views.augment.{name}": 0.8 for name in ("brightness", "contrast", "saturation")},
    "views.augment.hue": 0.2,
    "views.augment.scale": (0.08, 1.0),
}
BYOLS_CROPS = {
    **SIMSIAMS_CROPS,
    "views.augment.scale": (0.08, 1.0),
    "views.augment.saturation": 0.2,
    "views.augment.blur": 1.0,
    "views.second.scale": (0.08, 1.0),
    "views.second.saturation": 0.2,
    "views.second.blur": 0.1,
    "views.second.solarize": 0.2,
}
SGD = {"optimizer.kind": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": False}
LARS = {"optimizer.kind": "lars", "optimizer.momentum": 0.9, "optimizer.trust": 1e-3}
VALUES = {
    "simsiam": {
        **SIMSIAMS_CROPS,
        **SGD,
        "encoder.zero_init_residual": True,
        "projector.hidden": (2048, 2048),
        "projector.out": 2048,
        "projector.bn": "all",
        "projector.affine": False,
        "predictor.hidden": (512,),
        "predictor.bn": "hidden",
        "predictor.bias": True,
        "predictor.lr_decay": False,
        "lr": 0.05 * 512 / 256,
        "lr.end": 0.0,
        "lr.warmup": 0.0,
        "lr.per_epoch": True,
        "weight_decay.base": 1e-4,
        "weight_decay.end": None,
        "decay_norm_and_bias": True,
        "bn_joint": False,
        "keep": "student",
        "clip": None,
        "epochs": 100,
        "batch_size": 512,
    },
    "byol": {
        **{k: v for k, v in BYOLS_CROPS.items() if k != "views.second"},
        **LARS,
        "projector.hidden": (4096,),
        "projector.out": 256,
        "projector.bn": "hidden",
        "predictor.hidden": (4096,),
        "predictor.bn": "hidden",
        "predictor.lr_decay": True,
        "teacher.tau.base": 0.996,
        "teacher.tau.end": 1.0,
        "teacher.tau.shape": "cosine",
        "lr": 0.2 * 4096 / 256,
        "lr.end": 0.0,
        "lr.warmup": 10.0,
        "lr.per_epoch": False,
        "weight_decay.base": 1.5e-6,
        "weight_decay.end": None,
        "decay_norm_and_bias": False,
        "bn_joint": False,
        "keep": "student",
        "clip": None,
        "epochs": 1000,
        "batch_size": 4096,
    },
    "simclr": {
        **SIMCLRS_CROPS,
        **LARS,
        "projector.hidden": (2048,),
        "projector.out": 128,
        "projector.bn": "all",
        "terms.views.loss.temperature": 0.1,
        "lr": 4.8,
        "lr.end": 0.0,
        "lr.warmup": 10.0,
        "lr.warmup_from": 0.0,
        "weight_decay.base": 1e-6,
        "weight_decay.end": None,
        "decay_norm_and_bias": False,
        "clip": None,
        "epochs": 1000,
        "batch_size": 4096,
    },
    "moco": {
        **SIMSIAMS_CROPS,
        **SGD,
        "projector.hidden": (2048,),
        "projector.out": 128,
        "projector.bn": "none",
        "projector.bias": True,
        "teacher.tau.base": 0.999,
        "teacher.tau.end": None,
        "terms.views.loss.temperature": 0.2,
        "terms.views.loss.queue": 65536,
        "terms.views.pairs": "one-way",
        "lr": 0.03,
        "lr.end": 0.0,
        "lr.warmup": 0.0,
        "lr.per_epoch": True,
        "weight_decay.base": 1e-4,
        "weight_decay.end": None,
        "decay_norm_and_bias": True,
        "keep": "student",
        "clip": None,
        "epochs": 200,
        "batch_size": 256,
    },
    "swav": {
        **{k: v for k, v in SIMCLRS_CROPS.items() if k != "views.locals"},
        **{k.replace("views", "views.locals"): v for k, v in SIMCLRS_CROPS.items() if k.startswith("views.augment")},
        **LARS,
        "views.augment.scale": (0.14, 1.0),
        "views.locals.count": 6,
        "views.locals.size": 96,
        "views.locals.augment.scale": (0.05, 0.14),
        "projector.hidden": (2048,),
        "projector.out": 128,
        "projector.bn": "hidden",
        "projector.bias": True,
        "terms.views.loss.prototypes": 3000,
        "terms.views.loss.temperature": 0.1,
        "terms.views.loss.epsilon": 0.05,
        "terms.views.loss.iterations": 3,
        "terms.views.loss.frozen_epochs": 1,  # 313 steps of 4096 images
        "terms.views.loss.queue": 0,
        "terms.views.loss.queue_from": 15,
        "lr": 4.8,
        "lr.end": 0.0048 / 16,
        "lr.warmup": 10.0,
        "lr.warmup_from": 0.3 / 16,
        "weight_decay.base": 1e-6,
        "weight_decay.end": None,
        "decay_norm_and_bias": True,  # LARC takes all parameters
        "bn_joint": True,
        "clip": None,
        "epochs": 800,
        "batch_size": 4096,
    },
    "dino": {
        **{k: v for k, v in BYOLS_CROPS.items() if k not in ("views.second", "views.locals")},
        "views.augment.scale": (0.4, 1.0),
        "views.second.scale": (0.4, 1.0),
        "views.locals.count": 8,
        "views.locals.size": 96,
        "views.locals.augment.scale": (0.05, 0.4),
        "views.locals.augment.saturation": 0.2,
        "views.locals.augment.blur": 0.5,
        "views.locals.augment.solarize": 0.0,
        "encoder.name": "timm:vit_small_patch16_224",
        "encoder.options": {"drop_path_rate": 0.1},
        "projector.hidden": (2048, 2048),
        "projector.bottleneck": 256,
        "projector.out": 65536,
        "projector.bn": "none",
        "projector.frozen_epochs": 1.0,
        "teacher.tau.base": 0.996,
        "teacher.tau.end": 1.0,
        "terms.views.loss.temperature": 0.1,
        "terms.views.loss.target.momentum": 0.9,
        "terms.views.loss.target.temperature.base": 0.07,
        "terms.views.loss.target.temperature.warmup": 30.0,
        "terms.views.loss.target.temperature.warmup_from": 0.04,
        "optimizer.kind": "adamw",
        "optimizer.betas": (0.9, 0.999),
        "lr": 0.0005 * 1024 / 256,
        "lr.end": 1e-6 / 4,
        "lr.warmup": 10.0,
        "weight_decay.base": 0.04,
        "weight_decay.end": 0.4,
        "weight_decay.shape": "cosine",
        "decay_norm_and_bias": False,
        "bn_joint": True,
        "keep": "teacher",
        "clip.norm": 3.0,
        "clip.per": "tensor",
        "epochs": 100,
        "batch_size": 1024,
    },
}
"""from papers.md of the references, sections 1.1, 2.1, 3.1 and 5; `lr` is the one of the batch"""


@pytest.mark.parametrize(("method", "path"), [(method, path) for method in VALUES for path in VALUES[method]])
def test_a_recipe_has_its_papers_values(method, path):
    recipe = METHODS[method]
    value = recipe.lr.base * recipe.lr_factor if path == "lr" else reduce(getitem, path.split("."), recipe.model_dump())
    assert value == (pytest.approx(VALUES[method][path]) if isinstance(value, float) else VALUES[method][path])


@pytest.mark.parametrize("method", ["swav", "moco"])
def test_residual_blocks_start_as_torchvision_has_them(method):
    """`zero_init_residual=False` is what the codes of both leave their ResNets at."""
    assert not METHODS[method].encoder.zero_init_residual


def test_lars_adapts_without_weight_decay():
    """What LARS adapts does not depend on the decay: eq. 6 with decay 0, and two separate filters in BYOL's code."""
    recipe = tiny("byol", "weight_decay.base=0", "lr.base=1", "lr.warmup=0", "lr_scaling=none")
    model = build(recipe)
    before = by_papers_name(model.named_parameters(), NAMES["byol"])
    _, grads = next(train(model, [draw(recipe, 0)]))
    grads, after = by_papers_name(grads.items(), NAMES["byol"]), by_papers_name(model.named_parameters(), NAMES["byol"])
    for name, w in before.items():
        expected = byol.lars(name, w, grads[name], weight_decay=0.0)
        moved = w - after[name]
        assert torch.allclose(moved, expected), f"{name} moved by {moved.norm() / expected.norm():.0f} times what LARS says: not adapted"


SIZES = {"seed": st.integers(0, 2**20), "batch": st.integers(4, 8), "width": st.integers(12, 16), "dim": st.integers(3, 8)}


@pytest.mark.parametrize("method", PAPERS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(**SIZES)
def test_at_any_size(method, seed, batch, width, dim):
    check(method, tiny(method, *SETTINGS[method]["loud"], width=width, dim=dim, batch=batch), seed)

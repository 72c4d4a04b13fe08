"""The verdict: its state on embeddings that are known, its cause, and since when it holds."""

import math

import pytest
import torch

import selfdistill as sd
from selfdistill.diagnose.causes import CAUSES, cause_of
from selfdistill.diagnose.verdict import judge, since
from selfdistill.methods import METHODS


def known(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(600, 64, generator=g)
    return {
        "isotropic": lambda: z,
        "rectified": lambda: z.relu(),  # features after a ReLU share a mean, and are fine
        "heavy-tailed": lambda: z / torch.distributions.Chi2(1.5).sample((600, 1)).sqrt(),
        "power law": lambda: z * torch.arange(1, 65) ** -0.5,
        "constant": lambda: torch.ones(600, 64),
        "constant and noise": lambda: 1 + 1e-3 * z,
        "rank 1": lambda: z[:, :1] @ z[:1],
        "two points": lambda: torch.where(z[:, :1] > 0, z[0], z[1]),
        "not finite": lambda: z.log(),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("isotropic", "healthy"),
        ("rectified", "healthy"),
        ("heavy-tailed", "healthy"),
        ("power law", "healthy"),
        ("constant", "collapsed"),
        ("constant and noise", "collapsed"),
        ("rank 1", "dimensional-collapse"),
        ("two points", "dimensional-collapse"),
        ("not finite", "diverged"),
    ],
)
def test_embeddings_whose_state_is_known(kind, state):
    found = sd.diagnosis_of(known(kind))
    assert found.verdict == state
    assert found.because.startswith(f"{state}: ")


COLLAPSED = {"loss": -1.0, "output_std": 0.01, "effective_rank": 3.0, "rank_limit": 128.0}
UNIFORM = {"loss": 11.09, "output_std": 0.1, "effective_rank": 9.0, "rank_limit": 128.0, "target_outputs": 65536} | dict.fromkeys(
    ("target_entropy", "target_usage_entropy"), 11.089
)
DOMINATED = UNIFORM | {"target_entropy": 0.01, "target_usage_entropy": 0.02, "loss": 0.0}


@pytest.mark.parametrize(
    ("method", "settings", "metrics", "cause", "advice"),
    [
        ("simsiam", ["stop_gradient=false"], COLLAPSED, "Fig. 2", "stop_gradient=true"),
        ("byol", ["predictor=none"], COLLAPSED, "Table 5b", "predictor=mlp"),
        ("byol", ["teacher.tau.base=1"], COLLAPSED, "Table 5a", "teacher.tau.base"),
        ("byol", ["teacher=shared"], COLLAPSED, "Table 21", "lr_scale"),
        ("moco", ["terms.views.loss=cosine"], COLLAPSED, "without predictor", "predictor=mlp"),
        ("mean-teacher", ["terms.labels.weight=0"], COLLAPSED, "labels", "terms.labels.weight=1"),
        ("dino", ["terms.views.loss.target.temperature={base: 0.1}"], UNIFORM, "no sharper", "Sharpen"),
        ("dino", [], UNIFORM, "a small ViT", "projector.bn=hidden"),
        ("swav", [], UNIFORM, "sharpening is there", "epsilon"),
        ("dino", ["terms.views.loss.target.momentum=1"], DOMINATED, "without centring", "target=centre"),
        ("simsiam", ["clip=none"], COLLAPSED | {"loss": math.inf}, "too large", "clip"),
        ("dino", [], COLLAPSED | {"output_std": math.nan}, "floats", "lr.warmup"),
    ],
)
def test_the_cause_is_the_recipes(method, settings, metrics, cause, advice):
    verdict = judge(metrics, METHODS[method].edit(settings))
    assert cause.lower() in verdict.cause.lower()
    assert advice in verdict.advice


def test_a_loss_at_ln_k_is_said():
    """Users post losses stuck at 11.09 = ln 65536, 8.32 = ln 4096, 6.24 = ln 512."""
    for k in (65536, 4096, 512):
        at = {"loss": math.log(k), "target_outputs": k, "target_entropy": math.log(k), "target_usage_entropy": math.log(k)}
        verdict = judge(UNIFORM | at, METHODS["dino"])
        assert verdict.state == "uniform-target"
        assert f"ln K = {math.log(k):.2f}, loss {math.log(k):.3f}" in verdict.evidence


def test_every_unhealthy_state_has_a_cause_for_every_method():
    for recipe in METHODS.values():
        for state in {state for cause in CAUSES for state in cause.of}:
            assert cause_of(state, recipe).remedy


def test_the_advice_can_be_followed():
    """What the advice on SimSiam's ablations says is a setting that the recipe takes, and that ends the complaint."""
    for setting in ("stop_gradient=false", "predictor=none", "predictor.trainable=false"):
        broken = METHODS["simsiam"].edit([setting])
        verdict = judge(COLLAPSED, broken)
        mended = broken.edit([verdict.advice.rstrip(".")])
        assert judge(COLLAPSED, mended).cause == "all ingredients are there."


def test_since_is_the_first_probe_of_the_last_stretch():
    rows = [{"step": n, "epoch": n / 2, **({"verdict": v} if v else {})} for n, v in enumerate(["", "a", "b", "", "a", "a", "", "a", ""])]
    assert since(rows)["step"] == 4
    assert since(rows[:3])["step"] == 2
    assert since(rows[:1]) is None

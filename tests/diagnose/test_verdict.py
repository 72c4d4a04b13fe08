"""The verdict: its state on embeddings that are known, its cause, and since when it holds."""

import math

import pytest
import torch

import selfdistill as sd
from selfdistill.diagnose.causes import CAUSES, cause_of
from selfdistill.diagnose.verdict import before, below_start, judge, since
from selfdistill.methods import METHODS
from selfdistill.presets import PRESETS
from selfdistill.train.resolve import with_preset


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
        ("simsiam", ["predictor=none"], COLLAPSED, "halve the gradient", "predictor=mlp"),
        ("simsiam", ["predictor=none", "stop_gradient=false"], COLLAPSED, "plain Siamese", "stop_gradient=true predictor=mlp"),
        ("simsiam", ["predictor=none", "teacher=ema", "teacher.tau.base=0.99"], COLLAPSED, "Table 5b", "predictor=mlp"),
        ("simsiam", ["terms.views.loss=cross-entropy", "predictor=none"], COLLAPSED, "predictor=none", "predictor=mlp"),
        ("simclr", ["terms.views.loss=cosine"], COLLAPSED, "plain Siamese", "stop_gradient=true predictor=mlp"),
        ("byol", ["teacher=shared"], COLLAPSED, "Table 21", "lr_scale"),
        ("byol", ["optimizer=sgd", "predictor=least-squares", "projector.out=64", "teacher=shared"], COLLAPSED, "solved", "teacher=ema"),
        ("simsiam", ["projector.bn=none", "predictor.bn=none"], COLLAPSED, "Table 3a", "projector.bn=all"),
        ("dino", ["terms.views.loss.target.momentum=1"], COLLAPSED, "without centring", "target=centre"),
        ("ibot", ["terms.views.loss.target.temperature={base: 0.1}"], COLLAPSED, "no sharper", "Sharpen"),
        ("simsiam", ["terms.views.loss=cross-entropy", "stop_gradient=false"], COLLAPSED, "stop_gradient=false", "stop_gradient=true"),
        ("simsiam", ["terms.views.loss=cross-entropy", "predictor.lr_scale=0"], COLLAPSED, "never learns", "predictor.lr_scale=1"),
        ("swav", ["terms.views.loss.epsilon=100"], COLLAPSED, "no sharper", "epsilon=0.05"),
        ("simsiam", ["projector=none"], COLLAPSED, "none of the causes", "selfdistill diff"),
        ("mean-teacher", ["teacher=shared", "keep=student"], COLLAPSED, "none of the causes", "selfdistill diff"),
        ("moco", ["terms.views.loss=cosine"], COLLAPSED, "Table 5b", "predictor=mlp"),
        ("mean-teacher", ["terms.labels.weight=0"], COLLAPSED, "labels", "terms.labels.weight=1"),
        ("dino", ["terms.views.loss.target.temperature={base: 0.1}"], UNIFORM, "no sharper", "Sharpen"),
        ("dino", [], UNIFORM, "a small ViT", "projector.bn=hidden"),
        ("swav", [], UNIFORM, "sharpening is there", "epsilon"),
        ("dino", ["terms.views.loss.target.momentum=1"], DOMINATED, "without centring", "target=centre"),
        ("dino", ["terms.views.loss.target.temperature={base: 0.08}"], UNIFORM, "App. D", "Sharpen"),
        ("swav", ["terms.views.loss.epsilon=100"], UNIFORM, "no sharper", "epsilon=0.05"),
        ("dino", ["terms.views.loss.target.momentum=0.999"], DOMINATED, "slower", "momentum=0.9"),
        ("dino", ["teacher=shared"], DOMINATED, "Table 7", "teacher=ema"),
        ("dino", ["teacher=snapshot"], DOMINATED, "Table 7", "teacher=ema"),
        ("swav", [], DOMINATED, "few outputs take all", "epsilon"),
        ("simclr", [], COLLAPSED, "negatives are there", "batch_size"),
        ("dino", ["teacher.tau.base=0.5"], UNIFORM, "Table 7", "teacher=ema"),
        ("byol", ["teacher.tau.base=0.5"], COLLAPSED, "hasty", "teacher.tau.base=0.99"),
        ("simsiam", ["predictor.lr_scale=0"], COLLAPSED, "never learns", "predictor.lr_scale=1"),
        ("simsiam", ["teacher=expectation", "teacher.momentum=1", "predictor=none"], COLLAPSED, "at random", "tau"),
        ("simsiam", ["lr.base=20"], COLLAPSED, "ten times", "Lower lr"),
        ("dino", ["lr.base=1"], UNIFORM, "ten times", "Lower lr"),
        ("mean-teacher", ["lr.base=1e18"], COLLAPSED | {"loss": 1e30}, "ten times", "Lower lr"),
        ("simsiam", ["clip=none"], COLLAPSED | {"loss": math.inf}, "too large", "clip"),
        ("dino", [], COLLAPSED | {"output_std": math.nan}, "floats", "lr.warmup"),
    ],
)
def test_the_cause_is_the_recipes(method, settings, metrics, cause, advice):
    verdict = judge(metrics, METHODS[method].edit(settings))
    assert cause.lower() in verdict.cause.lower()
    assert advice in verdict.advice


@pytest.mark.parametrize(
    ("std", "targets", "usage", "kl", "state"),
    [
        (0.114, 0.60, 3.84, 0.66, "healthy"),  # DINO on Fashion-MNIST, epoch 8 of 12: kNN 0.81 and rising
        (0.150, 0.74, 3.67, 0.69, "healthy"),  # iBOT there, epoch 6
        (0.185, 3.41, 5.40, 2.03, "dominated-target"),  # DINO with a centre of momentum 0.999 on digits, epoch 2
        (0.107, 0.58, 1.22, 0.39, "dominated-target"),  # without centring, epoch 15
        (0.050, 0.22, 6.05, 9.00, "dominated-target"),  # noise: each view has a target of its own, which the other does not know
        (0.114, 0.60, 3.84, None, "dominated-target"),  # not known
        (0.150, 5.66, 5.68, 0.30, "dimensional-collapse"),  # DINO without BatchNorm in its head, epoch 1: uniform from epoch 2 on
    ],
)
def test_outputs_that_share_a_mean_are_judged_by_whether_another_view_tells_the_target(std, targets, usage, kl, state):
    """Of K = 1,024 outputs; centring takes away what all share, and output_std does not see that."""
    metrics = {"loss": 1.3, "output_std": std, "effective_rank": 16.4, "rank_limit": 255, "live_channels": 79, "target_outputs": 1024}
    verdict = judge({**metrics, "target_entropy": targets, "target_usage_entropy": usage, "target_kl": kl}, METHODS["dino"])
    assert verdict.state == state
    assert ("nats of ln K" in verdict.evidence) == (state == "healthy")


def test_without_stop_gradient_targets_are_not_said_to_be_on_their_way():
    """Their entropy falls where gradients flow into them, whatever becomes of the outputs."""
    metrics = {"loss": 1.3, "output_std": 0.1, "effective_rank": 60.0, "rank_limit": 255, "target_outputs": 256}
    metrics |= {"target_entropy": 2.0, "target_usage_entropy": 3.0}
    states = {
        stopped: judge(metrics, METHODS["simsiam"].edit(["terms.views.loss=cross-entropy", f"stop_gradient={stopped}"])).state
        for stopped in ("true", "false")
    }
    assert states == {"true": "dominated-target", "false": "collapsed"}


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


def test_views_that_no_loss_with_a_weight_compares_are_the_cause():
    """The patch term's centre, which is trained, has nothing to do with them."""
    for state in ("dominated-target", "uniform-target", "collapsed"):
        assert "no loss with a weight compares whole views" in cause_of(state, METHODS["ibot"].edit(["terms.views.weight=0"])).why
        assert "whole views" not in cause_of(state, METHODS["ibot"].edit(["terms.patches.weight=0"])).why


def test_no_preset_is_said_to_be_too_fast():
    for name in PRESETS:
        for recipe in METHODS.values():
            edited = with_preset(recipe, name)[0]
            assert "ten times" not in judge({**COLLAPSED, "loss": math.inf}, edited).cause


def test_a_consistency_loss_is_judged_by_what_its_targets_say():
    """Their logits may share a mean; what counts is whether an image's distribution is its own."""
    say = {"loss": 0.0, "output_std": 0.3, "effective_rank": 1.1, "rank_limit": 2, "target_outputs": 10}
    recipe = METHODS["mean-teacher"]
    own = judge({**say, "target_entropy": 0.3, "target_usage_entropy": 2.2}, recipe)
    assert own.state == "healthy"
    for constant in (2.29, 1.2, 0.01):  # uniform, two outputs, one
        assert judge({**say, "target_entropy": constant, "target_usage_entropy": constant + 0.005}, recipe).state == "collapsed"
    soft = {"target_entropy": 2.29, "target_usage_entropy": 2.3, "output_std": 0.9}  # its first epochs
    assert judge({**say, **soft}, recipe).state == "healthy"


def test_the_advice_can_be_followed():
    """What the advice on SimSiam's ablations says is a setting that the recipe takes, and that ends the complaint."""
    edits = ("stop_gradient=false", "predictor=none", "predictor.trainable=false", "predictor.lr_scale=0")
    for settings in [*((one,) for one in edits), edits[:2]]:
        broken = METHODS["simsiam"].edit(settings)
        verdict = judge(COLLAPSED, broken)
        mended = broken.edit(verdict.advice.rstrip(".").split())
        assert judge(COLLAPSED, mended).cause == "none of the causes known here is in its recipe."


def test_since_is_the_first_probe_of_the_last_stretch():
    rows = [{"step": n, "epoch": n / 2, **({"verdict": v} if v else {})} for n, v in enumerate(["", "a", "b", "", "a", "a", "", "a", ""])]
    assert since(rows)["step"] == 4
    assert since(rows[:3])["step"] == 2
    assert since(rows[:1]) is None


def test_what_was_said_before_is_told():
    def after(*states: str) -> str:
        return before([{"verdict": state} for state in states])

    assert after("healthy", "collapsed", "dominated-target", "collapsed", "healthy") == (
        " Of 5 probes 2 said collapsed, 1 said dominated-target."
    )
    assert after("healthy", "collapsed", "collapsed") == after("healthy") == after() == ""


def test_a_backbone_worth_less_than_its_random_start_is_said():
    assert "0.370 is below the 0.550" in below_start({"knn_top1": 0.37, "knn_random_init": 0.55})
    assert "0.906 is below the 0.931" in below_start({"knn_top1": 0.906, "knn_random_init": 0.897, "knn_at_start": 0.931})
    share = {"knn_top1": 0.92, "knn_at_start": 0.93, "knn_at_end": 0.94}  # of the probes' share: like with like
    assert not below_start(share)
    assert "0.910 is below the 0.930" in below_start(share | {"knn_at_end": 0.91})
    assert not below_start({"knn_top1": 0.1, "knn_random_init": 0.9, "verdict": "diverged"})
    for summary in ({}, {"knn_top1": None}, {"knn_top1": 0.6, "knn_random_init": None}, {"knn_top1": 0.6, "knn_random_init": 0.6}):
        assert not below_start(summary)

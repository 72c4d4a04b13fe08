"""A method, a loss, an ingredient of one's own, in one file outside the package."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import selfdistill as sd
from selfdistill import own, settings
from selfdistill.ablate import cells
from selfdistill.data.images import Files
from selfdistill.data.loader import _Crops
from selfdistill.diagnose.causes import State, cause_of
from selfdistill.parts.loss import LOSSES, MSE
from selfdistill.parts.schedule import Schedule
from selfdistill.train.resolve import resolve
from tests.conftest import TINY

FILE = """
import torch.nn.functional as F
import selfdistill as sd
from selfdistill.methods.byol import BYOL  # another recipe in sight is not the file's own

def distance(p, t, scale=1.0):
    return scale * (F.normalize(p, dim=-1) - F.normalize(t, dim=-1)).square().sum(-1).mean()

sd.losses["mine"] = distance
LOSS = ["terms.views.loss=own", "terms.views.loss.name=mine", "terms.views.loss.options={scale: 2.0}"]
MINE = sd.METHODS["simsiam"].edit(["method=mine", *LOSS])
"""


def test_two_files_of_one_name_are_two_modules_and_workers_need_neither(tmp_path):
    """Annotations that are words are looked up in the module that wrote them."""
    spec = """
from __future__ import annotations
from typing import Literal
import selfdistill as sd

@sd.ingredient("optimizer")
class Mine(sd.Spec):
    kind: Literal["twin"] = "twin"
    amount: float = 1.0

    def build(self, groups):
        raise NotImplementedError
"""
    for folder, text in (("one", spec), ("two", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(text)
        own.use(tmp_path / folder / "mine.py")
    recipe = sd.METHODS["simsiam"].edit(["optimizer=twin", "optimizer.amount=0.25"])
    assert recipe.optimizer.amount == 0.25
    assert b"selfdistill_own" in pickle.dumps(recipe)
    # Where processes are not forked, what a worker gets must be importable there.
    assert b"selfdistill_own" not in pickle.dumps(_Crops(Files([tmp_path / "a.png"]), recipe))
    del own.OWN["optimizer"]["twin"]


@pytest.fixture
def call(command):
    """The command line in a process that knows no loss yet."""
    LOSSES.clear()
    yield command
    LOSSES.clear()


def test_a_method_in_a_file_is_trained_measured_and_resumed(call, tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    fast = [f"{k}={v}" for k, v in {**TINY, "epochs": 1, "batch_size": 256}.items()]
    small = ["encoder=resnet-small", "preset=none", "encoder.channels=1", "views.size=8", "views.mean=[0.3]", "views.std=[0.4]"]
    code, out, err = call("pretrain", "./mine.py", "data=digits", *small, *fast, "--no-report", "--out", "run")
    assert code == 0, err
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["method"] == "mine"
    assert saved["terms"]["views"]["loss"] == {"kind": "own", "name": "mine", "options": {"scale": 2.0}}
    LOSSES.clear()  # another process: the YAML names the loss and holds no code
    code, out, _ = call("evaluate", "run")
    assert code == 0
    assert re.search(r"│ knn +│ k=20 +│ 0\.\d{4} +│", out)
    code, _, err = call("pretrain", "--out", "run", "--resume")
    assert code == 2
    assert "loss.name=mine" in err
    assert call("pretrain", "mine.py", "--out", "run", "--resume")[0] == 0
    code, out, _ = call("diff", "simsiam", "mine.py")
    assert code == 0
    assert "terms.views.loss" in out


def test_the_example_of_the_docs(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    (tmp_path / "mine.py").write_text(next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "losses" in block))
    try:
        recipe = sd.recipe_of(str(tmp_path / "mine.py"))
        p, t = torch.randn(2, 2, 8, 4).unbind(0)
        loss = recipe.terms["views"].loss.build(4)(p, t, [(0, 1)], None)
        n, m = F.normalize(p[0], dim=-1), F.normalize(t[1], dim=-1)
        assert recipe.method == "simsiam-huber"
        assert loss == pytest.approx(float(F.huber_loss(n, m, delta=0.5)))
    finally:
        LOSSES.clear()


def test_an_own_loss_is_the_function(tiny_source, tmp_path):
    """Twice BYOL's distance, trained once by name and once as the package has it: the same loss, halved."""
    LOSSES["twice"] = lambda p, t, scale: scale * MSE()(p, t)
    try:
        settings = {**TINY, "epochs": 1, "terms.views.loss": "own", "terms.views.loss.name": "twice"}
        own = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "own", **settings, **{"terms.views.loss.options": "{scale: 2}"})
        theirs = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "mse", **{**TINY, "epochs": 1, "terms.views.loss": "mse"})
    finally:
        LOSSES.clear()
    first = [next(row["loss"] for row in run.metrics if "loss" in row) for run in (own, theirs)]
    assert first[0] == pytest.approx(2 * first[1], rel=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "no recipe"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import selfdistill as sd\nA = sd.METHODS['byol'].edit(['seed=1'])\nB = A.edit(['seed=2'])", "defines A, B"),
        ("import selfdistill as sd\nA = sd.METHODS['byol'].edit(['sed=1'])", "sed=1: unknown key"),
    ],
)
def test_a_file_that_defines_no_method(call, tmp_path, text, said):
    (tmp_path / "bad.py").write_text(text)
    code, _, err = call("pretrain", "bad.py", "data=digits")
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert call("pretrain", "absent.py", "data=digits")[0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["bad.py"]


def test_an_unregistered_loss_is_refused_before_anything_is_written(call, tmp_path):
    LOSSES["hubert"] = F.huber_loss
    code, _, err = call("pretrain", "simsiam", "data=digits", "terms.views.loss=own", "terms.views.loss.name=huber", "--out", "run")
    assert code == 2
    assert "Did you mean hubert?" in err
    assert not (tmp_path / "run").exists()


SLOTS = '''
"""One ingredient for each slot, each doing what one of the package does."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

import selfdistill as sd
from selfdistill.spec import Count
from selfdistill.parts.loss import Pairwise
from selfdistill.parts.predictor import Learned
from selfdistill.parts.schedule import Schedule
from selfdistill.train.resolve import resolve
from selfdistill.parts.target import SoftmaxTarget
from selfdistill.parts.teacher import Copy


@sd.ingredient("teacher")
class Swing(sd.Spec):
    kind: Literal["swing"] = "swing"
    low: float = Field(0.9, ge=0, le=1)
    taus: Schedule = Schedule(base=0.5)
    own_weights: ClassVar[bool] = True

    def build(self, student, dim, images):
        return Swinging(student, self)


class Swinging(Copy):
    def __init__(self, student, spec):
        super().__init__(student)
        self.low = spec.low

    def update(self, student, progress):
        self.follow(student, self.low if progress.step % 2 else 1.0)


@sd.ingredient("predictor")
class Diagonal(sd.Spec):
    kind: Literal["diagonal"] = "diagonal"
    trainable: bool = True

    def build(self, dim):
        return Learned(Scale(dim))


class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, z):
        return z * self.scale


@sd.ingredient("projector")
class Flat(sd.Spec):
    kind: Literal["flat"] = "flat"
    out: Count = 16

    def build(self, features):
        return nn.Linear(features, self.out)


@sd.ingredient("target")
class Hard(sd.Spec):
    kind: Literal["hard"] = "hard"
    temperature: Schedule = Schedule(base=0.1)

    def build(self, dim):
        return SoftmaxTarget(self.temperature)


@sd.ingredient("loss")
class Manhattan(sd.Spec):
    kind: Literal["manhattan"] = "manhattan"
    scale: float = 1.0

    def __call__(self, p, t):
        return self.scale * (p - t).abs().sum(-1).mean()

    def build(self, dim, targets=2):
        return Pairwise(self)


@sd.ingredient("optimizer")
class Plain(sd.Spec):
    kind: Literal["plain"] = "plain"

    def build(self, groups):
        return torch.optim.SGD(groups, lr=0.0)
'''
SMALL = ["encoder=resnet-small", "encoder.options={widths: [8, 16]}", "epochs=1", "batch_size=256", "log_every=1", "precision=fp32"]
MINE = ["teacher=swing", "low=0.8", "taus.end=0.1", "predictor=diagonal", "projector=flat", "out=12", "optimizer=plain"]
MINE += ["terms.views.loss=cross-entropy", "terms.views.loss.target=hard"]


@pytest.fixture
def mine(call, tmp_path, monkeypatch):
    """A folder with mine.py, in a process that has not loaded it; `call` as if in another process each time."""
    monkeypatch.setattr(own, "OWN", {slot: {} for slot in own.SLOTS})
    monkeypatch.setattr(settings, "OWN", own.OWN)
    monkeypatch.setattr(own, "FILES", [])
    (tmp_path / "mine.py").write_text(SLOTS)

    def fresh(*args):
        for kinds in own.OWN.values():
            kinds.clear()
        own.FILES.clear()
        return call(*args)

    return fresh


@pytest.mark.parametrize("state", [state for state in State.__args__ if state != "healthy"])
def test_a_collapse_of_ones_own_has_a_cause(mine, tmp_path, state):
    """No paper says what is too fast for an optimiser of one's own, or too blunt a target."""
    own.use(tmp_path / "mine.py")
    assert cause_of(state, sd.METHODS["simsiam"].edit([*MINE, *SMALL, "lr.base=1e9"])).remedy


def test_an_ingredient_for_each_slot_from_a_file_named_with_use(mine, tmp_path):
    code, _, err = mine("pretrain", "simsiam", "--use", "mine.py", "data=digits", *MINE, *SMALL, "--no-report", "--out", "run")
    assert code == 0, err
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["teacher"] == {"kind": "swing", "low": 0.8, "taus": Schedule(base=0.5, end=0.1).model_dump()}
    assert saved["terms"]["views"]["loss"]["target"]["kind"] == "hard"
    assert "class " not in (tmp_path / "run" / "recipe.yaml").read_text()
    for words in (["evaluate", "run"], ["diagnose", "run"], ["export", "run", "--format", "safetensors"], ["embed", "run", "digits"]):
        words += ["--out", f"{words[0]}.npy"] * (words[0] == "embed")
        code, _, err = mine(*words)
        assert code == 2
        assert "teacher: kind=swing: there are shared, ema, snapshot, expectation. If it is of your own, give --use FILE" in err
        assert "optimizer: kind=plain" in err
        code, _, err = mine(*words, "--use", "mine.py")
        assert code == 0, err
    assert mine("pretrain", "--out", "run", "--resume")[0] == 2
    assert mine("pretrain", "--out", "run", "--resume", "--use", "mine.py")[0] == 0
    code, out, _ = mine("diff", "run", "byol", "--use", "mine.py")
    assert code == 0
    assert "teacher.taus.base" in out
    for words in (["show", "run"], ["draw", "run"]):
        code, out, err = mine(*words, "--use", "mine.py")
        assert code == 0, err
        assert "diagonal" in out


def test_the_lab_loads_the_file_in_its_processes(mine, tmp_path):
    sd.use(tmp_path / "mine.py")
    recipe = resolve(sd.METHODS["simsiam"], ["data=digits", "teacher=swing", *SMALL])[0]
    cell = cells.cell(recipe, tmp_path / "lab")
    assert cells.train_all([cell], 1, print) == []
    assert cell.done
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# another teacher, perhaps\n")
    assert cells.cell(recipe, tmp_path / "lab").folder != cell.folder
    code, out, err = mine("ablate", "simsiam", "data=digits", "teacher=swing", *SMALL, "--use", "mine.py", "--plan")
    assert code == 0, err
    assert "0 of them done" in out


def test_a_wrong_value_of_ones_own(mine):
    for words, said in (
        (["teacher=swing", "low=2"], "teacher.low=2: Input should be less than or equal to 1"),
        (["teacher=swing", "high=1"], "high=1: unknown key"),
        (["teacher=swnig"], "Did you mean swing?"),
        (["teacher=swing", "stop_gradient=false"], "stop_gradient=false with teacher=swing"),
        (["terms.views.loss.target=hard"], "has no fields"),
    ):
        code, _, err = mine("show", "simsiam", *words, "--use", "mine.py")
        assert code == 2
        assert said in err
        assert len(err.strip().splitlines()) == 1
    assert "give --use FILE" in mine("show", "simsiam", "teacher={kind: swing}")[2]


def test_from_python(mine, tmp_path, tiny_source):
    sd.use(tmp_path / "mine.py")
    recipe = sd.METHODS["simsiam"].edit(["terms.views.loss=manhattan", "terms.views.loss.scale=0.5", "predictor=diagonal"])
    assert recipe.edit([]) == recipe
    p, t = torch.randn(2, 2, 8, 4).unbind(0)
    loss = recipe.terms["views"].loss.build(4)(p, t, [(0, 1)], None)
    assert loss == pytest.approx(float(0.5 * (p[0] - t[1]).abs().sum(1).mean()))
    run = sd.pretrain(recipe, data=tiny_source, out=tmp_path / "run", **{k: v for k, v in TINY.items() if not k.startswith("predictor")})
    assert run.knn() > 0.5
    state = torch.load(run.checkpoint, weights_only=True)["model"]
    assert not torch.equal(state["predictor.0.scale"], torch.ones(16))
    assert sd.load(run.path).recipe.predictor == recipe.predictor


@pytest.mark.parametrize(
    ("slot", "lines", "said"),
    [
        ("techer", "kind: str = 'x'", "Did you mean teacher?"),
        ("teacher", "kind: str = 'x'\n    def build(self): ...", "a teacher has own_weights too"),
        ("teacher", "kind: str = 'ema'\n    own_weights: bool = True\n    def build(self): ...", "teacher=ema is the package's own"),
        ("optimizer", "def build(self, groups): ...", "says its kind"),
        ("optimizer", "kind: str = 'x'\n    momentum: float\n    def build(self, groups): ...", "has a default"),
    ],
)
def test_what_can_fill_no_slot_is_refused(mine, tmp_path, slot, lines, said):
    (tmp_path / "bad.py").write_text(f"import selfdistill as sd\n@sd.ingredient('{slot}')\nclass X(sd.Spec):\n    {lines}\n")
    code, _, err = mine("show", "simsiam", "--use", "bad.py")
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_that_is_not_there(mine):
    for name, said in (("absent.py", "FileNotFoundError"), ("mine.txt", "not a .py file")):
        code, _, err = mine("show", "simsiam", "--use", name)
        assert code == 2
        assert said in err

"""A method and a loss of one's own, in one file outside the package; and what a notebook shows."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import selfdistill as sd
from selfdistill.parts.loss import LOSSES, MSE
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
    code, out, err = call("pretrain", "./mine.py", "data=digits", *small, *fast, "--out", "run")
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
        ("import selfdistill as sd\nA = sd.METHODS['byol'].edit(['seed=1'])\nB = A.edit(['seed=2'])", "defines A, B"),
        ("import selfdistill as sd\nA = sd.METHODS['byol'].edit(['sed=1'])", "sed: unknown key"),
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


def test_what_a_notebook_shows(tiny_run):
    shown = tiny_run._repr_html_()
    for word in ("simsiam on bars", str(tiny_run.path), tiny_run.summary["because"], f"{tiny_run.summary['knn_top1']:.4f}"):
        assert word in shown
    curves = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", shown)]
    rows = [row["loss"] for row in tiny_run.metrics if "loss" in row]
    assert len(curves) == 3
    assert f"loss: {rows[0]:.3g} to {rows[-1]:.3g}" in curves[0].find("text").text
    assert len(curves[0].find("polyline").get("points").split()) == len(rows)

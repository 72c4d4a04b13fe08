"""Where the time goes: parts that interrupt each other, FLOPs counted by hand, the table of a run."""

import json
import time

import pytest
import torch
from typer.testing import CliRunner

import selfdistill as sd
from selfdistill.cli import app
from selfdistill.methods import METHODS
from selfdistill.parts.backbone import Backbone
from selfdistill.parts.schedule import Progress
from selfdistill.siamese import Siamese
from selfdistill.train.clock import Clock
from selfdistill.train.profile import flops
from selfdistill.views.batch import Views
from tests.conftest import TINY_OF
from tests.crash import same, state_of

CPU = torch.device("cpu")


def test_an_inner_part_interrupts_the_outer_one(monkeypatch):
    now = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    clock = Clock(CPU)
    with clock("outer"), clock("inner"):  # readings at 0, 10, 20, 30
        pass
    assert clock.seconds == {"outer": 20.0, "inner": 10.0}
    assert clock.lap("outer") == 20.0
    with clock("outer"):  # 40, 50
        pass
    assert clock.lap("outer") == 10.0
    assert clock.lap("inner") == 10.0


def test_a_part_that_fails_is_left():
    clock = Clock(CPU)
    with pytest.raises(RuntimeError), clock("outer"), clock("inner"):
        raise RuntimeError
    with clock("next"):
        pass
    assert set(clock.seconds) == {"outer", "inner", "next"}


def test_flops_are_two_a_multiplication_and_leave_the_model_as_it_was():
    """A linear projector on a user's encoder without products: B x 2 views x F x D, forward and the weight's gradient."""
    recipe = METHODS["simsiam"].edit(["projector.hidden=[]", "projector.out=5", "projector.bn=none", "predictor=none", "views.size=4"])
    siamese = Siamese(recipe, 10, Backbone(torch.nn.Flatten(), 3, 4))
    before = {k: v.clone() for k, v in siamese.state_dict().items()}
    views = Views((torch.randn(2, 6, 3, 4, 4),), torch.arange(6))
    assert flops(siamese, views, Progress(0, 10, 1), recipe) == 2 * (2 * 6 * 48 * 5) * 2
    for key, value in siamese.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(p.grad is None for p in siamese.parameters())


def test_flops_are_counted_in_the_runs_precision():
    """A copy in fp32 would need twice the memory that the run does."""
    recipe = METHODS["simsiam"].edit(["projector.hidden=[]", "projector.bn=none", "predictor=none", "views.size=4", "precision=bf16"])
    siamese, seen = Siamese(recipe, 10, Backbone(torch.nn.Flatten(), 3, 4)), []
    siamese.student.projector.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    flops(siamese, Views((torch.randn(2, 6, 3, 4, 4),), torch.arange(6)), Progress(0, 10, 1), recipe)
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_a_profiled_run_says_where_its_time_went(tmp_path, method):
    out = tmp_path / "run"
    small = ["encoder.options={widths: [8, 16]}", "projector.hidden=[64]", "projector.out=64"]
    words = ["pretrain", method, "data=digits", *small, "epochs=1", "precision=fp32", "--profile", "--no-report", "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads((out / "profile.json").read_text())
    parts = {"data", "views", "forward", "backward", "optimiser", "teacher update", "probes and log", "checkpoint"}
    assert set(found["seconds"]) == parts | ({"teacher forward"} if method == "byol" else set())
    assert all(s > 0 for s in found["seconds"].values())
    assert found["steps"] == 11
    assert 0 < found["flops_per_second"] < 2 * found["matrix_product_flops_per_second"]
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
    assert "images/s. Forward and backward" in result.output


def test_a_profiled_run_is_the_run_that_it_would_have_been(tiny_source, tmp_path):
    """To the last bit, with dropout. Six steps: it ends while it is traced. And a resume with nothing left has nothing to say."""
    plain, profiled = (
        sd.pretrain("dino", data=tiny_source, out=tmp_path / str(profile), profile=profile, **TINY_OF["dino"]) for profile in (False, True)
    )
    assert same(state_of(plain), state_of(profiled))
    assert json.loads((profiled.path / "trace.json").read_text())["traceEvents"]
    before = (profiled.path / "profile.json").read_text()
    sd.pretrain("dino", data=tiny_source, out=profiled.path, resume=True, profile=True)
    assert (profiled.path / "profile.json").read_text() == before

"""Probes while a run trains, the end that on_collapse=stop makes, and the diagnosis of a run."""

import json
import math
import os
import shutil
import signal
from typing import get_args

import numpy as np
import pytest
import torch

import selfdistill as sd
from selfdistill.diagnose.causes import State
from selfdistill.errors import Failure
from selfdistill.train import monitor, probe
from selfdistill.train.diagnosis import of_run, projections
from tests.conftest import TINY, TINY_OF


def test_a_probe_has_student_and_teacher(tiny_source, tmp_path):
    run = sd.pretrain("dino", data=tiny_source, out=tmp_path / "run", **TINY_OF["dino"])
    row = run.metrics[-1]
    of_both = {"knn_student", "knn_teacher", "ridge_student", "ridge_teacher", "teacher_output_std", "teacher_effective_rank"}
    of_targets = {"target_entropy", "target_usage_entropy", "target_usage", "target_kl", "student_entropy", "same_output", "agreement"}
    assert of_both | of_targets | {"knn_top1", "ridge_top1", "centre_norm"} <= row.keys()
    assert row["target_outputs"] == 20
    assert 0 <= row["target_entropy"] <= math.log(20) + 1e-6
    assert row["target_kl"] >= 0
    assert row["ridge_top1"] == row["ridge_teacher"]  # DINO keeps the teacher


@pytest.mark.parametrize("method", TINY_OF)
def test_every_method_is_probed(method, tiny_source, tmp_path):
    row = sd.pretrain(method, data=tiny_source, out=tmp_path / "run", **{**TINY_OF[method], "epochs": 1}).metrics[-1]
    assert row["ridge_top1"] > (0.55 if method in ("dino", "ibot") else 0.8)  # bars across and down, random features, 32 images
    assert -1.001 <= row["agreement"] <= 1.001
    assert ("target_kl" in row) == (method in ("dino", "ibot", "swav", "mean-teacher"))


def collapse(tiny_source, out, **settings):
    """A run that is said to be collapsed from its first probe on: stop-gradient out would take longer than two epochs."""
    return sd.pretrain("simsiam", data=tiny_source, out=out, **{**TINY, "epochs": 8, "probe_every": 1, **settings})


@pytest.fixture
def always_collapsed(monkeypatch):
    honest = probe.judge
    monkeypatch.setattr(probe, "judge", lambda found, recipe: honest({**found, "output_std": 0.01, "live_channels": 0}, recipe))


def test_stop_ends_the_run_with_everything_written(always_collapsed, tiny_source, tmp_path, capsys):
    with pytest.raises(Failure) as e:
        collapse(tiny_source, tmp_path / "run", on_collapse="stop")
    patience = monitor.PATIENCE
    assert f"stopped at epoch {patience} of 8 (on_collapse=stop). collapsed: " in str(e.value)
    assert str(tmp_path / "run") in str(e.value)
    run = sd.load(tmp_path / "run")
    assert run.summary["verdict"] == "collapsed"
    assert run.metrics[-1]["step"] == patience * 3
    assert torch.load(run.checkpoint, weights_only=True)["step"] == patience * 3
    assert run.embed(tiny_source.test.pixels).shape == (32, 16)
    assert capsys.readouterr().out.count("collapsed: output_std 0.010") == 1  # said once, when it turned


def test_a_plateau_at_uniform_targets_is_waited_for(monkeypatch, tiny_source, tmp_path):
    """SwAV on digits leaves it after 17 of 60 epochs, so three probes are not enough: half the run is."""
    honest = probe.judge
    uniform = {"target_outputs": 6, "target_entropy": math.log(6), "target_usage_entropy": math.log(6), "output_std": 0.3}
    monkeypatch.setattr(probe, "judge", lambda found, recipe: honest({**found, **uniform}, recipe))
    settings = {**TINY_OF["swav"], "epochs": 10, "probe_every": 1, "on_collapse": "stop"}
    with pytest.raises(Failure, match=r"stopped at epoch 6 of 10.*uniform-target"):
        sd.pretrain("swav", data=tiny_source, out=tmp_path / "run", **settings)


def test_a_run_that_goes_on_waits_as_long_as_one_that_was_not_cut(monkeypatch, tiny_source, tmp_path):
    """Two probes healthy, then uniform: half of ten epochs later is the end, also where the run is cut after each checkpoint."""
    uniform = {"target_outputs": 6, "target_entropy": math.log(6), "target_usage_entropy": math.log(6), "output_std": 0.3}
    honest, seen = probe.judge, []

    def later(found, recipe):
        return honest({**found, **uniform} if (found["loss"], len(seen))[1] >= 2 else {**found, "output_std": 0.9}, recipe)

    monkeypatch.setattr(probe, "judge", lambda found, recipe: (later(found, recipe), seen.append(1))[0])
    asked = {**TINY_OF["swav"], "epochs": 10, "probe_every": 1, "on_collapse": "stop"}
    with pytest.raises(Failure, match=r"stopped at epoch 8 of 10.*uniform-target"):
        sd.pretrain("swav", data=tiny_source, out=tmp_path / "whole", **asked)
    seen.clear()
    after, cut = monitor.Monitor.after, []

    def interrupted(self, now, *rest):
        found = after(self, now, *rest)
        if now.at_epoch_end and now.step not in cut and now.step // 3 in (4, 6):
            cut.append(now.step)
            os.kill(os.getpid(), signal.SIGTERM)  # saved after the next step
        return found

    monkeypatch.setattr(monitor.Monitor, "after", interrupted)
    with pytest.raises(sd.Interrupted):
        sd.pretrain("swav", data=tiny_source, out=tmp_path / "cut", **asked)
    with pytest.raises(sd.Interrupted):
        sd.pretrain("swav", data=tiny_source, out=tmp_path / "cut", resume=True)
    with pytest.raises(Failure, match=r"stopped at epoch 8 of 10.*uniform-target"):
        sd.pretrain("swav", data=tiny_source, out=tmp_path / "cut", resume=True)


def test_warn_goes_on(always_collapsed, tiny_source, tmp_path):
    assert collapse(tiny_source, tmp_path / "run").metrics[-1]["epoch"] == 8


def test_a_healthy_run_is_not_stopped(tiny_source, tmp_path):
    assert collapse(tiny_source, tmp_path / "run", on_collapse="stop").metrics[-1]["epoch"] == 8


def test_a_loss_beyond_all_measure_stops_at_once(tiny_source, tmp_path):
    """A step that is not finite is not made (train/faults.py), so what diverges is a number, and a large one."""
    settings = {**TINY_OF["mean-teacher"], "epochs": 3, "probe_every": 1, "on_collapse": "stop", "lr.base": 1e18}
    with pytest.raises(Failure, match=r"stopped at epoch [12] of 3.*diverged"):
        sd.pretrain("mean-teacher", data=tiny_source, out=tmp_path / "run", **settings)
    run = sd.load(tmp_path / "run")
    assert run.summary["verdict"] == "diverged"
    assert run.summary["loss"] > 1e6
    assert of_run(sd.Run(run.path, source=tiny_source)).verdict == "diverged"


def test_diagnosis_of_a_run(tiny_run, tiny_source):
    run = sd.Run(tiny_run.path, source=tiny_source)
    found = of_run(run, augmentations=4)
    assert found.verdict == tiny_run.summary["verdict"]
    assert found.since == {"step": 6, "epoch": 2.0}  # its only probe
    assert {"alignment", "lidar"} <= found.of["projections"].keys()
    assert found.of["features"]["dimensions"] == 16
    assert found.expectation == sd.predictor_gap(run, 4)._asdict()
    written = json.loads((run.path / "diagnosis.json").read_text())
    assert written["verdict"] == found.verdict
    assert written["features"] == found.of["features"]


def test_a_run_that_goes_on_is_diagnosed_from_its_checkpoint(tiny_run, tiny_source, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    whole = of_run(sd.Run(tmp_path / "run", source=tiny_source), augmentations=4)
    for of_the_end in ("summary.json", "backbone.safetensors", "diagnosis.json"):
        (tmp_path / "run" / of_the_end).unlink()
    assert of_run(sd.Run(tmp_path / "run", source=tiny_source), augmentations=4) == whole


def test_projections_are_of_views_that_differ(tiny_run, tiny_source):
    z = projections(sd.Run(tiny_run.path, source=tiny_source), tiny_source.test, 3)
    assert z.shape == (3, 32, 16)
    assert not torch.allclose(z[0], z[1])
    assert torch.equal(z, projections(sd.Run(tiny_run.path, source=tiny_source), tiny_source.test, 3))


def test_the_command_on_embeddings(run, tmp_path):
    z = np.random.default_rng(0).normal(size=(200, 8))
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "y.npy", (z[:, 0] > 0).astype(int))
    code, out, err = run("diagnose", "z.npy", "--labels", "y.npy")
    assert code == 0, err
    assert "healthy: output_std 1.0" in out
    assert "ridge_top1" in out
    code, out, _ = run("diagnose", "z.npy")
    assert "ridge_top1" not in out
    np.save(tmp_path / "flat.npy", np.ones((50, 4)))
    assert "collapsed: output_std 0.000" in run("diagnose", "flat.npy")[1]


def test_the_command_on_a_timm_backbone(run):
    code, out, err = run("diagnose", "timm:resnet18", "data=digits")
    assert code == 0, err
    assert "knn_top1" in out
    assert out.splitlines()[-1].partition(":")[0] in get_args(State)


@pytest.mark.parametrize("words", [[], ["--pretrained"]])
def test_pretrained_weights_are_timms_and_only_where_they_are_asked_for(run, words, monkeypatch):
    loaded = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **named: loaded.append(args))
    code, _, err = run("diagnose", "timm:test_resnet", "data=digits", *words)
    assert code == 0, err
    assert len(loaded) == len(words)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "recipe.yaml"),
        (["nowhere.npy"], "nowhere.npy"),
        (["z.txt", "--labels", "y.npy"], ".npy or .parquet"),
        ([__file__], "embeddings are read from .npy and .parquet"),
        (["timm:resnet81", "data=digits"], "resnet18"),
        (["timm:resnet18", "data=digit"], "digits"),
        (["nowhere.npy", "data=digits"], "timm:NAME"),
        (["nowhere", "--pretrained"], "timm:NAME"),
    ],
)
def test_the_commands_misuse(run, args, said):
    code, _, err = run("diagnose", *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err


def test_stop_on_the_command_line_is_exit_code_1(always_collapsed, run):
    short = [f"{k}={v}" for k, v in {**TINY, "epochs": 4, "batch_size": 256, "probe_every": 1}.items()]
    code, _, err = run("pretrain", "simsiam", "data=digits", *short, "on_collapse=stop", "--no-report", "--out", "run")
    assert code == 1
    assert "on_collapse=stop" in err
    assert len(err.strip().splitlines()) == 1


def test_labels_go_with_embeddings_alone(tiny_run):
    for what, settings in ((tiny_run.path, ()), ("random-init", ("data=digits",))):
        with pytest.raises(sd.Misuse, match="labels: go with embeddings"):
            sd.diagnosis_of(what, *settings, labels=torch.zeros(3))
    with pytest.raises(sd.Misuse, match="--pretrained: goes with timm:NAME alone"):
        sd.diagnosis_of("z.npy", pretrained=True)
    with pytest.raises(sd.Misuse, match="data=digits: goes with"):
        sd.diagnosis_of(torch.rand(50, 4), "data=digits")


def test_labels_of_embeddings_are_used_wherever_either_is_from(tmp_path):
    z, labels = torch.randn(200, 8), torch.arange(200) % 2
    z += 10 * labels[:, None] - 5
    np.save(tmp_path / "z.npy", z.numpy())
    np.save(tmp_path / "y.npy", labels.numpy())
    for of in (z, tmp_path / "z.npy"):
        for named in (labels, tmp_path / "y.npy"):
            assert sd.diagnosis_of(of, labels=named).of["features"]["knn_top1"] == 1.0

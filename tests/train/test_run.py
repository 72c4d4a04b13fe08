"""The run folder, the Python mirror, and resume."""

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import nn

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.parts.head import Prototypes
from selfdistill.recipe import Checkpoint
from selfdistill.siamese import Siamese
from selfdistill.train import checkpoint, loop, monitor
from selfdistill.train.clock import Clock
from selfdistill.train.journal import Journal
from selfdistill.train.resolve import REPAID, resolve, with_preset
from selfdistill.train.run import untrained
from selfdistill.train.trained import siamese_of
from tests.conftest import TINY, TINY_OF
from tests.crash import lines, same, state_of, until


def test_the_folder_holds_what_the_contract_names(tiny_run):
    path = tiny_run.path
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    assert recipe["seed"] == 0
    assert recipe["precision"] == "fp32"
    assert {"python", "torch", "selfdistill"} <= recipe["versions"].keys()
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(7))
    for row in rows[1:]:
        assert {"step", "epoch", "loss", "lr", "images_per_second", "data_share", "output_std"} <= row.keys()
    probe = {"knn_top1", "output_std", "effective_rank", "alignment", "uniformity", "target_entropy", "verdict"}
    assert probe <= rows[-1].keys()
    summary = json.loads((path / "summary.json").read_text())
    assert probe | {"wall_seconds", "knn_random_init", "knn_raw_pixels"} <= summary.keys()
    assert (path / "checkpoints" / "last.ckpt").is_file()
    assert list(path.glob("events.out.tfevents.*"))
    assert not list(path.rglob("*.part"))


def test_the_backbone_is_the_students_and_loads_into_a_bare_network(tiny_run):
    saved = safetensors.torch.load_file(tiny_run.path / "backbone.safetensors")
    state = {
        k.removeprefix("student.backbone.net."): v for k, v in state_of(tiny_run)["model"].items() if k.startswith("student.backbone.net.")
    }
    assert same(saved, state)
    x = torch.rand(3, 1, 8, 8)
    assert tiny_run.backbone(x).shape == (3, 16)
    assert not tiny_run.backbone.training


def test_load_embed_and_knn(tiny_run, tiny_source):
    h = tiny_run.embed(tiny_source.test.pixels)
    assert h.shape == (32, 16)
    assert 0.9 <= tiny_run.knn() <= 1.0
    again = sd.load(tiny_run.path)
    assert torch.equal(again.embed(tiny_source.test.pixels), h)
    with pytest.raises(sd.Misuse, match="channels"):
        again.embed(torch.zeros(2, 5, 8, 8, dtype=torch.uint8))


EXPECTATION = {"teacher": "expectation", "predictor": None, **{k: v for k, v in TINY.items() if not k.startswith("predictor")}}
SPECTRUM = {"predictor": "directpred", **{k: v for k, v in TINY.items() if not k.startswith("predictor")}, "predictor.every": 3}
RESUMED = [*TINY_OF.items(), ("simsiam", EXPECTATION), ("byol", SPECTRUM), ("byol", {**TINY, "accumulate": 2})]


@pytest.mark.parametrize(("method", "tiny"), RESUMED, ids=[*TINY_OF, "expectation", "directpred", "accumulate"])
def test_resume_continues_bit_for_bit(method, tiny, tiny_source, tmp_path, monkeypatch):
    whole = sd.pretrain(method, data=tiny_source, out=tmp_path / "whole", **tiny)

    class Stop(Exception):
        pass

    def stop_after(step):
        original = loop.set_schedules

        def f(optimizer, recipe, now):
            if now.step == step:
                raise Stop
            return original(optimizer, recipe, now)

        monkeypatch.setattr(loop, "set_schedules", f)
        return original

    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    original = stop_after(4)
    with pytest.raises(Stop):
        sd.pretrain(method, data=tiny_source, out=tmp_path / "cut", **tiny)
    monkeypatch.setattr(loop, "set_schedules", original)
    (tmp_path / "cut" / "metrics.jsonl").open("a").write('{"step": 5, "lo')  # a line that the kill cut
    resumed = sd.pretrain(method, data=tiny_source, out=tmp_path / "cut", resume=True)
    assert same(state_of(whole), state_of(resumed))


def test_same_seed_same_run_and_another_seed_another(tiny_run, tiny_source, tmp_path):
    again = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "again", **TINY)
    other = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "other", **TINY, seed=1)
    assert same(state_of(tiny_run), state_of(again))
    assert not same(state_of(tiny_run)["model"], state_of(other)["model"])


class NoNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


def test_the_loss_of_a_step_is_that_of_all_its_micro_batches(tiny_source, tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    of_the_step = loop._of_the_step
    monkeypatch.setattr(loop, "_of_the_step", lambda losses, outputs: seen.extend(losses) or of_the_step(losses, outputs))
    tiny = {**TINY_OF["ibot"], "epochs": 1, "log_every": 1, "precision": "fp32"}
    run = sd.pretrain("ibot", data=tiny_source, out=tmp_path / "run", accumulate=4, **tiny)
    steps = [row for row in run.metrics if row["step"]]
    assert len(seen) == 4 * len(steps)
    for row, four in zip(steps, zip(*[iter(seen)] * 4, strict=True), strict=True):
        assert row["loss"] == pytest.approx(sum(float(losses["views"] + losses["patches"]) for losses in four) / 4, rel=1e-5)
        for name in ("views", "patches"):
            assert row[f"loss_{name}"] == pytest.approx(sum(float(losses[name]) for losses in four) / 4, rel=1e-5)
    of_patches = steps[-1]["patch_target_entropy"]
    assert 0 < of_patches <= math.log(steps[-1]["patch_target_outputs"]) + 1e-5
    assert of_patches != steps[-1]["target_entropy"]


def test_probes_look_at_the_outputs_of_more_than_one_small_micro_batch(tiny_source, tmp_path):
    """Of a network without BatchNorm training is the same, and so is what is said of it."""
    small = {**TINY, "projector.bn": "none", "predictor.bn": "none", "epochs": 1, "log_every": 1, "precision": "fp32"}
    small = {name: value for name, value in small.items() if not name.startswith("encoder.")}
    stds = []
    for accumulate in (1, 8):
        torch.manual_seed(0)
        made = {**small, "encoder": NoNorm(), "accumulate": accumulate}
        run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / str(accumulate), **made)
        stds.append([row["output_std"] for row in run.metrics if row["step"]])
    assert stds[0] == pytest.approx(stds[1], rel=1e-3)


def test_what_layers_draw_is_of_seed_step_and_rank(tiny_source, tmp_path, monkeypatch):
    assert len({loop.seed_of(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}) == 1000
    asked = []
    seed_of = loop.seed_of
    monkeypatch.setattr(loop, "seed_of", lambda *of: asked.append(of) or seed_of(*of))

    class Noisy(nn.Module):
        drawn: list[float] = []

        def forward(self, x):
            if torch.is_grad_enabled():
                self.drawn.append(float(torch.rand(())))
            return x.flatten(1)

    tiny = {k: v for k, v in TINY.items() if not k.startswith("encoder")}
    run = sd.pretrain("simsiam", data=tiny_source, encoder=Noisy(), out=tmp_path / "run", seed=3, **tiny)
    assert asked == [(3, step, 0) for step in range(run.summary["step"])]
    assert len(set(Noisy.drawn)) == len(Noisy.drawn) >= run.summary["step"]


def test_images_a_second_are_of_the_steps_since_the_last_line(tiny_source, tmp_path, monkeypatch):
    clock = iter(range(100_000))
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: float(next(clock)))
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **{**TINY, "log_every": 1}, probe_every=2)
    rates = [row["images_per_second"] for row in run.metrics if row["step"]]
    assert max(rates[2:-1]) < 1.5 * min(rates[2:-1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_the_log(tmp_path, value):
    """JSON has no word for it."""
    journal = Journal(tmp_path, 0, 1, Console(quiet=True))
    journal.log({"step": 1, "epoch": 0.5, "loss": value})
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 0.5, "loss": null}\n'


@pytest.mark.parametrize(("method", "networks"), [("simsiam", 1), ("byol", 2)])
def test_auto_probes_cost_a_share_of_the_run(method, networks, tiny_source, tmp_path):
    """A probe is a forward pass of the bank and the queries for each network, a trained image three passes for each of two views."""
    recipe = sd.METHODS[method].edit(["data=digits", "probe_every=auto"])
    made = monitor.Monitor(recipe, tiny_source, Journal(tmp_path, 0, 1, Console(quiet=True)), Clock(torch.device("cpu")))
    passes, trained = networks * (96 + 32), 3 * 2 * 96
    assert made.every == math.ceil(passes / trained / monitor.SHARE)
    assert passes / (made.every * trained) <= monitor.SHARE < passes / ((made.every - 1) * trained)


def test_parameters_without_gradient_are_named():
    siamese = Siamese(with_preset(sd.METHODS["simsiam"], "digits")[0], 10)
    idle = next(siamese.parameters())
    for p in siamese.parameters():
        p.grad = torch.zeros_like(p)
    loop._all_learn(siamese)
    idle.grad = None
    with pytest.raises(sd.Misuse, match=r"1 parameters get no gradient, the first: student\..*devices=1"):
        loop._all_learn(siamese)
    idle.requires_grad_(False)
    loop._all_learn(siamese)


def test_probes_do_not_change_the_run(tiny_run, tiny_source, tmp_path):
    rare = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "rare", **{**TINY, "log_every": 100}, probe_every=2)
    often = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "often", **TINY, probe_every=1)
    assert same({**state_of(rare), "lines": None}, {**state_of(often), "lines": None})


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(sig, tmp_path):
    """A real process, a real signal: exit code 128 + its number, a checkpoint, and a resume to the end."""
    args = ["data=digits", "epochs=3", "batch_size=64", *(f"{k}={v}" for k, v in TINY.items() if k not in ("epochs", "batch_size"))]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "selfdistill", "pretrain", "simsiam", *args, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: lines(out) > 3 or process.poll() is not None)
    os.kill(process.pid, sig)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sig, err
    assert f"--out {out} --resume" in err
    assert "Traceback" not in err
    assert (out / "checkpoints" / "last.ckpt").exists()
    run = sd.pretrain("simsiam", out=out, resume=True)
    assert run.summary["step"] == 3 * (1437 // 64)
    assert [r["step"] for r in run.metrics] == sorted({r["step"] for r in run.metrics})


def test_a_module_of_the_users_own(tiny_source, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 12, 3)

        def forward(self, x):
            return self.conv(x)  # a map: it is pooled

    tiny = {k: v for k, v in TINY.items() if not k.startswith("encoder")}
    run = sd.pretrain("byol", data=tiny_source, encoder=Net(), out=tmp_path / "own", **tiny)
    assert run.embed(tiny_source.test.pixels).shape == (32, 12)
    torch.testing.assert_close(sd.load(run.path, encoder=Net()).embed(tiny_source.test.pixels), run.embed(tiny_source.test.pixels))
    with pytest.raises(sd.Misuse, match="encoder"):
        sd.load(run.path).backbone  # noqa: B018


def test_no_figure_of_a_module_of_the_users_own_is_of_other_weights(tiny_source, tmp_path):
    """The run measures copies: its backbone is the teacher, and neither is changed by a look at the student."""
    net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12))
    tiny = {k: v for k, v in TINY_OF["mean-teacher"].items() if not k.startswith("encoder")}
    run = sd.pretrain("mean-teacher", data=tiny_source, encoder=net, out=tmp_path / "run", **tiny)
    assert run.summary["error_student"] == run.metrics[-1]["error_student"]
    before = run.embed(tiny_source.test.pixels)
    assert not before.is_inference()  # one may train on it
    sd.diagnosis_of(run)
    assert torch.equal(run.embed(tiny_source.test.pixels), before)
    assert net.training


def test_images_of_ones_own_are_passed_again_and_no_others_are_taken_for_them(tiny_source, tmp_path, monkeypatch):
    """A run of a set that is called like a built-in one, or like a folder beside it, does not open that."""
    monkeypatch.chdir(tmp_path)
    named = replace(tiny_source, name="digits")
    run = sd.pretrain("simsiam", data=named, out="run", **TINY)
    again = sd.load("run")
    assert again.embed(tiny_source.test.pixels).shape == (32, 16)
    with pytest.raises(sd.Misuse, match=r"data=python:digits: .*sd\.load\(RUN, data=images\)"):
        again.knn()
    assert sd.load("run", data=named).knn() == run.knn()
    assert sd.load("run", data="digits").source.name == "digits"
    with pytest.raises(sd.Misuse, match="images of 3 channels for an encoder of 1"):
        sd.load("run", data=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert sd.pretrain("simsiam", data=named, out="run", resume=True).recipe == run.recipe
    assert sd.pretrain("simsiam", data=named, **TINY).path.name == "simsiam-digits-1"
    said = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(said.replace("python:digits", "digits"))
    with pytest.raises(sd.Misuse, match="a run of data=digits, which it opens itself"):
        sd.load("run", data=named)
    assert len(sd.load("run", data="digits").source.train) == 1437


def test_python_takes_runs_paths_tensors_and_specs_alike(tiny_source, tiny_run, tmp_path):
    pixels = tiny_source.test.pixels
    rows = tmp_path / "rows.npy"
    assert sd.embed_to(tiny_run, pixels, rows) == len(pixels)
    assert torch.equal(torch.from_numpy(np.load(rows)), tiny_run.embed(pixels))
    again = sd.load(tiny_run.path, data=tiny_source)
    assert list(sd.measure("raw-pixels", data="digits", **{"knn.ks": [3]})) == ["knn"]
    assert sd.diagnosis_of(tiny_run).to_json() == sd.diagnosis_of(again).to_json()
    for of_a_path in (sd.diagnosis_of, sd.predictor_gap):
        with pytest.raises(sd.Misuse, match="data=python:bars"):
            of_a_path(str(tiny_run.path))
    assert sd.diagnosis_of(np.random.default_rng(0).normal(size=(200, 8)).astype("f4")).verdict == "healthy"
    assert sd.picture("curves", tiny_run).axes
    sd.duplicates(tiny_run, tiny_source, 0.999, out=str(tmp_path / "pairs.csv"), sheet=str(tmp_path / "pairs.png"))
    assert (tmp_path / "pairs.csv").exists()
    optimizer = sd.METHODS["dino"].optimizer
    run = sd.pretrain(tiny_run.path / "recipe.yaml", data=tiny_source, without="stop-gradient", optimizer=optimizer, out=tmp_path / "run")
    assert (run.recipe.optimizer, run.recipe.stop_gradient) == (optimizer, False)
    assert sd.METHODS["byol"].edit("epochs=3").epochs == 3


def test_a_tensor_without_labels(tmp_path):
    run = sd.pretrain(
        "simsiam", data=torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), encoder="resnet-small", out=tmp_path / "t", **TINY
    )
    assert run.summary["knn_top1"] is None
    with pytest.raises(sd.Misuse, match="labels"):
        run.knn()


def test_a_checkpoint_with_code_in_it_is_refused(tiny_source, tmp_path):
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {marker}",))

    torch.save({"model": Evil()}, run.checkpoint)
    with pytest.raises(sd.Misuse, match="refused"):
        sd.pretrain("simsiam", data=tiny_source, out=run.path, resume=True)
    assert not marker.exists()


def test_two_processes_leave_one_run(tmp_path):
    """DDP over gloo: one folder, each step once, and every rank's share of the batch counted. One of them is profiled."""
    settings = [*(f"{k}={v}" for k, v in TINY.items() if k != "epochs"), "epochs=1", "devices=2"]
    words = ["pretrain", "byol", "data=digits", *settings, "--profile", "--no-report", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "selfdistill", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("run folder:") == 1
    run = sd.load(tmp_path / "run")
    assert [r["step"] for r in run.metrics] == list(range(1437 // 32 + 1))
    assert run.summary["verdict"] == "healthy"
    assert json.loads((run.path / "profile.json").read_text())["steps"] == 1437 // 32


def test_two_processes_train_as_one_does_on_the_same_batches(tmp_path):
    """Each on its share, gradients averaged. Without BatchNorm, whose statistics processes on CPUs do not share."""
    vit = ["encoder=timm:vit_tiny_patch16_224", "encoder.options={patch_size: 4, depth: 1, embed_dim: 16, num_heads: 2}"]
    words = [*vit, "projector.bn=none", "predictor.bn=none", "precision=fp32", "epochs=1", "batch_size=128", "probe_every=9"]
    two = ["pretrain", "simsiam", "data=digits", *words, "devices=2", "--no-report", "--out", str(tmp_path / "2")]
    command = [sys.executable, "-m", "selfdistill", *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    sd.pretrain("simsiam", *words, data="digits", out=tmp_path / "1")
    one, two = (safetensors.torch.load_file(tmp_path / n / "backbone.safetensors") for n in ("1", "2"))
    start = untrained(sd.load(tmp_path / "1").recipe).net.state_dict()
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 0.02  # it learned
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)


def test_the_loop_clips(tiny_source, tmp_path):
    settings = {**TINY, "epochs": 1, "weight_decay": 0, "precision": "fp32"}
    for norm, moved in ((1e-9, False), (1e9, True)):
        run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / str(moved), clip=f"{{norm: {norm}}}", **settings)
        start = dict(untrained(run.recipe).named_parameters())
        assert any((p - start[name]).abs().max() > 1e-5 for name, p in run.backbone.named_parameters()) == moved


def test_the_loop_freezes_prototypes_at_first(tiny_source, tmp_path):
    def prototypes(frozen, epochs):
        words = {**TINY_OF["dino"], "projector.frozen_epochs": frozen, "epochs": epochs}
        run = sd.pretrain("dino", data=tiny_source, out=tmp_path / f"{frozen}-{epochs}", **words)
        return next(part.weight for part in siamese_of(run).student.modules() if isinstance(part, Prototypes))

    start = prototypes(2, 2)
    assert torch.equal(prototypes(1, 1), start)
    assert not torch.allclose(prototypes(0, 1), start, atol=1e-4)
    assert not torch.allclose(prototypes(1, 2), start, atol=1e-4)


def test_a_checkpoint_is_due_each_minute_and_costs_two_per_cent_at_most(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    keeper = checkpoint.Keeper(tmp_path, Checkpoint(), 8, writes=True)
    for cost, at, due in ((0, 59, False), (0, 61, True), (2, 99, False), (2, 101, True)):
        keeper.cost, now[0] = cost, at
        assert keeper.due() == due


@pytest.mark.parametrize(("amx", "avx512", "bf16"), [(True, False, True), (False, True, True), (False, False, False)])
def test_precision_is_the_machines(amx, avx512, bf16, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    recipe, _, _ = resolve(sd.METHODS["simsiam"], ["data=digits"])
    assert (recipe.precision, recipe.compile) == ("bf16" if bf16 else "fp32", "off")


def test_a_gpu_compiles_what_is_long_enough_to_repay_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for epochs, word in ((REPAID // 11, "off"), (REPAID // 11 + 1, "on")):  # of 11 steps
        recipe, _, _ = resolve(sd.METHODS["simsiam"], ["data=digits", "batch_size=128", f"epochs={epochs}"])
        assert (recipe.precision, recipe.compile) == ("bf16", word)


def test_a_run_leaves_the_process_as_it_was(tiny_source, tmp_path):
    """Denormals, which are flushed while it trains, and the signals' handlers."""
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **{**TINY, "epochs": 1})
    assert float(torch.tensor(5e-324, dtype=torch.float64) * 1) > 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_resume_may_name_what_the_run_was_made_without(tiny_source, tmp_path):
    """Also what the preset had taken out, or what went with another ingredient."""
    made = {"data": tiny_source, "out": tmp_path / "run"}
    gone = ["projector-bn", "stop-gradient", "output-bn"]
    sd.pretrain("simsiam", **made, without=gone, **TINY)
    recipe = sd.pretrain("simsiam", **made, without=gone, resume=True).recipe
    assert (recipe.stop_gradient, recipe.projector.bn) == (False, "none")
    with pytest.raises(sd.Misuse, match="predictor"):
        sd.pretrain("simsiam", **made, without=["predictor"], resume=True)


def test_resume_with_what_the_run_chose_by_itself(tiny_source, tmp_path):
    words = ("precision=auto", "compile=auto", "preset=auto")
    made = sd.pretrain("simsiam", *words, data=tiny_source, out=tmp_path / "run", **TINY)
    assert sd.pretrain("simsiam", *words, data=tiny_source, out=tmp_path / "run", resume=True).recipe == made.recipe


def test_labels_of_which_none_could_be_held_out_are_no_missing_labels(tmp_path):
    source = Source("singles", Pixels(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8), tuple("abcdefgh")))
    with pytest.raises(sd.Misuse, match="singles has labels, and no image could be held out"):
        source.labelled()


def test_a_bank_of_fewer_images_than_neighbours_ends_its_run(tmp_path):
    """kNN takes the 20 nearest, or all that there are."""
    pixels, labels = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8), torch.arange(24) % 2
    source = Source("few", Pixels(pixels[:16], labels[:16], ("a", "b")), Pixels(pixels[16:], labels[16:], ("a", "b")))
    run = sd.pretrain("simsiam", data=source, out=tmp_path / "run", **{**TINY, "batch_size": 8})
    assert 0 <= run.summary["knn_top1"] <= 1
    assert {"knn_random_init", "knn_raw_pixels"} <= set(run.summary)


def test_resume_keeps_what_protocols_added_and_knows_its_method(tmp_path, tiny_source, tiny_run):
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps(tiny_run.summary | {"linear_top1": 0.75}))
    again = sd.pretrain("simsiam", data=tiny_source, out=folder, resume=True)
    assert again.summary == tiny_run.summary | {"linear_top1": 0.75}
    with pytest.raises(sd.Misuse, match=r"method byol with resume of .*, a run of simsiam"):
        sd.pretrain("byol", data=tiny_source, out=folder, resume=True)


def test_a_recipe_file_and_a_run_to_go_on_with_exclude_each_other(command, tiny_run):
    code, _, err = command("pretrain", "--config", tiny_run.path / "recipe.yaml", "--out", tiny_run.path, "--resume")
    assert code == 2
    assert "--config" in err
    assert "--resume" in err


def test_a_path_that_is_called_like_a_data_set_is_a_path(tmp_path, monkeypatch):
    folder = tmp_path / "digits"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    settings = {**TINY, "epochs": 1, "batch_size": 4, "encoder": "resnet-small", "views.size": 8, "workers": 0}
    run = sd.pretrain("simsiam", data=Path("digits"), out=tmp_path / "run", **settings)
    assert len(run.source.train) == 8
    assert len(sd.load(run.path).source.train) == 8  # its recipe says so too
    assert run.embed(Path("digits")).shape == (8, 16)


def test_mean_teachers_baseline_is_of_the_same_labels_and_settings(tmp_path, command):
    settings = {**TINY_OF["mean-teacher"], "data": "digits", "epochs": 1, "labels": 20, "lr": 0.01}
    _, out, _ = command("pretrain", "mean-teacher", *(f"{k}={v}" for k, v in settings.items()), "--out", "mt")
    words = shlex.split(next(line for line in out.splitlines() if line.startswith("from the same labels alone: ")).partition(": ")[2])
    assert command(*words[1:], "--out", "alone")[0] == 0
    given, alone = (sd.load(tmp_path / name).recipe for name in ("mt", "alone"))
    assert [path for path, _, _ in sd.diff(given, alone) if not path.startswith("terms.consistency")] == ["labelled_share"]

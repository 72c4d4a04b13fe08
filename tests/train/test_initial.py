"""Weights that a run starts from, and files of another version or another shape."""

from functools import partial

import pytest
import safetensors.torch
import timm
import torch
import yaml

import selfdistill as sd
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import FORMAT, Checkpoint
from selfdistill.train import checkpoint
from selfdistill.train.initial import initialised
from selfdistill.train.run import untrained
from tests.conftest import TINY, TINY_OF


def backbone_of(run, who="student"):
    prefix = {"student": "student.backbone.net.", "teacher": "teacher.net.backbone.net."}[who]
    model = torch.load(run.checkpoint, weights_only=True)["model"]
    return {k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)}


STILL = {**TINY, "epochs": 1, "lr": 0, "lr.warmup": 0}
"""a run whose weights stay where they start"""


def equal(a, b):
    parameters = [k for k in a if "running" not in k and "num_batches" not in k]
    return parameters and all(torch.equal(a[k], b[k]) for k in parameters)


@pytest.mark.parametrize("form", ["run", "unfinished run", "safetensors", "checkpoint", "pth", "wrapped"])
def test_a_run_starts_from_anothers_weights(form, tiny_run, tiny_source, tmp_path):
    weights = safetensors.torch.load_file(tiny_run.path / "backbone.safetensors")
    if form == "run":
        name = tiny_run.path
    elif form == "unfinished run":
        name = tmp_path / "cut"
        (name / "checkpoints").mkdir(parents=True)
        (name / "checkpoints" / "last.ckpt").write_bytes(tiny_run.checkpoint.read_bytes())
    elif form in ("safetensors", "checkpoint"):
        name = tiny_run.path / "backbone.safetensors" if form == "safetensors" else tiny_run.checkpoint
    else:
        wrapped = {"epoch": 3, "state_dict": {f"module.encoder_q.{k}": v for k, v in weights.items()} | {"module.fc.weight": torch.ones(2)}}
        name = tmp_path / "weights.pth"
        torch.save(weights if form == "pth" else wrapped, name)
    run = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", init_from=str(name), **STILL)
    assert equal(weights, backbone_of(run))
    assert equal(weights, backbone_of(run, "teacher"))  # which starts as the student's copy
    assert not equal(weights, untrained(run.recipe).net.state_dict())


def test_timms_pretrained_weights(tiny_source, tmp_path, monkeypatch):
    """Through timm's own loading, which fits them to grey images and another size; the file is ours, there is no network."""
    vit = {k: v for k, v in TINY_OF["dino"].items() if k.startswith("encoder.options")}["encoder.options"]
    options = yaml.safe_load(vit)
    colour = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=5, **options)
    torch.save(colour.state_dict(), tmp_path / "hub.pth")
    overlay = {"file": str(tmp_path / "hub.pth"), "num_classes": 5}
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, pretrained_cfg_overlay=overlay))
    settings = {**TINY_OF["dino"], "epochs": 1, "lr": 0, "lr.warmup": 0, "lr.end": None, "init_from": "timm:vit_tiny_patch16_224"}
    run = sd.pretrain("dino", data=tiny_source, out=tmp_path / "run", **settings)
    found = backbone_of(run)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], colour.state_dict()["blocks.0.attn.qkv.weight"])
    grey = colour.state_dict()["patch_embed.proj.weight"].sum(1, keepdim=True)  # timm sums over the colours
    torch.testing.assert_close(found["patch_embed.proj.weight"], grey)


def test_weights_that_cannot_be_had_or_do_not_fit(tiny_run, tiny_source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def message(error=sd.Misuse, **settings):
        with pytest.raises(error) as caught:
            sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", **{**STILL, **settings})
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert "no such file" in message(init_from="nowhere.pth")
    assert "not a run folder" in message(init_from=str(tmp_path))
    assert "no model of that name" in message(init_from="timm:vit_tiny")
    (tmp_path / "torn.safetensors").write_bytes(b"\0" * 7)
    assert "torn.safetensors: refused" in message(init_from=str(tmp_path / "torn.safetensors"))
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert "code.pth: refused" in message(init_from=str(tmp_path / "code.pth"))
    wider = {"init_from": str(tiny_run.path), "encoder.options": "{widths: [8, 24]}"}
    said = message(**wider)
    assert "keys (" in said
    assert "blocks.1.conv1.weight [16, 8, 3, 3] for [24, 8, 3, 3]" in said
    assert "init_partial=true" in said
    run = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", init_partial=True, **{**STILL, **wider})
    taken = safetensors.torch.load_file(tiny_run.path / "backbone.safetensors")
    assert torch.equal(backbone_of(run)["conv1.weight"], taken["conv1.weight"])


def test_a_runs_checkpoint_starts_from_the_network_that_it_keeps(tiny_source, tmp_path):
    """As its folder does, which has that one alone: a run that was stopped is taken up from the same weights as one that ended."""
    made = sd.pretrain("moco", data=tiny_source, out=tmp_path / "run", keep="teacher", **TINY_OF["moco"])
    of_the_end = initialised(made.recipe.edit([f"init_from={made.path}"]))[0].net.state_dict()
    for place in (made.checkpoint, made.path):
        (made.path / "backbone.safetensors").unlink(missing_ok=True)
        found = initialised(made.recipe.edit([f"init_from={place}"]))[0].net.state_dict()
        assert all(torch.equal(found[name], value) for name, value in of_the_end.items())


def test_a_run_that_starts_from_weights_resumes_without_them(tiny_run, tiny_source, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tiny_run.path / "backbone.safetensors").read_bytes())
    run = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", init_from=str(weights), **STILL)
    weights.unlink()
    assert sd.pretrain("byol", data=tiny_source, out=run.path, resume=True).summary["step"] == 3


def test_a_recipe_and_a_checkpoint_say_their_format(tiny_run, tiny_source, tmp_path):
    recipe = yaml.safe_load((tiny_run.path / "recipe.yaml").read_text())
    assert recipe["format"] == torch.load(tiny_run.checkpoint, weights_only=True)["format"] == FORMAT
    newer = tmp_path / "newer.yaml"
    newer.write_text(yaml.safe_dump({**recipe, "format": FORMAT + 1, "versions": {"selfdistill": "9.9"}, "gravity": 9.81}))
    with pytest.raises(sd.Misuse, match=rf"format={FORMAT + 1} by selfdistill 9.9.*--upgrade.*unknown: gravity"):
        sd.Recipe.from_yaml(newer)
    older = tmp_path / "older.yaml"  # from before there were formats, and these fields
    older.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k not in ("format", "max_bad_steps", "checkpoint", "init_from")}))
    assert sd.Recipe.from_yaml(older) == tiny_run.recipe


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A run folder of our own, and how to change its checkpoint."""
    for name in ("recipe.yaml", "metrics.jsonl", "backbone.safetensors", "checkpoints/last.ckpt"):
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "copy" / name).write_bytes((tiny_run.path / name).read_bytes())
    run = sd.load(tmp_path / "copy")

    def change(f):
        state = torch.load(run.checkpoint, weights_only=True)
        f(state)
        torch.save(state, run.checkpoint)

    return run, change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s["model"].pop("student.backbone.net.conv1.weight"), r"missing: student\.backbone\.net\.conv1\.weight"),
        (lambda s: s["model"].update(extra=torch.ones(1)), "not known: extra"),
        (lambda s: s["model"].update({"student.backbone.net.conv1.weight": torch.ones(1)}), "of another shape: student"),
        (lambda s: s.pop("model"), "missing: "),
        (lambda s: s.pop("optimizer"), "no checkpoint of this run"),
        (lambda s: s.update(format=FORMAT + 1), "--upgrade"),
        (lambda s: s.update(images=95), "96 training images, and the run was made with 95"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_says_why(copy, change, said, tiny_source):
    run, edit = copy
    edit(change)
    with pytest.raises((sd.Misuse, sd.Failure), match=said):
        sd.pretrain("simsiam", data=tiny_source, out=run.path, resume=True)


def test_a_checkpoint_from_before_there_were_formats_is_read(copy, tiny_source):
    run, edit = copy
    edit(lambda s: [s.pop(k) for k in ("format", "images", "bad_steps", "knn_top1")])
    assert sd.pretrain("simsiam", data=tiny_source, out=run.path, resume=True).summary["step"] == 6


def test_a_backbone_is_loaded_whole_or_not_at_all(copy):
    run, _ = copy
    file = run.path / "backbone.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["conv1.weight"]
    safetensors.torch.save_file(weights, file)
    with pytest.raises(sd.Failure, match=r"missing: conv1\.weight"):
        run.backbone  # noqa: B018


def test_checkpoints_are_kept_by_epoch_and_by_knn(tiny_source, tmp_path):
    settings = {**TINY, "epochs": 4, "probe_every": 1, "checkpoint.every": 2, "checkpoint.best": True}
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **settings)
    folder = run.checkpoint.parent
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", "best.ckpt", "epoch-2.ckpt", "epoch-4.ckpt"}
    step = {p.stem: torch.load(p, weights_only=True)["step"] for p in folder.iterdir()}
    probes = [(row["knn_top1"], -row["step"]) for row in run.metrics if row["step"] and "knn_top1" in row]
    assert len(probes) == 4
    assert step == {"last": 12, "epoch-2": 6, "epoch-4": 12, "best": -max(probes)[1]}
    again = sd.pretrain("byol", data=tiny_source, out=tmp_path / "next", init_from=str(folder / "epoch-2.ckpt"), **STILL)
    held = torch.load(folder / "epoch-2.ckpt", weights_only=True)["model"]["student.backbone.net.conv1.weight"]
    assert torch.equal(backbone_of(again)["conv1.weight"], held)


def test_a_resume_keeps_the_best_and_the_last_is_written_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "write_whole", lambda path, content: written.append(path.name))
    torch.save({"knn_top1": 0.9}, tmp_path / "best.ckpt")
    net = torch.nn.Linear(1, 1)
    keeper = checkpoint.Keeper(tmp_path, Checkpoint(best=True, every=1), 8, writes=True)
    for knn in (0.5, 0.95, 0.93):
        keeper.after(Progress(2, 2, 2), net, torch.optim.SGD(net.parameters()), [], knn, asked=False)
    assert written == ["epoch-1.ckpt", "last.ckpt", "epoch-1.ckpt", "best.ckpt", "last.ckpt", "epoch-1.ckpt", "last.ckpt"]


def test_the_best_needs_labels(tmp_path):
    with pytest.raises(sd.Misuse, match="no labels"):
        sd.pretrain("simsiam", data=torch.zeros(64, 1, 8, 8, dtype=torch.uint8), **TINY, **{"checkpoint.best": True})

"""A backbone in other libraries' hands: the same features there, or nothing written."""

import json
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.disk import merge
from selfdistill.export import deliver
from selfdistill.export.formats import FORMATS, Kept
from selfdistill.parts.encoder import Encoder
from selfdistill.train.subject import subject_of
from selfdistill.views.augment import plain
from tests.conftest import TINY, TINY_OF

OWN = {"preset": "none", "views.size": 32, "epochs": 1}
PLAIN = {k: v for k, v in TINY.items() if k != "encoder.options"}
VIT = {**TINY_OF["dino"], "encoder.options": "{patch_size: 4, depth: 1, embed_dim: 16, num_heads: 2}", "views.locals": None}


@pytest.fixture(scope="module")
def colours() -> Source:
    pixels = torch.randint(0, 256, (104, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Source("colours", Pixels(pixels[:64]), Pixels(pixels[64:]))


@pytest.fixture(scope="module")
def resnet(colours, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "resnet"
    return sd.pretrain("byol", "optimizer=sgd", data=colours, encoder="resnet18", out=out, **{**PLAIN, **OWN, "batch_size": 64})


@pytest.fixture(scope="module")
def vit(colours, tmp_path_factory):
    return sd.pretrain("dino", data=colours, out=tmp_path_factory.mktemp("runs") / "vit", **{**VIT, **OWN})


@pytest.fixture(scope="module")
def small(colours, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    return sd.pretrain("simsiam", data=colours, encoder="resnet-small", out=out, **{**TINY, **OWN})


def read_by_its_readme(folder, images):
    """What a stranger gets who copies the README's Python."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    scope = {"folder": str(folder), "images": images}
    with torch.no_grad():
        exec(code, scope)
    return torch.as_tensor(scope["features"])


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "onnx"])
def test_the_lines_of_the_readme_give_the_runs_own_features(resnet, colours, format, tmp_path):
    for package in FORMATS[format].needs:
        pytest.importorskip(package)
    done = sd.export_run(resnet, format, out=tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    images = plain(colours.train.pixels[:5], resnet.recipe.views)  # not the ones it was checked on
    found = read_by_its_readme(done.path, images)
    ours = resnet.backbone(images).detach()
    assert ours.std() > 0.01
    assert (found - ours).abs().max() < 1e-5
    assert done.sizes == (32, 64)
    card = (done.path / "README.md").read_text()
    for word in ("byol", "colours", str(list(resnet.recipe.views.mean)), resnet.summary["because"], "Licence", "64 images"):
        assert word in card


def test_teacher_and_student(resnet, vit, small, tmp_path):
    """BYOL keeps the student, DINO the teacher; the other is in the checkpoint."""
    assert deliver.backbone_of(subject_of(resnet))[0] == "student"
    state = torch.load(vit.checkpoint, weights_only=True)["model"]
    for of, asked, prefix in (("teacher", None, "teacher.net.backbone.net."), ("student", "student", "student.backbone.net.")):
        done = sd.export_run(vit, "safetensors", asked, tmp_path / of)
        assert done.of == of
        with safetensors.safe_open(done.path / "model.safetensors", "pt") as file:
            assert file.metadata()["of"] == of
            assert (done.path / "model.safetensors").stat().st_mode == (done.path / "README.md").stat().st_mode
            assert json.loads(file.metadata()["mean"]) == list(vit.recipe.views.mean)
            assert all(torch.equal(file.get_tensor(k), state[prefix + k]) for k in file.keys())  # noqa: SIM118
    with pytest.raises(sd.Misuse, match="no weights of its own"):
        sd.export_run(small, "onnx", "teacher", tmp_path / "none")
    with pytest.raises(sd.Misuse, match="--of both"):
        sd.export_run(vit, "onnx", "both", tmp_path / "none")


def test_a_card_has_no_figure_of_the_other_network(vit, colours, tmp_path):
    """What is measured at the end is the network that the run keeps, DINO's teacher."""
    shutil.copytree(vit.path, tmp_path / "run")
    run = sd.Run(tmp_path / "run", source=colours)
    merge(run.path / "summary.json", {"knn_top1": 0.91, "linear_top1": 0.92, "knn_student": 0.81, "knn_teacher": 0.89})
    for of, has, lacks in (("teacher", ("0.91", "0.92"), ("0.81", "0.89")), ("student", ("0.81",), ("0.91", "0.92", "0.89"))):
        worth = (sd.export_run(run, "safetensors", of, tmp_path / of).path / "README.md").read_text().partition("## Recipe")[0]
        assert all(f"| {number}" in worth for number in has)
        assert not any(f"| {number}" in worth for number in lacks)


def test_a_card_of_a_student_that_is_kept_in_place_of_a_teacher_without_weights(vit, colours, tmp_path):
    """DINO keeps its teacher; without a momentum teacher that is the student, and its figures are the run's."""
    run = sd.pretrain("dino", data=colours, without="momentum-teacher", out=tmp_path / "run", **{**VIT, **OWN})
    merge(run.path / "summary.json", {"knn_top1": 0.91})
    assert (run.recipe.keep, run.recipe.kept, vit.recipe.kept) == ("teacher", "student", "teacher")
    assert "| 0.91" in (sd.export_run(run, "safetensors", out=tmp_path / "out").path / "README.md").read_text()


def test_timms_config_is_the_call_that_makes_the_network(vit, colours, tmp_path):
    done = sd.export_run(vit, "timm", out=tmp_path / "out")
    config = json.loads((done.path / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], num_classes=0, checkpoint_path=str(done.path / "model.safetensors"), **config["model_args"]
    )
    images = plain(colours.train.pixels[:3], vit.recipe.views)
    assert (model.eval()(images) - vit.backbone(images)).abs().max() < 1e-5
    how = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{done.path}"))
    assert tuple(how["mean"]) == vit.recipe.views.mean
    assert tuple(how["input_size"]) == (3, 32, 32)
    assert config["pretrained_cfg"]["fixed_input_size"] is False


def test_onnx_takes_any_number_of_images_of_any_size(vit, tmp_path):
    """The ViT's position embedding is resized in the graph."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = sd.export_run(vit, "onnx", out=tmp_path / "out")
    session = onnxruntime.InferenceSession(done.path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["of"] == "teacher"
    images = torch.randn(4, 3, 32, 32)
    assert (read_by_its_readme(done.path, images) - vit.backbone(images)).abs().max() < 1e-5
    for size in (32, 48):
        for n in (1, 2, 7):
            images = torch.randn(n, 3, size, size)
            (found,) = session.run(None, {"images": images.numpy()})
            np.testing.assert_allclose(found, vit.backbone(images).detach(), atol=1e-5)


def test_transformers_knows_how_images_are_read(vit, tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    done = sd.export_run(vit, "hf", out=tmp_path / "out")
    pixels = torch.randint(0, 256, (32, 32, 3)).to(torch.uint8)
    seen = transformers.AutoImageProcessor.from_pretrained(done.path)(Image.fromarray(pixels.numpy()))["pixel_values"]
    torch.testing.assert_close(seen, plain(pixels.permute(2, 0, 1)[None], vit.recipe.views), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format", ["timm", "torchvision", "hf"])
def test_what_a_format_cannot_hold_is_refused_with_the_way_out(small, format, tmp_path):
    """Before a package is asked for."""
    with pytest.raises(sd.Misuse, match=r"resnet-small.*--format onnx"):
        sd.export_run(small, format, out=tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("encoder", "said"), [({"stem": "3x3/2"}, "encoder.stem=3x3/2.*7x7"), ({"channels": 1}, "3 channels.*have 1")])
def test_what_torchvisions_resnets_are_not(encoder, said):
    spec = Encoder(name="resnet18", **encoder)
    recipe = sd.METHODS["simsiam"].model_copy(update={"encoder": spec})
    kept = Kept(spec.build(32), recipe, "student", torch.zeros(1, spec.channels, 32, 32))
    with pytest.raises(sd.Misuse, match=said):
        FORMATS["torchvision"].check(kept)


def test_a_card_of_a_run_whose_images_are_gone_and_of_weights_that_lie_somewhere(small, colours, tmp_path):
    run = sd.load(shutil.copytree(small.path, tmp_path / "run"))
    words = (run.path / "recipe.yaml").read_text().replace(f"data: {run.recipe.data}", "data: /home/alice/photos")
    (run.path / "recipe.yaml").write_text(words.replace("init_from: null", "init_from: /home/alice/w.pth"))
    sd.export_run(run.path, "safetensors", data=colours, out=tmp_path / "given")
    card = (tmp_path / "given" / "README.md").read_text()
    assert "init_from: w.pth" in card
    assert "alice" not in card
    assert f"Trained on {len(colours.train)} images of photos" in card


def test_an_unknown_format_and_a_network_that_torchvision_lacks(vit, tiny_run, tmp_path):
    with pytest.raises(sd.Misuse, match="no vit_tiny_patch16_224"):
        sd.export_run(vit, "torchvision", out=tmp_path / "out")
    with pytest.raises(sd.Misuse, match=r"--format torch: allowed.*torchvision"):
        sd.export_run(tiny_run, "torch", out=tmp_path / "out")


def test_a_format_that_says_something_else_leaves_nothing(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS["timm"], "features", lambda kept, folder, images: kept.backbone(images) + 1e-3)
    with pytest.raises(deliver.Failure, match=r"differ by 0\.001"):
        sd.export_run(vit, "timm", out=tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(vit, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(sd.Misuse, match="exists already"):
        sd.export_run(vit, "timm", out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_module_of_the_users_own(colours, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())  # maps [B, 8, h, w], which are pooled
    run = sd.pretrain("simsiam", data=colours, encoder=net, out=tmp_path / "run", **{**PLAIN, **OWN})
    done = sd.export_run(run, "safetensors", out=tmp_path / "out")
    assert done.difference == 0
    assert "your own, Sequential" in (done.path / "README.md").read_text()
    with pytest.raises(sd.Misuse, match="module of your own"):
        sd.export_run(run, "timm", out=tmp_path / "timm")


def test_tied_weights_leave_too(colours, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.g.weight = self.f.weight

        def forward(self, x):
            return self.f(x).relu() + self.g(x)

    run = sd.pretrain("simsiam", data=colours, encoder=Tied(), out=tmp_path / "run", **{**PLAIN, **OWN})
    assert sd.export_run(run, "safetensors", out=tmp_path / "out").difference == 0


@pytest.mark.parametrize("format", ["timm", "torchvision", "safetensors"])
def test_timms_own_weights(colours, format, tmp_path, monkeypatch):
    """Pretrained ones, made up here for want of a network: what leaves is what was loaded, and needs no download again."""
    load, downloads = timm.models._builder.load_pretrained, []

    def loaded(model, pretrained_cfg, **kw):
        if pretrained_cfg.get("source") == "local-dir":  # the export, read by timm
            return load(model, pretrained_cfg, **kw)
        downloads.append(nn.init.constant_(model.conv1.weight, 0.01))

    monkeypatch.setattr(timm.models._builder, "load_pretrained", loaded)
    done = sd.export_run("timm:resnet18", format, out=tmp_path / "out", data=colours, settings=["views.size=32"])
    state = safetensors.torch.load_file(done.path / "model.safetensors")
    assert torch.equal(state["conv1.weight"], torch.full_like(state["conv1.weight"], 0.01))
    assert read_by_its_readme(done.path, torch.rand(2, 3, 32, 32)).shape == (2, 512)
    assert len(downloads) == 1
    card = (done.path / "README.md").read_text()
    assert "timm's pretrained weights (timm:resnet18), whose licence is their authors'" in card
    assert "Nothing was trained or measured here" in card

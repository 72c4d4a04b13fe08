"""Protocols on runs and baselines: what they measure, what they write, what they refuse."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import selfdistill as sd
from selfdistill import protocols
from selfdistill.data.images import Files, Pixels, Source
from selfdistill.data.loader import in_memory
from selfdistill.data.sources import digits
from selfdistill.errors import Failure, Misuse
from selfdistill.evaluate.knn import knn_accuracy
from selfdistill.evaluate.logistic import logistic
from selfdistill.protocols import PROTOCOLS
from selfdistill.protocols.tuned import few_labels
from selfdistill.train.subject import RawPixels, subject_of
from tests.conftest import TINY, TINY_OF, VIT

QUICK = [
    "linear.epochs=3",
    "logistic.strengths=[1.0]",
    "finetune.epochs=2",
    "supervised.epochs=2",
    "supervised.rates=[0.1]",
    "semi.epochs=[2]",
    "semi.rates=[0.05, 0.1]",
    "clustering.starts=1",
    "robustness.epochs=2",
    "robustness.corruptions=[contrast, jpeg]",
    "dense.bank=30",
    "dense.test=10",
    "dense.epochs=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return sd.pretrain("simsiam", data="digits", out=tmp_path_factory.mktemp("runs") / "run", **{**TINY, "epochs": 1, "batch_size": 128})


@pytest.fixture
def run(trained, tmp_path):
    """The run in a folder of its own, to write into."""
    shutil.copytree(trained.path, tmp_path / "run")
    return sd.load(tmp_path / "run")


@pytest.fixture
def say(command):
    """Runs `selfdistill evaluate` in tmp_path; (exit code, stdout, stderr)."""
    return partial(command, "evaluate")


def test_every_protocol_measures_a_run_and_writes_what_it_found(run):
    found = sd.measure(run, *PROTOCOLS, *QUICK)
    assert list(found) == list(PROTOCOLS)
    for of in found.values():
        assert of["data"] == "digits"
        assert of["results"]
        assert all(-0.5 <= value <= 1 for value in of["results"].values())  # ARI may be below 0
    assert json.loads((run.path / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    assert "linear_top1" not in run.summary  # of three epochs: no figure for a table
    usual = sd.measure(run, "linear")["linear"]
    assert run.summary["linear_top1"] == usual["results"]["top1"]
    assert run.summary["knn_top1"] == found["knn"]["results"]["k=20"]
    assert found["linear"]["settings"]["epochs"] == 3
    assert set(found["robustness"]["results"]) == {"clean", "mean", *(f"{c}/{s}" for c in ("contrast", "jpeg") for s in range(1, 6))}
    assert set(found["semi"]["results"]) == {f"{share} {how}" for share in ("1%", "10%") for how in ("finetune", "linear")}
    assert found["semi"]["chosen"]["1%"]["images"] == 10
    assert found["linear"]["results"]["top1"] > 0.5


def test_a_second_measurement_stands_beside_the_first_or_in_its_place(run):
    sd.measure(run, "retrieval")
    sd.measure(run, "knn", "knn.ks=[3]")
    sd.measure(run, "knn", "knn.ks=[5]", to="digits")
    found = json.loads((run.path / "evaluation.json").read_text())
    assert list(found) == ["retrieval", "knn", "knn@digits"]
    assert list(found["knn"]["results"]) == ["k=3"]
    sd.measure(run, "linear", "linear.epochs=1", to="digits")
    assert "linear_top1" not in run.summary  # that was another data set's
    (run.path / "evaluation.json").write_text("{")
    with pytest.raises(Misuse, match=r"evaluation\.json: cannot be read"):
        sd.measure(run, "knn")


def test_raw_pixels_are_the_pixels():
    """l2-normalised, not centred: README's 0.975 at k = 20."""
    source = digits()
    flat = [images.pixels.flatten(1) for images in (source.train, source.test)]
    expected = {f"k={k}": knn_accuracy(flat[0], source.train.labels, flat[1], source.test.labels, k) for k in (10, 20, 100, 200)}
    found = sd.measure("raw-pixels", "knn", data="digits")["knn"]
    assert {k: v for k, v in found["results"].items() if k != "top1"} == expected
    assert expected["k=20"] == pytest.approx(0.975)
    assert found["results"]["top1"] == expected[f"k={found['chosen']['k']}"]


def test_random_init_is_the_encoder_before_the_first_step(run):
    settings = {k: v for k, v in TINY.items() if k in ("encoder.options", "precision")}
    found = sd.measure("random-init", "knn", "knn.ks=[20]", data="digits", **settings)
    assert found["knn"]["results"]["k=20"] == run.summary["knn_random_init"]
    other = sd.measure("random-init", "knn", "knn.ks=[20]", data="digits", seed=1, **settings)
    assert other["knn"]["results"]["k=20"] != found["knn"]["results"]["k=20"]


def test_supervised_is_the_fine_tuning_of_random_weights(run):
    """Whatever the run has learnt."""
    settings = {k: v for k, v in TINY.items() if k in ("encoder.options", "precision")}
    found = sd.measure(run, "supervised", "supervised.epochs=1", "supervised.rates=[0.1]")["supervised"]
    other = sd.measure("random-init", "finetune", "finetune.epochs=1", "finetune.rates=[0.1]", data="digits", **settings)
    assert found["results"] == other["finetune"]["results"]


def test_random_init_has_the_encoder_of_a_method_and_a_vit_is_dense_too():
    settings = {k: v for k, v in VIT.items() if k.startswith("encoder")}
    assert subject_of("random-init", ["data=digits", "method=dino"]).backbone.dim == 96
    found = sd.measure("random-init", "dense", *(q for q in QUICK if "dense" in q), data="digits", method="dino", **settings)
    assert 0 < found["dense"]["results"]["linear accuracy"] < 1


def test_supervised_has_no_random_weights_of_a_module_of_ones_own(tiny_source, tmp_path):
    tiny = {k: v for k, v in TINY.items() if not k.startswith("encoder")}
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(tiny_source.train.pixels[0].numel(), 16))
    run = sd.pretrain("simsiam", data=tiny_source, encoder=module, out=tmp_path / "run", **tiny)
    with pytest.raises(Misuse, match="supervised starts from random weights"):
        sd.measure(run, "supervised", *(q for q in QUICK if "supervised" in q))
    assert 0 <= sd.measure(run, "finetune", *(q for q in QUICK if "finetune" in q))["finetune"]["results"]["top1"] <= 1


def test_choices_do_not_look_at_the_test_images(run):
    """With the test images' labels turned round, the same k and rates are chosen."""
    source = digits()
    turned = Source("turned", source.train, Pixels(source.test.pixels, 9 - source.test.labels, source.test.classes))
    names = ["knn", "linear", "finetune", "semi"]
    quick = [setting for setting in QUICK if setting.partition(".")[0] in names]
    chosen = [
        {name: of["chosen"] for name, of in sd.measure(subject, *names, *quick).items()}
        for subject in (run, sd.Run(run.path, source=turned))
    ]
    assert chosen[0] == chosen[1]


def test_few_labels_are_the_same_number_of_each_class():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    few = few_labels(labels, 30, seed=0)
    assert labels[few].bincount().tolist() == [10, 10, 4]
    assert len(few.unique()) == 24
    assert torch.equal(few, few_labels(labels, 30, seed=0))
    assert not torch.equal(few, few_labels(labels, 30, seed=1))
    assert labels[few_labels(labels, 1, seed=0)].tolist() == [0, 1, 2]
    assert torch.equal(few_labels(100 * labels, 30, seed=0), few)  # numbers with gaps are classes as others


def test_transfer_makes_grey_images_rgb_and_colour_grey():
    source = digits()
    rgb = source.of_channels(3)
    assert all(torch.equal(of.pixels, was.pixels.expand(-1, 3, -1, -1)) for of, was in ((rgb.train, source.train), (rgb.test, source.test)))
    assert torch.equal(rgb.test.labels, source.test.labels)
    assert rgb.of_channels(3) is rgb
    back = rgb.of_channels(1)
    assert int((back.test.pixels.int() - source.test.pixels.int()).abs().max()) <= 1  # the weights of luma add up to 0.9999
    with pytest.raises(Misuse, match="1 channels for a network of 5"):
        source.of_channels(5)


def test_colour_files_are_grey_levels_to_a_network_of_one_channel(tiny_run, tmp_path):
    """As Pillow's L has them, to a level; and to a network of three as they are."""
    draws = np.random.default_rng(0)
    photos = [draws.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    for path, photo in zip(paths, photos, strict=True):
        Image.fromarray(photo).save(path)
    source = Source("photos", Files(paths))
    grey = source.of_channels(1)
    assert grey.of_channels(3).train is source.train
    assert (grey.train.path(1), grey.holds(paths[1]), len(grey.train.pick(torch.tensor([2])))) == (str(paths[1]), True, 1)
    views = tiny_run.recipe.views
    seen = in_memory(grey.train, views, workers=0).pixels
    luma = torch.stack([torch.from_numpy(np.array(Image.fromarray(photo).convert("L"))) for photo in photos])[:, None]
    assert seen.shape == (4, 1, views.size, views.size) == luma.shape
    assert int((seen.int() - luma.int()).abs().max()) <= 1
    assert torch.equal(tiny_run.embed(paths), tiny_run.embed(seen))
    assert torch.equal(tiny_run.embed(source), tiny_run.embed(seen))
    small = {**TINY, "epochs": 1, "batch_size": 4, "views.size": 8, "views.mean": [0.5], "views.std": [0.25], "workers": 0}
    trained = sd.pretrain(
        "simsiam", data=grey, out=tmp_path / "grey", encoder="resnet-small", preset="none", **{"encoder.channels": 1}, **small
    )
    assert trained.summary["step"] == 1


def test_pixels_of_scenes_are_not_the_users(tiny_run):
    with pytest.raises(Misuse, match=r"dense\.size=4: of a folder's images \(dense\.data=FOLDER\)"):
        sd.measure(tiny_run, "dense", "dense.size=4")


def test_random_weights_have_the_settings_that_fit_the_sets_own_preset():
    assert subject_of("random-init", ["data=digits", "encoder.channels=1"]).recipe.encoder.channels == 1


def test_a_checkpoint_is_measured_as_the_run_was_then(tmp_path, tiny_source):
    """The encoder that the run keeps, the teacher's here."""
    run = sd.pretrain("dino", data=tiny_source, out=tmp_path / "run", **{**TINY_OF["dino"], "checkpoint.every": 1})
    found = {name: subject_of(run.path / "checkpoints" / f"{name}.ckpt", data=tiny_source) for name in ("epoch-1", "epoch-2", "last")}
    features = {name: of.features(tiny_source.test) for name, of in found.items()}
    assert torch.equal(features["last"], run.embed(tiny_source.test.pixels))
    assert torch.equal(features["epoch-2"], features["last"])
    assert not torch.equal(features["epoch-1"], features["last"])
    assert found["last"].folder is None  # nothing of it is written as the run's
    with pytest.raises(Misuse, match="settings stand in"):
        subject_of(run.path / "checkpoints" / "last.ckpt", ["views.size=4"])
    with pytest.raises(Misuse, match=r"no.ckpt"):
        subject_of(run.path / "checkpoints" / "no.ckpt", data=tiny_source)


def masked(folder: Path, n=12):
    """Images whose right or left half is white, class 1; sizes differ."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(n):
        side = 16 + 4 * (i % 3)
        mask = np.zeros((side, side + 4), np.uint8)
        mask[:, : side // 2] = i % 2
        mask[:, side // 2 :] = 1 - i % 2
        Image.fromarray(255 * mask).convert("RGB").save(folder / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i:02}.png")


def test_dense_on_a_folder_of_masks(tmp_path):
    """White is class 1: raw pixels know it."""
    masked(tmp_path / "set")
    found = sd.measure("raw-pixels", "dense", "dense.epochs=20", f"dense.data={tmp_path / 'set'}", "dense.size=16", data="digits")
    assert found["dense"]["results"]["linear mIoU"] > 0.9
    assert found["dense"]["results"]["knn accuracy"] > 0.9


def test_the_command_line_and_the_spread_over_runs(say, run, tmp_path):
    second = shutil.copytree(run.path, tmp_path / "second")
    code, out, err = say("run", "--protocol", "knn,linear", "linear.epochs=1", "-k", "5", "--temperature", "0.1")
    assert code == 0, err
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert stored["knn"]["settings"] == {"ks": [5], "temperature": 0.1}
    for value in (stored["knn"]["results"]["k=5"], stored["linear"]["results"]["top1"]):
        assert f"{value:.4f}" in out
    assert "run/evaluation.json" in out
    code, out, err = say("run", second, "--protocol", "knn", "--k", "5")
    assert code == 0, err
    value = json.loads((second / "evaluation.json").read_text())["knn"]["results"]["k=5"]
    assert f"{value:.4f} ± 0.0000" in out
    code, out, err = say("run", "raw-pixels", "data=digits", "--k", "5")
    assert code == 2  # the setting is no run's
    code, out, err = say("run", "--to", "digits", "--protocol", "retrieval")
    assert code == 0, err
    assert "retrieval@digits" in json.loads((run.path / "evaluation.json").read_text())


WRONG = [
    ([], ["WHAT"]),
    (["data=digits"], ["evaluate what?"]),
    (["nowhere"], ["nowhere", "raw-pixels"]),
    (["raw-pixel", "data=digits"], ["raw-pixel", "raw-pixels"]),
    (["raw-pixels"], ["data=digits"]),
    (["raw-pixels", "data=digit"], ["digit", "digits"]),
    (["raw-pixels", "data=digits", "--protocol", "knnn"], ["--protocol knnn", "knn, linear"]),
    (["raw-pixels", "data=digits", "--protocol", "knn,"], ["--protocol :"]),
    (["raw-pixels", "data=digits", "-k", "100000"], ["k=100000", "1437"]),
    (["raw-pixels", "data=digits", "-k", "0"], ["knn.ks"]),
    (["raw-pixels", "data=digits", "knn.k=3"], ["knn.k=3", "ks, temperature"]),
    (["raw-pixels", "data=digits", "knn.temperature=cold"], ["knn.temperature=cold"]),
    (["raw-pixels", "data=digits", "knn.temperature=2024-02-31"], ["knn.temperature=2024-02-31"]),
    (["raw-pixels", "data=digits", "knn.ks=[10, 1400]"], ["nine tenths", "1293"]),
    (["raw-pixels", "data=digits", "linear.epochs=3"], ["linear.epochs=3", "knn"]),
    (["raw-pixels", "data=digits", "--protocol", "finetune"], ["nothing to fine-tune"]),
    (["raw-pixels", "data=digits", "--protocol", "finetune", "finetune.optimizer=adam"], ["finetune.optimizer", "adam"]),
    (["raw-pixels", "data=digits", "--protocol", "robustness", "robustness.corruptions=[fog]"], ["fog", "gaussian-noise"]),
    (["raw-pixels", "data=digits", "--protocol", "dense", "dense.data=nowhere"], ["nowhere", "images/"]),
    (["raw-pixels", "data=digits", "--to", "nowhere/at/all"], ["nowhere/at/all"]),
    (["random-init", "data=digits", "method=dinno"], ["dinno", "dino"]),
    (["random-init", "data=digits", "encoder=resnet19"], ["resnet19", "resnet18"]),
    (["timm:resnet19", "data=digits"], ["timm:resnet19"]),
]


@pytest.mark.parametrize(("args", "said"), WRONG, ids=lambda x: " ".join(x))
def test_a_mistake_is_one_message_with_exit_code_2(say, args, said):
    code, out, err = say(*args)
    assert code == 2
    assert out == ""
    for word in said:
        assert word in err
    if args:
        assert len(err.strip().splitlines()) == 1


def test_masks_that_do_not_fit(say, tmp_path):
    for break_it, said in [
        (lambda: (tmp_path / "set" / "masks" / "03.png").unlink(), "03.png has no mask"),
        (lambda: Image.new("RGB", (20, 24)).save(tmp_path / "set" / "masks" / "03.png"), "RGB image"),
        (lambda: (tmp_path / "set" / "masks" / "03.png").write_text("no image"), "03.png"),
    ]:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        masked(tmp_path / "set")
        break_it()
        code, _, err = say("raw-pixels", "data=digits", "--protocol", "dense", "dense.data=set", "dense.size=16")
        assert code == 2
        assert said in err


def test_masks_of_black_and_white_say_what_255_is(tmp_path):
    masked(tmp_path / "set")
    for file in (tmp_path / "set" / "masks").iterdir():
        Image.fromarray(255 * np.asarray(Image.open(file))).save(file)
    with pytest.raises(Misuse, match="255 is no class"):
        sd.measure("raw-pixels", "dense", f"dense.data={tmp_path / 'set'}", "dense.size=16", data="digits")


def test_what_was_measured_before_a_mistake_or_a_full_disk_is_said(say, run, monkeypatch):
    code, out, err = say("raw-pixels", "data=digits", "--protocol", "knn,finetune")
    assert (code, "finetune" in err, "0.9750" in out) == (2, True, True)

    def full(*args):
        raise Failure("evaluation.json: cannot be written")

    monkeypatch.setattr(protocols, "merge", full)
    code, out, err = say(run.path, "--protocol", "retrieval")
    assert (code, "cannot be written" in err, "mAP" in out) == (1, True, True)


def test_logistic_regression_of_one_class_is_refused():
    with pytest.raises(Misuse, match="one class"):
        logistic(torch.randn(30, 4), torch.zeros(30, dtype=torch.long), torch.randn(5, 4), torch.zeros(5, dtype=torch.long))


def test_weights_that_cannot_be_fetched_are_a_failure(say, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to huggingface.co")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    code, _, err = say("timm:resnet18", "data=digits")
    assert code == 1
    assert "timm:resnet18: its weights cannot be had (no route" in err


@pytest.mark.parametrize("protocol", ["clustering", "logistic", "knn", "finetune"])
def test_a_run_that_diverged_has_nothing_to_measure(tmp_path, tiny_source, protocol):
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    for p in run.backbone.parameters():
        torch.nn.init.constant_(p, torch.nan)
    with pytest.raises(Misuse, match="not finite"):
        sd.measure(run, protocol)


def test_images_are_not_compared_nor_weights_exported_by_a_run_that_diverged(tmp_path, tiny_source):
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    for p in run.backbone.parameters():
        torch.nn.init.constant_(p, torch.nan)
    for asked in (
        lambda: sd.neighbours(run, tmp_path / "one.png", tiny_source),
        lambda: sd.duplicates(run, tiny_source, 0.9),
        lambda: sd.export_run(run, "safetensors"),
        lambda: sd.embed_to(run, tiny_source, tmp_path / "h.npy"),
    ):
        with pytest.raises(Misuse, match="not finite: a run that diverged"):
            asked()
    assert not (run.path / "export").exists()


@pytest.mark.parametrize("protocol", ["knn", "linear", "logistic", "semi", "robustness", "clustering", "retrieval"])
def test_held_out_images_of_one_class_are_told_apart_by_any_features(tiny_run, tiny_source, protocol):
    one = (tiny_source.test.labels == 0).nonzero()[:, 0]
    test = Pixels(tiny_source.test.pixels[one], tiny_source.test.labels[one], tiny_source.test.classes)
    with pytest.raises(Misuse, match="are of one class"):
        sd.measure(tiny_run, protocol, to=Source("one", tiny_source.train, test))


def test_raw_pixels_that_patches_do_not_fill_are_refused():
    with pytest.raises(Misuse, match="50 x 50"):
        RawPixels(3).maps(torch.zeros(1, 3, 50, 50))


@pytest.mark.parametrize("seed", ["-1", str(2**40), "99999999999999999999"])
@pytest.mark.parametrize("name", ["linear", "finetune", "semi", "clustering", "robustness", "dense"])
def test_a_seed_out_of_range_is_refused_before_anything_is_computed(name, seed):
    with pytest.raises(Misuse, match=rf"{name}\.seed={seed}"):
        protocols.protocols_of([name], [f"{name}.seed={seed}"])


@pytest.mark.parametrize("method", sd.METHODS)
def test_every_methods_encoder_can_be_looked_at_untrained(method):
    asked = subject_of("random-init", [f"method={method}", "data=digits"])
    assert asked.recipe.method == method
    assert asked.features(asked.source.test.pick(torch.arange(3))).shape == (3, asked.backbone.dim)

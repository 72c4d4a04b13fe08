"""The command line as a user meets it: what it prints, and how it says no."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import yaml
from PIL import Image

import selfdistill as sd
from selfdistill import api
from selfdistill.ablate import results
from selfdistill.cli import lab as lab_command
from selfdistill.cli.app import console
from selfdistill.data.sources import open_source
from selfdistill.errors import Failure, Misuse
from selfdistill.methods import METHODS
from selfdistill.protocols import protocols_of
from selfdistill.train import diagnosis
from selfdistill.train.faults import Stopped
from selfdistill.train.journal import Journal
from tests.conftest import TINY, TINY_OF

FAST = [f"{k}={v}" for k, v in TINY.items()]


@pytest.mark.parametrize(("error", "code"), [(api.Interrupted(15, "saved"), 143), (Stopped("collapsed"), 1)])
@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_end_alike_the_first_says_it(command, monkeypatch, error, code, rank):
    """Fabric kills the process that started the others when one of them ends with a code: it may be writing yet."""

    def end(*args, **named):
        raise error

    monkeypatch.setattr(api, "pretrain", end)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    found, _, said = command("pretrain", "simsiam")
    assert (found, str(error) in said) == ((0, False) if rank else (code, True))


@pytest.fixture
def photos(tmp_path):
    """A flat folder: 40 images in 9 formats, sizes and modes, and 5 files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    kinds = [
        ("jpg", "RGB"),
        ("png", "RGBA"),
        ("gif", "P"),
        ("bmp", "RGB"),
        ("tiff", "RGB"),
        ("webp", "RGB"),
        ("ppm", "RGB"),
        ("png", "I;16"),
        ("jpg", "CMYK"),
    ]
    for i in range(40):
        ext, mode = kinds[i % 9]
        h, w = rng.integers(20, 60, 2)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65535, (h, w), dtype=np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).convert(mode)
        image.save(folder / f"{i:02}.{ext}")
    whole = (folder / "00.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "notes.txt").write_text("not looked at")
    return folder


MISUSE = [
    (["data=hf:"], ["hf:NAME", "hf:FOLDER"]),
    (["teacher.tua.base=1"], ["teacher.tua.base", "tau"]),
    (["epoch=3"], ["epoch", "epochs"]),
    (["epochs=-1"], ["epochs=-1", "greater than or equal to 1"]),
    (["epochs=many"], ["epochs=many"]),
    (["batch_size=0"], ["batch_size=0"]),
    (["batch_size=100000"], ["batch_size=100000", "1437", "digits"]),
    (["encoder=timm:nope"], ["timm:nope"]),
    (["encoder=resnet19"], ["resnet19", "resnet18"]),
    (["encoder=timm:vit_tiny_patch16_224"], ["vit_tiny_patch16_224", "8 x 8"]),
    (["encoder.options={wiht: 3}"], ["wiht", "widths"]),
    (["predictor=lstm"], ["predictor=lstm", "mlp", "none"]),
    (["data=nowhere/at/all"], ["nowhere/at/all"]),
    (["data=digit"], ["digit", "digits"]),
    (["preset=digit"], ["preset=digit", "digits"]),
    (["nonsense"], ["nonsense", "key=value"]),
    (["--without", "stop-gradeint"], ["stop-gradeint", "stop-gradient"]),
    (["--without", "momentum-teacher"], ["momentum-teacher", "simsiam"]),
    (["--config", "missing.yaml"], ["missing.yaml"]),
    (["--resume"], ["--resume", "--out"]),
    (["--out", "/proc/nowhere/run"], ["/proc/nowhere/run"]),
    (["teacher=ema", "stop_gradient=false"], ["stop_gradient", "ema", "weights of its own"]),
    (["encoder.channels=3"], ["encoder.channels=3", "digits"]),
    (["method=byol"], ["method=byol", "simsiam"]),
    (["epochs=true"], ["epochs=True", "no numbers"]),
    (["projector.hidden=[true]"], ["projector.hidden=[True]", "no numbers"]),
    (["projector.out=99999999999999999999999"], ["projector.out=99999999999999999999999", "2147483647"]),
    (["workers=5000"], ["workers=5000", "256"]),
    (["precision=bf17"], ["precision=bf17", "bf16", "fp32", "auto"]),
    (["projector.bn=no"], ["projector.bn=no", "none", "hidden", "all"]),
    (["teacher=snapshot", "every=epok"], ["teacher.every=epok", "a number", "Did you mean epoch?"]),
    (["terms.view.weight=1"], ["terms.view.weight=1", "Did you mean views?"]),
    (["views.locals.size=4"], ["views.locals.size=4", "views.locals={count: ...}"]),
]


@pytest.mark.parametrize(("args", "said"), MISUSE, ids=lambda x: " ".join(x))
def test_misuse_is_one_message_with_exit_code_2_and_leaves_nothing(run, tmp_path, args, said):
    code, _, err = run("pretrain", "simsiam", "data=digits", *args)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("selfdistill: ")
    for word in said:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_a_resume_of_nothing_and_a_method_by_another_name(run):
    code, _, err = run("pretrain", "--resume")
    assert (code, "name it with --out" in err) == (2, True)
    code, _, err = run("show", "simsiam", "method=byol")
    assert (code, "method=byol" in err) == (2, True)


def test_names_of_files_are_printed_as_they_are(capsys):
    console.print("[b]:100:.png")
    assert capsys.readouterr().out == "[b]:100:.png\n"


@pytest.mark.parametrize("words", [["pretrain", "simsaim"], ["show", "simsaim"], ["diff", "simsaim", "byol"], ["pretrain"]])
def test_an_unknown_method(run, words):
    code, _, err = run(*words)
    assert code == 2
    assert "simsiam" in err


def test_folders_that_are_none(run, tmp_path, photos):
    (tmp_path / "nothing").mkdir()
    for data, said in [("nothing", "nothing"), ("photos/00.jpg", "00.jpg"), ("./absent", "absent")]:
        code, _, err = run("pretrain", "simsiam", f"data={data}")
        assert code == 2
        assert said in err
    assert {p.name for p in tmp_path.iterdir()} == {"nothing", "photos"}


def test_a_folder_that_exists_is_not_written_into(run, tmp_path):
    (tmp_path / "mine").mkdir()
    code, _, err = run("pretrain", "simsiam", "data=digits", "--out", "mine")
    assert code == 2
    assert "--resume" in err
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_of_odd_photos(run, photos):
    """Trains on the good ones and names each bad one once, with its reason."""
    args = [f"data={photos}", "encoder=resnet-small", *FAST, "batch_size=8", "epochs=1", "views.size=16", "workers=1", "projector.out=16"]
    code, out, err = run("pretrain", "simsiam", *args, "--out", "run")
    assert code == 0, err
    for name in ("truncated.jpg", "empty.png", "text.jpg", "dot.png"):
        assert out.count(name) == 1
    assert "notes.txt" not in out
    recipe = yaml.safe_load((photos.parent / "run" / "recipe.yaml").read_text())
    assert recipe["encoder"]["channels"] == 3


def test_on_bad_image_error_stops_at_the_first(run, photos, tmp_path):
    code, _, err = run("pretrain", "simsiam", f"data={photos}", "on_bad_image=error")
    assert code == 2
    assert "dot.png" in err
    assert {p.name for p in tmp_path.iterdir()} == {"photos"}


def test_pretrain_then_evaluate_then_resume_when_nothing_is_left(run, tmp_path):
    code, out, err = run("pretrain", "byol", "data=digits", *FAST, "batch_size=256", "--no-report", "--out", "run")
    assert code == 0, err
    assert "preset digits changes byol" in out
    assert "run folder: run" in out
    code, out, _ = run("evaluate", "run", "--protocol", "knn", "--k", "5")
    assert code == 0
    assert "k=5" in out
    code, out, _ = run("evaluate", "run", "--protocol", "knn,linear")
    assert code == 0
    rows = {tuple(cell.strip() for cell in line.split("│")[1:3]): line.split("│")[3] for line in out.splitlines() if line.startswith("│")}
    assert all(0.3 < float(rows[row]) <= 1 for row in (("knn", "k=20"), ("knn", "top1"), ("linear", "top1")))
    for protocol in ("knnn", "knn,knnn", ""):
        code, out, err = run("evaluate", "run", "--protocol", protocol)
        assert code == 2
        assert f"--protocol {protocol.rpartition(',')[2]}: allowed: knn, linear, " in err
        assert out == ""  # nothing is measured before
    assert run("evaluate", "run", "--k", "100000")[0] == 2
    assert run("evaluate", "photos")[0] == 2
    code, out, _ = run("diagnose", "run", "--augmentations", "4")
    assert code == 0
    since, verdict, gap = out.splitlines()[-3:]  # below the table of metrics
    assert since == "since epoch 2, step 10"
    assert verdict.startswith("healthy: ")
    found = [float(gap.partition(of)[2].split(",")[0]) for of in ("|h(z1) - E[z2]|^2 ", "|z1 - E[z2]|^2 ", "of another image ")]
    assert all(0 < distance < 4 for distance in found)
    assert found[1] < found[2]
    assert run("diagnose", "run", "--augmentations", "3")[0] == 2
    code, out, _ = run("pretrain", "byol", "--out", "run", "--resume")
    assert code == 0
    code, _, err = run("pretrain", "byol", "lr=3", "--out", "run", "--resume")
    assert code == 2
    assert "lr.base" in err


def test_a_command_with_resume_goes_on_with_what_it_made(run):
    """Its own --without and settings; what may change is written down."""
    made = ["pretrain", "byol", "data=digits", *FAST, "batch_size=256", "--without", "symmetry", "--out", "run"]
    assert run(*made)[0] == 0
    predictorless = ["pretrain", "byol", "data=digits", *(f for f in FAST if "predictor" not in f), "epochs=1", "batch_size=256"]
    predictorless += ["predictor=none", "--without", "predictor", "--out", "none"]
    code, _, err = run(*made, "--resume", "max_bad_steps=17")
    assert code == 0, err
    recipe = api.load("run").recipe
    assert "--without predictor: the settings have taken it out already" in run(*predictorless)[1]
    assert (recipe.terms["views"].pairs, recipe.max_bad_steps) == ("one-way", 17)
    assert api.load("run").versions


def test_a_run_without_predictor_has_a_verdict_and_no_gap(run, tmp_path):
    fast = [f"{k}={v}" for k, v in TINY_OF["simclr"].items() if k != "epochs"]
    assert run("pretrain", "simclr", "data=digits", *fast, "epochs=1", "batch_size=256", "--no-report", "--out", "run")[0] == 0
    code, out, err = run("diagnose", "run")
    assert code == 0, err
    assert out.splitlines()[-1].startswith(api.load("run").summary["verdict"])
    assert "E[z2]" not in out
    with pytest.raises(Misuse, match="simclr has no predictor"):
        api.predictor_gap(api.load("run"))
    (tmp_path / "run" / "backbone.safetensors").unlink()  # as of a run that has not ended
    assert run("diagnose", "run")[:2] == (0, out)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    code, _, err = run("diagnose", "run")
    assert code == 2
    assert "--resume" in err


def test_a_gap_needs_a_checkpoint(run, tmp_path):
    assert run("pretrain", "simsiam", "data=digits", *FAST, "batch_size=512", "epochs=1", "--no-report", "--out", "run")[0] == 0
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    code, _, err = run("diagnose", "run")
    assert code == 2
    assert "last.ckpt" in err


def test_em_prints_both_views_and_says_what_the_lecture_calls_them(run):
    short = ["--rounds", "2", "--steps", "2", "--images", "100", "--augmentations", "2"]
    code, out, err = run("em", "data=digits", *short)
    assert code == 0, err
    said = out[: out.index("┏")]
    assert "E-step: the latents given the parameters" in said
    assert "M-step: the parameters given the latents" in said
    assert "The lecture swaps them" in said
    rows = [[float(cell) for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [1, 2]
    assert all(len(row) == 7 for row in rows)
    ours, theirs = (next(line for line in out.splitlines() if line.startswith(f"{name}: objective ")) for name in ("k-means", "SimSiam"))
    assert ours == f"k-means: objective {rows[0][1]:.4g} to {rows[1][2]:.4g}, down in every step"
    assert f"{rows[0][3]:.4g} to {rows[1][4]:.4g}" in theirs
    assert ", 0 of them E-steps" in theirs or "down in every step" in theirs
    for wrong, said in ((["--clusters", "101"], "clusters=101"), (["--rounds", "0"], "--rounds"), (["predictor.hiden=3"], "predictor")):
        code, _, err = run("em", "data=digits", *short, *wrong)
        assert code == 2
        assert said in err


def test_collapse_is_said_while_it_trains_and_at_the_end(run):
    """Without predictor and stop-gradient nothing holds the outputs apart: the last words name the missing ingredient."""
    args = ["--without", "stop-gradient", "--without", "output-bn", "epochs=10", "lr=2", "lr.warmup=0", "probe_every=1"]
    code, out, err = run("pretrain", "simsiam", "data=digits", *[f for f in FAST if "epochs" not in f], *args, "--no-report")
    assert code == 0, err
    assert out.count("collapsed: output_std") >= 2
    assert "stop_gradient=true" in out


def test_show_is_a_recipe_that_pretrain_takes_back(run, tmp_path):
    code, out, _ = run("show", "byol", "teacher.tau.base=0.9")
    assert code == 0
    assert out.startswith("# BYOL")
    (tmp_path / "mine.yaml").write_text(out)
    _, again, _ = run("show", "mine.yaml")
    assert yaml.safe_load(again) == yaml.safe_load(out)
    assert yaml.safe_load(again)["teacher"]["tau"]["base"] == 0.9
    _, out, _ = run("diff", "byol", "mine.yaml")
    assert "teacher.tau.base" in out
    assert "batch_size" not in out


def test_a_runs_own_recipe_is_taken_as_it_is(run, tmp_path):
    """The preset's values are in it already: applied again they would undo what the user changed in the file."""
    fast = [f for f in FAST if not f.startswith("epochs")]
    assert run("pretrain", "simsiam", "data=digits", *fast, "epochs=1", "--no-report", "--out", "first")[0] == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        (tmp_path / "first" / "recipe.yaml").read_text().replace("epochs: 1\n", "epochs: 2\n").replace("base: 0.7", "base: 0.3")
    )
    assert run("pretrain", "--config", "mine.yaml", "seed=3", "--no-report", "--out", "second")[0] == 0
    _, out, _ = run("diff", "first", "second")
    changed = {line.split()[1] for line in out.splitlines() if line.startswith("│")}
    assert changed == {"epochs", "lr.base", "seed"}


def test_methods_diff_and_doctor(run):
    code, out, _ = run("methods")
    assert code == 0
    assert {"simsiam", "byol", "dino", "ibot", "simclr", "moco", "swav", "mean-teacher"} <= set(out.split())
    _, out, _ = run("diff", "simsiam", "byol")
    assert "teacher.tau.base" in out
    assert "terms.views.loss.target.temperature.warmup" in run("diff", "byol", "dino")[1]  # whole, where no terminal's width binds
    code, out, _ = run("doctor")
    assert code == 0
    assert "torch" in out


def test_local_crops_and_masks_of_a_folder(run, photos):
    """A worker cuts crops of two sizes; masks are drawn in the batch."""
    vit = ["encoder=timm:vit_tiny_patch16_224", "encoder.options={patch_size: 4, depth: 1, embed_dim: 16, num_heads: 2}"]
    head = ["projector.hidden=[16]", "projector.bottleneck=8", "projector.out=12", "views.size=16", "views.masks.patch=4"]
    short = ["views.locals={count: 2, size: 8}", "batch_size=8", "epochs=1", "workers=1", "log_every=1"]
    code, out, err = run("pretrain", "ibot", f"data={photos}", *vit, *head, *short, "--out", "run")
    assert code == 0, err
    assert "run folder: run" in out


def test_a_run_or_a_recipe_may_have_an_equals_sign_in_its_path(command, tmp_path):
    assert command("pretrain", "simsiam", "data=digits", *FAST, "--no-report", "--out", "lr=0.1")[0] == 0
    (tmp_path / "tau=0.yaml").write_text("method: byol\n")
    for words in ("show tau=0.yaml", "ablate lr=0.1 --plan", "evaluate lr=0.1/checkpoints/last.ckpt", "diagnose lr=0.1"):
        assert command(*words.split())[0] == 0, words
    assert "data=nowhere" in command("pretrain", "tau=0.yaml", "data=nowhere")[2]


def test_a_tilde_is_the_home_folder_in_every_path(command, tmp_path, monkeypatch):
    """A shell leaves that of --out=~/run to us, and Python all."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("pretrain", "simsiam", "data=digits", *FAST, "--no-report", "--out=~/run")[0] == 0
    assert command("export", str(tmp_path / "home" / "run"), "--format", "safetensors", "--out=~/kept")[0] == 0
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["kept", "run"]
    assert sd.load("~/run").recipe.method == "simsiam"
    with pytest.raises(sd.Misuse, match="exists already"):
        sd.pretrain("simsiam", data="digits", out="~/run")
    assert not (tmp_path / "~").exists()


def test_a_setting_longer_than_a_name_may_be_is_a_setting(command, tmp_path):
    assert command("pretrain", "simsiam", "data=digits", *FAST, "--no-report", "--out", "run")[0] == 0
    rates = ",".join(f"{n / 1000:.3f}" for n in range(1, 60))
    code, _, err = command("evaluate", "run", "--protocol", "linear", f"linear.rates=[{rates},x]")
    assert code == 2
    assert "linear.rates" in err


def test_what_is_left_out_is_said_where_it_is_measured(command, photos):
    small = ["views.size=16", "encoder=resnet-small", "encoder.options={widths: [4]}", "workers=0", "batch_size=8"]
    with pytest.warns(UserWarning, match="bad files are left out"):
        assert command("em", f"data={photos}", *small, "--rounds", 1, "--steps", 1, "--augmentations", 1)[0] == 0
    for kind in ("a", "b"):
        shutil.copytree(photos, photos.parent / "of" / kind)
    code, out, _ = command("evaluate", "random-init", f"data={photos.parent / 'of'}", *small)
    assert (code, "bad files are left out" in out) == (0, True)


@pytest.mark.parametrize("word", ["data=~nobody-of-that-name/x", "init_from=~nobody-of-that-name/x"])
def test_an_unknown_home_is_a_folder_that_is_not_there(command, word):
    code, _, err = command("pretrain", "simsiam", "data=digits", word)
    assert (code, "~nobody-of-that-name" in err) == (2, True)


def test_a_run_folder_is_named_in_utf8(command):
    code, _, err = command("pretrain", "simsiam", "data=digits", *FAST, "--out", "b\udcff")
    assert (code, "no name in UTF-8" in err) == (2, True)


def test_what_was_measured_before_a_refusal_is_shown(command):
    short = ["finetune.epochs=1", "finetune.rates=[0.1]"]
    code, out, err = command(
        "evaluate", "random-init", "raw-pixels", "data=digits", "encoder.options={widths: [4]}", "--protocol", "knn,finetune", *short
    )
    assert (code, "nothing to fine-tune" in err) == (2, True)
    assert {"knn", "finetune"} <= {line.split()[1] for line in out.splitlines() if line.startswith("│")}


def test_the_best_checkpoint_is_said_to_be_chosen_on_what_it_is_measured_on(command):
    assert command("pretrain", "simsiam", "data=digits", *FAST, "checkpoint.best=true", "--no-report", "--out", "run")[0] == 0
    assert "which flatters it" in command("evaluate", "run/checkpoints/best.ckpt")[1]
    assert "flatters" not in command("evaluate", "run")[1]


def test_pack_on_the_command_line(command, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (250, 350, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for n in range(3):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.png")
    sizes = []
    for quality in (20, 95):
        assert command("pack", "photos", f"q{quality}", "--side", 200, "--quality", quality)[0] == 0
        photos = open_source(str(tmp_path / f"q{quality}")).train
        with photos.open(0) as photo:
            assert (photo.height, photo.width) == (200, 280)
        sizes.append(sum(file.stat().st_size for file in (tmp_path / f"q{quality}").iterdir()))
    assert sizes[0] < sizes[1]


def test_a_page_of_tables_on_the_command_line(command, tmp_path, monkeypatch):
    """What it trains is tested elsewhere: here that the records come to the page that is named."""
    record = json.loads((Path(__file__).parent.parent / "docs/results/claims.json").read_text())[0]
    seen = []
    monkeypatch.setattr(lab_command, "_run", lambda *args: [{"scale": "tiny", "claims": [record]}])
    monkeypatch.setattr(results, "write_page", lambda records, docs: seen.append(docs) or (docs / "results.md", docs / "claims.json"))
    code, out, err = command("reproduce", "simsiam-fig2", "--docs", "page")
    assert (code, seen) == (0, [Path("page")]), err
    assert "page/results.md" in out
    (tmp_path / "file").touch()
    code, _, err = command("reproduce", "simsiam-fig2", "--docs", "file")
    assert (code, "is a file: name a folder" in err) == (2, True)
    assert len(seen) == 1


def test_a_table_for_a_pipe_is_whole(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = command("evaluate", *["raw-pixels"] * 8, "data=digits")
    assert (code, out.count("0.9750"), "…" in out) == (0, 8, False)


def test_null_is_none_as_a_recipes_file_has_it():
    for key in ("views.locals", "views.masks", "clip"):
        assert METHODS["ibot"].edit([f"{key}=null", *(["terms.patches=none"] if key == "views.masks" else [])]) == METHODS["ibot"].edit(
            [f"{key}=none", *(["terms.patches=none"] if key == "views.masks" else [])]
        )
    with pytest.raises(Misuse, match=r"clip=3: allowed: none, or its fields: clip=\{norm: \.\.\."):
        METHODS["simsiam"].edit(["clip=3"])
    with pytest.raises(Misuse, match=r"linear\.rates=0\.1: wants a list: linear\.rates=\[\.\.\.\]"):
        protocols_of(["linear"], ["linear.rates=0.1"])


def test_a_spread_is_of_runs_that_differ_in_their_seed_alone(run, tmp_path):
    for name, word in (("a", "seed=0"), ("b", "seed=1"), ("c", "lr=0.1")):
        assert run("pretrain", "simsiam", "data=digits", *FAST, "batch_size=256", "epochs=1", word, "--no-report", "--out", name)[0] == 0
    assert "±" in run("evaluate", "a", "b")[1]
    assert "±" not in run("evaluate", "a", "c")[1]


def test_what_is_diagnosed_is_shown_though_it_cannot_be_written(run, tmp_path, monkeypatch):
    assert run("pretrain", "simsiam", "data=digits", *FAST, "batch_size=256", "epochs=1", "--no-report", "--out", "a")[0] == 0

    def fails(path, content):
        raise Failure(f"{path}: cannot be written: Read-only file system")

    monkeypatch.setattr(diagnosis, "write_whole", fails)
    with pytest.warns(UserWarning, match=r"diagnosis\.json: cannot be written"):
        code, out, _ = run("diagnose", "a")
    assert (code, "output_std" in out) == (0, True)


def test_a_run_whose_folder_is_removed_says_so(run, tmp_path, monkeypatch):
    def removed(self, row, aloud=False, kept=Journal.log):
        if row["step"] == 5:
            shutil.rmtree(tmp_path / "a")
        kept(self, row, aloud)

    monkeypatch.setattr(Journal, "log", removed)
    code, _, err = run("pretrain", "simsiam", "data=digits", *FAST, "epochs=1", "--no-report", "--out", "a")
    assert code == 1
    assert "metrics.jsonl: is there no more" in err


def test_the_command_says_which_version_it_is(run):
    code, out, _ = run("--version")
    assert (code, out.split(", ")[0]) == (0, f"selfdistill {sd.__version__}")
    assert sd.__version__ == metadata.version("selfdistill")

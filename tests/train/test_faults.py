"""What a machine does to a run: disks that fill, workers that die, folders that vanish, signals to a whole group."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.disk import locked
from selfdistill.errors import Misuse
from selfdistill.train import checkpoint, loop
from selfdistill.train import run as run_module
from selfdistill.train.faults import compiled
from tests.conftest import TINY, TINY_OF, VIT
from tests.crash import lines, process, same, state_of, until


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """64 small colour images in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    g = torch.Generator().manual_seed(0)
    for i in range(64):
        pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=g)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:02}.png")
    return folder


PHOTOS = {**TINY, "encoder": "resnet-small", "views.size": 16, "workers": 0}


def test_the_order_and_the_weights_do_not_depend_on_the_number_of_workers(photos, tmp_path):
    none = sd.pretrain("simsiam", data=photos, out=tmp_path / "0", **PHOTOS)
    two = sd.pretrain("simsiam", data=photos, out=tmp_path / "2", **{**PHOTOS, "workers": 2})
    assert same(state_of(none), state_of(two))


def test_a_run_goes_on_with_another_number_of_workers(photos, tmp_path, monkeypatch):
    """Of a network with dropout: that workers are started takes no draw of it."""
    vit = {"encoder": VIT["encoder"], "encoder.options": "{patch_size: 4, depth: 1, embed_dim: 16, num_heads: 2, proj_drop_rate: 0.2}"}
    how = {**PHOTOS, **vit}
    whole = sd.pretrain("simsiam", data=photos, out=tmp_path / "whole", **how)
    kept = checkpoint.Keeper.after

    def third(self, now, *args, **kw):
        kept(self, now, *args, **{**kw, "asked": now.step == 3})
        if now.step == 3:
            raise InterruptedError

    monkeypatch.setattr(checkpoint.Keeper, "after", third)
    with pytest.raises(InterruptedError):
        sd.pretrain("simsiam", data=photos, out=tmp_path / "cut", **{**how, "workers": 2})
    monkeypatch.setattr(checkpoint.Keeper, "after", kept)
    resumed = sd.pretrain("simsiam", data=photos, out=tmp_path / "cut", resume=True, workers=1)
    assert same(state_of(whole), state_of(resumed))


def endless(out, data, workers):
    sd.pretrain("simsiam", data=data, out=out, **{**PHOTOS, "epochs": 10_000, "probe_every": 10_000, "workers": workers})


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(child) for child in f.read().split()]


def test_a_worker_that_dies(photos, tmp_path):
    out = tmp_path / "run"
    made, message = process(endless, out, photos, 1)
    until(lambda: lines(out) > 2)
    os.kill(children(made.pid)[-1], signal.SIGKILL)
    made.join(60)
    assert made.exitcode == 1
    assert "one of the processes that decode images died" in message.read_text()


def test_a_signal_to_the_whole_group_saves(photos, tmp_path):
    """As Ctrl-C and a queue send it: to the workers too."""
    out = tmp_path / "run"

    def in_a_group(out):
        os.setsid()
        endless(out, photos, 2)

    made, message = process(in_a_group, out)
    until(lambda: lines(out) > 2)
    os.killpg(made.pid, signal.SIGINT)
    made.join(60)
    assert made.exitcode == 128 + signal.SIGINT, message.read_text()
    assert f"saved at step {torch.load(out / 'checkpoints' / 'last.ckpt', weights_only=True)['step']}" in message.read_text()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_vanishes(photos, tmp_path, workers):
    folder, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    made, message = process(endless, out, folder, workers)
    until(lambda: lines(out) > 2)
    shutil.rmtree(folder)
    made.join(60)
    assert made.exitcode == 1
    said = message.read_text()
    assert "files in a row could not be read" in said
    assert "Is the folder still there?" in said
    assert "Traceback" not in said
    assert sd.load(out).metrics


class Full:
    """A file on a disk that is full."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_while_a_checkpoint_is_written(tiny_source, tmp_path, monkeypatch):
    whole = sd.pretrain("moco", data=tiny_source, out=tmp_path / "whole", **TINY_OF["moco"])
    write, count = run_module.Path.open, []

    def opened(self, *args, **kw):
        file = write(self, *args, **kw)
        if self.name.startswith(".last.ckpt."):
            count.append(self)
        return Full(file) if len(count) == 4 and self.name.startswith(".last.ckpt.") else file

    monkeypatch.setattr(checkpoint.Keeper, "due", lambda self: True)
    monkeypatch.setattr(run_module.Path, "open", opened)
    with pytest.raises(sd.Failure, match=r"last\.ckpt: cannot be written: No space left.*untouched"):
        sd.pretrain("moco", data=tiny_source, out=tmp_path / "run", **TINY_OF["moco"])
    monkeypatch.setattr(run_module.Path, "open", write)
    assert not list(tmp_path.rglob("*.part"))
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"] == 3
    assert same(state_of(whole), state_of(sd.pretrain("moco", data=tiny_source, out=tmp_path / "run", resume=True)))


def test_a_disk_that_fills_while_the_log_is_written(tiny_source, tmp_path):
    """The kernel says no: no file may grow beyond 4,000 bytes."""

    def limited(out):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
        checkpoint.Keeper.after = lambda *args, **kw: None  # larger than that from the start
        sd.pretrain("moco", data=tiny_source, out=out, **{**TINY_OF["moco"], "epochs": 20, "log": ["tensorboard", "csv"]})

    made, message = process(limited, tmp_path / "run")
    made.join(60)
    assert made.exitcode == 1
    assert "metrics.jsonl: cannot be written" in message.read_text() or "File too large" in message.read_text()
    rows = sd.load(tmp_path / "run").metrics
    assert [row["step"] for row in rows] == list(range(len(rows)))


def test_a_disk_that_fills_as_the_run_folder_is_made(tiny_source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("selfdistill.train.run.flushed", full)
    with pytest.raises(sd.Misuse, match=r"run: cannot be written \(No space left"):
        sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "new" / "run", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_out_folder_that_is_read_only(tiny_source, tmp_path):
    """As a user who may not write there; root may always."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shelf.chmod(0o555)
    (tmp_path / "said-None.txt").touch()
    (tmp_path / "said-None.txt").chmod(0o666)

    def barred(out):
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        sd.pretrain("moco", data=tiny_source, out=shelf / "run", **TINY_OF["moco"])

    made, message = process(barred, tmp_path / "run")
    made.join(60)
    assert made.exitcode in (1, 2)
    assert list(shelf.iterdir()) == []
    if message.read_text():  # empty where that user cannot even look into tmp_path
        assert "cannot be written (Permission denied)" in message.read_text()


REFUSED = [
    ("byol", {"batch_size": 2, "accumulate": 2}, "BatchNorm of one image"),
    ("moco", {"terms.views.loss.queue": 97}, r"queue=97 is longer than the data: python:bars has 96.*Set it to 48"),
    ("swav", {"terms.views.loss.queue": 0, "terms.views.loss.prototypes": 33}, r"prototypes=33.*is 32 samples"),
    ("simsiam", {"batch_size": 97}, "larger than the data"),
    ("mean-teacher", {"labels": 97}, "labels=97"),
    ("mean-teacher", {"projector.out": 37}, "projector.out=37: the classifier has an output for each of 2 classes"),
]


@pytest.mark.parametrize(("method", "settings", "said"), REFUSED)
def test_what_cannot_train_is_refused_before_it_starts(method, settings, said, tiny_source, tmp_path):
    with pytest.raises(sd.Misuse, match=said):
        sd.pretrain(method, data=tiny_source, out=tmp_path / "run", **{**TINY_OF[method], **settings})
    assert not (tmp_path / "run").exists()


def test_one_image_in_all_is_too_few(tmp_path):
    pixels = Pixels(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(Misuse, match="data=python:one has 1 image to train on: two at least"):
        sd.pretrain("simsiam", data=Source("one", pixels), out=tmp_path / "run", **TINY)


def test_one_image_alone_without_batchnorm_trains(tiny_source, tmp_path):
    settings = {**TINY_OF["dino"], "batch_size": 2, "accumulate": 2, "epochs": 1, "projector.bn": "none"}
    assert sd.pretrain("dino", data=tiny_source, out=tmp_path / "run", **settings).summary["step"] == 48


def test_exit_codes_and_no_traceback_through_the_command_line(tmp_path):
    """SIGUSR1, as SLURM sends before it requeues."""
    tiny = [f"{k}={v}" for k, v in TINY.items() if k != "epochs"]
    command = [sys.executable, "-m", "selfdistill", "pretrain", "simsiam", "data=digits", *tiny, "--out", str(tmp_path / "run")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: lines(tmp_path / "run") > 3 or started.poll() is not None)
    started.send_signal(signal.SIGUSR1)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGUSR1, err
    assert "--resume" in err
    assert "Traceback" not in err


def test_a_run_whose_images_are_not_where_a_command_runs_is_named_with_that_place(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    run = sd.pretrain("simsiam", data=photos.name, out=tmp_path / "run", **PHOTOS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(sd.Misuse, match=f"the images of {run.path}, seen from {tmp_path / 'elsewhere'}: data={photos.name}"):
        sd.load(run.path).knn()


def test_a_run_that_fails_as_it_begins_lets_go_of_its_folder(tiny_source, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no room for a bank")

    monkeypatch.setattr(loop, "Monitor", broken)
    with pytest.raises(RuntimeError, match="no room") as kept:  # as a notebook keeps its last error, with all that it refers to
        sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    assert kept
    locked(tmp_path / "run").release()


def test_a_compiler_that_is_not_there_is_said(tmp_path):
    class InvalidCxxCompiler(Exception):
        __module__ = "torch._inductor.exc"

    on, off = (sd.METHODS["byol"].edit([f"compile={word}"]) for word in ("on", "off"))
    with pytest.raises(sd.Failure, match=r"compile=on: backend='inductor' raised: none found\. compile=off"), compiled(on):
        raise InvalidCxxCompiler("backend='inductor' raised:\nnone found\nSet TORCH_LOGS")
    with pytest.raises(ValueError, match="another"), compiled(on):
        raise ValueError("another")
    with pytest.raises(InvalidCxxCompiler), compiled(off):  # a module that the user compiled
        raise InvalidCxxCompiler("none found")

"""Small runs that many tests look at."""

import sys

import pytest
import torch

import selfdistill as sd
from selfdistill import cli
from selfdistill.data.images import Pixels, Source

TINY = {
    "epochs": 2,
    "batch_size": 32,
    "log_every": 1,
    "precision": "fp32",
    "encoder.options": "{widths: [8, 16]}",
    "projector.hidden": [16],
    "projector.out": 16,
    "predictor.hidden": [8],
}
"""settings that make a run of simsiam or byol of one or two seconds"""

RUN = {"epochs": 2, "batch_size": 32, "log_every": 1, "precision": "fp32"}
NET = {"encoder": "resnet-small", "encoder.options": "{widths: [8, 16]}"}
VIT = {
    "encoder": "timm:vit_tiny_patch16_224",
    "encoder.options": "{patch_size: 2, depth: 1, embed_dim: 16, num_heads: 2, proj_drop_rate: 0.2}",
    "projector.hidden": [16],
    "projector.bottleneck": 8,
    "projector.out": 20,
}
TINY_OF = {
    "simsiam": TINY,
    "byol": TINY,
    "simclr": {**RUN, **NET, "projector.hidden": [16], "projector.out": 8},
    "moco": {**RUN, **NET, "projector.hidden": [16], "projector.out": 8, "terms.views.loss.queue": 70},
    "swav": {
        **RUN,
        **NET,
        "projector.hidden": [16],
        "projector.out": 8,
        "terms.views.loss.prototypes": 6,
        "terms.views.loss.queue": 48,
        "terms.views.loss.queue_from": 1,
        "views.locals": "{count: 2, size: 4}",
    },
    "dino": {**RUN, **VIT, "views.locals": "{count: 2, size: 4}"},
    "ibot": {**RUN, **VIT},
    "mean-teacher": {**RUN, **NET, "labels": 10},
}
"""the same for each method, with everything that it can remember"""


@pytest.fixture(scope="session")
def tiny_source() -> Source:
    """96 labelled images of two kinds, bars across and bars down, with noise, and 32 held out; 8 x 8 grey."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 2
    x = torch.randint(0, 100, (128, 1, 8, 8), generator=g)
    x[labels == 0, :, 2:4] += 150
    x[labels == 1, :, :, 2:4] += 150
    pixels = x.to(torch.uint8)
    return Source("bars", Pixels(pixels[:96], labels[:96], ("across", "down")), Pixels(pixels[96:], labels[96:], ("across", "down")))


@pytest.fixture(scope="session")
def tiny_run(tiny_source, tmp_path_factory):
    return sd.pretrain("simsiam", data=tiny_source, out=tmp_path_factory.mktemp("runs") / "tiny", **TINY)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command line in tmp_path; (exit code, stdout, stderr). pretrain writes no report, seconds each, unless it is asked to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args):
        quiet = ["--no-report"] if args[:1] == ("pretrain",) and "--report" not in args and len(args) > 1 else []
        monkeypatch.setattr(sys, "argv", ["selfdistill", *map(str, args), *quiet])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run(command):
    """The same, where no run folder has that name."""
    return command

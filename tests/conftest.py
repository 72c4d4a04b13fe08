"""Small runs that many tests look at."""

import pytest
import torch

import selfdistill as sd
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
"""settings that make a run of one or two seconds"""


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

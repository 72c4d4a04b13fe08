"""A module of the user's own as the encoder: copied, refused where its run could not end, resumed by the call that passes it again."""

import re

import pytest
import torch
from torch import nn

import selfdistill as sd
from tests.conftest import TINY


def of_ones_own():
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU())


OWN = {k: v for k, v in TINY.items() if not k.startswith("encoder")} | {"epochs": 1}


def test_a_module_of_the_users_own_stays_as_it_is(tiny_source, tmp_path):
    """Each run starts from it anew, and what is called random is what it was."""
    net = of_ones_own()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (sd.pretrain("simsiam", data=tiny_source, encoder=net, out=tmp_path / name, **OWN) for name in "ab")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(first.backbone.net[0].weight, second.backbone.net[0].weight)
    assert first.summary["knn_random_init"] == second.summary["knn_random_init"] == first.knn(trained=False)


def test_a_module_in_eval_mode_is_trained_and_a_batchnorm_frozen_in_it_is_not(tiny_source, tmp_path):
    whole = of_ones_own().eval()
    moved = sd.pretrain("simsiam", data=tiny_source, encoder=whole, out=tmp_path / "whole", **OWN).backbone.net[1]
    assert moved.num_batches_tracked > 0
    assert not whole.training
    frozen = of_ones_own()
    frozen[1].eval()
    assert sd.pretrain("simsiam", data=tiny_source, encoder=frozen, out=tmp_path / "frozen", **OWN).backbone.net[1].num_batches_tracked == 0


def test_tied_weights_are_written_and_read(tiny_source, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(64, 64), nn.Linear(64, 64)
            self.g.weight = self.f.weight

        def forward(self, x):
            return self.g(self.f(x.flatten(1)).relu())

    run = sd.pretrain("byol", data=tiny_source, encoder=Tied(), out=tmp_path / "run", **OWN)
    net = sd.load(run.path, encoder=Tied()).backbone.net
    assert net.f.weight is net.g.weight
    assert run.summary["knn_top1"] == run.knn()


def test_weights_of_five_dimensions_are_trained(tiny_source, tmp_path):
    """Module.to(memory_format=torch.channels_last), which is for four, fails at them."""
    net = nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 12, (1, 3, 3)), nn.Flatten(1, 2), nn.Conv2d(12, 12, 3))
    trained = sd.pretrain("simsiam", data=tiny_source, encoder=net, out=tmp_path / "run", **OWN).backbone.net
    assert not torch.equal(trained[1].weight, net[1].weight)
    assert not torch.equal(trained[3].weight, net[3].weight)


def with_state_that_is_no_tensor():
    class Counted(nn.Flatten):
        def get_extra_state(self):
            return {"seen": 0}

        def set_extra_state(self, state):
            pass

    return nn.Sequential(Counted(), nn.Linear(64, 8))


def with_a_buffer_that_cannot_be_filled():
    net = of_ones_own()
    net.register_buffer("scale", torch.zeros(1).expand(4))
    return net


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (lambda: of_ones_own().double(), "float64: .float()"),
        (lambda: of_ones_own().bfloat16(), "bfloat16: .float()"),
        (lambda: nn.ParameterList([nn.Parameter(torch.arange(3), requires_grad=False)]), "int64.*a buffer"),
        (lambda: torch.jit.script(of_ones_own()), "TorchScript"),
        (lambda: nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(64, 8))), "cannot be copied"),
        (with_state_that_is_no_tensor, r"more than tensors \(0._extra_state\)"),
        (with_a_buffer_that_cannot_be_filled, "cannot load its own state"),
        (lambda: nn.Conv2d(3, 8, 3), "does not take 8 x 8 images"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_module_whose_run_could_not_end_is_refused_before_it_begins(tiny_source, tmp_path, module, said):
    with pytest.raises(sd.Misuse, match=said):
        sd.pretrain("byol", data=tiny_source, encoder=module(), out=tmp_path / "run", **OWN)
    assert not (tmp_path / "run").exists()


def test_checkpointing_needs_a_module_that_can(tiny_source, tmp_path):
    with pytest.raises(sd.Misuse, match="checkpointing=true: encoder=python:Sequential cannot"):
        sd.pretrain("simsiam", "encoder.checkpointing=true", data=tiny_source, encoder=of_ones_own(), out=tmp_path / "run", **OWN)


def test_a_run_of_ones_own_says_the_call_that_resumes_it(tiny_source, tmp_path):
    run = sd.pretrain("simsiam", data=tiny_source, encoder=of_ones_own(), out=tmp_path / "run", **OWN)
    (run.path / "summary.json").unlink()
    call = f"sd.pretrain('simsiam', data=data, encoder=encoder, out={str(run.path)!r}, resume=True)"
    with pytest.raises(sd.Misuse, match=re.escape(call)):
        run.summary  # noqa: B018
    assert eval(call, {"sd": sd, "data": tiny_source, "encoder": of_ones_own()}).ended


def test_a_run_looked_at_from_another_folder_is_not_said_to_be_unfinished(tiny_source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = sd.pretrain("simsiam", data=tiny_source, out="run", **TINY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(sd.Misuse, match=r"run: seen from .*elsewhere, the run's folder is not there"):
        run.summary  # noqa: B018


def test_checkpointed_activations_move_batchnorm_once(tiny_source, tmp_path):
    """They are computed again in the backward pass, where running statistics do not move: all is as without."""
    settings = {**OWN, "encoder": "timm:resnet10t", "encoder.stem": "3x3", "precision": "fp32", "devices": 1}
    plain, again = (
        sd.pretrain("simsiam", f"encoder.checkpointing={on}", data=tiny_source, out=tmp_path / on, **settings) for on in ("false", "true")
    )
    for mine, theirs in zip(plain.backbone.buffers(), again.backbone.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert again.backbone.net.bn1.num_batches_tracked > 0

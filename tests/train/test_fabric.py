"""Lightning Fabric as the loop wants it."""

import warnings

import torch
from torch import Tensor, distributed, nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel

from selfdistill.methods import METHODS
from selfdistill.train.fabric import SYNC_BUFFERS, fabric_of


def test_outputs_stay_in_the_precision_that_they_were_computed_in():
    """Copies of the logits in fp32 would be the step's largest tensors."""
    recipe = METHODS["dino"].edit(["precision=bf16", "devices=1"])
    model = fabric_of(recipe).setup(nn.Linear(2, 3))
    made: Tensor = model(torch.ones(1, 2))
    assert made.dtype == torch.bfloat16
    assert model.module.weight.dtype == torch.float32


def test_several_processes_do_not_send_their_buffers_in_each_pass():
    """And PyTorch, which has had two words for it, does not warn."""
    asked = fabric_of(METHODS["moco"].edit(["devices=2"])).strategy._ddp_kwargs
    meeting = HashStore()
    distributed.init_process_group("gloo", store=meeting, rank=0, world_size=1)
    try:
        with warnings.catch_warnings(action="error"):
            assert vars(DistributedDataParallel(nn.BatchNorm1d(2), **asked))[SYNC_BUFFERS] is False
    finally:
        distributed.destroy_process_group()

"""A step keeps a GPU busy: what is queued is not waited for. Without a GPU: PyTorch's fake tensors have a device and no numbers."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.methods import METHODS
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.views import augment, color
from selfdistill.views.batch import Views
from tests.conftest import TINY_OF

GPU = torch.device("cuda", 0)
B, SIZE = 8, 16
SMALL = {"encoder": "resnet-small", "preset": "none", "views.size": SIZE}
OF = {"swav": {"terms.views.loss.queue_from": 5}, "mean-teacher": {"projector.out": 10}}


class Waits(TorchDispatchMode):
    """Counts what waits for all that is queued: a number or a shape that is asked for, a copy from or to the host."""

    def __init__(self):
        super().__init__()
        self.found, self.calls = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        name = func.overloadpacket.__name__
        devices = {x.device.type for x in (*args, out) if isinstance(x, Tensor)}
        if name in ("_local_scalar_dense", "nonzero") or (name in ("_to_copy", "copy_") and len(devices) > 1):
            self.found[name] += 1
        return out


def recipe_of(method: str) -> Recipe:
    return METHODS[method].edit([f"{key}={value}" for key, value in {**SMALL, **TINY_OF[method], **OF.get(method, {})}.items()])


def on_gpu(siamese: Siamese) -> Siamese:
    for module in siamese.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = None if p is None else nn.Parameter(torch.empty(p.shape, device=GPU), p.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
    return siamese


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ibot"])
def test_a_step_waits_for_nothing(method):
    """But iBOT's for how many patches are masked, which a fake tensor does not know."""
    recipe = recipe_of(method)
    siamese = Siamese(recipe, 32)
    sides = [views[0][1] for views in recipe.views.of_each_size(recipe.global_views)]
    counts = [len(views) for views in recipe.views.of_each_size(recipe.global_views)]
    with FakeTensorMode(shape_env=ShapeEnv()):
        siamese = on_gpu(siamese)
        ids = torch.empty(B, dtype=torch.long, device=GPU)
        crops = tuple(torch.empty(n, B, 3, side, side, device=GPU) for n, side in zip(counts, sides, strict=True))
        with Waits() as seen:
            siamese(Views(crops, ids, None, ids if recipe.labels else None), Progress(0, 4, 2))
            siamese.after_step(Progress(1, 4, 2))
    assert not seen.found


@pytest.mark.parametrize("method", ["simsiam", "dino"])
def test_views_send_nothing_twice(method, monkeypatch):
    """They wait for which rows an operation is to change, here all, and for no constant."""
    monkeypatch.setattr(augment, "_some", lambda x, chosen, f, *per_image: f(x, *per_image))
    color._sent.cache_clear()
    recipe = recipe_of(method)
    with FakeTensorMode(shape_env=ShapeEnv()):
        index, rounds = (torch.empty(B, dtype=torch.long, device=GPU) for _ in range(2))
        cut = [
            torch.empty(B, len(views), 3, views[0][1], views[0][1], dtype=torch.uint8, device=GPU)
            for views in recipe.views.of_each_size(recipe.global_views)
        ]
        for _ in range(2):
            with Waits() as seen:
                augment.views_of_crops(cut, index, recipe.views, recipe.global_views, 0, rounds)
    assert not seen.found
    color._sent.cache_clear()


def test_more_local_crops_are_no_more_calls(monkeypatch):
    monkeypatch.setattr(augment, "_some", lambda x, chosen, f, *per_image: f(x, *per_image))
    calls = set()
    for count in (2, 8):
        spec = METHODS["dino"].edit([f"views.locals.count={count}", f"views.size={SIZE}", "views.locals.size=8"]).views
        color._sent.cache_clear()
        with FakeTensorMode(shape_env=ShapeEnv()):
            index = torch.empty(B, dtype=torch.long, device=GPU)
            cut = [torch.empty(B, n, 3, side, side, dtype=torch.uint8, device=GPU) for n, side in ((2, SIZE), (count, 8))]
            with Waits() as seen:
                augment.views_of_crops(cut, index, spec, 2, 0, index)
        calls.add(seen.calls)
    color._sent.cache_clear()
    assert len(calls) == 1

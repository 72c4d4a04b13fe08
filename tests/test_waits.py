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
    """Counts the calls of another device than the host, without mere views of a tensor, and what waits for all that is queued there: a
    number or a shape that is asked for, a copy from or to the host that need not be done."""

    def __init__(self):
        super().__init__()
        self.found, self.calls = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = {x.device.type for x in args if isinstance(x, Tensor)}
        devices = inputs | {x.device.type for x in (out,) if isinstance(x, Tensor)}
        self.calls += devices != {"cpu"} and not func.is_view and func.namespace != "prim"
        asked = name in ("_local_scalar_dense", "nonzero") and inputs != {"cpu"}
        waited = name in ("_to_copy", "copy_") and len(devices) > 1 and not (kwargs or {}).get("non_blocking")
        if asked or waited:
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


def seen_of_views(method: str, *changes: str, images: int = B) -> Waits:
    """Of crops that workers have cut, on the meta device, which has shapes and no numbers either: what is drawn on the host has some."""
    spec = METHODS[method].edit(changes).views
    index = torch.arange(images)
    cut = [torch.empty(images, len(of), 3, of[0][1], of[0][1], dtype=torch.uint8, device="meta") for of in spec.of_each_size(2)]
    augment.views_of_crops(cut, index, spec, 2, 0, index)
    with Waits() as seen:
        augment.views_of_crops(cut, index, spec, 2, 0, index)
    return seen


@pytest.mark.parametrize("method", ["simsiam", "byol", "dino", "ibot"])
def test_views_wait_for_nothing(method):
    """Which rows an operation changes is drawn on the host; constants are sent once, which is their own test."""
    assert not seen_of_views(method).found
    images, ids = torch.empty(B, 3, 40, 40, dtype=torch.uint8, device="meta"), torch.arange(B)
    with Waits() as seen:
        made = augment.views_of_pixels(images, ids, METHODS[method].views, 2, 0, ids)
    assert not seen.found
    assert {x.device.type for x in (*made.crops, made.ids)} == {"meta"}
    x = torch.empty(1)
    assert color.constant((0.1, 0.2), x) is color.constant((0.1, 0.2), x)
    assert color.constant((0.1, 0.2), x.double()).dtype == torch.float64


def test_more_local_crops_are_no_more_calls():
    """Of a device, but for what no crop of so few happens to need."""
    few, many = (seen_of_views("dino", f"views.locals.count={count}").calls for count in (8, 80))
    assert many == few


if __name__ == "__main__":  # python -m tests.test_waits: the figures of docs/performance.md
    for name in ("simsiam", "dino"):
        print(f"{name}: {seen_of_views(name, images=64).calls} calls for the views of a step")

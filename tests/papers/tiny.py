"""The recipes at a size for tests: grey 8 x 8 images, an encoder of one layer, float64; and the loop's optimiser step without its run."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from selfdistill.methods import METHODS
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese
from selfdistill.train.loop import set_schedules
from selfdistill.views.batch import Views

STEPS_PER_EPOCH = 2
IMAGES = 24
"""in the imagined data set"""


def tiny(method: str, *settings: str, width: int = 12, dim: int = 6, batch: int = 8) -> Recipe:
    """A method's recipe, its hidden layers `width` wide and its projections `dim`, then `settings`."""
    hidden = {"simsiam": f"[{width}, {width}]", "byol": f"[{width}]"}[method]
    sizes = ["views.size=8", "encoder.channels=1", "views.mean=[0.5]", "views.std=[0.5]", f"batch_size={batch}", "epochs=3"]
    heads = [f"projector.hidden={hidden}", f"projector.out={dim}", f"predictor.hidden=[{width}]"]
    return METHODS[method].edit([*sizes, *heads, *settings])


def encoder(width: int = 10, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> nn.Module:
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), fc=nn.Linear(64, width), bn=norm(width), relu=nn.ReLU()))


def build(recipe: Recipe, seed: int = 0, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> Siamese:
    """With every parameter random, so that none hides at 0 or 1; the teacher is still the student's copy."""
    torch.manual_seed(seed)
    net = encoder(norm=norm)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    model = Siamese(recipe, IMAGES, encoder=net).double()
    for p in [*model.student.projector.parameters(), *model.predictor.parameters()]:
        nn.init.normal_(p, std=0.5)
    for copied, p in zip(model.teacher.parameters(), model.student.parameters(), strict=False):
        copied.data.copy_(p)
    return model


def draw(recipe: Recipe, seed: int) -> Views:
    """Random pixels, and the images' places in the data set."""
    g = torch.Generator().manual_seed(seed)
    crops = torch.randn(recipe.global_views, recipe.batch_size, 1, 8, 8, generator=g, dtype=torch.float64)
    return Views((crops,), torch.randperm(IMAGES, generator=g)[: recipe.batch_size])


def train(model: Siamese, batches: Iterable[Views]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """After each optimiser step, the mean loss of its micro-batches and the gradients by name."""
    recipe = model.recipe
    optimizer = recipe.optimizer.build(model.param_groups())
    for step, views in enumerate(batches):
        set_schedules(optimizer, recipe, Progress(step, STEPS_PER_EPOCH, recipe.epochs))
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        n = recipe.accumulate
        for crops, ids in zip(views.crops[0].chunk(n, dim=1), views.ids.chunk(n), strict=True):
            part = model(Views((crops,), ids)).loss / n
            part.backward()
            loss += part.detach()
        optimizer.step()
        model.after_step(Progress(step + 1, STEPS_PER_EPOCH, recipe.epochs))
        yield loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

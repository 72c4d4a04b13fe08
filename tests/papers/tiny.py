"""The recipes at a size for tests: grey 8 x 8 images, an encoder of one layer, float64; and the loop's optimiser step without its run."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from selfdistill.methods import METHODS
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese, Step
from selfdistill.train.loop import _clip, _freeze, set_schedules
from selfdistill.views.batch import Views

STEPS_PER_EPOCH = 2
IMAGES = 24
"""in the imagined data set"""
SIX = ("simclr", "moco", "swav", "byol", "simsiam", "dino")
"""methods with one term, `views`, over whole views"""
OWN = {
    "moco": ["terms.views.loss.queue=20"],
    "swav": ["terms.views.loss.prototypes=5"],
    "dino": ["projector.bottleneck=5"],
}
"""sizes that only one method has"""
LOUD = {
    "simclr": ["lr.base=30", "lr.warmup=0", "optimizer.trust=0.03"],
    "moco": ["lr.base=3"],
    "swav": ["lr.base=30", "lr.warmup=0", "optimizer.trust=0.03"],
    "byol": ["lr.base=30", "lr.warmup=0", "optimizer.trust=0.03"],
    "simsiam": ["lr.base=3"],
    "dino": ["lr.base=1", "lr.warmup=0"],
}
"""steps that move the weights of a tiny net by several percent"""


def tiny(method: str, *settings: str, width: int = 12, dim: int = 6, batch: int = 8) -> Recipe:
    """A method's recipe, its hidden layers `width` wide and its projections `dim`, two local crops where it has any; then `settings`."""
    paper = METHODS[method]
    sizes = ["views.size=8", "encoder.channels=1", "views.mean=[0.5]", "views.std=[0.5]", f"batch_size={batch}", "epochs=3"]
    heads = [f"projector.hidden={[width] * len(paper.projector.hidden)}", f"projector.out={dim}"]
    if paper.predictor:
        heads.append(f"predictor.hidden=[{width}]")
    if paper.views.locals:
        sizes += ["views.locals.count=2", "views.locals.size=6"]
    return paper.edit([*sizes, *heads, *OWN.get(method, []), *settings])


def without_bn(method: str) -> list[str]:
    """Settings that, with LayerNorm in the encoder, leave each image on its own."""
    return ["projector.bn=none", *(["predictor.bn=none"] if METHODS[method].predictor else [])]


def encoder(width: int = 10, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> nn.Module:
    """Takes crops of any size."""
    layers = {"pool": nn.AdaptiveAvgPool2d(4), "flat": nn.Flatten(), "fc": nn.Linear(16, width), "bn": norm(width), "relu": nn.ReLU()}
    return nn.Sequential(OrderedDict(layers))


def build(recipe: Recipe, seed: int = 0, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> Siamese:
    """With every parameter random, so that none hides at 0 or 1; the teacher is still the student's copy."""
    torch.manual_seed(seed)
    net = encoder(norm=norm)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    model = Siamese(recipe, IMAGES, recipe.encoder.build(recipe.views.size, net)).double()
    for p in [*model.student.projector.parameters(), *model.predictor.parameters()]:
        nn.init.normal_(p, std=0.5)
    for copied, p in zip(model.teacher.parameters(), model.student.parameters(), strict=False):
        copied.data.copy_(p)
    for term in model.terms.children():
        term.update()  # rows of unit length to 16 digits, not to float32's 8
    return model


def draw(recipe: Recipe, seed: int) -> Views:
    """Random pixels, and the images' places in the data set; where the recipe looks at them, masks and labels, none of the first images
    and more and more."""
    g = torch.Generator().manual_seed(seed)
    B, G = recipe.batch_size, recipe.global_views
    sizes = [(len(views), views[0][1]) for views in recipe.views.of_each_size(G)]
    crops = [torch.randn(count, B, 1, side, side, generator=g, dtype=torch.float64) for count, side in sizes]
    views = Views(tuple(crops), torch.randperm(IMAGES, generator=g)[:B])
    if recipe.views.masks:
        side = recipe.views.size // recipe.views.masks.patch
        views = views._replace(masks=torch.rand(G, B, side, side, generator=g) < torch.linspace(-0.5, 1, B)[:, None, None])
    if recipe.labels is not None:
        hidden = torch.rand(B, generator=g) > torch.linspace(-0.5, 1, B)
        views = views._replace(labels=torch.randint(recipe.projector.out, (B,), generator=g).masked_fill(hidden, -1))
    return views


def part(views: Views, n: int, of: int) -> Views:
    """The n-th of `of` equal parts of the images."""
    masks = None if views.masks is None else views.masks.chunk(of, dim=1)[n]
    labels = None if views.labels is None else views.labels.chunk(of)[n]
    return Views(tuple(crops.chunk(of, dim=1)[n] for crops in views.crops), views.ids.chunk(of)[n], masks, labels)


def train(
    model: Siamese, batches: Iterable[Views], forward: Callable[[Views, Progress], Step] | None = None
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """After each optimiser step, the mean loss of its micro-batches and the gradients by name, as they were before clipping.

    forward: the model as others wrap it (DistributedDataParallel); none: the model itself.
    """
    recipe = model.recipe
    optimizer = recipe.optimizer.build(model.param_groups())
    for step, views in enumerate(batches):
        now = Progress(step, STEPS_PER_EPOCH, recipe.epochs)
        set_schedules(optimizer, recipe, now)
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for micro in range(recipe.accumulate):
            made = (forward or model)(part(views, micro, recipe.accumulate), now)
            (made.loss / recipe.accumulate).backward()
            loss += made.loss.detach() / recipe.accumulate
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        _clip(model, recipe, torch.nn.utils.get_total_norm(grads.values()))
        _freeze(optimizer, now)
        optimizer.step()
        model.after_step(Progress(step + 1, STEPS_PER_EPOCH, recipe.epochs))
        yield loss, grads

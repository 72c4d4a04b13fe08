"""Which images a run sees, in which order, and which of their labels: functions of its seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from selfdistill.data.images import Images
from selfdistill.errors import Misuse
from selfdistill.recipe import Recipe
from selfdistill.views.draw import balanced, permutation


def micro_batches(
    recipe: Recipe, images: int, step: int, rank: int = 0, ranks: int = 1, visible: Tensor | None = None
) -> Iterator[tuple[int, Tensor]]:
    """(epoch, index [batch_size / accumulate / ranks]) for each micro-batch of this rank, from optimiser step `step` to the run's end.

    An epoch is a permutation of all images, by seed and epoch alone; what does not fill a batch is left out until the next.
    Where labels are trained on (`visible` [N], -1 for no label), a share of each batch is labelled.
    """
    share = recipe.micro_batch(ranks)
    labelled = None if visible is None else (visible >= 0).nonzero()[:, 0]
    steps = images // recipe.batch_size
    for s in range(step, recipe.epochs * steps):
        if s == step or s % steps == 0:
            order = permutation(recipe.seed, s // steps, images)
        batch = order[s % steps * recipe.batch_size :][: recipe.batch_size]
        if labelled is not None:
            batch = with_labelled(batch, labelled, round(recipe.labelled_share * recipe.batch_size), s, recipe.seed)
        for micro in batch.split(ranks * share):
            yield s // steps, micro.split(share)[rank]


def with_labelled(batch: Tensor, labelled: Tensor, count: int, step: int, seed: int) -> Tensor:
    """The batch with `count` of its images, spread evenly, replaced by labelled ones: the next in an endless row of permutations."""
    places = torch.arange(step * count, (step + 1) * count)
    n = len(labelled)
    orders = {int(c): permutation(seed + 1, int(c), n) for c in (places // n).unique()}
    chosen = torch.stack([labelled[orders[int(place) // n][place % n]] for place in places])
    mixed = batch.clone()
    mixed[torch.linspace(0, len(batch) - 1, count).long()] = chosen
    return mixed


def visible_labels(images: Images, recipe: Recipe) -> Tensor | None:
    """[N] int64, the labels that the run may learn from, -1 for the others: `recipe.labels` of them, balanced, drawn by seed.

    Raises `Misuse` when there are no labels, or fewer in a class than asked.
    """
    if recipe.labels is None:
        return None
    if images.labels is None:
        raise Misuse(f"labels={recipe.labels}: data={recipe.data} has no labels to learn from; put each class into a folder of its own")
    classes = len(images.classes)
    total = recipe.labels if isinstance(recipe.labels, int) else round(recipe.labels * len(images))
    each = [total // classes + (c < total % classes) for c in range(classes)]
    for c, want in enumerate(each):
        found = int((images.labels == c).sum())
        if not 0 < want <= found:
            raise Misuse(f"labels={recipe.labels} is {want} for {images.classes[c]}, which has {found} images; each class needs one")
    chosen = balanced(recipe.seed, images.labels, each)
    visible = torch.full((len(images),), -1)
    visible[chosen] = images.labels[chosen]
    return visible

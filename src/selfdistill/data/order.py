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
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rounds, index), [batch_size / accumulate / ranks] each, for each micro-batch of this rank, from optimiser step `step` to the
    run's end: which image, and which time it comes. Its augmentation is drawn from both.

    An epoch is a permutation of all images, by seed and epoch alone, and its number is their round; what does not fill a batch is left
    out until the next. Where labels are trained on (`visible` [N], -1 for no label), a share of each batch is labelled: few images, that
    come many times an epoch, so their rounds count on from `recipe.epochs`, and each time is drawn afresh.
    """
    share = recipe.micro_batch(ranks)
    labelled = None if visible is None else (visible >= 0).nonzero()[:, 0]
    steps = images // recipe.batch_size
    for s in range(step, recipe.epochs * steps):
        if s == step or s % steps == 0:
            order = permutation(recipe.seed, s // steps, images)
        batch = order[s % steps * recipe.batch_size :][: recipe.batch_size]
        rounds = torch.full_like(batch, s // steps)
        if labelled is not None:
            chosen, times = next_labelled(labelled, round(recipe.labelled_share * recipe.batch_size), s, recipe.seed)
            among = torch.linspace(0, len(batch) - 1, len(chosen)).long()  # spread evenly: each rank and micro-batch has its share
            batch, rounds = batch.clone().index_copy_(0, among, chosen), rounds.index_copy_(0, among, recipe.epochs + times)
        for micro in torch.stack([rounds, batch]).split(ranks * share, dim=1):
            which, index = micro.split(share, dim=1)[rank]  # [b] each
            yield which, index


def next_labelled(labelled: Tensor, count: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """([count] labelled images of a step, the next in an endless row of permutations; [count], which of these it is)."""
    places, n = torch.arange(step * count, (step + 1) * count), len(labelled)
    times = places // n
    first, last = int(times[0]), int(times[-1])
    row = torch.cat([permutation(seed + 1, time, n) for time in range(first, last + 1)])
    return labelled[row[places - first * n]], times


def visible_labels(images: Images, recipe: Recipe) -> Tensor | None:
    """[N] int64, the labels that the run may learn from, -1 for the others: `recipe.labels` of them, drawn by seed, as evenly
    over the classes as their sizes allow.

    Raises `Misuse` when there are no labels, fewer than asked, or not one for each class.
    """
    if recipe.labels is None:
        return None
    if images.labels is None:
        raise Misuse(f"labels={recipe.labels}: data={recipe.data} has no labels to learn from; put each class into a folder of its own")
    classes = len(images.classes)
    found = images.labels[images.labels >= 0].bincount(minlength=classes).tolist()
    total = recipe.labels if isinstance(recipe.labels, int) else round(recipe.labels * sum(found))
    if total > sum(found):
        raise Misuse(f"labels={recipe.labels}: {sum(found)} images of data={recipe.data} have a label")
    none = [name for name, n in zip(images.classes, found, strict=True) if not n]
    if none or total < classes:
        lacks = f"{', '.join(none[:3])} has no image" if none else f"{total} for {classes} classes"
        raise Misuse(f"labels={recipe.labels}: {lacks}; each class needs one. A share has a point: labels=0.1, or 1.0 for all")
    chosen = balanced(recipe.seed, images.labels, evenly(total, found))
    visible = torch.full((len(images),), -1)
    visible[chosen] = images.labels[chosen]
    return visible


def evenly(total: int, found: list[int]) -> list[int]:
    """`total` images shared among classes that have so many: each as many as any other, but for those that have fewer; the rest of a
    division to the first."""
    each = [0] * len(found)
    while sum(each) < total:
        left = total - sum(each)
        short = [c for c in range(len(found)) if each[c] < found[c]]
        for c in short[:left]:
            each[c] += min(max(1, left // len(short)), found[c] - each[c])
    return each

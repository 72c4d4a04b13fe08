"""Dense evaluation: which class is each pixel? Linear and kNN probes of the features at each place (DINOv2 Sec. 7.4, simplified)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.evaluate.knn import TEMPERATURE, K, nearest, vote
from selfdistill.evaluate.linear import linear_probe
from selfdistill.views.draw import permutation

IGNORED = 255
"""the class of a pixel that is neither learnt from nor counted (Pascal VOC's)"""


class Segmented(NamedTuple):
    """miou: intersection over union of a class over all pixels of all images, the mean over the classes that are there or were
    predicted. accuracy: share of pixels."""

    miou: float
    accuracy: float


def segmented(confusion: Tensor) -> Segmented:
    """confusion [C, C]: pixels of class i that were called j."""
    right, there, called = confusion.diag().double(), confusion.sum(1), confusion.sum(0)
    union = there + called - right
    return Segmented(float((right / union)[union > 0].mean()), float(right.sum() / confusion.sum()))


def confusion(predicted: Tensor, masks: Tensor, classes: int) -> Tensor:
    """[C, C] int64 of predictions and masks of one shape; a class of IGNORED is not counted."""
    counted = masks != IGNORED
    return (masks[counted] * classes + predicted[counted]).bincount(minlength=classes**2).view(classes, classes)


def majority(masks: Tensor, h: int, w: int, classes: int) -> Tensor:
    """[N, h, w], the class of most pixels of each patch of `masks` [N, H, W], the first of equals; IGNORED where all are."""
    share = torch.stack([F.adaptive_avg_pool2d((masks == c).float(), (h, w)) for c in range(classes)])  # [C, N, h, w]
    most, label = share.max(0)
    return torch.where(most > 0, label, IGNORED)


def dense_probes(
    bank: Tensor,
    masks: Tensor,
    queries: Tensor,
    targets: Tensor,
    classes: int,
    k: int = K,
    temperature: float = TEMPERATURE,
    **settings: Any,
) -> dict[str, Segmented]:
    """ "linear" and "knn" on feature maps `bank` [N, F, h, w] with `masks` [N, H, W] and `queries` [Q, F, h, w] with `targets` [Q, H, W].

    A place learns from the class of most of its pixels; the scores of the classes at the places are upsampled (bilinear) to pixels.
    The linear probe's learning rate is chosen on the places of a tenth of the bank's images, which it does not learn from.
    `settings`: of `linear_probe`. Raises `Misuse` where fewer than two images of the bank have a place that counts.
    """
    h, w = bank.shape[2:]
    places, labels = bank.permute(0, 2, 3, 1), majority(masks, h, w, classes)  # [N, h, w, F], [N, h, w]
    known = labels != IGNORED
    teaching = known.flatten(1).any(1).nonzero()[:, 0]
    if len(teaching) < 2:
        raise Misuse(
            f"masks: in {len(teaching)} of {len(bank)} images a pixel counts (255 does not): two at least, one to choose a rate on"
        )
    held = torch.zeros(len(bank), dtype=torch.bool)
    held[teaching[permutation(settings.get("seed", 0), 0, len(teaching))][: max(1, len(teaching) // 10)]] = True

    def of(images: Tensor) -> tuple[Tensor, Tensor]:
        return places[images][known[images]], labels[images][known[images]]

    probe = linear_probe(*of(~held), validation=of(held), **settings)
    features, classes_of = places[known], labels[known]

    def linear(x: Tensor) -> Tensor:
        scores = probe.logits(x)
        return F.pad(scores, (0, classes - scores.shape[1]), value=-1e4)  # a last class that no place has

    def knn(x: Tensor) -> Tensor:
        similarity, place = nearest(features, x, min(k, len(features)))
        return F.normalize(vote(similarity, classes_of[place], classes, temperature), p=1, dim=1)

    found = {}
    for name, scores in (("linear", linear), ("knn", knn)):
        counts = torch.zeros(classes, classes, dtype=torch.long)
        for x, truth in zip(queries.split(64), targets.split(64), strict=True):
            at_places = scores(x.permute(0, 2, 3, 1).flatten(0, 2)).view(len(x), h, w, classes).permute(0, 3, 1, 2)
            pixels = F.interpolate(at_places, truth.shape[1:], mode="bilinear", align_corners=False)
            counts += confusion(pixels.argmax(1), truth, classes)
        found[name] = segmented(counts)
    return found


def scenes(pixels: Tensor, labels: Tensor, count: int, objects: int = 3, seed: int = 0, foreground: int = 25) -> tuple[Tensor, Tensor]:
    """(uint8 canvases [count, 1, 2 H, 2 W], masks [count, 2 H, 2 W]): real grey images on black, `objects` of them at random places,
    later ones before earlier ones.

    pixels: uint8 [N, 1, H, W]; labels [N]. A mask holds label + 1 where a pixel of an image is above `foreground`, 0 elsewhere.
    """
    draws = torch.Generator().manual_seed(seed)
    H, W = pixels.shape[2:]
    canvas = pixels.new_zeros(count, 1, 2 * H, 2 * W)
    mask = torch.zeros(count, 2 * H, 2 * W, dtype=torch.long)
    chosen = torch.randint(len(pixels), (count, objects), generator=draws)
    corner = (torch.rand(count, objects, 2, generator=draws) * torch.tensor([H + 1, W + 1])).long()
    for n in range(count):
        for i, (top, left) in zip(chosen[n], corner[n].tolist(), strict=True):
            inside = pixels[i, 0] > foreground
            canvas[n, 0, top : top + H, left : left + W][inside] = pixels[i, 0][inside]
            mask[n, top : top + H, left : left + W][inside] = labels[i] + 1
    return canvas, mask

"""Fine-tuning: the whole network trained with labels (SimCLR App. B.5 and B.8, BYOL App. D.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.errors import Misuse
from selfdistill.evaluate.features import features
from selfdistill.evaluate.linear import Labelled, held_out
from selfdistill.parts.backbone import device_of
from selfdistill.parts.denormal import denormals_flushed
from selfdistill.parts.optim import SGD, AdamW
from selfdistill.parts.seeded import drawn_from
from selfdistill.views.augment import plain, views_of_pixels
from selfdistill.views.draw import permutation
from selfdistill.views.spec import Crops

RATES = (0.01, 0.03, 0.1)
"""learning rates for a batch of 256; BYOL sweeps 0.005 to 0.1, SimCLR has 0.05"""
NESTEROV = SGD(nesterov=True)
TRIAL = 10_000
"""images at most on which the learning rate is chosen"""


class Tuned(NamedTuple):
    accuracy: float
    rate: float


def finetune_accuracy(
    backbone: nn.Module,
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    targets: Tensor,
    views: Crops,
    rates: Sequence[float] = RATES,
    validation: Labelled | None = None,
    **settings: Any,
) -> Tuned:
    """Share of `queries`, uint8 [Q, C, H, W], that the network gets right once it was trained on `bank` [N, C, H, W] with `labels` [N].

    backbone: images [B, C, S, S] to features [B, F]; it is copied, not changed. The learning rate is the best of `rates` on
    `validation`, images and labels, else on a tenth of the bank with at most TRIAL others to learn from; it is then trained on all of
    the bank. `settings`: of `finetune`. Raises `Misuse` for a bank too small to hold a tenth out, where there is a choice.
    """
    classes, network, chosen, best = int(labels.max()) + 1, backbone, rates[0], -1.0
    if len(rates) > 1:
        learnt, judged = (bank, labels), validation
        if judged is None:
            held, rest = held_out(labels, "fine-tuning", settings.get("seed", 0))
            learnt, judged = (bank[rest[:TRIAL]], labels[rest[:TRIAL]]), (bank[held], labels[held])
        for rate in rates:
            tried = finetune(backbone, *learnt, classes, views, rate, **settings)
            reached = _accuracy(tried, *judged, views)
            if reached > best:
                best, network, chosen = reached, tried, rate
    if validation is None or len(rates) == 1:  # else the chosen one has learnt from all of the bank
        network = finetune(backbone, bank, labels, classes, views, chosen, **settings)
    reached = _accuracy(network, queries, targets, views)
    if reached < 0:
        raise Misuse(f"fine-tuning: at a learning rate of {chosen:g} it diverged: name lower rates, as finetune.rates=[0.01]")
    return Tuned(reached, chosen)


@denormals_flushed()
def finetune(
    backbone: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    views: Crops,
    rate: float,
    epochs: int = 30,
    batch_size: int = 256,
    optimizer: SGD | AdamW = NESTEROV,
    seed: int = 0,
    bf16: bool = False,
) -> nn.Module:
    """A copy of `backbone` with a linear layer that starts at 0, trained on uint8 `pixels` [N, C, H, W]; images to logits [B, classes].

    Random crops and flips as `views` has them and no other augmentation, cross-entropy, lr = rate * batch / 256 by cosine to 0, no
    warm-up, no weight decay. An epoch leaves out what does not fill a batch.
    """
    device = device_of(backbone)
    encoder = copy.deepcopy(backbone)
    width = features(encoder, [plain(pixels[:1].to(device), views)]).shape[1]
    head = nn.utils.skip_init(nn.Linear, width, classes, device=device)  # draws nothing of the caller's generator
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network = nn.Sequential(encoder, head).requires_grad_().train()
    engine = optimizer.build([{"params": list(network.parameters()), "weight_decay": 0.0}])
    crops, size = crop_and_flip(views), min(batch_size, len(pixels))
    steps = len(pixels) // size
    with drawn_from(seed):  # dropout and drop path
        for step in range(epochs * steps):
            if step % steps == 0:
                order = permutation(seed, step // steps, len(pixels))
            rows = order[step % steps * size :][:size]
            x = views_of_pixels(pixels[rows].to(device), rows, crops, 1, seed, step // steps).crops[0][0]  # [b, C, S, S]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = network(x)
            engine.param_groups[0]["lr"] = rate * size / 256 * (1 + math.cos(math.pi * step / (epochs * steps))) / 2
            F.cross_entropy(logits.float(), labels[rows].to(device)).backward()
            engine.step()
            engine.zero_grad()
    return network.eval()


def crop_and_flip(views: Crops) -> Crops:
    """The crops and flips of `views` alone."""
    alone = views.augment.model_copy(update={"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0, "erase": 0.0})
    return views.model_copy(update={"augment": alone, "second": None, "locals": None, "masks": None})


def _accuracy(network: nn.Module, pixels: Tensor, labels: Tensor, views: Crops) -> float:
    """-1 of a network that diverged."""
    device = device_of(network)
    logits = features(network, (plain(chunk.to(device), views) for chunk in pixels.split(512)))
    return float((logits.argmax(1) == labels).float().mean()) if logits.isfinite().all() else -1.0

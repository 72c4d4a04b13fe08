"""Protocols that train the network: fine-tuning with all labels and with few."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from selfdistill.data.images import spread
from selfdistill.errors import Misuse
from selfdistill.evaluate import finetune
from selfdistill.evaluate.linear import held_out, linear_probe
from selfdistill.own import PYTHON
from selfdistill.parts.backbone import device_of
from selfdistill.parts.optim import AdamW
from selfdistill.protocols.frozen import Found, Protocol, Rates, Seed
from selfdistill.spec import Count
from selfdistill.train.run import untrained
from selfdistill.train.subject import Subject
from selfdistill.views.draw import balanced


class Tuning(Protocol):
    """How a network is trained with labels: crops and flips alone, a cosine without warm-up or weight decay."""

    rates: Rates = finetune.RATES
    """learning rates for a batch of 256, to be chosen from"""
    batch_size: Annotated[int, Field(ge=2)] = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with Nesterov's momentum 0.9 (SimCLR, BYOL)"""
    seed: Seed = 0

    def settings(self, subject: Subject) -> dict[str, Any]:
        how = {name: getattr(self, name) for name in ("rates", "batch_size", "seed")}
        optimizer = finetune.NESTEROV if self.optimizer == "sgd" else AdamW()
        return {**how, "optimizer": optimizer, "views": subject.recipe.views, "bf16": subject.recipe.precision == "bf16"}


class Finetune(Tuning):
    """The whole network with all labels (BYOL App. D.2), in fewer epochs than the papers' 30 and 50; the learning rate chosen on a
    tenth of the bank."""

    epochs: Count = 10

    def measure(self, subject: Subject) -> Found:
        subject.check_finite(subject.features(spread(subject.source.train, 32)))
        found = finetune.finetune_accuracy(_network(subject), *subject.pixels, epochs=self.epochs, **self.settings(subject))
        return Found({"top1": found.accuracy}, {"rate": found.rate})


class Supervised(Finetune):
    """The same network from random weights with all labels: what the labels alone give."""

    epochs: Count = 30
    rates: Rates = (0.03, 0.1, 0.3)

    def measure(self, subject: Subject) -> Found:
        if subject.recipe.encoder.name.startswith(PYTHON):
            raise Misuse(
                f"{subject.name}: supervised starts from random weights, and a module of your own cannot be drawn anew: leave it out"
            )
        at = device_of(_network(subject))
        drawn = subject.recipe.model_copy(update={"seed": subject.recipe.seed + self.seed})
        return super().measure(replace(subject, backbone=untrained(drawn).to(at)))


class Semi(Tuning):
    """The whole network with few labels, and a linear probe on the same few (SimCLR App. B.5; BYOL Table 2). The labelled images are
    drawn by seed, the same number of each class; learning rates are chosen on a tenth of the bank that they are not drawn from."""

    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=0.9)], ...], Field(min_length=1)] = (0.01, 0.1)
    epochs: Annotated[tuple[Count, ...], Field(min_length=1)] = (60, 30)
    """of fine-tuning, for each share (SimCLR); the last serves further shares"""

    def measure(self, subject: Subject) -> Found:
        network, (bank, _, test, _) = _network(subject), subject.pixels
        features, labels, test_features, targets = subject.frozen
        held, rest = held_out(labels, "semi", self.seed)
        results: dict[str, float] = {}
        chosen: dict[str, Any] = {}
        for n, share in enumerate(self.shares):
            few = rest[few_labels(labels[rest], round(share * len(labels)), self.seed)]
            epochs = self.epochs[min(n, len(self.epochs) - 1)]
            judged = bank[held], labels[held]
            tuned = finetune.finetune_accuracy(
                network, bank[few], labels[few], test, targets, validation=judged, epochs=epochs, **self.settings(subject)
            )
            probe = linear_probe(features[few], labels[few], seed=self.seed, validation=(features[held], labels[held]))
            name = f"{100 * share:.6g}%"
            results |= {f"{name} finetune": tuned.accuracy, f"{name} linear": probe.accuracy(test_features, targets)}
            chosen[name] = {"images": len(few), "rate": tuned.rate, "linear rate": probe.rate}
        return Found(results, chosen)


def few_labels(labels: Tensor, total: int, seed: int) -> Tensor:
    """Places of some `total` images, the same number of each class and one at least, or all that a class has; drawn by seed."""
    there = labels.bincount() > 0  # a subset of a data set may keep its numbers, with gaps
    return balanced(seed, labels, [max(1, round(total / int(there.sum()))) * found for found in there.tolist()])


def _network(subject: Subject) -> nn.Module:
    if not any(True for _ in subject.backbone.parameters()):
        raise Misuse(f"{subject.name} has nothing to fine-tune: leave out finetune, supervised and semi")
    return subject.backbone

"""Protocols on frozen features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from selfdistill.data.images import Pixels
from selfdistill.errors import Misuse
from selfdistill.evaluate import knn, linear, logistic
from selfdistill.evaluate.clustering import clustering
from selfdistill.evaluate.corruptions import CORRUPTIONS, corrupt
from selfdistill.evaluate.retrieval import retrieval
from selfdistill.spec import Count, Positive, Spec
from selfdistill.train.subject import Subject

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Found(NamedTuple):
    """results: the numbers, by name; `a/b` belongs to a. chosen: what was decided on held-out training images."""

    results: dict[str, float]
    chosen: dict[str, Any] = {}


class Protocol(Spec, ABC):
    """What is measured, and with which settings: the fields."""

    @abstractmethod
    def measure(self, subject: Subject) -> Found:
        """Looks at the held-out images once, after all choices. Raises `Misuse`."""


class KNN(Protocol):
    """Weighted k-nearest neighbours (Wu et al. 2018; DINO App. F.1): accuracy at each k, and at the k that is best for a tenth of the
    bank."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """neighbours that vote; none: those of 10, 20, 100, 200 that the bank allows"""
    temperature: Positive = knn.TEMPERATURE

    def measure(self, subject: Subject) -> Found:
        bank, labels, test, targets = subject.frozen
        most = int(0.9 * len(bank))  # a k must fit the nine tenths on which it is tried, too
        ks = self.ks or [k for k in knn.KS if k <= most] or [1]
        if len(ks) > 1 and max(ks) > most:
            raise Misuse(f"knn.ks={list(ks)}: the best is chosen with nine tenths of the bank, {most} images: ask for no more")
        accuracy = knn.knn_accuracies(bank, labels, test, targets, ks, self.temperature)
        results = {f"k={k}": value for k, value in accuracy.items()}
        if len(ks) == 1:
            return Found(results)
        held, rest = linear.held_out(labels, "kNN")
        tried = knn.knn_accuracies(bank[rest], labels[rest], bank[held], labels[held], ks, self.temperature)
        best = max(ks, key=lambda k: tried[k])
        return Found({**results, "top1": accuracy[best]}, {"k": best})


class Linear(Protocol):
    """A linear layer by SGD, the learning rate chosen on a tenth of the bank (SimSiam App. A, DINO App. F.2)."""

    rates: Rates = linear.RATES
    epochs: Count = 100
    batch_size: Count = 256
    seed: Seed = 0

    def probe(self, subject: Subject) -> linear.Probe:
        bank, labels, _, _ = subject.frozen
        return linear.linear_probe(bank, labels, **self.model_dump(include=set(Linear.model_fields)))

    def measure(self, subject: Subject) -> Found:
        probe = self.probe(subject)
        return Found({"top1": probe.accuracy(*subject.frozen[2:])}, {"rate": probe.rate})


class Logistic(Protocol):
    """Multinomial logistic regression by L-BFGS, the penalty chosen on a tenth of the bank (CLIP App. A.3)."""

    strengths: Rates = logistic.STRENGTHS
    steps: Count = 1000
    seed: Seed = 0

    def measure(self, subject: Subject) -> Found:
        found = logistic.logistic(*subject.frozen, **self.model_dump())
        return Found({"top1": found.accuracy}, {"C": found.C, "steps": found.steps})


class Retrieval(Protocol):
    """Held-out images ask for the others of their class by cosine similarity, themselves left out."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)

    def measure(self, subject: Subject) -> Found:
        found = retrieval(*subject.frozen[2:], self.ks)
        return Found({"mAP": found.mean_average_precision, **{f"recall@{k}": value for k, value in found.recall.items()}})


class Clustering(Protocol):
    """k-means on the held-out images' features, as many clusters as classes."""

    starts: Count = 10
    seed: Seed = 0

    def measure(self, subject: Subject) -> Found:
        found = clustering(*subject.frozen[2:], starts=self.starts, seed=self.seed)
        return Found({"NMI": found.nmi, "ARI": found.ari})


class Robustness(Linear):
    """The linear probe of clean features on corrupted held-out images, five strengths each (Hendrycks & Dietterich 2019)."""

    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)

    def measure(self, subject: Subject) -> Found:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise Misuse(f"robustness.corruptions={name}: there are {', '.join(CORRUPTIONS)}")
        if subject.recipe.encoder.channels not in (1, 3):
            raise Misuse(f"robustness: images of {subject.recipe.encoder.channels} channels; grey and RGB can be corrupted")
        probe = self.probe(subject)
        _, _, test, targets = subject.pixels
        results = {"clean": probe.accuracy(*subject.frozen[2:])}
        for name in self.corruptions:
            for strength in range(1, 6):
                features = subject.features(Pixels(corrupt(test, name, strength, self.seed)))
                results[f"{name}/{strength}"] = probe.accuracy(features, targets)
        corrupted = [value for name, value in results.items() if name != "clean"]
        if corrupted:
            results["mean"] = sum(corrupted) / len(corrupted)
        return Found(results, {"rate": probe.rate})

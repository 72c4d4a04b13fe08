"""The questions asked while a run trains: is the backbone any good, and has it collapsed?"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.data.images import Images, Source, spread
from selfdistill.diagnose.metrics import output_std
from selfdistill.diagnose.verdict import since
from selfdistill.errors import Misuse
from selfdistill.evaluate.knn import knn_accuracy, usual_k
from selfdistill.evaluate.ridge import ridge_accuracy
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.siamese import Siamese, Step
from selfdistill.train.clock import Clock
from selfdistill.train.journal import Journal
from selfdistill.train.probe import collapse
from selfdistill.train.run import features_of

BANK, QUERIES = 10_000, 2_000
"""images of the online kNN at most; evaluate uses all"""
SHARE = 0.04
"""of a run's time that probes may take"""
PATIENCE = 3
"""probes in a row with the same bad verdict after which on_collapse=stop ends the run"""
ACCIDENTS = 2
"""steps in a row that may not be finite before a probe takes that for the network's state"""
PLATEAU = 0.5
"""of the run, which uniform-target must last for that as well: SwAV on digits leaves it by itself after 17 of 60 epochs"""


def whole(bank: Images, test: Images) -> bool:
    """Whether probes look at all of them, and not at a share."""
    return len(bank) <= BANK and len(test) <= QUERIES


class Monitor:
    """Writes a line every `log_every` steps; at probes adds kNN and a linear probe on held-out images, where there are labels, the
    collapse metrics of the step just made, and the verdict, which is said aloud when it turns."""

    def __init__(self, recipe: Recipe, source: Source, journal: Journal, clock: Clock, refused: int = 0):
        """refused: steps in a row, up to now, that were not finite."""
        self.recipe, self.journal, self.clock = recipe, journal, clock
        self.sets: tuple[Images, Tensor, Images, Tensor] | None = None
        try:
            bank, _, test, _ = source.labelled()
            bank, test = spread(bank, BANK), spread(test, QUERIES)
            assert bank.labels is not None
            assert test.labels is not None
            self.sets = (bank, bank.labels, test, test.labels)
        except Misuse:
            pass
        # An image trained costs a forward and a backward pass, three forwards, for each view; an image probed costs one a network.
        probed = (1 + recipe.teacher.own_weights) * (len(self.sets[0]) + len(self.sets[2])) if self.sets else 0
        often = max(1, math.ceil(probed / (3 * recipe.global_views * len(source.train)) / SHARE))
        self.every = often if recipe.probe_every == "auto" else recipe.probe_every
        began = since(journal.probes) or {"verdict": "healthy", "step": 0, "epoch": 0.0}  # of a run that goes on, as it was
        self.state = began["verdict"]
        self.held = sum(row["step"] >= began["step"] for row in journal.probes)
        self.turned = float(began["epoch"])
        self.lasted = journal.last.get("epoch", 0.0) - self.turned
        self.seconds = journal.last.get("wall_seconds", 0.0)
        self.started = self.logged = time.perf_counter()
        self.steps, self.refused = 0, refused

    @property
    def ends(self) -> bool:
        """Whether on_collapse=stop ends the run: numbers that are not finite do not come back, a collapse of a few probes may."""
        least = PLATEAU * self.recipe.epochs if self.state == "uniform-target" else 0.0
        lasting = self.state == "diverged" or (self.state != "healthy" and self.held >= PATIENCE and self.lasted >= least)
        return self.recipe.on_collapse == "stop" and lasting

    def before(self, siamese: Siamese) -> None:
        """The line of step 0: how good random features are."""
        self.journal.log({"step": 0, "epoch": 0.0, **self.accuracies(siamese)})
        self.logged = time.perf_counter()

    def after(self, now: Progress, made: Step, lr: float, siamese: Siamese, passed: bool = True) -> float | None:
        """Called after every step, `now` counting it; most calls only count. A probe answers with the kNN accuracy. passed: whether the
        step was finite and made. One or two that were not say nothing of the network, and are probed at the run's end alone."""
        self.steps += 1
        self.refused = 0 if passed else self.refused + 1
        epoch = now.step // now.steps_per_epoch
        accident = 0 < self.refused <= ACCIDENTS
        probing = now.at_epoch_end and ((epoch % self.every == 0 and not accident) or epoch == now.epochs)
        if not (probing or now.step % self.recipe.log_every == 0 or now.step == 1):
            return None
        row: dict[str, Any] = {"step": now.step, "epoch": round(now.epoch, 4), "loss": float(made.loss.detach()), "lr": lr}
        seconds = time.perf_counter() - self.logged
        row["images_per_second"] = round(self.steps * self.recipe.batch_size / seconds, 1)
        row["data_share"] = round((self.clock.lap("data") + self.clock.lap("views")) / seconds, 4)
        if len(made.losses) > 1:
            row |= {f"loss_{name}": float(value.detach()) for name, value in made.losses.items()}
        row["output_std"] = output_std(made.z.cls.detach().flatten(0, 1).float())
        if probing:
            found, verdict = collapse(made, siamese, now)
            row |= {**found, **self.accuracies(siamese), "verdict": verdict.state, "because": str(verdict)}
        row["wall_seconds"] = round(self.seconds + time.perf_counter() - self.started, 2)
        self.journal.log(row, aloud=probing)
        if probing and row["verdict"] != self.state:
            self.journal.say(f"epoch {epoch}: {row['because']}")
            self.state, self.held, self.turned = row["verdict"], 0, now.epoch
        self.held += probing
        self.lasted = now.epoch - self.turned
        self.steps, self.logged = 0, time.perf_counter()
        return row.get("knn_top1")

    @torch.no_grad()
    def accuracies(self, siamese: Siamese) -> dict[str, Any]:
        """kNN and ridge accuracy on a share of the held-out images, of the encoder that is kept and, where the teacher has weights of
        its own, of both; None without labels."""
        if self.sets is None:
            return {"knn_top1": None}
        bank, labels, test, targets = self.sets
        scores: dict[str, dict[str, float]] = {}
        for who, network in siamese.networks.items():
            known, asked = (features_of(network.backbone, i, self.recipe, bf16=self.recipe.precision == "bf16") for i in (bank, test))
            knn = knn_accuracy(known, labels, asked, targets, k=usual_k(len(bank)))
            scores[who] = {"knn": knn, "ridge": ridge_accuracy(known, labels, asked, targets)}
        found: dict[str, Any] = {f"{name}_top1": value for name, value in scores[self.recipe.kept].items()}
        if len(scores) > 1:
            found |= {f"{name}_{who}": value for who, its in scores.items() for name, value in its.items()}
        if self.recipe.labels is not None:
            found |= test_errors(siamese, self.recipe, test, targets)
        return found


def test_errors(siamese: Siamese, recipe: Recipe, test: Images, targets: Tensor) -> dict[str, float]:
    """Share of held-out images that the classifier gets wrong, of student and teacher (Mean Teacher's tables)."""
    wrong = {}
    for who, network in siamese.networks.items():
        logits = features_of(nn.Sequential(network.backbone, network.projector), test, recipe)
        wrong[f"error_{who}"] = float((logits.argmax(1) != targets).float().mean())
    return wrong

"""One type for everything that changes over a run: learning rate, weight decay, momentum, temperature."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from selfdistill.spec import Spec


class Progress(NamedTuple):
    """How far a run is: `step` optimiser steps done, of `epochs * steps_per_epoch`."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.step % self.steps_per_epoch == 0


class Schedule(Spec):
    """`base` moves to `end` over the run, after a linear warm-up, and may hand over to a second schedule.

    constant              Schedule(base=0.1), or the number itself
    cosine                Schedule(base=0.05, end=0)       v = end + (base - end) (1 + cos(pi f)) / 2
    BYOL's tau, eq. 3     Schedule(base=0.996, end=1)      the same formula: 1 - (1 - base)(cos(pi k/K) + 1)/2
    warm-up, then cosine  Schedule(base=0.2, end=0, warmup=10)
    composition           Schedule(base=0.99, until=5, then=Schedule(base=0.999))
    """

    base: float
    """the value at the start (after the warm-up); a bare number on the command line sets this"""
    end: float | None = None
    """the value at the end; none: stays at base"""
    shape: Literal["cosine", "linear"] = "cosine"
    """how base moves to end"""
    warmup: float = Field(0.0, ge=0)
    """epochs of warm-up"""
    warmup_shape: Literal["linear", "sigmoid"] = "linear"
    """sigmoid: base exp(-5 (1 - epoch / warmup)^2), the ramp-up of Mean Teacher (Laine & Aila 2017)"""
    warmup_from: float = 0.0
    """the value at step 0 of a linear warm-up"""
    per_epoch: bool = False
    """move once an epoch (SimSiam's code) instead of every step; a warm-up moves every step all the same"""
    until: float | None = Field(None, gt=0)
    """epochs after which `then` takes over"""
    then: Schedule | None = None
    """the schedule of the rest of the run"""

    @model_validator(mode="before")
    @classmethod
    def _constant(cls, value: Any) -> Any:
        return {"base": value} if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _composed(self) -> Schedule:
        if (self.until is None) != (self.then is None):
            raise ValueError("'until' and 'then' go together: the epoch at which the second schedule takes over, and that schedule")
        return self

    @property
    def course(self) -> str:
        """Its values over a run, in words: 0.996 to 1."""
        first = self.warmup_from if self.warmup and self.warmup_from else self.base
        last = self.last
        return f"{first:g}" if first == last else f"{first:g} to {last:g}"

    @property
    def last(self) -> float:
        """The value at the end of a run."""
        return self.then.last if self.then else self.base if self.end is None else self.end

    def at(self, progress: Progress) -> float:
        """The value for the step that follows `progress.step` finished ones."""
        return self._value(progress.epoch, float(progress.epochs))

    def undecayed(self) -> Schedule:
        """The same warm-up, then base to the end."""
        return self.model_copy(update={"end": None, "until": None, "then": None})

    def within(self, low: float, high: float) -> Schedule:
        """Itself. Raises `ValueError` when a value that it can take lies outside."""
        values = [self.base, self.base if self.end is None else self.end, self.warmup_from if self.warmup else self.base]
        for value in values:
            if not low <= value <= high:
                raise ValueError(f"{value} is out of range: between {low:g} and {high:g}")
        if self.then is not None:
            self.then.within(low, high)
        return self

    def _value(self, epoch: float, epochs: float) -> float:
        if self.then is not None and self.until is not None:
            if epoch >= self.until:
                return self.then._value(epoch - self.until, epochs - self.until)
            epochs = self.until
        if epoch < self.warmup:
            f = epoch / self.warmup
            risen = f if self.warmup_shape == "linear" else math.exp(-5 * (1 - f) ** 2)
            return self.warmup_from + (self.base - self.warmup_from) * risen
        if self.end is None:
            return self.base
        epoch = float(int(epoch)) if self.per_epoch else epoch
        f = min(1.0, max(0.0, epoch - self.warmup) / max(epochs - self.warmup, 1e-12))
        remaining = (1 + math.cos(math.pi * f)) / 2 if self.shape == "cosine" else 1 - f
        return self.end + (self.base - self.end) * remaining

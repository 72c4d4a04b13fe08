"""What is held out of a data set: a split by its name, else a tenth of each class."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import TypeVar

import torch

from selfdistill.data.images import Encoded

HELD_OUT = ("test", "val", "valid", "validation")  # the first of these that fits is held out
WORD = re.compile(rf"(?<![a-z])(train|{'|'.join(HELD_OUT)})(?![a-z])")

Some = TypeVar("Some", bound=Encoded)


def split_of(name: str) -> str:
    """The split that a file's name says, as a word of its own and the last if several: imagenet1k-validation-00.tar. Else train."""
    return next(reversed(WORD.findall(name.lower())), "train")


def tenth_held_out(images: Some, names: Sequence[str]) -> tuple[Some, Some | None, str]:
    """(to train on, held out, what to say of it): a tenth of each class, at least one image of two or more, and none without a label.
    A hash of an image's name draws: one image more or less changes little."""
    assert images.labels is not None
    labels = images.labels.tolist()  # of a million images: an item of a tensor takes a microsecond or more
    members: dict[int, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: hashlib.blake2b(os.fsencode(names[i].replace(os.sep, "/"))).digest()):
        members.setdefault(labels[i], []).append(i)
    held = torch.zeros(len(names), dtype=torch.bool)
    for label, group in members.items():
        if label >= 0:
            held[group[: min(len(group) - 1, max(1, round(len(group) / 10)))]] = True
    n, labelled = int(held.sum()), len(labels) - labels.count(-1)
    how_many = (
        f"{n} of {labelled} images, a tenth of each class," if n else "with one image a class none" if labelled else "with no label none"
    )
    test = images.pick(held.nonzero()[:, 0]) if n else None
    return images.pick((~held).nonzero()[:, 0]), test, f"no labelled test split: {how_many} are held out for the probes"

"""Augmentations as data. The operations are in crop.py, color.py and masks.py, their order in augment.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from selfdistill.spec import Positive, Spec

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


class Augment(Spec):
    """The family's augmentation in the papers' order: random resized crop, flip, jitter, grey, blur, solarise, erase."""

    scale: tuple[Probability, Probability] = (0.2, 1.0)
    """the crop's share of the image's area"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """the crop's width over its height"""
    flip: Probability = 0.5
    """left-right"""
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    jitter: Probability = 0.8
    """probability of brightness, contrast, saturation and hue, in random order"""
    grey: Probability = 0.2
    blur: Probability = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    """the blur's standard deviation in pixels of the crop; its kernel spans a tenth of the crop's side, three pixels at least (SimCLR
    App. A), which on small crops cuts it: 2.0 blurs 96 pixels as 1.85 would, 32 as 0.8"""
    solarize: Probability = 0.0
    """invert what is brighter than 128"""
    erase: Probability = 0.0
    """a rectangle of 2 to 33 % of the area set to the mean (Zhong et al. 2017)"""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        for name in ("scale", "ratio", "sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}=[{low}, {high}] must be two positive numbers, the smaller first")
        return self


class Locals(Spec):
    """Small crops that only the student sees (multi-crop: SwAV Sec. 3.3, DINO Sec. 3.1)."""

    count: int = Field(8, ge=1)
    """of each image"""
    size: int = Field(96, ge=2)
    """pixels"""
    augment: Augment = Augment(scale=(0.05, 0.4))


class BlockMasks(Spec):
    """Which patches of the global views the student does not see (iBOT Sec. 3 and App. A)."""

    patch: int = Field(16, ge=1)
    """pixels, the encoder's patch size"""
    ratio: tuple[Probability, Probability] = (0.1, 0.5)
    """share of the patches that is hidden, drawn uniformly"""
    probability: Probability = 0.5
    """of a view being masked at all; always masking is unstable with multi-crop (iBOT App. B)"""
    aspect: float = Field(0.3, gt=0, le=1)
    """of a block: between this and its inverse"""


class Crops(Spec):
    """Global views of each image, `size` x `size`: views 0, 2 by `augment`, views 1, 3 by `second` (BYOL's T and T')."""

    size: int = Field(224, ge=4)
    """pixels"""
    augment: Augment = Augment()
    second: Augment | None = None
    """of every other global view; none: the same as augment"""
    locals: Locals | None = None
    """small crops besides; none: global views only"""
    masks: BlockMasks | None = None
    """patches of the global views hidden from the student; none: all are seen"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """of the channels, images in [0, 1]; one value serves all channels"""
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)

    def of_each_size(self, globals: int) -> list[list[tuple[int, int, Augment]]]:
        """(view, size, augmentation) of `globals` global views, then of the local ones."""
        first = [(v, self.size, self.second if self.second and v % 2 else self.augment) for v in range(globals)]
        if self.locals is None:
            return [first]
        return [first, [(globals + n, self.locals.size, self.locals.augment) for n in range(self.locals.count)]]

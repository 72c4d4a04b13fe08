"""What a training step sees."""

from typing import NamedTuple

from torch import Tensor


class Views(NamedTuple):
    """V views of B images, float and normalised.

    crops: one tensor per crop size, the G global views [G, B, C, S, S] first. ids: [B], the images' places in the data set.
    masks: bool [G, B, h, w], patches that the student does not see. labels: int64 [B], -1 where there is none.
    """

    crops: tuple[Tensor, ...]
    ids: Tensor
    masks: Tensor | None = None
    labels: Tensor | None = None

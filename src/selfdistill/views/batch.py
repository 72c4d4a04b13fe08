"""What a training step sees."""

from typing import NamedTuple

from torch import Tensor


class Views(NamedTuple):
    """V views of B images, float and normalised.

    crops: one tensor per crop size, the G global views [G, B, C, S, S] first. ids: [B], the images' places in the data set.
    """

    crops: tuple[Tensor, ...]
    ids: Tensor

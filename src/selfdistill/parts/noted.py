"""What moves once per step, from what its forward passes saw."""

from typing import TypeVar

T = TypeVar("T")


class Noted(list[T]):
    """What the forward passes of a step noted for the `update` after it, which empties it; of a step that is not made,
    `Siamese.forget` does."""

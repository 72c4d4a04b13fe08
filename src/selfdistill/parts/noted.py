"""What moves once per step, from what its forward passes saw."""

from typing import TypeVar

T = TypeVar("T")


class Noted(list[T]):
    """What the forward passes of a step noted for the `update` after it, which empties it; `Siamese.forget` does where the step is not
    made."""

"""The methods by name. A ninth takes one file beside these, one line here, and one executable paper in tests/papers."""

from selfdistill.methods.byol import BYOL
from selfdistill.methods.simsiam import SIMSIAM
from selfdistill.recipe import Recipe

METHODS: dict[str, Recipe] = {"simsiam": SIMSIAM, "byol": BYOL}

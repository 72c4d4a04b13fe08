"""The methods by name. One more takes one file beside these, one line here, and one executable paper in tests/papers."""

from selfdistill.errors import Misuse, did_you_mean
from selfdistill.methods.byol import BYOL
from selfdistill.methods.dino import DINO
from selfdistill.methods.ibot import IBOT
from selfdistill.methods.mean_teacher import MEAN_TEACHER
from selfdistill.methods.moco import MOCO
from selfdistill.methods.simclr import SIMCLR
from selfdistill.methods.simsiam import SIMSIAM
from selfdistill.methods.swav import SWAV
from selfdistill.recipe import Recipe

METHODS: dict[str, Recipe] = {
    "simclr": SIMCLR,
    "moco": MOCO,
    "swav": SWAV,
    "byol": BYOL,
    "simsiam": SIMSIAM,
    "dino": DINO,
    "ibot": IBOT,
    "mean-teacher": MEAN_TEACHER,
}


def method_of(name: str) -> Recipe:
    """Raises `Misuse` for a name that there is not, with the nearest."""
    if name not in METHODS:
        raise Misuse(f"method={name}: there are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
    return METHODS[name]

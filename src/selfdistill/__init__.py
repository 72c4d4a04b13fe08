"""Self-distillation on images: BYOL, SimSiam and their family from one skeleton.

import selfdistill as sd
run = sd.pretrain("simsiam", data="digits")
run.knn(); run.embed(images); run.backbone
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.api import (
        METHODS,
        PROTOCOLS,
        Diagnosis,
        Failure,
        Interrupted,
        Misuse,
        Recipe,
        Run,
        Spec,
        alternate,
        diagnosis_of,
        diff,
        duplicates,
        embed_to,
        export_run,
        ingredient,
        load,
        losses,
        measure,
        neighbours,
        picture,
        predictor_gap,
        pretrain,
        recipe_of,
        use,
        write_report,
    )

__all__ = [
    "METHODS",
    "PROTOCOLS",
    "Diagnosis",
    "Failure",
    "Interrupted",
    "Misuse",
    "Recipe",
    "Run",
    "Spec",
    "alternate",
    "diagnosis_of",
    "diff",
    "duplicates",
    "embed_to",
    "export_run",
    "ingredient",
    "load",
    "losses",
    "measure",
    "neighbours",
    "picture",
    "predictor_gap",
    "pretrain",
    "recipe_of",
    "use",
    "write_report",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # On first use: PyTorch takes seconds to import, and `selfdistill --help` needs none of it.
    if name in __all__:
        from selfdistill import api

        return getattr(api, name)
    if name == "__version__":
        return version("selfdistill")
    raise AttributeError(f"module 'selfdistill' has no attribute '{name}'")

"""Named one-field edits: each takes one ingredient out, as a paper did. `--without NAME` applies one; several in the order of `EDITS`,
where a part comes before the whole that it goes with (`output-bn`, `projector-bn`, `projector`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.errors import Misuse, did_you_mean
from selfdistill.recipe import Recipe, diff, leaves, under


@dataclass(frozen=True)
class Edit:
    """setting: the one field that changes. what: what that means. source: who did it, and where. of: what the field must be for the
    ingredient to be there; empty: anything else."""

    setting: str
    what: str
    source: str
    of: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.setting.partition("=")[0]


EDITS: dict[str, Edit] = {
    "stop-gradient": Edit("stop_gradient=false", "gradients flow into the targets as well", "SimSiam Fig. 2"),
    "predictor-training": Edit("predictor.trainable=false", "the predictor stays at its random initialisation", "SimSiam Table 1b"),
    "predictor-bn": Edit("predictor.bn=none", "no BatchNorm in the predictor", "SimSiam Table 3a (both heads)"),
    "predictor": Edit("predictor=none", "the student's projection is compared directly", "SimSiam Table 1a, BYOL Table 5b"),
    "momentum-teacher": Edit("teacher=shared", "the student is its own teacher, tau = 0", "BYOL Table 5a, SimSiam Sec. 6.2"),
    "symmetry": Edit("terms.views.pairs=one-way", "one view predicts the other, not the reverse", "SimSiam Sec. 4.6"),
    "cosine": Edit("terms.views.loss=cross-entropy", "cross-entropy of softmaxes instead", "SimSiam Sec. 4.5", of=("cosine", "mse")),
    "centring": Edit("terms.views.loss.target.momentum=1", "the centre stays at 0", "DINO Fig. 7"),
    "sharpening": Edit("terms.views.loss.target.temperature={base: 0.1}", "the target as soft as the student's prediction", "DINO Fig. 7"),
    "masks": Edit("views.masks.probability=0", "the student sees every patch", "iBOT Table 9"),
    "multi-crop": Edit("views.locals=none", "no local crops; the global ones keep their scale", "DINO Table 7, SwAV"),
    "consistency": Edit("terms.consistency.weight={base: 0}", "labels alone: the supervised baseline", "Mean Teacher Table 2"),
    "output-bn": Edit("projector.bn=hidden", "no BatchNorm at the projector's output", "SimSiam Table 3b", of=("all",)),
    "projector-bn": Edit("projector.bn=none", "no BatchNorm in the projector", "SimSiam Table 3a (both heads)"),
    "projector": Edit("projector=none", "the loss works on the backbone's features", "SimCLR Sec. 4.2"),
}


def settings_of(names: Sequence[str]) -> list[str]:
    """The settings that take the named ingredients out, whatever their order. Raises `Misuse` for an unknown name."""
    for name in names:
        if name not in EDITS:
            raise Misuse(f"--without {name}: allowed: {', '.join(EDITS)}.{did_you_mean(name, EDITS)}")
    return [edit.setting for name, edit in EDITS.items() if name in names]


def lacking(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Those of the named ingredients that the recipe has not. Raises `Misuse` for an unknown name."""
    settings_of(names)  # raises
    values = dict(leaves(recipe))
    known = [name for name in names if any(under(EDITS[name].key, path) for path in values)]  # else a slot is empty, or filled otherwise
    differing = [path for path, _, _ in diff(recipe, recipe.edit(settings_of(known)))]

    def has(edit: Edit) -> bool:
        is_there = not edit.of or values.get(edit.key, values.get(f"{edit.key}.kind")) in edit.of
        return is_there and any(under(edit.key, path) for path in differing)

    return [name for name in names if name not in known or not has(EDITS[name])]


def without(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The settings that take them out of a recipe that has them. Raises `Misuse` for an ingredient that is not there as well."""
    for name in lacking(recipe, names):
        raise Misuse(f"--without {name}: {recipe.method} has none to take out ({EDITS[name].what}: {EDITS[name].setting})")
    return settings_of(names)

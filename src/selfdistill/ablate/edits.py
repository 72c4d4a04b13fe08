"""Named one-field edits: each takes one ingredient out, as a paper did. `--without NAME` applies one; several in the order of `EDITS`,
where a part comes before the whole that it goes with (`output-bn`, `projector-bn`, `projector`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.errors import Misuse, did_you_mean
from selfdistill.recipe import Recipe
from selfdistill.spec import diff, leaves, under


@dataclass(frozen=True)
class Edit:
    """setting: the one field that changes; `*` is each term that has it, and `<path>` the recipe's own value there. what: what that means.
    source: who did it, and where. of: what the field must be for the ingredient to be there; empty: anything else."""

    setting: str
    what: str
    source: str
    of: tuple[str, ...] = ()

    def settings(self, values: Mapping[str, Any]) -> list[str]:
        """For a recipe of these leaves: one of each field that it has."""
        terms = dict.fromkeys(path.split(".")[1] for path in values if path.startswith("terms."))
        each = dict.fromkeys(self.setting.replace("*", term) for term in terms)
        there = [setting for setting in each if any(under(setting.partition("=")[0], path) for path in values)]
        plain = 1.0  # the temperature of a loss of the user's own that has none
        return [re.sub("<(.+)>", lambda at: str(values.get(at[1], plain)), setting) for setting in there]


EDITS: dict[str, Edit] = {
    "stop-gradient": Edit("stop_gradient=false", "gradients flow into the targets as well", "SimSiam Fig. 2"),
    "predictor-training": Edit("predictor.trainable=false", "the predictor stays at its random initialisation", "SimSiam Table 1b"),
    "predictor-bn": Edit("predictor.bn=none", "no BatchNorm in the predictor", "SimSiam Table 3a (both heads)"),
    "predictor": Edit("predictor=none", "the student's projection is compared directly", "SimSiam Table 1a, BYOL Table 5b"),
    "momentum-teacher": Edit("teacher=shared", "the student is its own teacher, tau = 0", "BYOL Table 5a, SimSiam Sec. 6.2"),
    "symmetry": Edit("terms.views.pairs=one-way", "one view predicts the other, not the reverse, by as much", "SimSiam Sec. 4.6"),
    "cosine": Edit("terms.views.loss=cross-entropy", "cross-entropy of softmaxes instead", "SimSiam Sec. 4.5", of=("cosine", "mse")),
    "centring": Edit("terms.*.loss.target.momentum=1", "the centre stays at 0", "DINO Fig. 7"),
    "sharpening": Edit(
        "terms.*.loss.target.temperature={base: <terms.*.loss.temperature>}", "targets as soft as the student's prediction", "DINO Fig. 7"
    ),
    "masks": Edit("views.masks.probability=0", "no patch is hidden, and the patch term, of hidden ones alone, is 0", "iBOT Table 9"),
    "multi-crop": Edit("views.locals=none", "no local crops; the global ones keep their scale", "DINO Table 7, SwAV"),
    "consistency": Edit("terms.consistency.weight={base: 0}", "labels alone: the supervised baseline", "Mean Teacher Table 2"),
    "output-bn": Edit("projector.bn=hidden", "no BatchNorm at the projector's output", "SimSiam Table 3b", of=("all",)),
    "projector-bn": Edit("projector.bn=none", "no BatchNorm in the projector", "SimSiam Table 3a (both heads)"),
    "projector": Edit("projector=none", "the loss works on the backbone's features", "SimCLR Sec. 4.2"),
}


def check(names: Sequence[str]) -> None:
    """Raises `Misuse` for an ingredient that has no edit."""
    for name in names:
        if name not in EDITS:
            raise Misuse(f"--without {name}: allowed: {', '.join(EDITS)}.{did_you_mean(name, EDITS)}")


def settings_of(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The settings that take the named ingredients out of a recipe, whatever the order of the names. Raises `Misuse` for an unknown one."""
    check(names)
    values = dict(leaves(recipe))
    return [setting for name, edit in EDITS.items() if name in names for setting in edit.settings(values)]


def lacking(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Those of the named ingredients that the recipe has not. Raises `Misuse` for an unknown name."""
    differing = [path for path, _, _ in diff(recipe, recipe.edit(settings_of(recipe, names)))]
    values = dict(leaves(recipe))

    def has(edit: Edit) -> bool:
        keys = [setting.partition("=")[0] for setting in edit.settings(values)]
        is_there = not edit.of or any(values.get(key, values.get(f"{key}.kind")) in edit.of for key in keys)
        return is_there and any(under(key, path) for key in keys for path in differing)

    return [name for name in names if not has(EDITS[name])]


def without(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """The settings that take them out of a recipe that has them. Raises `Misuse` for an ingredient that is not there as well."""
    for name in lacking(recipe, names):
        setting = EDITS[name].setting.replace("*", next(iter(recipe.terms)))
        raise Misuse(f"--without {name}: {recipe.method} has none to take out ({EDITS[name].what}: {setting})")
    return settings_of(recipe, names)

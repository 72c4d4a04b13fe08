"""The lab: tables to cells, cells to results. `reproduce` runs a paper's table, `ablate` one made of a method and named edits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from selfdistill.ablate import cells
from selfdistill.ablate.cells import Cell, cell
from selfdistill.ablate.claims import Claim, Judged, ScaleName, judge
from selfdistill.ablate.edits import EDITS, without
from selfdistill.ablate.figures import Figures, Results
from selfdistill.ablate.table import Row, Scale, Table
from selfdistill.data.images import Source
from selfdistill.data.sources import open_source
from selfdistill.errors import Misuse
from selfdistill.recipe import Recipe
from selfdistill.train.resolve import early


class Job(NamedTuple):
    """A table at one scale: its rows over seeds, as cells."""

    table: Table
    scale: ScaleName
    command: str
    settings: tuple[str, ...]
    rows: dict[str, Row]
    cells: dict[tuple[str, int], Cell]
    """by row and seed"""

    @property
    def results(self) -> Results:
        """Of the runs that have ended."""
        found: dict[str, dict[int, Figures]] = {name: {} for name in self.rows}
        for (name, seed), c in self.cells.items():
            if (figures := c.figures) is not None:
                found[name][seed] = figures
        return found

    @property
    def judged(self) -> list[tuple[Claim, Judged]]:
        """The claims whose rows this scale has."""
        results = self.results
        return [(claim, judge(claim, results)) for claim in self.table.claims if self.scale in claim.at]

    @property
    def as_the_table(self) -> bool:
        """Whether the user set nothing: what a table says of its outcomes is of its own settings."""
        return self.settings == self.table.scales[self.scale].settings

    @property
    def seconds(self) -> dict[Path, float]:
        """What each cell that is not done will cost on one core, by the table's measured rate."""
        each = self.table.scales[self.scale].seconds
        return {c.folder: each * self.rows[name].cost for (name, _), c in self.cells.items() if not c.done}


def job(table: Table, scale: ScaleName, seeds: int, settings: Sequence[str], lab: Path, command: str) -> Job:
    """A table's cells, resolved; nothing is run. settings: the user's, over the table's. Raises `Misuse` for what cannot be built."""
    rows = table.at(scale)
    if scale == "paper" and not any(s.startswith("data=") for s in (*table.scales[scale].settings, *settings)):
        raise Misuse(f"--scale paper: name the images, data=path/to/imagenet/train ({table.id} is an ImageNet table)")
    if any(s.startswith("seed=") for s in (*table.scales[scale].settings, *settings)):
        raise Misuse("seed=...: the lab runs seeds 0 to N - 1: --seeds N")
    made: dict[tuple[str, int], Cell] = {}
    for name in rows:
        recipe = table.recipe(name, scale, settings, source_of(*table.asked(name, scale, settings)))
        for seed in range(seeds):
            made[name, seed] = cell(recipe.edit([f"seed={seed}"]), lab, table.measures)
    return Job(table, scale, command, (*table.scales[scale].settings, *settings), rows, made)


def source_of(base: Recipe, changes: Sequence[str]) -> Source:
    """The data of a recipe with `changes`, opened once for all rows and tables."""
    asked = early(base, changes)
    return _opened(asked.data, asked.on_bad_image)


@cache
def _opened(data: str, on_bad_image: Literal["skip", "error"]) -> Source:
    return open_source(data, on_bad_image)


def estimate(jobs: Sequence[Job]) -> tuple[int, float]:
    """(runs that are to be made, their seconds on one core), each run once."""
    seconds: dict[Path, float] = {}
    for j in jobs:
        for folder, s in j.seconds.items():
            seconds[folder] = max(s, seconds.get(folder, 0.0))
    return len(seconds), sum(seconds.values())


def all_cells(jobs: Sequence[Job]) -> list[Cell]:
    """Each once, seed 0 of all tables first: what is there when the lab is stopped is all tables over fewer seeds."""
    return sorted(cells.merged(c for j in jobs for c in j.cells.values()), key=lambda c: c.recipe.seed)


def fitting(recipe: Recipe) -> list[str]:
    """The edits that take something out of this recipe and leave one that can be built."""
    found = []
    for name in EDITS:
        try:
            recipe.edit(without(recipe, [name]))
        except Misuse:
            continue
        found.append(name)
    return found


RATE = 1_000
"""images of 28 x 28 pixels and less that a small ResNet trains on in a second of one core (digits 1,300, Fashion-MNIST 900)"""


def ablation(name: str, base: Recipe, recipe: Recipe, images: int, names: Sequence[str], settings: Sequence[str]) -> Table:
    """A table of one recipe: as it is, and without each of the named edits. name: the table's. recipe: what `settings` and the data's
    preset made of `base`. images: that it trains on. Raises `Misuse` for an edit that does not fit."""
    for edit in names:
        recipe.edit(without(recipe, [edit]))
    rows = {"as-it-is": Row(says=f"{name} with all its ingredients")}
    rows |= {edit: Row(says=f"{EDITS[edit].what} ({EDITS[edit].source})", without=(edit,)) for edit in names}
    return Table(
        id=f"{name}-ablation",
        says="one ingredient taken out at a time",
        source="each row's own",
        method=recipe.method,
        base=base,
        scales={"tiny": Scale(settings=tuple(settings), seconds=recipe.epochs * images * max(1, recipe.views.size / 28) ** 2 / RATE)},
        rows=rows,
    )

"""A paper's table as data: rows that are edits of one recipe, at three scales, with what the paper found and what it claims.

A table is a YAML file in tables/; published figures stay in published.json, where a row cites them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from selfdistill.ablate.claims import Claim, ScaleName, terms
from selfdistill.ablate.edits import check
from selfdistill.ablate.edits import without as edits
from selfdistill.data.images import Source
from selfdistill.errors import Failure, Misuse, did_you_mean, in_one_line
from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe
from selfdistill.spec import Spec, problems
from selfdistill.train.resolve import resolve

Measure = Literal["linear", "gap", "ahead"]


class Scale(Spec):
    """What all rows of a table have at one scale."""

    settings: tuple[str, ...] = ()
    seconds: float = Field(gt=0)
    """of one run of cost 1, on one core (paper: on eight GPUs, guessed from the papers)"""


class Row(Spec):
    """A recipe: the table's, or another method's, after edits."""

    says: str
    method: str = ""
    """where it is not the table's"""
    without: tuple[str, ...] = ()
    """ingredients to take out, by their names in edits.py"""
    settings: tuple[str, ...] = ()
    at: dict[ScaleName, tuple[str, ...]] = {}
    """further settings of one scale"""
    only: tuple[ScaleName, ...] = ("tiny", "small", "paper")
    """scales that have this row"""
    cost: float = Field(1.0, gt=0)
    """of a run, over the scale's seconds"""
    cites: dict[str, Any] | None = None
    """which row of the published table this is: its fields and their values"""
    figure: str = ""
    """where it is not the table's"""


class Table(Spec):
    """Raises `pydantic.ValidationError` where a claim names a row that is not there."""

    id: str
    alias: str = ""
    """its name for those who do not know the paper's numbers"""
    says: str
    """what it asks, in a few words"""
    source: str
    method: str
    base: Recipe | None = None
    """what the rows edit where it is not the method's own recipe"""
    published: str = ""
    """its key in published.json"""
    figure: str = ""
    """the field of published.json's rows that is the figure, in per cent"""
    measures: tuple[Measure, ...] = ("linear",)
    """beyond what a run measures itself: a linear probe, the predictor's gap to the expectation, how far the teacher is ahead"""
    curves: tuple[str, ...] = ()
    """keys of metrics.jsonl that are drawn over the epochs"""
    scales: dict[ScaleName, Scale]
    rows: dict[str, Row]
    claims: tuple[Claim, ...] = ()
    note: str = ""
    published_as: Literal["linear", "kNN", "error"] = "linear"
    """what the published figures measure, in per cent"""

    @model_validator(mode="after")
    def _rows_exist(self) -> Table:
        for claim in self.claims:
            for text in claim.where:
                for row, _ in terms(text):
                    if row and row not in self.rows:
                        raise ValueError(f"claim {claim.id}: '{text}' names row {row}, and there are {', '.join(self.rows)}")
        for name, spec in self.rows.items():
            check(spec.without)
            if spec.cites is not None and not (self.published and (spec.figure or self.figure)):
                raise ValueError(f"row {name} cites {spec.cites}, and the table names no published table or figure")
        return self

    def at(self, scale: ScaleName) -> dict[str, Row]:
        """The rows of one scale. Raises `Misuse` where the table has it not."""
        if scale not in self.scales:
            raise Misuse(f"--scale {scale}: {self.id} has {', '.join(self.scales)}")
        return {name: row for name, row in self.rows.items() if scale in row.only}

    def asked(self, name: str, scale: ScaleName, settings: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
        """A row's recipe, and what is changed in it: by the scale, by the row, then by the user's `settings`."""
        row = self.rows[name]
        base = METHODS[row.method] if row.method else self.base or METHODS[self.method]
        return base, [*self.scales[scale].settings, *row.settings, *row.at.get(scale, ()), *settings]

    def recipe(self, name: str, scale: ScaleName, settings: Sequence[str] = (), source: Source | None = None) -> Recipe:
        """A row, resolved, the data's preset among it; then its ingredients are taken out. `source`: the data, where it is open."""
        recipe = resolve(*self.asked(name, scale, settings), source)[0]
        return recipe.edit(edits(recipe, self.rows[name].without))

    def published_figure(self, name: str) -> float | str | None:
        """In per cent, of the paper's setting; None where it has none. Raises `Failure` for a citation that is not of one row."""
        row = self.rows[name]
        if row.cites is None:
            return None
        cited = row.cites
        found = [r for r in published()[self.published]["rows"] if all(r.get(k) == v for k, v in cited.items())]
        if len(found) != 1:
            raise Failure(f"{self.id}: row {name} cites {cited}: {len(found)} rows of {self.published} in published.json are so")
        return found[0][row.figure or self.figure]


@cache
def published() -> dict[str, Any]:
    """The papers' tables, each with its source: {key: {source, setting, rows}}."""
    return json.loads((files(__package__) / "published.json").read_text())


@cache
def tables() -> dict[str, Table]:
    """All tables by their ids, in the order of the files' names."""
    found = sorted((f for f in (files(__package__) / "tables").iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    loaded = [read(file.read_text(), file.name) for file in found]
    return {table.id: table for table in loaded}


def read(text: str, name: str) -> Table:
    """A table from its YAML. Raises `Misuse` that names the file and the field."""
    tree: Any = None
    try:
        tree = yaml.safe_load(text)
        return Table.model_validate(tree)
    except yaml.YAMLError as e:
        raise Misuse(f"{name}: no YAML: {in_one_line(e)}") from e
    except ValidationError as e:
        raise Misuse(f"{name}: {problems(e, tree)}") from e


def table(id: str) -> Table:
    """A table by its id or its alias. Raises `Misuse` for an unknown one."""
    named = tables() | {table.alias: table for table in tables().values() if table.alias}
    if id not in named:
        raise Misuse(f"TABLE {id}: there are {', '.join(tables())}.{did_you_mean(id, named)}")
    return named[id]

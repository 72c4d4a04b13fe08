"""What the pages under docs/ read off the code, so that it stands nowhere twice: `{{ NAME ARGUMENTS }}` on a line of its own.

A Python-Markdown extension, so that Zensical and MkDocs both run it: `markdown_extensions: [mkdocs_facts]`.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

from selfdistill.ablate.edits import EDITS, without
from selfdistill.cli.describe import slots
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.parts.schedule import Schedule
from selfdistill.presets import PRESETS
from selfdistill.recipe import Recipe
from selfdistill.train.resolve import with_preset

README = Path(__file__).with_name("README.md")
DIRECTIVE = re.compile(r"^\{\{ (\w+) ?(.*) \}\}$")


def table(*rows: Iterable[str]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def folded(title: str, body: str) -> str:
    """A box that opens with a click."""
    return f'??? note "{title}"\n\n' + textwrap.indent(body, "    ")


def pseudocode(method: str) -> str:
    """The docstring that opens the method's module: the paper's title, its pseudocode, and what to expect."""
    doc = inspect.getdoc(sys.modules[f"selfdistill.methods.{method.replace('-', '_')}"]) or ""
    title, code, rest = re.fullmatch(r"(.*?)\n\n((?:    [^\n]*\n|\n)+)(.*)", doc, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{title}\n\n```python\n{textwrap.dedent(code).strip()}\n```\n\n{rest}"


def filled(method: str) -> str:
    """What fills the slots of the one algorithm, as `selfdistill methods` says it."""
    return table(("slot", "what fills it"), *slots(METHODS[method]).items())


def recipe(method: str) -> str:
    """The paper's values: what is looked up most as a table, and every field behind a fold."""
    r = METHODS[method]
    rows = {
        "encoder": r.encoder.name,
        "optimizer": r.optimizer.kind,
        "lr, for a batch of 256": f"{_over_time(r.lr)}, scaled by batch size: {r.lr_scaling}",
        "weight_decay": f"{_over_time(r.weight_decay)}, biases and norms {'too' if r.decay_norm_and_bias else 'left out'}",
        "batch_size": str(r.batch_size),
        "epochs": str(r.epochs),
        "evaluated and saved": f"the {r.keep}'s encoder",
    }
    fields = folded(f"Every field, as `selfdistill show {method}` prints it", f"```yaml\n{r.to_yaml()}```")
    return table(("field", "the paper's value"), *rows.items()) + "\n\n" + fields


def _over_time(schedule: Schedule) -> str:
    said = f"{schedule.base:g}"
    if schedule.end is not None:
        said += f" to {schedule.end:g} by {schedule.shape}"
    return said + (f" after {schedule.warmup:g} epochs of warm-up" if schedule.warmup else "")


def changed(method: str, preset: str) -> str:
    """What a preset changes and why, behind a fold."""
    rows = table(("field", "paper", preset, "why"), *((f"`{key}`", *words) for key, *words in with_preset(METHODS[method], preset)[1]))
    return folded(f"What the preset `{preset}` changes for {method}, and why", rows)


def presets() -> str:
    """The presets, and the data that each is for."""
    return table(("preset", "of"), *((f"`{name}`", preset.of) for name, preset in PRESETS.items()))


def ingredients(method: str) -> str:
    """The ingredients that the method has, and who took each out."""
    return table(
        ("`--without`", "what is left", "who did it"), *((f"`{n}`", EDITS[n].what, EDITS[n].source) for n in _there(METHODS[method]))
    )


def _there(r: Recipe) -> Iterable[str]:
    for name in EDITS:
        try:
            without(r, [name])
        except Misuse:
            continue
        yield name


def edits() -> str:
    """All edits of `--without`."""
    return table(
        ("`--without`", "the one field", "what is left", "who did it"),
        *((f"`{n}`", f"`{e.setting}`", e.what, e.source) for n, e in EDITS.items()),
    )


def measured(method: str) -> str:
    """The method's rows of README's tables of measurements."""
    tables = [re.findall(r"^\|.*$", part, re.MULTILINE) for part in README.read_text().split("\n\n")]
    own = [[row for row in rows[2:] if re.match(rf"\| {method}\b", row)] for rows in tables]
    found = ["\n".join([*rows[:2], *mine]) for rows, mine in zip(tables, own, strict=True) if mine]
    if not found:
        raise LookupError(f"{README}: no table has a row of {method}")
    return "\n\n".join(found)


FACTS: dict[str, Callable[..., str]] = {f.__name__: f for f in (pseudocode, filled, recipe, changed, presets, ingredients, edits, measured)}


class Facts(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return [said for line in lines for said in expand(line).split("\n")]


def expand(line: str) -> str:
    """The line, or the Markdown that its directive stands for. Raises KeyError for a fact or a method that there is not."""
    found = DIRECTIVE.match(line)
    return FACTS[found[1]](*found[2].split()) if found else line


class FactsExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Facts(md), "facts", 35)  # before superfences (25) takes the code blocks


def makeExtension(**config: Any) -> FactsExtension:
    return FactsExtension(**config)

"""The command that asks what a backbone is worth: evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from selfdistill.cli.app import app, console, is_setting, print_table
from selfdistill.errors import Misuse

if TYPE_CHECKING:
    from selfdistill.train.subject import Subject

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.


@app.command()
def evaluate(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT... [KEY=VALUE]...",
            help="run folders; or raw-pixels, random-init, timm:NAME, weights with data=... (and encoder=...); PROTOCOL.field=value",
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="knn, linear, logistic, finetune, supervised, semi, retrieval, clustering, robustness, dense; several with commas"
        ),
    ] = "knn",
    to: Annotated[str | None, typer.Option(help="another data set for the same backbones (transfer)")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="knn: neighbours that vote; 10, 20, 100 and 200 if not given")] = None,
    temperature: Annotated[float | None, typer.Option(min=1e-6, help="knn: of the votes, 0.07 if not given")] = None,
) -> None:
    """Measure backbones on held-out images: selfdistill evaluate runs/simsiam-digits-1 --protocol knn,linear."""
    from selfdistill.protocols import is_protocol_setting, measured, protocols_of, write_down
    from selfdistill.train.checkpoint import BEST
    from selfdistill.train.run import EVALUATION
    from selfdistill.train.subject import subject_on

    settings = [word for word in what if is_setting(word)]
    names = [word for word in what if not is_setting(word)]
    if not names:
        raise Misuse("evaluate what? Name a run folder, or raw-pixels, random-init, timm:NAME or a file of weights with data=...")
    own = [s for s in settings if is_protocol_setting(s)]
    own += [f"knn.{key}={value}" for key, value in (("ks", None if k is None else [k]), ("temperature", temperature)) if value is not None]
    protocols = protocols_of(map(str.strip, protocol.split(",")), own)
    subjects = [subject_on(name, [s for s in settings if s not in own], to) for name in names]
    for said in dict.fromkeys(subject.source.left_out for subject in subjects if subject.source.left_out):
        console.print(said, soft_wrap=True, highlight=False)
    for name in names:
        if Path(name).name == BEST:
            console.print(f"{name}: kept as the best of its run's probes on these held-out images, which flatters it", soft_wrap=True)
    found: list[dict[str, Any]] = []
    try:
        for subject in subjects:
            found.append({})
            for name, how in protocols.items():
                with console.status(Text(f"{subject.name}: {name}")):
                    found[-1][name] = measured(subject, how)
                write_down(subject, name, found[-1][name])
    finally:  # what was found before a protocol was refused or a disk failed is found
        if any(found):
            print_table(_table(names, found, spread=_repeated(subjects)))
    for subject in subjects:
        if subject.folder:
            console.print(f"written to {subject.folder / EVALUATION}", soft_wrap=True, highlight=False)


def _repeated(subjects: list[Subject]) -> bool:
    """Whether they are runs that differ in their seed alone, over which there is a mean and a spread."""
    from selfdistill.spec import diff

    runs = len(subjects) > 1 and all(s.folder for s in subjects)
    return runs and all(path == "seed" for s in subjects for path, _, _ in diff(subjects[0].recipe, s.recipe))


def _table(names: list[str], found: list[dict[str, Any]], spread: bool) -> Table:
    """A row for each number, `a/1`, `a/2`, ... of one thing in one; a column for each subject that has any; mean and spread over runs."""
    from selfdistill.ablate.figures import mean_and_sd

    found = [one for one in found if one]
    data = dict.fromkeys(of["data"] for one in found for of in one.values())
    of_each_name = (Column(name, overflow="fold") for name in names[: len(found)])
    table = Table("protocol", "measure", *of_each_name, title=f"data={', '.join(data)}", title_justify="left")
    spread = spread and len(found) > 1
    if spread:
        table.add_column("mean ± std")
    for protocol in dict.fromkeys(name for one in found for name in one):  # one that was refused to a later subject too
        results: list[Mapping[str, float]] = [one[protocol]["results"] if protocol in one else {} for one in found]
        common = [name for name in results[0] if all(name in of for of in results)] if spread else []
        over = {name: of_all for name in common if (of_all := mean_and_sd(of[name] for of in results))}
        rows: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for of in results for name in of):
            rows.setdefault(name.partition("/")[0], []).append(name)
        for row, cells in rows.items():
            of_each = [" ".join(f"{of[name]:.4f}" for name in cells if name in of) for of in results]
            overall = [" ".join(f"{over[name][0]:.4f} ± {over[name][1]:.4f}" for name in cells if name in over)] if spread else []
            table.add_row(protocol, row, *of_each, *overall)
        chosen = [
            ", ".join(f"{key}={_short(value)}" for key, value in one.get(protocol, {"chosen": {}})["chosen"].items()) for one in found
        ]
        if any(chosen):
            table.add_row(protocol, "chosen", *chosen, style="dim")
    return table


def _short(value: Any) -> str:
    return "(" + ", ".join(f"{k} {v}" for k, v in value.items()) + ")" if isinstance(value, dict) else f"{value}"

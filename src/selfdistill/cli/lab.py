"""Commands that compare many runs: ablate, reproduce."""

from __future__ import annotations

import os
import shlex
import sys
from errno import EACCES
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from selfdistill.cli.app import Settings, app, console, is_setting, print_table, said
from selfdistill.errors import Failure, Misuse

if TYPE_CHECKING:
    from selfdistill.ablate.lab import Job

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.

Seeds = Annotated[int, typer.Option(min=1, help="runs of each row, seeds 0 to N - 1")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at a time, of one thread each; as many as cores, on a GPU one")]
Out = Annotated[Path, typer.Option(help="the lab's folder: runs in cells/, shared by all tables, and the tables beside them")]
Plan = Annotated[bool, typer.Option("--plan", help="say what would be run and what it would cost, and stop")]


@app.command()
def ablate(
    method: Annotated[str | None, typer.Argument(help="a method, a recipe's YAML or .py file, or a run folder")] = None,
    settings: Settings = None,
    edits: Annotated[str | None, typer.Option(help="names from --list with commas; all that fit if not given")] = None,
    seeds: Seeds = 1,
    jobs: Jobs = None,
    out: Out = Path("runs/lab"),
    plan: Plan = False,
    list_: Annotated[bool, typer.Option("--list", help="list the edits, with the paper that made each")] = False,
) -> None:
    """Take one ingredient out at a time: selfdistill ablate simsiam data=digits epochs=30 --edits stop-gradient,predictor."""
    from selfdistill import api
    from selfdistill.ablate import lab
    from selfdistill.ablate.edits import EDITS
    from selfdistill.train.resolve import resolve

    if list_:
        table = Table(Column("edit", no_wrap=True), Column("setting", overflow="fold"), "what it means", "who did it")
        for name, edit in EDITS.items():
            table.add_row(name, edit.setting, edit.what, edit.source)
        print_table(table)
        return
    if method is None or is_setting(method):
        raise Misuse(f"METHOD is missing: {', '.join(api.METHODS)}. For example: selfdistill ablate simsiam data=digits")
    base = api.recipe_of(method)
    recipe, source, _ = resolve(base, settings or [], lab.source_of(base, settings or []))
    names = lab.fitting(recipe) if edits is None else [name.strip() for name in edits.split(",")]
    named = Path(method).absolute()
    name = named.stem if named.is_file() else named.name
    table_ = lab.ablation(name, base, recipe, len(source.train), names, settings or [])
    _run([lab.job(table_, "tiny", seeds, [], out, _command())], jobs, out, plan)


@app.command()
def reproduce(
    table: Annotated[str | None, typer.Argument(help="a table's name, or several with commas; none lists them")] = None,
    settings: Settings = None,
    scale: Annotated[str, typer.Option(help="tiny (digits), small (Fashion-MNIST) or paper (its own setting, with data=)")] = "tiny",
    seeds: Seeds = 1,
    jobs: Jobs = None,
    out: Out = Path("runs/lab"),
    all_: Annotated[bool, typer.Option("--all", help="all tables")] = False,
    docs: Annotated[Path | None, typer.Option(help="where a page of the tables and their claims goes; with --all docs")] = None,
    plan: Plan = False,
) -> None:
    """Run a paper's tables and judge their claims: selfdistill reproduce simsiam-fig2 --scale tiny --seeds 3."""
    from typing import get_args

    from selfdistill.ablate import lab
    from selfdistill.ablate.claims import ScaleName
    from selfdistill.ablate.table import table as table_of
    from selfdistill.ablate.table import tables

    asked = [*([table] if table and "=" in table else []), *(settings or [])]
    name = None if table and "=" in table else table
    if scale not in get_args(ScaleName):
        raise Misuse(f"--scale {scale}: allowed: {', '.join(get_args(ScaleName))}")
    if not all_ and name is None:
        if asked:
            raise Misuse(f"TABLE is missing before {asked[0]}: {', '.join(tables())}, or --all")
        listing = Table(Column("table", no_wrap=True), "what it asks", "source", "method", "rows", "claims")
        for t in tables().values():
            listing.add_row(f"{t.id}\n{t.alias}".strip(), t.says, t.source, t.method, str(len(t.rows)), str(len(t.claims)))
        print_table(listing)
        return
    if all_ and name is not None:
        raise Misuse(f"TABLE {name} with --all: name one, or all")
    asked_for = list(tables().values()) if all_ else [table_of(word) for word in str(name).split(",")]
    wanted = list({t.id: t for t in asked_for}.values())

    def command(of: str) -> str:
        return shlex.join(["selfdistill", "reproduce", of, *asked, "--scale", scale, "--seeds", str(seeds)])

    page_in = docs or (Path("docs") if all_ else None)
    if page_in and page_in.exists() and not page_in.is_dir():
        raise Misuse(f"--docs {page_in}: is a file: name a folder for the page")
    job_list = [lab.job(t, scale, seeds, asked, out, command(t.id)) for t in wanted]  # type: ignore[arg-type]
    records = _run(job_list, jobs, out, plan)
    if page_in and not plan:
        from selfdistill.ablate.results import write_page

        page, claims = write_page(records, page_in)
        console.print(f"{page} and {claims}", soft_wrap=True)


def _command() -> str:
    return shlex.join(["selfdistill", *sys.argv[1:]])


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else "about a minute" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def _run(job_list: list[Job], jobs: int | None, out: Path, plan: bool) -> list[dict[str, Any]]:
    """Says the plan, trains what is not done, prints and writes the tables; their records. Raises `Failure` where a run failed."""
    from selfdistill import api
    from selfdistill.ablate import cells, lab, results

    if out.exists() and not out.is_dir():
        raise Misuse(f"--out {out}: is a file: name a folder for the runs")
    jobs = jobs or cells.default_jobs()
    runs, seconds = lab.estimate(job_list)
    every = len(lab.all_cells(job_list))
    minutes = f"{_minutes(seconds)} of one core, {_minutes(seconds / min(jobs, max(runs, 1)))} with --jobs {jobs}"
    console.print(f"{every} runs, {every - runs} of them done; {runs} to make: {minutes}", soft_wrap=True)
    if plan:
        _show_plan(job_list)
        return []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as e:
        raise Misuse(f"--out {out}: cannot be written ({e.strerror}): name another folder") from e
    try:
        failed = cells.train_all(lab.all_cells(job_list), jobs, lambda line: console.print(line, soft_wrap=True))
    except api.Interrupted as e:  # here, because click turns every KeyboardInterrupt into "Aborted!"
        raise typer.Exit(said(e, 128 + e.signum)) from e
    records = [results.write(j, out) for j in job_list]
    for record in records:
        _show(record)
    console.print(f"tables (.md, .csv, .json) and pictures (.png): {out}{os.sep}", soft_wrap=True)
    if failed:
        raise Failure(f"{len(failed)} runs failed, the first: {failed[0]}. The same command tries them again")
    return records


def _show_plan(job_list: list[Job]) -> None:
    table = Table("table", "rows", "runs", "done", "minutes of one core")
    for j in job_list:
        left = j.seconds
        folders = {c.folder for c in j.cells.values()}
        table.add_row(j.table.id, str(len(j.rows)), str(len(folders)), str(len(folders) - len(left)), f"{sum(left.values()) / 60:.1f}")
    print_table(table)
    if len(job_list) > 1:
        console.print("Tables share runs: the whole is less than their sum.")


def _show(record: dict[str, Any]) -> None:
    from selfdistill.ablate.results import grid

    header, lines = grid(record)
    table = Table(Column("row", min_width=19), *header[1:], title=f"{record['table']}: {record['says']} ({record['source']})")
    for line in lines:
        table.add_row(*line)
    print_table(table)
    if record["claims"] and record["seeds"] == 1:
        console.print("One seed has no spread: the sign decides. --seeds 3 tests the claims.")
    for claim in record["claims"]:
        console.print(f"{claim['outcome']}: {claim['says']} [{claim['source']}]  {claim['evidence']}", soft_wrap=True)
        if claim["because"]:
            console.print(f"  {claim['because']}", soft_wrap=True)

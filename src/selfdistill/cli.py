"""The command line: thin. Every command says what it did, and a user's mistake ends in one message."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from selfdistill.errors import Failure, Misuse, did_you_mean

if TYPE_CHECKING:
    from selfdistill.api import Recipe, Run

# Imports of the package stand inside the commands: PyTorch takes seconds, and --help should not.

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", help=__doc__)
console = Console()

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="any field of the recipe, e.g. epochs=20")]


@app.command()
def pretrain(
    method: Annotated[str | None, typer.Argument(help="a name that `selfdistill methods` lists")] = None,
    settings: Settings = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="take an ingredient out, e.g. stop-gradient; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder, a new one under runs/ if not given")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out from its checkpoint")] = False,
    config: Annotated[Path | None, typer.Option(help="a recipe's YAML file in place of the method's own")] = None,
) -> None:
    """Pretrain METHOD on images: selfdistill pretrain simsiam data=path/to/images epochs=100."""
    from selfdistill import api

    settings = settings or []
    if method and "=" in method:
        settings, method = [method, *settings], None
    if config:
        recipe = api.Recipe.from_yaml(config)
        if method not in (None, recipe.method):
            raise Misuse(f"METHOD {method} with --config {config}, a recipe of {recipe.method}: name one of them")
    elif resume and out:
        recipe = api.load(out).recipe
        if method not in (None, recipe.method):
            raise Misuse(f"METHOD {method} with --resume of {out}, a run of {recipe.method}: leave the method out")
    elif method:
        recipe = api.recipe_of(method)
    else:
        raise Misuse(f"METHOD is missing: {', '.join(api.METHODS)}. For example: selfdistill pretrain simsiam data=digits")
    try:
        run = api.pretrain(recipe, *settings, without=without or [], out=out, resume=resume)
    except api.Interrupted as e:  # here, because click turns every KeyboardInterrupt into "Aborted!"
        raise typer.Exit(_said(e, 128 + e.signum)) from e
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        _summary(run)


def _summary(run: Run) -> None:
    s = run.summary
    console.print(f"\n{s['because']}", soft_wrap=True)
    if s.get("knn_top1") is not None:
        beside = {"random init": s.get("knn_random_init"), "raw pixels": s.get("knn_raw_pixels")}
        others = ", ".join(f"{name} {value:.3f}" for name, value in beside.items() if value is not None)
        console.print(f"kNN top-1 on held-out images {s['knn_top1']:.3f} ({others}), output_std {s['output_std']:.2f}", soft_wrap=True)
    if s.get("error_teacher") is not None:
        r = run.recipe
        console.print(
            f"test error with {r.labels} labels: student {s['error_student']:.4f}, teacher {s['error_teacher']:.4f}", soft_wrap=True
        )
        baseline = f"selfdistill pretrain {r.method} data={r.data} seed={r.seed} labelled_share=1 --without consistency"
        console.print(f"from the same labels alone: {baseline}", soft_wrap=True, markup=False)
    console.print(f"run folder: {run.path}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    protocol: Annotated[str, typer.Option(help="knn, linear, or both with a comma")] = "knn",
    k: Annotated[int, typer.Option(help="knn: neighbours that vote")] = 20,
    temperature: Annotated[float, typer.Option(min=1e-6, help="knn: of the votes")] = 0.07,
) -> None:
    """Measure a run's backbone on held-out images: selfdistill evaluate runs/simsiam-digits-1 --protocol knn."""
    from selfdistill import api

    loaded = api.load(run)
    protocols = {
        "knn": lambda: f"kNN top-1 {loaded.knn(k, temperature):.4f}  (k={k}, T={temperature}, data={loaded.recipe.data})",
        "linear": lambda: f"linear top-1 {loaded.linear():.4f}  (data={loaded.recipe.data})",
    }
    for name in protocol.split(","):
        if name not in protocols:
            raise Misuse(f"--protocol {name}: allowed: {', '.join(protocols)}.{did_you_mean(name, protocols)}")
    for name in protocol.split(","):
        console.print(protocols[name](), soft_wrap=True)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    augmentations: Annotated[int, typer.Option(min=4, help="of each held-out image")] = 32,
) -> None:
    """Say what state a run ended in, and whether its predictor approximates the expectation over augmentation."""
    from selfdistill import api

    loaded = api.load(run)
    console.print(loaded.summary["because"], soft_wrap=True)
    if loaded.recipe.predictor:
        gap = api.predictor_gap(loaded, augmentations)
        console.print(
            f"predictor and expectation over {augmentations} augmentations (SimSiam Sec. 5.2): |h(z1) - E[z2]|^2 {gap.predictor:.4f}, "
            f"|z1 - E[z2]|^2 {gap.projection:.4f}, of another image {gap.other:.4f}",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def em(
    settings: Settings = None,
    rounds: Annotated[int, typer.Option(min=1, help="of an E-step and an M-step")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="of SGD in SimSiam's M-step")] = 20,
    augmentations: Annotated[int, typer.Option(min=1, help="of each image in SimSiam's E-step")] = 8,
    images: Annotated[int, typer.Option(min=2, help="at most, spread evenly over the data")] = 1000,
    clusters: Annotated[int | None, typer.Option(min=1, help="of k-means; the data's classes, or 10")] = None,
) -> None:
    """The EM view: k-means and the SimSiam alternation side by side, selfdistill em data=digits."""
    from selfdistill import api

    console.print(
        "E-step: the latents given the parameters. k-means assigns each image to its nearest centre; SimSiam sets eta_x to E_T[F(T(x))].\n"
        "M-step: the parameters given the latents. k-means moves the centres; SimSiam moves the weights towards the fixed eta.\n"
        "(The standard names. The lecture swaps them: it calls the centres and theta E, the assignment and eta M.)",
        soft_wrap=True,
    )
    table = Table("round", "k-means: after E", "after M", "SimSiam: after E", "after M", "output_std", "effective rank")
    pairs = api.alternate(*(settings or []), rounds=rounds, steps=steps, augmentations=augmentations, images=images, clusters=clusters)
    found = []
    for kmeans, simsiam in pairs:
        table.add_row(str(table.row_count + 1), *(f"{value:.4g}" for value in (*kmeans[:2], *simsiam)))
        found.append((kmeans, simsiam))
    console.print(table)
    for name, of in zip(("k-means", "SimSiam"), zip(*found, strict=True), strict=True):
        values = [value for r in of for value in r[:2]]
        rises = [i for i in range(1, len(values)) if values[i] > values[i - 1]]
        how = (
            f"it rose in {len(rises)} of {len(values)} steps, {sum(i % 2 == 0 for i in rises)} of them E-steps"
            if rises
            else "down in every step"
        )
        console.print(f"{name}: objective {values[0]:.4g} to {values[-1]:.4g}, {how}", soft_wrap=True)


@app.command()
def methods() -> None:
    """List the methods and what fills their slots."""
    from selfdistill import api

    rows = {name: _slots(recipe) for name, recipe in api.METHODS.items()}
    table = Table("method", *rows["simsiam"], show_lines=True)
    table.columns[0].no_wrap = True
    for name, slots in rows.items():
        table.add_row(name, *slots.values())
    console.print(table)


def _slots(r: Recipe) -> dict[str, str]:
    """What fills each slot, in a few words: the design's table, read off the recipe."""
    g, h, teacher, views = r.projector, r.predictor, r.teacher, r.views
    locals_ = f" + {views.locals.count} local" if views.locals else ""
    losses = [
        f"{name}: {term.loss.kind}" + (f", {term.loss.target.kind}" if term.loss.kind == "cross-entropy" else "")
        for name, term in r.terms.items()
    ]
    return {
        "views": f"{r.global_views} crops{locals_}" + (", asymmetric" if views.second else "") + (", masks" if views.masks else ""),
        "projector": f"{g.kind} {'-'.join(map(str, (*g.hidden, g.out)))}" if g else "none",
        "predictor": f"{h.kind} {'-'.join(map(str, h.hidden))}" if h and h.kind == "mlp" else h.kind if h else "none",
        "teacher": f"ema {teacher.tau.base:g}" + (f" to {teacher.tau.end:g}" if teacher.tau.end else "")
        if teacher.kind == "ema"
        else teacher.kind,
        "stop-gradient": "yes" if r.stop_gradient else "no",
        "loss": "; ".join(losses),
        "pairs": "; ".join(term.pairs if term.on == "cls" else "same view" for term in r.terms.values()),
    }


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="a method, a recipe's YAML file or a run folder")],
    settings: Settings = None,
) -> None:
    """Print a recipe: the paper's pseudocode and every field, with KEY=VALUE applied."""
    from selfdistill import api

    recipe = api.recipe_of(method).edit(settings or [])
    module = sys.modules.get(f"selfdistill.methods.{recipe.method.replace('-', '_')}")
    if module and module.__doc__:
        print("".join(f"# {line}".rstrip() + "\n" for line in module.__doc__.splitlines()))
    print(recipe.to_yaml(), end="")


@app.command()
def diff(a: str, b: str) -> None:
    """Print the fields in which two methods, recipes or runs differ."""
    from selfdistill import api

    table = Table("field", a, b)
    for path, left, right in api.diff(api.recipe_of(a), api.recipe_of(b)):
        table.add_row(path, str(left), str(right))
    console.print(table if table.row_count else f"{a} and {b} do not differ")


@app.command()
def pack(
    data: Annotated[str, typer.Argument(help="a folder of images, or what else data= takes")],
    out: Annotated[Path, typer.Argument(help="the new folder")],
    side: Annotated[int, typer.Option(min=16, help="pixels of the shorter side, beyond which an image is made smaller")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of the JPEGs")] = 95,
) -> None:
    """Write a folder of photographs as WebDataset shards of smaller JPEGs, which decode faster: then data=OUT."""
    from selfdistill.data.pack import pack as write

    written = write(data, out, side, quality, lambda said: console.print(said, soft_wrap=True, markup=False))
    console.print(f"{written} images in {out}: selfdistill pretrain METHOD data={out}", soft_wrap=True)


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, devices, bf16, data sets."""
    import shutil

    import torch

    from selfdistill.data.sources import SOURCES, data_root
    from selfdistill.train.resolve import has_bf16
    from selfdistill.train.run import versions

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {
        **versions(),
        "device": ", ".join(cuda)
        or f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "bf16": "in hardware" if has_bf16() else "no: precision=auto means fp32",
        "data root": f"{data_root()} (set SELFDISTILL_DATA to move it)",
        "data sets": ", ".join(SOURCES),
        "free disk here": f"{shutil.disk_usage('.').free / 1e9:.0f} GB",
    }
    for name, value in found.items():
        console.print(f"{name:15} {value}", soft_wrap=True, highlight=False)


def main() -> None:
    """Exit codes: 0, 1 for a failure, 2 for misuse, 128 + the signal's number when one ended the run after saving it."""
    try:
        app()
    except Misuse as e:
        sys.exit(_said(e, 2))
    except (Failure, OSError) as e:  # OSError: a full disk, a folder that vanished
        sys.exit(_said(e, 1))


def _said(e: BaseException, code: int) -> int:
    print(f"selfdistill: {e}", file=sys.stderr)
    return code

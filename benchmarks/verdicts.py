"""Does the verdict say what is so? Runs of all methods on digits, healthy and with a fatal edit each, and the confusion table.

    python benchmarks/verdicts.py runs/verdicts                    # seed 0, on which thresholds are looked at
    python benchmarks/verdicts.py runs/verdicts --seeds 0 1 2      # and those on which they are checked
    python benchmarks/verdicts.py runs/verdicts --table            # the tables of what has been run

Each run folder gets a verdict.json, and what has one is not run again. Of each run three things are told apart. *Expected*: what the
source says of the edit, on its own data. *Measured*: what the run came to, after it has ended, on held-out images in eval mode, by
quantities that the verdict does not look at (`measured`). *Said*: the verdict of the last probe, judged anew from its numbers, so a
table needs no new runs. A run counts as right where said is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

import selfdistill as sd
from selfdistill.data.images import spread
from selfdistill.data.loader import in_memory
from selfdistill.diagnose.ingredients import over_classes
from selfdistill.diagnose.metrics import directions
from selfdistill.diagnose.verdict import Verdict, judge, since
from selfdistill.parts.loss import OverOutputs
from selfdistill.parts.schedule import Progress
from selfdistill.recipe import Recipe
from selfdistill.train.diagnosis import projections
from selfdistill.train.run import Run
from selfdistill.train.trained import SEED, siamese_of
from selfdistill.views.augment import views_of_pixels

HEALTHY, COLLAPSED, DIMENSIONAL = "healthy", "collapsed", "dimensional-collapse"
UNIFORM, DOMINATED, DIVERGED = "uniform-target", "dominated-target", "diverged"
CONSTANT, TARGETS = (COLLAPSED, DIMENSIONAL), (UNIFORM, DOMINATED)
COSINE = "terms.views.loss=cosine"
SOFT_PATCHES = "terms.patches.loss.target.temperature={base: 0.1}"
NO_LABELS = "terms.labels.weight=0 terms.consistency.weight.warmup=0"


class Case(NamedTuple):
    """expected: the states of the source; a constant output may be caught on its way. names: what the advice must name."""

    method: str
    expected: tuple[str, ...]
    settings: str = ""
    without: tuple[str, ...] = ()
    source: str = ""
    epochs: int = 5
    names: str = ""

    @property
    def command(self) -> str:
        return " ".join(filter(None, [self.method, self.settings, *(f"--without {name}" for name in self.without)]))

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.command} {self.epochs}").strip("-")


LEAST_SQUARES = "projector.out=64 predictor=least-squares"
CASES = [
    *(Case(m, (HEALTHY,), source="the method itself", epochs=10) for m in ("simsiam", "byol", "simclr", "moco")),
    Case("mean-teacher", (HEALTHY,), source="the method itself", epochs=20),
    Case("swav", (HEALTHY,), source="the method itself", epochs=10),
    Case("swav", (HEALTHY,), source="the method itself", epochs=40),
    Case("dino", (HEALTHY,), source="the method itself", epochs=15),
    Case("ibot", (HEALTHY,), source="the method itself", epochs=8),
    Case("simsiam", CONSTANT, "", ("stop-gradient",), "SimSiam Fig. 2", 5, "stop_gradient=true"),
    Case("simsiam", CONSTANT, "projector.bn=all", ("stop-gradient",), "SimSiam Fig. 2", 15, "stop_gradient=true"),
    Case("simsiam", CONSTANT, "", ("predictor",), "SimSiam Table 1a", 5, "predictor=mlp"),
    Case("simsiam", CONSTANT, "", ("predictor", "stop-gradient"), "a plain Siamese network", 5, "stop_gradient=true"),
    Case("simsiam", (HEALTHY,), "", ("predictor-training",), "SimSiam Table 1b: no collapse"),
    Case("simsiam", (HEALTHY,), "", ("symmetry",), "SimSiam Sec. 4.6"),
    Case("simsiam", (HEALTHY,), "", ("cosine",), "SimSiam Sec. 4.5"),
    Case("byol", CONSTANT, "", ("momentum-teacher", "stop-gradient"), "SimSiam Fig. 2", 5, "stop_gradient=true"),
    Case("byol", CONSTANT, "", ("predictor",), "BYOL Table 5b", 5, "predictor=mlp"),
    Case("byol", CONSTANT, "", ("predictor", "momentum-teacher"), "BYOL Table 5b", 5, "predictor=mlp"),
    Case("byol", CONSTANT, "", ("momentum-teacher",), "BYOL Table 5a"),
    Case("byol", (HEALTHY,), "predictor.lr_scale=10", ("momentum-teacher",), "BYOL Table 21"),
    Case("dino", (DOMINATED,), "", ("centring",), "DINO Fig. 7", 15, "Centre"),
    Case("dino", (UNIFORM,), "", ("sharpening",), "DINO Fig. 7", 10, "Sharpen"),
    Case("dino", (HEALTHY,), "terms.views.loss.target=sinkhorn", source="DINO Table 7, row SK", epochs=6),
    Case("ibot", (DOMINATED,), "terms.patches.loss.target.momentum=1", ("centring",), "DINO Fig. 7", 5, "Centre"),
    Case("ibot", (UNIFORM,), SOFT_PATCHES, ("sharpening",), "DINO Fig. 7", 10, "Sharpen"),
    Case("simclr", CONSTANT, COSINE, source="no negatives: a plain Siamese network"),
    Case("simclr", CONSTANT, f"{COSINE} projector.bn=hidden", (), "no negatives, no BatchNorm at the output", 5, "stop_gradient=true"),
    Case("moco", CONSTANT, COSINE, (), "no negatives: BYOL without predictor, Table 5b", 5, "predictor=mlp"),
    Case("swav", CONSTANT, COSINE, (), "no prototypes: SimSiam without predictor, Table 1a", 5, "predictor=mlp"),
    Case("swav", (UNIFORM,), "terms.views.loss.epsilon=100", (), "codes without sharpening", 5, "epsilon"),
    Case("dino", (*TARGETS, DIMENSIONAL), "", ("momentum-teacher",), "DINO Table 7, row 2: kNN 0.1 %", 10, "teacher=ema"),
    Case("dino", (DOMINATED,), "terms.views.loss.target.momentum=0.999", (), "DINO App. D", 10, "momentum=0.9"),
    Case("byol", CONSTANT, LEAST_SQUARES, ("momentum-teacher",), "a linear predictor, of each batch", 5, "teacher=ema"),
    Case("byol", (HEALTHY,), "teacher.tau.base=1", (), "BYOL Table 5a: poor, no collapse"),
    Case("simsiam", CONSTANT, "lr.base=20", (), "lr 30 times the preset's", 5, "Lower lr"),
    Case("mean-teacher", CONSTANT, NO_LABELS, (), "BYOL Table 5b, row 7", 20, "labels"),
    Case("mean-teacher", (DIVERGED,), "lr.base=1e18 max_bad_steps=1000", (), "steps beyond floats", 5, "lr"),
    Case("simclr", (DIVERGED,), "lr.base=1e30 max_bad_steps=1000", (), "steps beyond floats", 5, "lr"),
]


def run(case: Case, seed: int, out: Path) -> dict[str, Any]:
    """Trains a case and returns what is known of it: numbers of the probes, and of the end what `measured` looks at."""
    made = sd.pretrain(
        case.method,
        *words(case.settings),
        data="digits",
        epochs=case.epochs,
        seed=seed,
        without=case.without,
        probe_every=1,
        log="none",
        out=out,
    )
    return {
        **case._asdict(),
        "seed": seed,
        "probes": [{k: v for k, v in row.items() if k != "because"} for row in made.metrics if row.get("verdict")],
        "at_random": made.metrics[0]["knn_top1"],
        "end": at_end(made),
        "wall_seconds": made.summary["wall_seconds"],
    }


def words(settings: str) -> list[str]:
    """Settings one by one; a value in braces has spaces."""
    return re.findall(r"\S+=(?:\{[^}]*\}|\S+)", settings)


@torch.no_grad()
def at_end(made: Run) -> dict[str, float]:
    """Of held-out images. In eval mode own, others: the cosine of projections of two views of an image, of two images; directions: those
    that hold 95 % of the directions' variance. Of a loss over outputs the targets q, in train mode as a teacher's are while it trains (the
    averages of its BatchNorm lag): apart, the total variation between two images, in [0, 1]; largest, the share that one output has;
    of_ln_k, the cross-entropy over ln K."""
    images = spread(made.source.test or made.source.train, 400)
    z = projections(made, images, 2)  # [2, N, D]
    if not torch.isfinite(z).all():
        return {"finite": 0}
    of = directions(z)
    variance = torch.linalg.svdvals(of[0] - of[0].mean(0)).square()
    share = variance.cumsum(0) / variance.sum()
    found = {
        "finite": 1,
        "own": float((of[0] * of[1]).sum(-1).mean()),
        "others": float((of[0] * of[1].roll(1, 0)).sum(-1).mean()),
        "directions": int((share < 0.95).sum()) + 1,
    }
    siamese, recipe, step = siamese_of(made).train(), made.recipe, made.metrics[-1]["step"]
    for name, term in recipe.terms.items():
        loss = siamese.get_submodule(f"terms.{name}.loss")
        if term.on == "cls" and isinstance(loss, OverOutputs):
            ids, pixels = torch.arange(len(images)), in_memory(images, recipe.views, recipe.workers).pixels
            _, p, t = siamese.outputs(views_of_pixels(pixels, ids, recipe.views, 2, SEED, 0))
            q, log_p = (x[side] for side, x in enumerate(loss.distributions(p.cls[:2], t.cls, Progress(step, 1, step))))  # [N, K]
            found |= {"apart": float((q - q.roll(1, 0)).abs().sum(-1).mean() / 2), "largest": float(q.mean(0).max())}
            found |= {"of_ln_k": float(-(q * log_p).sum(-1).mean()) / math.log(q.shape[-1])}
    return found


def measured(row: dict[str, Any], recipe: Recipe) -> str:
    """The state in which a run ended, by what the verdict does not look at. Of projections: a cosine of 0.95 between two images is a
    constant, 95 % of the variance in two directions is few. Of a cross-entropy's targets: a tenth of all images on one output is a collapse
    onto it, a loss within 0.5 % of ln K the uniform one. Of a consistency loss's: two images' that share 85 % are one."""
    end = row["end"]
    if not end["finite"] or abs(row["probes"][-1]["loss"] or 0) > 1e3:
        return DIVERGED
    if over_classes(recipe):
        return COLLAPSED if end["apart"] < 0.15 else HEALTHY
    if end.get("largest", 0) > 0.1:
        return DOMINATED
    if end["directions"] <= 2:
        return COLLAPSED if end["others"] > 0.95 and "apart" not in end else DIMENSIONAL
    if "apart" in end:
        return UNIFORM if abs(end["of_ln_k"] - 1) < 0.005 else HEALTHY
    return COLLAPSED if end["others"] > 0.95 else HEALTHY


def judged(row: dict[str, Any], recipe: Recipe) -> tuple[list[Verdict], float]:
    """The verdict of each probe by the code as it is, and the epoch since which the last one holds."""
    lost = dict.fromkeys(("loss", "output_std", "effective_rank", "direction_rank"), math.nan)  # metrics.jsonl has null for nan
    verdicts = [judge({**probe, **{k: v for k, v in lost.items() if probe[k] is None}}, recipe) for probe in row["probes"]]
    began = since({"verdict": v.state, "epoch": probe["epoch"]} for v, probe in zip(verdicts, row["probes"], strict=True))
    assert began is not None
    return verdicts, began["epoch"]


READ = ("loss", "output_std", "live_channels", "effective_rank", "direction_rank", "spanned", "rank_limit")
READ_OF_TARGETS = ("target_entropy", "target_usage_entropy", "target_kl", "target_outputs")


def recorded(found: list[tuple[Case, dict[str, Any], Recipe]]) -> str:
    """JSON, a line a run: its case, its measured state, whether the verdict missed it, and of its last probe what the verdict reads, to
    four digits; nan as null."""
    lines = []
    for case, row, recipe in found:
        last = row["probes"][-1]
        read = {k: last[k] for k in (*READ, *READ_OF_TARGETS) if k in last and (k in READ or last[k] is not None)}
        short = {k: v if v is None else float(f"{v:.4g}") for k, v in read.items()}
        of = {"method": case.method, "settings": words(case.settings), "without": case.without, "names": case.names, "seed": row["seed"]}
        is_so = measured(row, recipe)
        missed = judged(row, recipe)[0][-1].state != is_so
        lines.append(json.dumps({**of, "measured": is_so, **({"missed": True} if missed else {}), "probe": short}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def tables(found: list[tuple[Case, dict[str, Any], Recipe]]) -> str:
    """Markdown: the confusion table, each case with its first seed's numbers, and what was not as expected, or not from the start."""
    notes = []
    rows = [
        "| run | epochs | expected, from | measured | said, since epoch | seeds right | output_std | effective rank | kNN |",
        "|---" * 9 + "|",
    ]
    counted: Counter[tuple[str, str]] = Counter()
    right: dict[int, list[bool]] = {row["seed"]: [] for _, row, _ in found}
    for case in CASES:
        of_case = [(row, *judged(row, recipe), measured(row, recipe)) for of, row, recipe in found if of == case]
        for row, verdicts, _, is_so in of_case:
            last = verdicts[-1]
            counted[is_so, last.state] += 1
            right[row["seed"]].append(is_so == last.state)
            early = Counter(v.state for v in verdicts if v.state not in (last.state, HEALTHY))
            named = last.state == HEALTHY or case.names.lower() in last.advice.lower()
            if not named or early or last.state != is_so or is_so not in case.expected:
                before = "".join(f"{n} x {state}, then " for state, n in early.items())
                what = (
                    f"- `{case.command}`, {case.epochs} epochs, seed {row['seed']}: measured {is_so}, expected {' or '.join(case.expected)}"
                )
                notes.append(f"{what}, said {before}{last}")
        if of_case:
            row, verdicts, began, is_so = of_case[0]
            agree = f"{sum(v[-1].state == m for _, v, _, m in of_case)} of {len(of_case)}"
            p = row["probes"][-1]
            numbers = [f"{p[k]:.3g}" if p[k] is not None else "" for k in ("output_std", "effective_rank", "knn_top1")]
            rows.append(
                f"| `{case.command}` | {case.epochs} | {' or '.join(case.expected)}, {case.source} | {is_so} | "
                f"{verdicts[-1].state}, {began:.0f} | {agree} | {' | '.join(numbers)} |"
            )
    states = sorted({state for pair in counted for state in pair})
    lines = [f"| measured \\ said | {' | '.join(states)} |", "|---" * (1 + len(states)) + "|"]
    lines += [f"| {is_so} | {' | '.join(str(counted[is_so, said] or '') for said in states)} |" for is_so in states]
    lines += ["", ", ".join(f"seed {seed}: {sum(of)} of {len(of)} right" for seed, of in right.items()) + ".", ""]
    return "\n".join([*lines, *rows, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs; what is there already is not run again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    parser.add_argument("--record", type=Path, help="write the last probes there, which tests/diagnose/test_known_runs.py judges")
    asked = parser.parse_args()
    found = []
    for seed in asked.seeds:
        for case in CASES:
            folder = asked.out / case.folder / f"seed-{seed}"
            file = folder / "verdict.json"
            if not asked.table and not file.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
                row = run(case, seed, folder)
                file.write_text(json.dumps(row))
            if file.exists():
                found.append((case, json.loads(file.read_text()), Recipe.from_yaml(folder / "recipe.yaml")))
    print(tables(found))
    if asked.record:
        asked.record.write_text(recorded(found))


if __name__ == "__main__":
    main()

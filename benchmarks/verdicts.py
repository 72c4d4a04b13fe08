"""Does the verdict say what is known? Runs of all methods on digits, healthy and with a fatal edit each, and the confusion table.

    python benchmarks/verdicts.py runs/verdicts            # 36 runs, each a few seconds to half a minute on one core
    python benchmarks/verdicts.py runs/verdicts --table    # the tables of what has been run

The runs are short (`epochs` below), so the states are those of a run's beginning. "Known" is what the paper says of the edit, not
what the run turned out to be: where the two differ at this scale, the table shows it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import selfdistill as sd
from selfdistill.diagnose.verdict import since

HEALTHY, COLLAPSED, UNIFORM, DOMINATED, DIVERGED = "healthy", "collapsed", "uniform-target", "dominated-target", "diverged"


class Case(NamedTuple):
    """known: the state that the source expects; where both are a constant output seen at different times, either."""

    method: str
    known: tuple[str, ...]
    settings: str = ""
    without: tuple[str, ...] = ()
    source: str = ""
    epochs: int = 5


CONSTANT = (COLLAPSED, "dimensional-collapse")
COSINE = "terms.views.loss=cosine"

CASES = [
    *(Case(m, (HEALTHY,), source="the method itself", epochs=10) for m in ("simsiam", "byol", "simclr", "moco", "swav", "mean-teacher")),
    Case("dino", (HEALTHY,), source="the method itself", epochs=15),
    Case("ibot", (HEALTHY,), source="the method itself", epochs=8),
    Case("simsiam", CONSTANT, without=("stop-gradient",), source="SimSiam Fig. 2"),
    Case("simsiam", CONSTANT, "seed=1", ("stop-gradient",), "SimSiam Fig. 2"),
    Case("simsiam", CONSTANT, "projector.bn=all", ("stop-gradient",), "SimSiam Fig. 2", 15),
    Case("simsiam", CONSTANT, without=("predictor",), source="SimSiam Table 1a"),
    Case("simsiam", CONSTANT, without=("predictor", "stop-gradient"), source="a plain Siamese network"),
    Case("simsiam", (HEALTHY,), without=("predictor-training",), source="SimSiam Table 1b: no collapse"),
    Case("simsiam", (HEALTHY,), without=("symmetry",), source="SimSiam Sec. 4.6"),
    Case("simsiam", (HEALTHY,), without=("cosine",), source="SimSiam Sec. 4.5"),
    Case("byol", CONSTANT, without=("momentum-teacher", "stop-gradient"), source="SimSiam Fig. 2"),
    Case("byol", CONSTANT, without=("predictor",), source="BYOL Table 5b"),
    Case("byol", CONSTANT, without=("predictor", "momentum-teacher"), source="BYOL Table 5b"),
    Case("byol", CONSTANT, without=("momentum-teacher",), source="BYOL Table 5a"),
    Case("byol", (HEALTHY,), "predictor.lr_scale=10", ("momentum-teacher",), "BYOL Table 21"),
    Case("dino", (DOMINATED,), without=("centring",), source="DINO Fig. 7", epochs=15),
    Case("dino", (UNIFORM,), without=("sharpening",), source="DINO Fig. 7", epochs=10),
    Case("ibot", (DOMINATED,), "terms.patches.loss.target.momentum=1", ("centring",), "DINO Fig. 7"),
    Case("ibot", (UNIFORM,), "terms.patches.loss.target.temperature={base: 0.1}", ("sharpening",), "DINO Fig. 7"),
    Case("simclr", CONSTANT, COSINE, source="no negatives: a plain Siamese network"),
    Case("moco", CONSTANT, COSINE, source="no negatives: BYOL without predictor, Table 5b"),
    Case("swav", CONSTANT, COSINE, source="no prototypes: SimSiam without predictor, Table 1a"),
    Case("swav", (UNIFORM,), "terms.views.loss.epsilon=100", source="codes without sharpening"),
    Case("mean-teacher", CONSTANT, "terms.labels.weight=0 terms.consistency.weight.warmup=0", source="BYOL Table 5b, row 7"),
    Case("mean-teacher", (DIVERGED,), "lr.base=1e18", source="steps beyond floats"),
    Case("simclr", (DIVERGED,), "lr.base=1e30", source="steps beyond floats"),
    Case("dino", (HEALTHY,), "terms.views.loss.target=sinkhorn", source="DINO Table 7, row SK", epochs=6),
    Case("swav", (HEALTHY,), source="the method itself", epochs=60),
    Case("simclr", CONSTANT, f"{COSINE} projector.bn=hidden", source="no negatives, and no BatchNorm at the output"),
    Case("ibot", (UNIFORM,), "terms.patches.loss.target.temperature={base: 0.1}", ("sharpening",), "DINO Fig. 7", 10),
]


def run(case: Case, out: Path) -> dict[str, object]:
    """Trains a case and returns what is said of it."""
    settings = [] if not case.settings else _words(case.settings)
    made = sd.pretrain(case.method, *settings, data="digits", epochs=case.epochs, without=case.without, probe_every=1, out=out)
    probes = [row for row in made.metrics if row.get("verdict")]
    s, began = made.summary, since(made.metrics)
    assert began is not None
    fluke = len(list(takewhile(lambda row: row["verdict"] != "healthy", probes)))
    kept = {
        k: s.get(k) for k in ("verdict", "because", "loss", "output_std", "effective_rank", "target_entropy", "knn_top1", "wall_seconds")
    }
    return {**case._asdict(), **kept, "since": began["epoch"], "unhealthy_at_first": fluke, "verdicts": [p["verdict"] for p in probes]}


def _words(settings: str) -> list[str]:
    """Settings with spaces inside braces kept."""
    words: list[str] = []
    for part in settings.split(" "):
        if "=" in part:
            words.append(part)
        else:
            words[-1] += f" {part}"
    return words


def tables(rows: list[dict[str, object]]) -> str:
    """Markdown: the confusion table, then each run."""
    names = sorted({" or ".join(row["known"]) for row in rows}), sorted({str(row["verdict"]) for row in rows})
    counted = Counter((" or ".join(row["known"]), row["verdict"]) for row in rows)
    right = sum(row["verdict"] in row["known"] for row in rows)
    lines = [f"| known \\ said | {' | '.join(names[1])} |", "|---" * (1 + len(names[1])) + "|"]
    lines += [f"| {known} | " + " | ".join(str(counted[known, said] or "") for said in names[1]) + " |" for known in names[0]]
    lines += ["", f"{right} of {len(rows)} as known.", ""]
    lines += ["| run | epochs | known from | said | since epoch | output_std | effective rank | kNN |", "|---" * 8 + "|"]
    for row in rows:
        what = " ".join([row["method"], row["settings"], *(f"--without {name}" for name in row["without"])]).replace("  ", " ")
        said = row["verdict"] if row["verdict"] in row["known"] else f"**{row['verdict']}** (known: {' or '.join(row['known'])})"
        numbers = [f"{row[k]:.3g}" if row[k] is not None else "" for k in ("output_std", "effective_rank", "knn_top1")]
        lines.append(f"| `{what.strip()}` | {row['epochs']} | {row['source']} | {said} | {row['since']:.0f} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs; what is there already is not run again")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for n, case in enumerate(CASES):
        file = asked.out / f"{n:02}.json"
        if not asked.table and not file.exists():
            file.write_text(json.dumps(run(case, asked.out / f"{n:02}")))
    print(tables([json.loads(file.read_text()) for file in sorted(asked.out.glob("*.json"))]))


if __name__ == "__main__":
    main()

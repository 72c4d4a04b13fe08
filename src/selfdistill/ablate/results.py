"""A table's results for people and for programs: one grid, from which the terminal and Markdown come; CSV of every run; JSON of both."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from selfdistill.ablate.claims import terms
from selfdistill.ablate.figures import METRICS, mean_and_sd, verdicts
from selfdistill.ablate.lab import Job
from selfdistill.ablate.picture import curves, picture
from selfdistill.disk import json_of, object_of, rows_of, write_whole
from selfdistill.errors import Misuse
from selfdistill.train.machine import machine, versions

SHOWN = {"knn": "{:.3f}", "linear": "{:.3f}", "output_std": "{:.3f}", "rank": "{:.1f}", "seconds": "{:.0f}"}
"""columns of numbers, before those that only a claim names"""
FURTHER = "{:.3f}"


def record(job: Job) -> dict[str, Any]:
    """All that a table found, as JSON: means and standard deviations over seeds, every run, and the claims."""
    results = job.results
    named = [m for m in METRICS if m != "verdict"]
    rows = {}
    for name, row in job.rows.items():
        runs = results[name]
        spread = {m: found for m in named if (found := mean_and_sd(run[m] for run in runs.values())) is not None}
        rows[name] = {
            "says": row.says,
            "published": job.table.published_figure(name),
            "of": {m: sum(run[m] is not None for run in runs.values()) for m in spread},
            "mean": {m: mean for m, (mean, _) in spread.items()},
            "sd": {m: sd for m, (_, sd) in spread.items()},
            "verdict": verdicts(run["verdict"] for run in runs.values()),
            "runs": {str(seed): {**run, "folder": job.cells[name, seed].folder.name} for seed, run in runs.items()},
        }
    return {
        "table": job.table.id,
        "says": job.table.says,
        "source": job.table.source,
        "note": job.table.note,
        "published_as": job.table.published_as,
        "scale": job.scale,
        "command": job.command,
        "settings": list(job.settings),
        "base": job.table.base and hashlib.sha256(job.table.base.model_dump_json().encode()).hexdigest()[:12],
        "seeds": 1 + max(seed for _, seed in job.cells),
        "versions": versions(),
        "made": f"{date.today()}, {machine()}, PyTorch {versions()['torch']}",
        "rows": rows,
        "claims": [
            {
                "id": claim.id,
                "says": claim.says,
                "source": claim.source,
                "where": list(claim.where),
                "outcome": judged.outcome,
                "evidence": judged.evidence,
                "because": claim.because.get(job.scale, "") if job.as_the_table and judged.known and judged.outcome != "HOLDS" else "",
            }
            for claim, judged in job.judged
        ],
    }


def grid(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, a line of words for each row) of a record."""
    rows = found["rows"].values()
    claimed = {metric for claim in found["claims"] for text in claim["where"] for _, metric in terms(text)}
    further = [m for m in METRICS if m in claimed and m not in SHOWN and m != "verdict"]
    columns = {m: SHOWN.get(m, FURTHER) for m in (*SHOWN, *further) if any(m in row["mean"] for row in rows)}
    cited = any(row["published"] is not None for row in rows)
    header = ["row", *columns, "verdict", *([f"published {found['published_as']}"] if cited else [])]
    lines = []
    for name, row in found["rows"].items():
        words = [_spread(row, m, form, found["seeds"]) for m, form in columns.items()]
        published = [] if not cited else ["" if row["published"] is None else str(row["published"])]
        lines.append([f"{name}: {row['says']}", *words, row["verdict"] or "not run", *published])
    return header, lines


def _spread(row: dict[str, Any], metric: str, form: str, seeds: int) -> str:
    if metric not in row["mean"]:
        return ""
    mean, of = form.format(row["mean"][metric]), row["of"][metric]
    spread = mean if of < 2 or metric == "seconds" else f"{mean} ± {form.format(row['sd'][metric])}"
    return spread if of == seeds else f"{spread} ({of} of {seeds})"


def markdown(found: dict[str, Any], level: int = 1) -> str:
    """A record as a section: the table, its claims, how it was made."""
    header, lines = grid(found)
    over = f"mean ± standard deviation over {found['seeds']} seeds" if found["seeds"] > 1 else "one seed"
    parts = [
        f"{'#' * level} {found['table']}: {found['says']}",
        f"{found['source']}. `{found['command']}`: {' '.join(found['settings'])}; {over}."
        + (" Published figures are per cent, in the paper's own setting." if header[-1].startswith("published") else "")
        + f" Written on {found['made']}.",
        *([found["note"]] if found["note"] else []),
        "\n".join([_line(header), _line(["---"] * len(header)), *(_line(line) for line in lines)]),
        *(["\n".join(_claimed(claim) for claim in found["claims"])] if found["claims"] else []),
    ]
    return "\n\n".join(parts) + "\n"


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def _claimed(claim: dict[str, Any]) -> str:
    why = f" *{claim['because']}*" if claim["because"] else ""
    return f"- **{claim['outcome']}** `{claim['id']}`: {claim['says']} ({claim['source']}) `{claim['evidence']}`{why}"


def as_csv(found: dict[str, Any]) -> str:
    """A line for each run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "seed", *METRICS, "published", "folder"])
    for name, row in found["rows"].items():
        for seed, run in row["runs"].items():
            writer.writerow([found["table"], name, seed, *(run[m] for m in METRICS), row["published"], run["folder"]])
    return out.getvalue()


def write(job: Job, folder: Path) -> dict[str, Any]:
    """TABLE-SCALE.md, .csv, .json and .png in `folder`, and -curves.png where the table asks for them. Returns the record."""
    found = record(job)
    folder.mkdir(parents=True, exist_ok=True)
    stem = _stem(found, folder)
    write_whole(folder / f"{stem}.md", markdown(found))
    write_whole(folder / f"{stem}.csv", as_csv(found))
    write_whole(folder / f"{stem}.json", json.dumps(found, indent=2) + "\n")
    write_whole(folder / f"{stem}.png", picture(found))
    if job.table.curves:
        runs = {name: [c for (of, _), c in job.cells.items() if of == name and c.summary] for name in job.rows}
        lines = {name: [rows_of(c.folder / "metrics.jsonl") for c in of] for name, of in runs.items() if of}
        write_whole(folder / f"{stem}-curves.png", curves(found, lines, job.table.curves))
    return found


def _stem(found: dict[str, Any], folder: Path) -> str:
    """TABLE-SCALE, and more where that is there already: of other settings, of another recipe, of other rows, or of more seeds."""
    stem = f"{found['table']}-{found['scale']}"
    made = [found["settings"], found["base"], list(found["rows"])]
    there: dict[str, Any] = {}
    with suppress(Misuse):  # a damaged one is replaced
        there = object_of(folder / f"{stem}.json")
    same = [there.get("settings"), there.get("base"), list(there.get("rows", []))] == made
    if not there or (same and there.get("seeds", 1) <= found["seeds"]):
        return stem
    return f"{stem}-{hashlib.sha256(json.dumps([*made, found['seeds']]).encode()).hexdigest()[:6]}"


def claims_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim of all tables, with its table and scale."""
    return [{**claim, "table": found["table"], "scale": found["scale"]} for found in records for claim in found["claims"]]


def write_page(records: Sequence[dict[str, Any]], docs: Path) -> tuple[Path, Path]:
    """The page of the tables of one scale, and their claims as JSON: `records`, and what stood there of other tables, as it was.

    `tiny` makes docs/results.md and docs/results/claims.json, another scale docs/results/SCALE.md and docs/results/claims-SCALE.json.
    Raises `Misuse` where the claims that are there cannot be read.
    """
    scale = records[0]["scale"]
    tiny = scale == "tiny"
    page = docs / ("results.md" if tiny else f"results/{scale}.md")
    figures = docs / "results" / ("claims.json" if tiny else f"claims-{scale}.json")
    figures.parent.mkdir(parents=True, exist_ok=True)
    made = {found["table"]: markdown(found, 2) for found in records}
    sections = dict(sorted(((_sections(page.read_text()) if page.exists() else {}) | made).items()))
    there = [claim for claim in json_of(figures, list[dict[str, Any]], []) if claim["table"] in sections.keys() - made.keys()]
    claims = sorted([*there, *claims_of(records)], key=lambda claim: list(sections).index(claim["table"]))
    write_whole(figures, json.dumps(claims, indent=2) + "\n")
    where = os.path.relpath(figures, page.parent)
    write_whole(page, _overview(claims, scale, where, "lab.md" if tiny else "../lab.md") + _joined(sections))
    return page, figures


def _overview(claims: Sequence[dict[str, Any]], scale: str, figures: str, how: str) -> str:
    """How many claims hold, and each in a line. figures, how: the claims' file and lab.md from there."""
    counts = {o: sum(claim["outcome"] == o for claim in claims) for o in ("HOLDS", "UNDECIDED", "FAILS")}
    said = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
    parts = [
        f"# What the papers claim, measured at the scale {scale}\n",
        f"Of {len(claims)} claims: {said}; their figures are in {figures}. Each table says when and where it was written; "
        f"`selfdistill reproduce TABLE --scale {scale} --seeds 3 --docs DIR` makes it anew in its place.\n",
        f"A claim is a comparison over seeds; within two standard errors it is UNDECIDED, of one seed the sign decides ([lab.md]({how}))"
        ". At a small scale claims are about direction and order, not about the papers' figures, which stand in the last column.\n",
        _line(["claim", "outcome", "table"]),
        _line(["---"] * 3),
        *(_line([f"{c['says']} ({c['source']})", c["outcome"], f"[{c['table']}](#{c['table']})"]) for c in claims),
    ]
    return "\n".join(parts) + "\n\n"


def _joined(sections: dict[str, str]) -> str:
    return "\n".join(f'<a id="{name}"></a>\n\n{text}' for name, text in sections.items())


def _sections(page: str) -> dict[str, str]:
    """What `_joined` put together."""
    _, *parts = re.split(r'^<a id="([\w-]+)"></a>\n\n', page, flags=re.MULTILINE)
    return {name: text.strip() + "\n" for name, text in zip(parts[::2], parts[1::2], strict=True)}

"""The lab's runs: a cell is a resolved recipe with its seed, trained once whoever asks for it, in a process of its own.

A cell's folder is a run folder named by the recipe's hash. A finished one is left as it is, an unfinished one goes on from its
checkpoint; a lock keeps two processes from training the same one.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from selfdistill import own
from selfdistill.ablate.figures import Figures, figures_of
from selfdistill.ablate.table import Measure
from selfdistill.data.loader import cores
from selfdistill.data.sources import SOURCES, open_source
from selfdistill.diagnose.metrics import ExpectationGap
from selfdistill.diagnose.verdict import probes
from selfdistill.disk import acquired, merge, object_of, write_whole
from selfdistill.errors import Failure, Misuse
from selfdistill.recipe import Recipe
from selfdistill.train import faults, loop
from selfdistill.train.run import Run, load
from selfdistill.train.trained import gap_of

MEASURED: dict[Measure, str] = {"linear": "linear_top1", "gap": "gap_predictor", "ahead": "teacher_ahead"}
"""the key of summary.json that says that a measure was taken; null where it has no meaning"""


@dataclass(frozen=True)
class Cell:
    recipe: Recipe
    """resolved, with its seed"""
    folder: Path
    measures: frozenset[Measure]

    @property
    def summary(self) -> dict[str, Any] | None:
        """None until the run has ended. Raises `Misuse` for a file that is damaged."""
        file = self.folder / "summary.json"
        return object_of(file) if file.is_file() else None

    @property
    def done(self) -> bool:
        summary = self.summary
        return summary is not None and all(MEASURED[measure] in summary for measure in self.measures)

    def beside(self, ending: str) -> Path:
        """A file of the folder's name and an ending; a method's name may have dots."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    def is_taken(self) -> bool:
        """Whether another process trains it now: a second command on the same lab takes the next one meanwhile."""
        try:
            self.taken(timeout=0).release()
        except Timeout:
            return True
        return False

    def taken(self, timeout: float = -1) -> FileLock:
        """By this process. Raises as `acquired` does."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return acquired(self.beside("lock"), timeout)

    @property
    def figures(self) -> Figures | None:
        return figures_of(summary) if (summary := self.summary) else None


def cell(recipe: Recipe, lab: Path, measures: Iterable[Measure] = ()) -> Cell:
    """Its folder in `lab`: the same recipe on the same images, with the same code of the user's own, is the same cell."""
    place = os.path.realpath(os.path.expanduser(recipe.data))
    data = {"data": place} if os.path.exists(place) and recipe.data not in SOURCES else {}  # "photos" of another folder are others
    said = json.dumps(recipe.model_dump(mode="json") | data, sort_keys=True).encode()
    key = hashlib.sha256(said + b"".join(file.read_bytes() for file in own.FILES)).hexdigest()[:12]
    return Cell(recipe, lab / "cells" / f"{recipe.method}-{key}", frozenset(measures))


def merged(cells: Iterable[Cell]) -> list[Cell]:
    """Each folder once, with all that is asked of it."""
    asked: dict[Path, Cell] = {}
    for c in cells:
        known = asked.get(c.folder, c)
        asked[c.folder] = Cell(c.recipe, c.folder, known.measures | c.measures)
    return list(asked.values())


def default_jobs() -> int:
    """As many runs at a time as there are cores to use; on a GPU they would share it: one."""
    return 1 if torch.cuda.is_available() else cores()


def train_all(cells: list[Cell], jobs: int, say: Callable[[str], None]) -> list[str]:
    """Trains what is not done, `jobs` at a time, a process of one thread each. Returns what went wrong, a line a cell.

    A signal is passed on: the runs write their checkpoints. Raises `faults.Interrupted` then.
    """
    waiting = [c for c in merged(cells) if not c.done]
    total, failed = len(waiting), []
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, by the processes to come
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload([__name__])  # PyTorch is imported once, not once a run: 5 s each
    running: dict[Any, tuple[Any, Cell, float]] = {}
    passed_on = False
    with faults.signals() as came:
        while running or (waiting and not came):
            while waiting and not came and len(running) < jobs:
                c = waiting.pop(next((n for n, c in enumerate(waiting) if not c.is_taken()), 0))
                process = context.Process(target=_train, args=(own.FILES, c.recipe.model_dump(), c.folder, c.measures))
                process.start()
                running[process.sentinel] = (process, c, time.monotonic())
            for sentinel in wait(list(running), timeout=0.2):
                process, c, started = running.pop(sentinel)
                process.join()
                ended = total - len(waiting) - len(running)
                if process.exitcode and not came:
                    failed.append(f"{c.folder}: {_why(c, process.exitcode)}")
                    say(failed[-1])
                elif not process.exitcode:
                    say(f"{ended} of {total}: {c.folder.name} in {time.monotonic() - started:.0f} s, {_in_short(c)}")
            if came and not passed_on:
                for process, _, _ in running.values():
                    process.terminate()
                passed_on = True
    if came:
        left = sum(not c.done for c in merged(cells))
        raise faults.Interrupted(came[0], f"{left} of {total} runs are left, those under way are saved: the same command goes on")
    return failed


def _train(files: list[Path], tree: dict[str, Any], folder: Path, measures: frozenset[Measure]) -> None:
    """A cell's process: trains, goes on, or only measures. What it says goes to a log beside the folder. files: of the user's own, which
    say what the recipe's `tree` may hold."""
    torch.set_num_threads(1)
    for file in files:
        own.use(file)
    c = Cell(Recipe.model_validate(tree), folder, measures)
    with c.taken(), c.beside("log").open("a", buffering=1) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        try:
            if not c.done:
                _measure(_trained(c, Console(file=log, width=200, markup=False, emoji=False)), c.measures)
        except faults.Interrupted as e:
            print(e, file=log)
            sys.exit(128 + e.signum)
        except (Misuse, Failure, OSError) as e:
            print(e, file=log)
            sys.exit(1)
        except Exception:
            traceback.print_exc(file=log)
            sys.exit(1)


def _trained(c: Cell, console: Console) -> Run:
    if c.summary is not None:
        return load(c.folder)
    begun = (c.folder / "recipe.yaml").is_file()
    if not begun:  # killed before the first word
        shutil.rmtree(c.folder, ignore_errors=True)
    if c.recipe.devices not in ("auto", 1):
        return _on_several_devices(c, begun)
    recipe = c.recipe.edit(["devices=1"])  # auto: runs side by side
    try:
        return loop.pretrain(recipe, open_source(recipe.data, recipe.on_bad_image), c.folder, begun, None, console)
    except Failure:
        if c.summary is None:
            raise
        return load(c.folder)  # on_collapse=stop: a result like any other


def _on_several_devices(c: Cell, begun: bool) -> Run:
    """By the command that does it: Fabric starts a run's further processes by repeating the command line, and this one is the lab's."""
    asked = c.beside("yaml")
    write_whole(asked, c.recipe.to_yaml())
    how = ["--resume"] if begun else ["--config", str(asked)]
    words = ["-m", "selfdistill", "pretrain", *own.flags(), *how, "--out", str(c.folder), "--no-report"]
    with faults.signals() as came, subprocess.Popen([sys.executable, *words]) as command:
        while command.poll() is None:
            time.sleep(0.2)
            if came:
                command.send_signal(came.pop())
    if c.summary is None:
        sys.exit(command.returncode or 1)  # what it said is in the log already
    return load(c.folder)


def _measure(run: Run, measures: frozenset[Measure]) -> None:
    """Adds to summary.json what is not there yet."""
    found: dict[str, float | None] = {}
    if "linear" in measures and MEASURED["linear"] not in run.summary:
        found["linear_top1"] = run.linear() if run.summary.get("knn_top1") is not None else None
    if "gap" in measures and MEASURED["gap"] not in run.summary:
        gap = gap_of(run)
        found |= {f"gap_{name}": gap.get(name) for name in ExpectationGap._fields}
    if "ahead" in measures and MEASURED["ahead"] not in run.summary:
        ahead = [row["knn_teacher"] - row["knn_student"] for row in probes(run.metrics) if row.get("knn_teacher") is not None]
        found["teacher_ahead"] = fmean(ahead) if ahead else None
    if found:
        merge(run.path / "summary.json", found)


def _why(c: Cell, code: int) -> str:
    """What a process that failed said last, or the signal that killed it: a line that it had logged before says nothing of that."""
    log = c.beside("log")
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return f"{f'killed by signal {-code}' if code < 0 else lines[-1] if lines else f'exit code {code}'} ({log})"


def _in_short(c: Cell) -> str:
    figures = c.figures or {}
    known = {k: figures.get(k) for k in ("knn", "output_std")}
    return ", ".join([*(f"{k} {v:.3f}" for k, v in known.items() if v is not None), str(figures.get("verdict"))])

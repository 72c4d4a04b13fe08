"""What a run says: metrics.jsonl and loggers for programs, rich for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfdistill.diagnose.verdict import probes
from selfdistill.disk import rows_of, write_whole
from selfdistill.errors import Failure, in_one_line
from selfdistill.train.loggers import Logger
from selfdistill.train.notebook import Live


class Journal:
    """One line of metrics.jsonl a logged step, the same scalars to each logger, and a progress bar.

    On resume from `step`, what was logged after it is cut off, so that each step stands there once.
    """

    def __init__(self, folder: Path, step: int, total: int, console: Console, loggers: Sequence[Logger] = ()):
        self.console, self.loggers, self.total = console, list(loggers), total
        file = folder / "metrics.jsonl"
        self.last: dict[str, Any] = {}
        kept = [row for row in rows_of(file) if row["step"] <= step] if step else []  # killed before a checkpoint, a run begins anew
        for row in kept:
            self.last |= row
        self.probes = probes(kept)
        write_whole(file, "".join(json.dumps(row) + "\n" for row in kept))
        self.lines = file.open("a")
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            refresh_per_second=2,
            disable=not console.is_terminal or console.is_jupyter,  # there it would need widgets
        )
        self.task = self.bar.add_task("", total=total, completed=step, epoch=0, said="")
        self.live = Live(step, total, kept) if console.is_jupyter else None
        self.bar.start()

    def log(self, row: dict[str, Any], aloud: bool = False) -> None:
        """One object; what was not measurable or not finite is null. aloud: as a line, where there is no bar to look at."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self.last |= row
        scalars = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k not in ("step", "epoch")}
        if not os.path.exists(self.lines.name):  # of a file that is removed an open one takes what is written
            raise Failure(f"{self.lines.name}: is there no more, nor what the run had written: its folder was removed")
        try:
            self.lines.write(json.dumps(row) + "\n")
            self.lines.flush()
        except OSError as e:
            raise Failure(
                f"{self.lines.name}: cannot be written: {e.strerror or e}. The last checkpoint is untouched: make room, then --resume"
            ) from e
        for logger in [*self.loggers]:
            try:
                logger.log(row["step"], scalars)
            except Exception as e:  # each client has errors of its own, and none is worth a run
                self.loggers.remove(logger)
                self.say(
                    f"{type(logger).__name__}: {in_one_line(e, 300)}. It gets no more of this run, of which metrics.jsonl has every line"
                )
        shown = {"loss": "loss {:.3f}", "output_std": "std {:.2f}", "knn_top1": "kNN {:.3f}", "images_per_second": "{:.0f} images/s"}
        said = "  ".join(form.format(self.last[key]) for key, form in shown.items() if self.last.get(key) is not None)
        self.bar.update(self.task, completed=row["step"], epoch=f"{row['epoch']:.1f}", said=said)
        if self.live:
            self.live.show(row, said)
        elif aloud and not self.console.is_terminal:
            self.say(f"epoch {row['epoch']:.0f}  step {row['step']}  {said}  {row.get('verdict', '')}")

    def say(self, sentence: str) -> None:
        say(self.console, sentence)

    def close(self) -> None:
        self.bar.stop()
        if self.live:
            self.live.show(None, self.last.get("because", ""))
        with suppress(OSError):  # a full disk, which was said before
            self.lines.close()
        for logger in self.loggers:
            try:
                logger.close(ended=self.last.get("step") == self.total)
            except Exception as e:
                self.say(f"{type(logger).__name__}: {in_one_line(e, 300)}. It may lack the last lines, which metrics.jsonl has")


def say(console: Console, sentence: str) -> None:
    """Prints it as it is, on a console of the user's own too: names of files may have brackets and colons."""
    console.print(sentence, soft_wrap=True, highlight=False, markup=False, emoji=False)

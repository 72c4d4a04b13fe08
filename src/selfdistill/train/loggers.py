"""Where a run's numbers go besides metrics.jsonl: TensorBoard, a CSV, Weights & Biases, MLflow; each by its own client."""

from __future__ import annotations

import csv
import io
import os
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from selfdistill.disk import merge, object_of, rows_of, write_whole
from selfdistill.errors import Failure, in_one_line, require
from selfdistill.recipe import Recipe
from selfdistill.spec import leaves


class Logger(ABC):
    """Made with the run folder, the recipe, and the step from which a run goes on, 0 for a new one."""

    @abstractmethod
    def __init__(self, folder: Path, recipe: Recipe, step: int): ...

    @abstractmethod
    def log(self, step: int, scalars: dict[str, float]) -> None: ...

    @abstractmethod
    def close(self, ended: bool) -> None:
        """ended: the run came to its end; else it stopped, and may go on."""


class TensorBoard(Logger):
    def __init__(self, folder: Path, recipe: Recipe, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)

    def close(self, ended: bool) -> None:
        self.writer.close()


class CSV(Logger):
    """metrics.csv, the lines of metrics.jsonl as a table, written when the run ends or stops."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        self.folder = folder

    def log(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def close(self, ended: bool) -> None:
        rows = rows_of(self.folder / "metrics.jsonl")
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(self.folder / "metrics.csv", text.getvalue())


class WandB(Logger):
    """Project WANDB_PROJECT, or selfdistill; WANDB_MODE=offline keeps the run in its folder until `wandb sync`."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        import wandb

        known = _remembered(folder).get("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "selfdistill"),
            name=folder.name,
            dir=str(folder),
            id=known,
            resume="allow" if known else None,
            config=recipe.model_dump(mode="json"),
        )
        _remember(folder, "wandb", self.run.id)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log(scalars, step=step)

    def close(self, ended: bool) -> None:
        self.run.finish(exit_code=0 if ended else 1)


class MLflow(Logger):
    """Experiment MLFLOW_EXPERIMENT_NAME, or selfdistill, on MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 14 s; the client's 7 are minutes, in which nothing is trained
        self.client = MlflowClient()
        known = _remembered(folder).get("mlflow")
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "selfdistill")
            experiment = self.client.get_experiment_by_name(name)
            found = experiment.experiment_id if experiment else self.client.create_experiment(name)
            known = self.client.create_run(found, run_name=folder.name).info.run_id
            _remember(folder, "mlflow", known)
            params = [Param(path, str(value)) for path, value in leaves(recipe)]
            for start in range(0, len(params), 100):  # the most that a request may carry
                self.client.log_batch(known, params=params[start : start + 100])
        else:
            self.client.update_run(known, "RUNNING")
        self.id = known

    def log(self, step: int, scalars: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in scalars.items()])

    def close(self, ended: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if ended else "KILLED")


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "csv": CSV, "wandb": WandB, "mlflow": MLflow}


WAYS = {
    "wandb": "`wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI: a server's, or file:///a/folder with MLFLOW_ALLOW_FILE_STORE=true",
}


def check(recipe: Recipe) -> None:
    """Raises `Misuse` where a logger's client is not installed."""
    for name in recipe.log:
        require(f"log={name}", name, *([name] if name in ("wandb", "mlflow") else []))


def open_loggers(recipe: Recipe, folder: Path, step: int) -> list[Logger]:
    """Raises `Failure` where a logger's server does not answer, or wants a login."""
    opened: list[Logger] = []
    for name in recipe.log:
        try:
            opened.append(LOGGERS[name](folder, recipe, step))
        except Exception as e:  # each client has errors of its own
            for logger in opened:
                logger.close(ended=False)
            raise Failure(
                f"log={name}: {in_one_line(e, 300)}: {WAYS.get(name, 'is the disk full?')}, and go on with --out {folder} --resume"
            ) from e
    return opened


def _remembered(folder: Path) -> dict[str, Any]:
    """Under which names the loggers know the run."""
    return object_of(folder / "loggers.json", dict[str, str])


def _remember(folder: Path, logger: str, name: str) -> None:
    merge(folder / "loggers.json", {logger: name})

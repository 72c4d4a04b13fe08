"""Hugging Face `datasets`: parquet files, a saved set or one of the hub, memory-mapped and read at random."""

from __future__ import annotations

import glob
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from selfdistill.data.images import Encoded, Source, picked
from selfdistill.data.reading import BadImage, Photo, open_photo, printable
from selfdistill.data.splits import HELD_OUT, split_of, tenth_held_out
from selfdistill.errors import Failure, Misuse, in_one_line, require

PREFIX = "hf:"
PLAIN = ("int", "uint", "bool", "float", "string", "large_string")
"""types of a column of labels"""


@final
@dataclass(frozen=True, eq=False)
class Rows(Encoded):
    """Images as rows of a `datasets.Dataset`: table[rows[i]][column] is {bytes, path}. A path is followed inside `roots` alone: a table
    may come from a stranger."""

    name: str
    table: Any
    column: str
    rows: Tensor
    roots: tuple[str, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, i: int) -> AbstractContextManager[Photo]:
        row = int(self.rows[i])
        cell = self.table[row][self.column]
        if cell is None:
            raise BadImage(Path(self.path(i)), "no image in this row")
        if cell["bytes"] is None:
            return open_photo(self._inside(str(cell["path"])))
        return open_photo(Path(self.path(i)), cell["bytes"])

    def path(self, i: int) -> str:
        return printable(f"{self.name}[{int(self.rows[i])}]")

    def _inside(self, path: str) -> Path:
        real = os.path.realpath(path)
        if not any(os.path.commonpath([root, real]) == root for root in self.roots):
            raise BadImage(Path(path), f"outside the data set {self.name}, whose table names it")
        return Path(real)

    def holds(self, path: Path) -> bool:
        """All that lies in its folder: which files those of a table are is known to `datasets` alone."""
        return path.exists() and any(path.resolve().is_relative_to(root) for root in self.roots)

    def pick(self, rows: Tensor) -> Rows:
        return replace(self, rows=self.rows[rows], labels=picked(self.labels, rows))


def open_table(data: str) -> Source:
    """`hf:NAME` of the hub, `hf:FOLDER` with parquet files or what `save_to_disk` wrote, or `hf:FILE.parquet`. The first column of images,
    and the first of class labels, else one called label, if there is one. No code of a data set's own is run. Raises `Misuse`, or
    `Failure` when it cannot be loaded."""
    name = os.path.expanduser(data.removeprefix(PREFIX))
    if not name:
        raise Misuse(f"data={data}: names no data set: {PREFIX}NAME of the hub, {PREFIX}FOLDER or {PREFIX}FILE.parquet")
    require(f"data={data}", "huggingface", "datasets")
    import datasets

    try:
        loaded = _load(datasets, name)
    except Exception as e:  # the hub's, Arrow's and the file system's errors share no class
        raise Failure(f"data={data}: cannot be loaded: {in_one_line(e, 300)}") from e
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    train = splits.get("train", next(iter(splits.values())))
    images = _rows(datasets, name, train)
    notes: list[str] = []
    for split in (s for s in HELD_OUT if s in splits and splits[s] is not train):
        if test := _classed_as(images, _rows(datasets, name, splits[split])):
            return Source(data, images, test, notes=tuple(notes))
        notes.append(f"the split {split} is not used: its labels are not those of the training rows")
    if images.labels is None:
        return Source(data, images, notes=("no labels: no column is a ClassLabel, or is called label and holds whole numbers or words",))
    images, test, note = tenth_held_out(images, [str(i) for i in range(len(images))])
    return Source(data, images, test, notes=(*notes, note))


def _classed_as(train: Rows, held: Rows) -> Rows | None:
    """Held-out rows with the numbers that `train` has for the same classes. None where they have no labels, or others, and `train` has:
    a test split whose labels are kept secret, all of them -1, is common on the hub."""
    if train.labels is None:
        return held
    used = set() if held.labels is None else {held.classes[y] for y in held.labels.unique().tolist() if y >= 0}
    if held.labels is None or not set() < used <= set(train.classes):
        return None
    place = torch.tensor([train.classes.index(c) if c in used else -1 for c in held.classes] + [-1])  # the last: of -1, no label
    return replace(held, labels=place[held.labels], classes=train.classes)


def _load(datasets: Any, name: str) -> Any:
    if os.path.isfile(name):
        return datasets.load_dataset("parquet", data_files=name)
    if not os.path.isdir(name):
        return datasets.load_dataset(name)
    files = sorted(glob.glob(os.path.join(glob.escape(name), "**", "*.parquet"), recursive=True))
    if not files:
        return datasets.load_from_disk(name)
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(split_of(os.path.relpath(file, name)), []).append(file)
    return datasets.load_dataset("parquet", data_files=splits)


def _looks_encoded(kind: Any) -> bool:
    """Of a parquet file that `datasets` did not write: bytes, or its {bytes, path} without its mark."""
    return getattr(kind, "dtype", "") in ("binary", "large_binary") or (isinstance(kind, dict) and {"bytes", "path"} <= kind.keys())


def _labels(datasets: Any, table: Any) -> tuple[Tensor | None, tuple[str, ...]]:
    """(labels [N], classes): of the first ClassLabel, else of whole numbers or words in a column called label."""
    label = next((c for c, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if label:
        labels = torch.tensor([-1 if y is None else y for y in table[label]], dtype=torch.int64)
        return labels, tuple(printable(c) for c in table.features[label].names)
    label = next((c for c in ("label", "labels") if getattr(table.features.get(c), "dtype", "").startswith(PLAIN)), None)
    if label is None:
        return None, ()
    found = [None if y is None or y != y else y for y in table[label]]  # NaN: pandas has it for a number that is missing
    if any(isinstance(y, float) and not y.is_integer() for y in found):
        return None, ()
    found = [int(y) if isinstance(y, float) else y for y in found]
    classes = sorted({y for y in found if y is not None and y != -1})
    places = {y: place for place, y in enumerate(classes)}
    return torch.tensor([places.get(y, -1) for y in found], dtype=torch.int64), tuple(printable(str(y)) for y in classes)


def _rows(datasets: Any, name: str, table: Any) -> Rows:
    kinds = table.features
    marked = (c for c, kind in kinds.items() if isinstance(kind, datasets.Image))
    column = next(marked, next((c for c, kind in kinds.items() if _looks_encoded(kind)), None))
    if column is None:
        raise Misuse(f"data={PREFIX}{name}: no column of images; it has {', '.join(f'{c} ({type(k).__name__})' for c, k in kinds.items())}")
    labels, classes = _labels(datasets, table)
    roots = tuple(os.path.realpath(root) for root in ([name] if os.path.exists(name) else [datasets.config.HF_CACHE_HOME]))
    alone = table.select_columns(column).cast_column(column, datasets.Image(decode=False))  # each access would decode the others too
    return Rows(name, alone, column, torch.arange(len(table)), roots, labels, classes)

"""Features of all images of a data set, written as they come: a batch is in memory, never the set."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfdistill.data.images import Images
from selfdistill.data.loader import plain_batches
from selfdistill.disk import check_place, whole_file
from selfdistill.errors import Misuse, require
from selfdistill.parts.backbone import device_of
from selfdistill.train.subject import Subject

BATCH = 512
"""images, and rows of a row group: at 2,048 features 4 MB"""


class Row(NamedTuple):
    """Of an image: its place in the set, the split it is in, where it lies (no path: an image in memory), label and class if any."""

    id: int
    split: str
    path: str | None
    label: int | None
    name: str | None


def embed(subject: Subject, out: Path, say: Callable[[str], None] = lambda sentence: None) -> int:
    """Writes the features [F] of every image of a subject's, training and held-out ones, to `out`; returns how many images.

    .parquet: columns id, split, path, label, class and features, a list of F fp32. .npy: fp32 [N, F], and a .csv beside it with the other
    columns. An image that proves unreadable keeps its row, with features NaN, and `say` is told.
    Raises `Misuse` for another ending, and for a file of the data set's.
    """
    check_place(out, "--out", list(WRITERS), subject.source.holds)
    ending = out.suffix.lower()
    if ending == ".parquet":
        require(f"--out {out}", "parquet", "pyarrow")
    table = out.with_suffix(".csv")
    if ending == ".npy" and table.exists() and not out.exists():
        raise Misuse(f"--out {out}: {table}, which would come beside it, exists already and is not its own: name another file")
    total = len(subject.source.train) + len(subject.source.test or ())
    WRITERS[ending](out, embedded(subject, say), total, subject)
    return total


@torch.inference_mode()
def embedded(subject: Subject, say: Callable[[str], None]) -> Iterator[tuple[list[Row], Tensor]]:
    """(rows, features [b, F]) of a batch of images after the other, training ones first. Raises `Misuse` for a network that diverged."""
    start, recipe = 0, subject.recipe
    if subject.source.left_out:
        say(subject.source.left_out)
    for split, images in {"train": subject.source.train, "test": subject.source.test}.items():
        if images is None:
            continue
        bad: list[int] = []

        def report(i: int, reason: str, images: Images = images, bad: list[int] = bad) -> None:
            bad.append(i)
            say(f"unreadable, its features are NaN: {images.path(i)}: {reason}")

        at = 0
        for x in plain_batches(images, recipe.views, device_of(subject.backbone), recipe.workers, BATCH, report):
            h = subject.backbone(x).float().cpu()
            if not h.isfinite().any():
                subject.check_finite(h)
            h[[i - at for i in bad if at <= i < at + len(h)]] = torch.nan
            yield [_row(split, images, start, i) for i in range(at, at + len(h))], h
            at += len(h)
        start += at


def _row(split: str, images: Images, start: int, i: int) -> Row:
    label = None if images.labels is None or images.labels[i] < 0 else int(images.labels[i])
    return Row(start + i, split, images.path(i), label, None if label is None else images.classes[label])


Batches = Iterator[tuple[list[Row], Tensor]]


def _parquet(out: Path, batches: Batches, total: int, subject: Subject) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = subject.backbone.dim
    of_row = {"id": pa.int64(), "split": pa.string(), "path": pa.string(), "label": pa.int64(), "class": pa.string()}
    schema = pa.schema({**of_row, "features": pa.list_(pa.float32(), width)}, {"selfdistill": subject.name})
    with whole_file(out) as beside, pq.ParquetWriter(beside, schema) as writer:
        for rows, features in batches:
            columns = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), of_row.values(), strict=True)]
            flat = pa.array(features.flatten().numpy())
            writer.write_batch(pa.record_batch([*columns, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema))


def _npy(out: Path, batches: Batches, total: int, subject: Subject) -> None:
    with whole_file(out) as beside, whole_file(out.with_suffix(".csv")) as table, table.open("w", newline="") as file:
        written = np.lib.format.open_memmap(beside, "w+", np.float32, (total, subject.backbone.dim))
        lines = csv.writer(file)
        lines.writerow(["id", "split", "path", "label", "class"])
        for rows, features in batches:
            written[rows[0].id : rows[-1].id + 1] = features.numpy()
            lines.writerows(rows)
        written.flush()


WRITERS = {".parquet": _parquet, ".npy": _npy}

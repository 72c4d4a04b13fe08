"""Embeddings that another program has written: NumPy's .npy, or parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.errors import Misuse

FORMATS = (".npy", ".parquet")
COLUMNS = ("features", "embedding", "embeddings")
"""of parquet: the list column; without one, all columns of numbers are the dimensions"""
LABEL = "label"


def read_embeddings(path: Path, labels: Path | None = None) -> tuple[Tensor, Tensor | None]:
    """(float [N, D], int64 [N] in 0..C-1 or None) of `path`, .npy or .parquet; parquet's column `label`, or `labels`, a .npy of [N]. A
    null is no label, -1; where all are, None.

    Raises `Misuse` for what cannot be read, is no [N, D] with N, D >= 2, or has another number of labels.
    """
    if path.suffix == ".npy":
        found, names = _npy(path), None
    elif path.suffix == ".parquet":
        found, names = _parquet(path)
    else:
        raise Misuse(f"{path}: embeddings are read from {' and '.join(FORMATS)}, not from {path.suffix or 'a file without suffix'}")
    names = _npy(labels) if labels else names
    if found.ndim != 2 or min(found.shape) < 2 or found.dtype.kind not in "fiu":
        raise Misuse(
            f"{path}: {found.dtype} {list(found.shape)} are no embeddings: numbers [N, D] are, N images of D dimensions, two each at least"
        )
    z = torch.from_numpy(found.astype(np.float32))
    if names is None:
        return z, None
    if names.shape != (len(found),):
        raise Misuse(f"{labels or path}: labels {list(names.shape)} for {len(found)} embeddings: [{len(found)}] are needed, one for each")
    known = np.array([name is not None for name in names.tolist()])
    if not known.any():
        return z, None
    found_labels = np.full(len(names), -1, np.int64)
    found_labels[known] = np.unique(np.array(names[known].tolist()), return_inverse=True)[1]
    return z, torch.from_numpy(found_labels)


def _npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise Misuse(f"{path}: cannot be read as .npy: {' '.join(str(e).split())}") from e
    if not isinstance(found, np.ndarray):
        raise Misuse(f"{path}: an archive of several arrays: save one with numpy.save")
    return found


def _parquet(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise Misuse(f"{path}: parquet needs pyarrow: pip install 'selfdistill[parquet]'") from e
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise Misuse(f"{path}: cannot be read as parquet: {' '.join(str(e).split())[:200]}") from e
    column = next((name for name in COLUMNS if name in table.column_names), None)
    if column:
        rows = table[column].to_pylist()
        if any(row is None or len(row) != len(rows[0]) for row in rows):
            raise Misuse(f"{path}: the lists in column {column} have different lengths: one of D numbers for each image is needed")
        found = np.array(rows)
    else:
        numbers = [f.name for f in table.schema if f.name != LABEL and (pa.types.is_floating(f.type) or pa.types.is_integer(f.type))]
        if not numbers:
            raise Misuse(
                f"{path}: no embeddings in columns {', '.join(table.column_names)}: a list column {COLUMNS[0]}, or columns of numbers"
            )
        found = np.column_stack([table[name].to_numpy() for name in numbers])
    return found, np.array(table[LABEL].to_pylist()) if LABEL in table.column_names else None

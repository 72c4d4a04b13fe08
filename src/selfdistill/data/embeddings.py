"""Embeddings that another program has written: NumPy's .npy, or parquet."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfdistill.errors import Misuse, in_one_line, require

FORMATS = (".npy", ".parquet")
COLUMNS = ("features", "embedding", "embeddings")
"""of parquet: the list column, or the only one; without any, all columns of numbers are the dimensions, but for `NO_DIMENSIONS`"""
LABELS = ("label", "labels", "target", "class")
"""of parquet: the first of these that is there"""
NO_DIMENSIONS = re.compile(r"id|index|__index_level_\d+__|split|path", re.IGNORECASE)
"""columns that number or name the images; pandas writes its index as one"""


def read_embeddings(path: Path, labels: str | Path | Tensor | np.ndarray[Any, Any] | None = None) -> tuple[Tensor, Tensor | None]:
    """`embeddings_of` what `path` holds, .npy or .parquet, with a column of `LABELS`, or `labels` (`read_labels`). Raises `Misuse` for what
    cannot be read, too."""
    if path.suffix == ".npy":
        found, names = _npy(path), None
    elif path.suffix == ".parquet":
        found, names = _parquet(path)
    else:
        raise Misuse(f"{path}: embeddings are read from {' and '.join(FORMATS)}, not from {path.suffix or 'a file without suffix'}")
    z, known = embeddings_of(found, names if labels is None else labels, str(path))
    return z.float(), known


def embeddings_of(
    found: Tensor | np.ndarray[Any, Any], labels: str | Path | Tensor | np.ndarray[Any, Any] | None = None, by: str = "embeddings"
) -> tuple[Tensor, Tensor | None]:
    """(float [N, D], int64 [N] in 0..C-1 or None). Rows of NaN alone, of images that could not be read (`embed`), are left out with a
    warning, unless all are. by: what messages call it. Raises `Misuse` for what is no [N, D] with N, D >= 2, or has another number of
    labels."""
    if isinstance(found, Tensor):
        found = found.detach().cpu()
        found = (found.float() if found.dtype == torch.bfloat16 else found).numpy()  # which NumPy has not
    if found.ndim != 2 or min(found.shape) < 2 or found.dtype.kind not in "fiu":
        raise Misuse(
            f"{by}: {found.dtype} {list(found.shape)} are no embeddings: numbers [N, D] are, N images of D dimensions, two each at least"
        )
    z = torch.from_numpy(found.astype(np.float64 if found.dtype.kind == "f" and found.itemsize > 4 else np.float32))
    known = None if labels is None else read_labels(labels, len(z))
    unread = z.isnan().all(1)
    if unread.any() and not unread.all():
        warnings.warn(f"{by}: {int(unread.sum())} of {len(z)} rows are NaN, of images that could not be read: left out", stacklevel=2)
        z, known = z[~unread], None if known is None else known[~unread]
    return z, known


def read_labels(of: str | Path | Tensor | np.ndarray[Any, Any], count: int) -> Tensor | None:
    """int64 [N] in 0..C-1 of labels [N], numbers or words, or a .npy of them. A null, NaN or a negative number is no label, -1; where
    all are, None. Raises `Misuse` for another number than `count`."""
    if isinstance(of, Tensor):
        of = of.detach().cpu().numpy()
    if not isinstance(of, str | Path):
        return _codes(np.asarray(of), count, "labels")
    return _codes(_npy(Path(of)), count, str(of))


def _codes(names: np.ndarray[Any, Any], count: int, by: str) -> Tensor | None:
    if names.shape != (count,):
        raise Misuse(f"{by}: labels {list(names.shape)} for {count} embeddings: [{count}] are needed, one for each")
    known = np.array([name is not None and not (isinstance(name, int | float) and not name >= 0) for name in names.tolist()])
    if not known.any():
        return None
    found = np.full(count, -1, np.int64)
    found[known] = np.unique(np.array(names[known].tolist()), return_inverse=True)[1]
    return torch.from_numpy(found)


def _npy(path: Path) -> np.ndarray[Any, Any]:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise Misuse(f"{path}: cannot be read as .npy: {in_one_line(e)}") from e
    if not isinstance(found, np.ndarray):
        raise Misuse(f"{path}: an archive of several arrays: save one with numpy.save")
    return found


def _parquet(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    require(f"{path}: parquet", "parquet", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise Misuse(f"{path}: cannot be read as parquet: {in_one_line(e, 200)}") from e
    types = {field.name: field.type for field in table.schema}

    def holds(name: str, *kinds: str) -> bool:
        return name in types and any(getattr(pa.types, f"is_{kind}")(types[name]) for kind in kinds)

    lists = [name for name in types if holds(name, "nested") or isinstance(types[name], pa.BaseExtensionType)]
    label = next((name for name in LABELS if name in types and (name == LABELS[0] or not holds(name, "floating"))), None)
    if label in lists:
        raise Misuse(f"{path}: column {label} is of {types[label]}: one label for each image is needed")
    numbers = [n for n in types if n != label and holds(n, "floating", "integer") and not NO_DIMENSIONS.fullmatch(n)]
    column = next((name for name in COLUMNS if name in lists), lists[0] if len(lists) == 1 and not numbers else None)
    if column:
        rows = table[column].to_pylist()
        if any(row is None or len(row) != len(rows[0]) for row in rows):
            raise Misuse(f"{path}: the lists in column {column} have different lengths: one of D numbers for each image is needed")
        found = np.array(rows)
    else:
        if not numbers:
            raise Misuse(
                f"{path}: no embeddings in columns {', '.join(table.column_names)}: a list column {COLUMNS[0]}, or columns of numbers"
            )
        found = np.column_stack([table[name].to_numpy() for name in numbers])
    return found, None if label is None else np.array(table[label].to_pylist())

"""Any folder of images as a data set: nested or flat, class folders or none, split or not, damaged files left out by name."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import torch

from selfdistill.data.images import Files, Source
from selfdistill.data.reading import BadImage, extensions, inspect, printable, remarks
from selfdistill.data.splits import HELD_OUT, tenth_held_out
from selfdistill.errors import Misuse

Policy = Literal["skip", "error"]
BATCH = 1024  # files in flight while they are inspected: memory stays flat for a folder of millions
LOOKED_AT = 32  # files that are opened for `remarks`


def open_folder(path: str | os.PathLike[str], on_bad_image: Policy = "skip") -> Source:
    """The images under `path` as a data set; relative file names alone decide order, labels and splits.

    Splits: a folder `train` beside one of HELD_OUT; else about a tenth of a labelled set is held out.
    Labels: the first folder below the (split's) root, when every image lies in one and there are two or more; else None.
    on_bad_image: "skip" leaves bad files out and lists them in `Source.bad`; "error" stops at the first.
    Raises Misuse: no such folder, no good image in it, or a bad one under "error".
    """
    if on_bad_image not in get_args(Policy):
        raise Misuse(f"on_bad_image is {on_bad_image!r}: use one of {', '.join(get_args(Policy))}")
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        what = "is a file: unpack it if it is an archive, and give" if root.exists() else "does not exist: give"
        raise Misuse(f"the folder {printable(root)} {what} a folder of images")
    bad: list[tuple[Path, str]] = []

    def reject(name: str, reason: str) -> None:
        if on_bad_image == "error":
            raise Misuse(f"{BadImage(root / name, reason)}. Repair or remove it, or leave such files out with on_bad_image=skip")
        bad.append((root / name, reason))

    names, others = _walk(root, reject)
    depth, to_train, candidates = _splits(names)
    good = list(_inspected(root, to_train, reject))
    if not good:
        raise Misuse(_nothing(root, len(names) + others.total(), len(names), bad))
    classes = _classes(good, depth)

    def files(part: list[str]) -> Files:
        paths = [root / name for name in part]
        if not classes:
            return Files(paths)
        places = {name: place for place, name in enumerate(classes)}
        labels = torch.tensor([places[_class(name, depth) or ""] for name in part], dtype=torch.int64)
        return Files(paths, labels, tuple(map(printable, classes)))

    held, notes = _held_out(root, candidates, classes, depth, reject)
    train, test = files(good), files(held) if held else None
    if classes and not test:
        train, test, note = tenth_held_out(train, good)
        notes.append(note)
    if not classes:
        notes.append("no labels: the images do not all lie in two or more class folders")
    if unused := len(names) - len(to_train) - sum(map(len, candidates)):
        notes.append(f"{unused} images lie outside the folders of the splits and are not used")
    if others:
        endings = ", ".join(ending or "none" for ending, _ in others.most_common(5))
        notes.append(f"{others.total()} files are not used: their names have no ending of an image's ({printable(endings)})")
    notes += remarks([root / name for name in good[:: -(-len(good) // LOOKED_AT)]])
    if bad:
        notes.append(f"{len(bad)} bad files are left out:" + _some(bad, most=50, before="\n  "))
    return Source(printable(root), train, test, bad=tuple(bad), notes=tuple(notes))


def _walk(root: Path, reject: Callable[[str, str], None]) -> tuple[list[str], Counter[str]]:
    """The names (relative to root, sorted) of what is called like an image, and how many other files have which ending."""
    real_root = os.path.realpath(root)
    names: list[str] = []
    others: Counter[str] = Counter()
    visited = set()
    folders = deque([""])
    while folders:
        folder = folders.popleft()
        real = os.path.realpath(root / folder)
        if real in visited or real_root.startswith(real.rstrip(os.sep) + os.sep):  # a link back, or up to a parent of root
            continue
        visited.add(real)
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            reject(folder, error.strerror or str(error))
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            link = entry.is_symlink()  # links wait until every real folder is done, so that an image keeps its own name
            if os.path.isdir(entry.path) if link else entry.is_dir():
                (folders.append if link else folders.appendleft)(name)
                continue
            ending = os.path.splitext(entry.name)[1]
            if ending.lower() in extensions():
                names.append(name)
            else:
                others[ending] += 1
    return sorted(names, key=os.fsencode), others


def _splits(names: list[str]) -> tuple[int, list[str], list[list[str]]]:
    """How many folders lead to a split's root (0 or 1), the names to train on, and those that may be held out, preferred first."""
    tops: dict[str, list[str]] = {}
    for name in names:
        top, below, _ = name.partition(os.sep)
        tops.setdefault(top.lower() if below else "", []).append(name)
    held = [tops[top] for top in HELD_OUT if top in tops]
    if "train" in tops and (held or len(tops) == 1):
        return 1, tops["train"], held
    return 0, names, []


def _inspected(root: Path, names: list[str], reject: Callable[[str, str], None]) -> Iterator[str]:
    """The names of the good images, in order."""
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            for name, reason in zip(batch, pool.map(lambda name: inspect(root / name), batch), strict=True):
                if reason is None:
                    yield name
                else:
                    reject(name, reason)


def _class(name: str, depth: int) -> str | None:
    folders = name.split(os.sep)[:-1]
    return folders[depth] if len(folders) > depth else None


def _classes(names: list[str], depth: int) -> tuple[str, ...]:
    found = {_class(name, depth) for name in names}
    labelled = sorted((name for name in found if name is not None), key=os.fsencode)
    return tuple(labelled) if len(labelled) == len(found) >= 2 else ()


def _held_out(
    root: Path, candidates: list[list[str]], classes: tuple[str, ...], depth: int, reject: Callable[[str, str], None]
) -> tuple[list[str], list[str]]:
    """The first candidate with good images that has labels if `train` has (a test/ without labels is common), and notes on the others."""
    notes: list[str] = []
    for names in candidates:
        good = list(_inspected(root, names, reject))
        if good and (not classes or {_class(name, depth) for name in good} <= set(classes)):
            return good, notes
        why = "its images do not lie in the class folders of train/" if good else "none of its images is good"
        notes.append(f"{printable(names[0].split(os.sep)[0])}/ is not used: {why}")
    return [], notes


def _some(bad: list[tuple[Path, str]], most: int = 3, before: str = " ") -> str:
    more = [f"and {len(bad) - most} more"] * (len(bad) > most)
    return ",".join(before + said for said in [f"{printable(path)} ({reason})" for path, reason in bad[:most]] + more)


def _nothing(root: Path, seen: int, named: int, bad: list[tuple[Path, str]]) -> str:
    if bad:
        found = f"{seen} files seen, {named} named like images, bad:{_some(bad)}"
    else:
        found = f"{seen} files seen, none with an image's extension (.jpg, .png, ...)"
    return f"no images to train on in {printable(root)}: {found}. Give a folder with images in a format that Pillow reads"

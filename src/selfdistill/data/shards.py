"""WebDataset shards: tar files of images with their labels beside them, read at random by offset, never unpacked."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from selfdistill.data.images import Encoded, Source, picked
from selfdistill.data.reading import BadImage, Photo, extensions, open_photo, printable
from selfdistill.data.splits import HELD_OUT, split_of, tenth_held_out
from selfdistill.errors import Misuse


@final
@dataclass(frozen=True, eq=False)
class Slices(Encoded):
    """Images as pieces of archives. where: int64 [N, 3], the archive, and the piece's first byte and length in it."""

    archives: list[Path]
    where: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.where)

    def open(self, i: int) -> AbstractContextManager[Photo]:
        archive, start, length = self.where[i].tolist()
        try:
            with open(self.archives[archive], "rb") as file:
                content = os.pread(file.fileno(), length, start)
        except OSError as e:
            raise BadImage(Path(self.path(i)), e.strerror or str(e)) from e
        return open_photo(Path(self.path(i)), content)

    def path(self, i: int) -> str:
        archive, start, _ = self.where[i].tolist()
        return f"{printable(self.archives[archive])}@{start}"

    def holds(self, path: Path) -> bool:
        return path.resolve() in {archive.resolve() for archive in self.archives}

    def pick(self, rows: Tensor) -> Slices:
        return replace(self, where=self.where[rows], labels=picked(self.labels, rows))


@dataclass
class _Part:
    """What is known of the shards of one split."""

    archives: list[Path] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    where: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    folders: list[str | None] = field(default_factory=list)
    hidden: int = 0
    """images whose key another one of their archive has too"""

    @property
    def named(self) -> set[str]:
        """The labels that there are."""
        return {label for label in self.labels if label is not None}


def is_shards(data: str) -> bool:
    """Whether `data` names tar files: one, a pattern of them (`*`, `{000..127}`), or a folder of them without folders or images."""
    if not os.path.isdir(data):
        return data.endswith(".tar")
    found = False
    with os.scandir(data) as entries:
        for entry in (e for e in entries if not e.name.startswith(".")):
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in extensions() or entry.is_dir():
                return False  # at the first: a folder may hold a million
            found |= ending == ".tar"
    return found


def open_shards(data: str) -> Source:
    """The images in the tar files that `data` names (see `is_shards`), in the order of names.

    A sample is what shares a key, the name up to its first dot: an image, and `KEY.cls` (an integer) or the field `label` of `KEY.json`
    for its label, or where there are none of these the image's folder; an image may have none, and with fewer than two classes none has.
    If two images share a key, the one with a single ending is taken (KEY.png, not KEY.mask.png), else the first. Shards whose name has a
    word of HELD_OUT, or whose folder has where they lie in several, are held out; of several such splits, the first whose labels are the
    training set's. Without any, a tenth of each class is held out.

    Raises `Misuse`: no such file, no image, or an archive that is compressed or damaged.
    """
    words = [os.path.join(data, "*.tar")] if os.path.isdir(data) else [data] if os.path.isfile(data) else _expanded(data)
    found = {word: _matching(word) for word in words}
    paths = sorted({Path(path) for of in found.values() for path in of})
    if not paths:
        raise Misuse(f"data={printable(data)}: no such tar file. A pattern is written shards-{{000..127}}.tar or 'shards-*.tar', in quotes")
    if missing := [word for word, of in found.items() if not of]:
        raise Misuse(f"data={printable(data)}: {len(missing)} of {len(words)} are not there, the first: {printable(missing[0])}")
    parts: dict[str, _Part] = defaultdict(_Part)
    root = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    for path in paths:
        _add(parts[split_of(os.path.relpath(path, root))], path)
    if not any(part.named for part in parts.values()):
        for part in parts.values():
            part.labels = part.folders
    train = parts.pop("train", _Part())
    if not train.keys:
        raise Misuse(f"data={printable(data)}: no images to train on in {len(paths)} tar files (shards named test or val are held out)")
    named = train.named
    classes = tuple(sorted(named, key=_in_order)) if len(named) > 1 else ()
    images, notes = _slices(train, classes), [f"{len(train.keys)} images in {len(train.archives)} shards"]
    if train.hidden:
        notes.append(f"{train.hidden} images are not used: another one has their key, the name up to its first dot")
    if classes and None in train.labels:
        notes.append(f"{train.labels.count(None)} of them have no label")
    held = None
    for split in (split for split in HELD_OUT if split in parts and parts[split].keys):
        fits = not classes or set() < parts[split].named <= named
        if fits and held is None:
            held = _slices(parts[split], classes)
        else:
            notes.append(
                f"shards named {split} are not used: {'others are held out' if fits else 'their labels are not those of the others'}"
            )
    if classes and held is None:
        images, held, note = tenth_held_out(images, train.keys)
        notes.append(note)
    return Source(printable(data), images, held, notes=tuple(notes))


def _in_order(label: str) -> tuple[bool, int, str]:
    return label.isdecimal(), int(label) if label.isdecimal() else 0, label


def _add(part: _Part, path: Path) -> None:
    """The images of an archive."""
    samples, hidden = _samples(path)
    for key, start, length, label in samples:
        part.where.append((len(part.archives), start, length))
        part.keys.append(key)
        part.labels.append(label)
        part.folders.append(os.path.dirname(key) or None)
    part.archives.append(path)
    part.hidden += hidden


def _slices(part: _Part, classes: tuple[str, ...]) -> Slices:
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places.get(str(label), -1) for label in part.labels]) if classes else None
    return Slices(part.archives, torch.tensor(part.where, dtype=torch.int64).view(-1, 3), labels, classes)


def _samples(path: Path) -> tuple[list[tuple[str, int, int, str | None]], int]:
    """(key, first byte, length, label) of each image of a tar file, and how many more have a key that is taken."""
    found: dict[str, tuple[int, int]] = {}
    endings: dict[str, str] = {}
    labels: dict[str, str] = {}
    hidden = 0
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed only: others have no random access
            for member in tar:
                folder, name = os.path.split(member.name)
                stem, _, ending = name.partition(".")
                key = os.path.join(folder, stem)
                if not member.isreg() or member.issparse() or stem == "":
                    continue
                if ending.lower() in ("cls", "json"):
                    text = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
                    label = text.strip() if ending.lower() == "cls" else json.loads(text).get("label")
                    if label not in (None, ""):
                        labels[key] = str(label)
                elif "." + ending.lower().rpartition(".")[2] in extensions():
                    hidden += key in found
                    if key not in found or ("." not in ending and "." in endings[key]):
                        found[key], endings[key] = (member.offset_data, member.size), ending
    except (tarfile.TarError, OSError, ValueError, AttributeError) as e:
        raise Misuse(f"{printable(path)}: not an uncompressed tar file, or damaged ({e}): unpack it, or write it anew") from e
    return [(key, *place, labels.get(key)) for key, place in found.items()], hidden


def _matching(word: str) -> list[str]:
    """The file of that name, else what it stands for as a pattern: brackets of a folder that is there are its name's."""
    folder, name = os.path.split(word)
    return [word] if os.path.isfile(word) else glob.glob(os.path.join(glob.escape(folder) if os.path.isdir(folder) else folder, name))


def _expanded(pattern: str) -> list[str]:
    """Braces with a range, {000..127}, or with words, {a,b}, written out."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    between = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    words = [f"{n:0{len(between[1])}d}" for n in range(int(between[1]), int(between[2]) + 1)] if between else braces[1].split(",")
    return [done for word in words for done in _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])]

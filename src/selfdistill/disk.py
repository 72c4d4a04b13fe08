"""What is written to disk is there whole or not at all: made beside its place and renamed. What is read back is whole, or is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from selfdistill.errors import Failure, Misuse


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place beside `path`, where nothing is, for a file or a folder that becomes `path` when all went well and is gone when not. It is
    this process's own; what one that was killed has left there goes."""
    for left in path.parent.glob(f".{escape(path.name)}.*.part"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not _runs(int(pid)):
            remove(left)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    remove(part)
    try:
        yield part
        os.replace(part, path)
    finally:
        remove(part)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # of no process, or no number of one
        return False
    except PermissionError:  # another user's
        pass
    return True


def check_place(path: Path | None, option: str, endings: Sequence[str] = (), read: Callable[[Path], bool] = lambda path: False) -> None:
    """Raises `Misuse` where no file may come to be, if one is asked for: before the work that it is for. option: the user's word for it.
    endings: of which it has one. read: whether a file is read for that work, which it must not replace."""
    if path is None:
        return
    if path.is_dir():
        raise Misuse(f"{option} {path}: is a folder: name a file in it")
    if not path.parent.is_dir():
        raise Misuse(f"{option} {path}: there is no folder {path.parent}")
    if endings and path.suffix.lower() not in endings:
        raise Misuse(f"{option} {path}: the ending decides the format: {' or '.join(endings)}")
    if read(path):
        raise Misuse(f"{option} {path}: is a file that this command reads: choose a new name")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """`beside` for a file, the old one or the new one. Raises `Failure` when the disk fails."""
    try:
        with beside(path) as part:
            yield part
    except OSError as e:
        raise Failure(f"{path}: cannot be written: {e.strerror or e}. What was there before is untouched") from e


@contextmanager
def whole_folder(out: Path, option: str = "--out") -> Iterator[Path]:
    """`beside` for a new folder, empty, and for the folders above it. option: the user's word for it. Raises `Misuse` where `out` exists
    or cannot be made."""
    if os.path.lexists(out):
        raise Misuse(f"{option} {out}: exists already: name another folder")
    made = [p for p in out.absolute().parents if not p.exists()]
    try:
        with beside(out) as part:
            try:
                part.mkdir(parents=True)
            except OSError as e:
                raise Misuse(f"{option} {out}: cannot be written ({e.strerror}): name another folder") from e
            yield part
    except BaseException:
        for folder in made:
            with suppress(OSError):  # not empty: another command's, which went well
                folder.rmdir()
        raise


def locked(folder: Path) -> FileLock:
    """A lock on a folder, for one process to write in it until it is released or the process ends. Raises `Misuse` where another has it."""
    try:
        return acquired(folder / ".lock", timeout=0)
    except Timeout as e:
        raise Misuse(f"{folder}: another process writes there now: wait for its end, or stop it") from e
    except OSError as e:
        raise Failure(f"{folder}: cannot be written: {e.strerror or e}") from e


def acquired(path: Path, timeout: float = -1) -> FileLock:
    """A lock, held until it is released or the process ends; on a disk that knows no locks not held. Raises `Timeout` where another
    process has it longer than `timeout` seconds (below 0: waits), and `OSError`."""
    lock = FileLock(path)
    with suppress(NotImplementedError):
        lock.acquire(timeout=timeout)
    return lock


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """A file, flushed to the disk. Raises `Failure` when the disk fails."""
    with whole_file(path) as part:
        flushed(part, content)


def merge(path: Path, entries: dict[str, Any]) -> None:
    """`entries` put into the object of a JSON file, one process at a time. Raises as `object_of` and `write_whole` do."""
    try:
        lock = acquired(path.with_name(f".{path.name}.lock"))
    except OSError as e:
        raise Failure(f"{path}: cannot be written: {e.strerror or e}. What was there before is untouched") from e
    try:
        write_whole(path, json.dumps({**object_of(path), **entries}, indent=2) + "\n")
    finally:
        lock.release()


def flushed(path: Path, content: str | bytes | memoryview) -> None:
    """Written and on the disk: what is renamed after it survives a power cut."""
    with path.open("wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())


def remove(path: Path) -> None:
    """A file or a folder, whether it is there or not."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def object_of(file: Path, shape: Any = dict[str, Any]) -> dict[str, Any]:
    """The object of a JSON file (`json_of`); empty where there is no file."""
    found: dict[str, Any] = json_of(file, shape, {})
    return found


def json_of(file: Path, shape: Any, absent: Any) -> Any:
    """What a JSON file holds; `absent` where there is none. shape: the type that it must have.

    Raises `Misuse` that names the file, and the field where it has one, if it cannot be read as such.
    """
    if not file.exists():
        return absent
    try:
        found = json.loads(file.read_text())
        TypeAdapter(shape).validate_python(found)
    except ValidationError as e:
        where = ".".join(map(str, e.errors()[0]["loc"])) or "the whole"
        raise Misuse(f"{file}: {where}: {e.errors()[0]['msg']}: move it away, and it is made anew") from e
    except (OSError, ValueError) as e:
        raise Misuse(f"{file}: cannot be read ({e}): move it away, and it is made anew") from e
    return found


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line, each with its step and epoch, up to the first that is not whole."""
    rows = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not (isinstance(row, dict) and all(isinstance(row.get(name), int | float) for name in ("step", "epoch"))):
            break
        rows.append(row)
    return rows

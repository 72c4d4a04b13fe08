"""The two ways in which a command ends early. The message is for the user: it names the thing, the value and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


def did_you_mean(word: str, words: Iterable[str], before: str = "", after: str = "", cutoff: float = 0.6) -> str:
    """The end of a message: the nearest of `words`, with what stands `before` and `after` it, or nothing."""
    near = get_close_matches(word, list(words), 1, cutoff)
    return f" Did you mean {before}{near[0]}{after}?" if near else ""


def in_one_line(e: object, most: int | None = None) -> str:
    """What an error of somebody else says, which may be pages, to stand within a message: its first `most` characters."""
    return " ".join(str(e).split())[:most].rstrip(".:")


class Misuse(ValueError):
    """The user asked for something that cannot be done: exit code 2."""


class Failure(RuntimeError):
    """Something that should have worked did not (disk, network, numbers): exit code 1."""


def require(what: str, extra: str, *packages: str) -> None:
    """Raises `Misuse` where a package of an optional extra is not installed. what: it is needed for, as the user wrote it."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise Misuse(f"{what} needs {', '.join(missing)}: pip install 'selfdistill[{extra}]'")

"""The report: one HTML file of one run or of several, which needs nothing beside it and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from selfdistill.data.reading import printable
from selfdistill.disk import check_place, write_whole
from selfdistill.errors import Misuse
from selfdistill.report.pictures import Look, named
from selfdistill.report.sections import SECTIONS, Block, Drawn, side_by_side, told
from selfdistill.report.style import rendered
from selfdistill.train.run import Run

FILE = "report.html"


def write(runs: Sequence[Run], out: Path | None = None) -> Path:
    """Writes the report of `runs` to `out`: report.html in the run folder, or here where there are several, if not given; returns where.
    What cannot be shown is replaced by the reason. Raises `Misuse` without a run, `Failure` where the file cannot be written."""
    if not runs:
        raise Misuse("report of what? Name a run folder")
    out = out or (runs[0].path / FILE if len(runs) == 1 else Path(FILE))
    check_place(out, "--out", [".html", ".htm"])
    write_whole(out, html(runs))
    return out


def html(runs: Sequence[Run]) -> str:
    """The page. Every name and path from outside is escaped, and no script but the page's own runs (a content security policy)."""
    looks = [Look(run) for run in runs]
    pages = [(name, [(title, list(told(section(look)))) for title, section in SECTIONS.items()]) for name, look in named(looks).items()]
    env = Environment(loader=PackageLoader("selfdistill.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    env.filters |= {"picture": picture, "jpeg": lambda sheet: data_uri("image/jpeg", sheet)}
    script = env.loader.get_source(env, "page.js")[0]  # type: ignore[union-attr]
    made = env.get_template("page.html").render(
        title=", ".join(name for name, _ in pages),
        together=_nonempty([("Side by side", list(told(side_by_side(looks))))]) if len(runs) > 1 else [],
        runs=[(name, _nonempty(sections)) for name, sections in pages],
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return printable(made)  # a path or a message may have bytes that are no UTF-8


def _nonempty(sections: Iterable[tuple[str, list[Block]]]) -> list[tuple[str, list[Block]]]:
    return [(title, blocks) for title, blocks in sections if blocks]


def picture(drawn: Drawn) -> str:
    """A figure as a data URI: inside an image nothing runs, whatever its text says."""
    if not isinstance(drawn.figure, Figure):
        return data_uri("image/svg+xml", drawn.figure.encode())
    if drawn.photos:
        return data_uri("image/webp", rendered(drawn.figure, "webp", 130))
    return data_uri("image/svg+xml", rendered(drawn.figure, "svg"))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

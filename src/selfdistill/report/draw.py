"""A method as a picture, read off its recipe: who sees what, who learns, where the gradient stops. SVG or Mermaid's text."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any, Literal

from selfdistill.parts.loss import Term
from selfdistill.recipe import Recipe

WIDE, LINE, GAP, CHARS = 148, 15, 34, 22
"""pixels of a box's width, of a line of words, between columns; letters that fit on a line"""
INK, QUIET, LEARNS = "#1f2328", "#8b949e", "#0a58ca"
ROWS: dict[str, float] = {"student": 100, "middle": 195, "teacher": 290}
"""pixels from the top to the middle of a row"""
CLOSED = {"least-squares": "solved on each batch", "directpred": "set from the spectrum"}
"""predictors that no gradient trains"""


@dataclass(frozen=True)
class Box:
    title: str
    words: str
    column: int
    row: str
    learns: bool = False

    @property
    def lines(self) -> list[str]:
        held = re.sub(r"(\S+) (of|to) (?=\d)", "\\1\u00a0\\2\u00a0", self.words)  # "6 of 96" stays on one line
        return [line.replace("\u00a0", " ") for line in textwrap.wrap(held, CHARS)]

    @property
    def high(self) -> int:
        return 26 + LINE * len(self.lines)

    @property
    def middle(self) -> tuple[float, float]:
        return 20 + self.column * (WIDE + GAP) + WIDE / 2, ROWS[self.row]


@dataclass(frozen=True)
class Arrow:
    """gradient: whether it flows back along the arrow. stop: it would, but for the stop-gradient. kind: flow of images and features, copy
    of weights, or same, one network drawn twice."""

    start: str
    end: str
    gradient: bool = False
    stop: bool = False
    kind: Literal["flow", "copy", "same"] = "flow"
    words: str = ""


@dataclass
class Picture:
    title: str
    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: list[Arrow] = field(default_factory=list)


def picture(r: Recipe, title: str = "") -> Picture:
    """Student above, teacher below, both of one image, and the loss where they meet."""
    own, memory = r.teacher.own_weights, r.teacher.kind == "expectation"
    terms = {name: t for name, t in r.terms.items() if t.weight.base}
    asked = any(t.loss.kind != "labels" for t in terms.values())  # else nobody asks the teacher
    said, answered = _ops(next((t for t in terms.values() if t.on == "cls" and t.loss.kind != "labels"), None))
    heads = [("g", "projector g", _projectors(r))] if r.projector else []
    student = [("views", "views of x", _views(r, "student")), ("f", "encoder f", r.encoder.name.removeprefix("timm:")), *heads]
    teacher = [("views2", "views of x", _views(r, "teacher"))]
    teacher += [(f"{key}2", name + "'" * own, "" if own else "the student's own") for key, name, _ in student[1:]]
    if memory:
        teacher = [("eta", "memory η of x", "a running mean of its projections")]
    student += [("h", "predictor h", _predictor(r))] if r.predictor else []
    student += [("said", "prediction", said)] if said else []
    teacher += [("target", "target", answered)] if answered else []
    # Whether a gradient comes back on the teacher's side: through weights that are the student's, unless it is stopped.
    through = asked and not (own or memory or r.stop_gradient)
    learn = {"f", "g"} | ({"f2", "g2"} if through else set())
    learn |= {"said"} if any(t.loss.kind == "swapped" for t in terms.values()) else set()  # the prototypes
    learn |= {"h"} if r.predictor and r.predictor.trainable else set()

    made = Picture(title or r.method, {"x": Box("image x", "", 0, "middle")})
    first = {"student": 1, "teacher": len(student) - bool(r.predictor) - bool(said) if memory else 1}
    for row, chain in (("student", student), ("teacher", teacher)):
        for column, (key, name, words) in enumerate(chain, first[row]):
            made.boxes[key] = Box(name, words, column, row, key in learn)
        ends = ["loss"] * (row == "student" or asked)
        keys = [*([] if memory and row == "teacher" else ["x"]), *(key for key, *_ in chain), *ends]
        for start, end in pairwise(keys):
            back = start not in ("x", "views", "views2") and (row == "student" or through)
            stop = row == "teacher" and end == "loss" and r.stop_gradient
            made.arrows.append(Arrow(start, end, back, stop, words="stop-gradient" if stop else ""))
    labels = any(t.loss.kind == "labels" for t in terms.values())
    last = 1 + max(box.column for box in made.boxes.values()) + (labels and not said)  # not under a network, whose weights are copied
    made.boxes["loss"] = Box("loss", "; ".join(_loss(t) for t in terms.values()), last, "middle")
    if labels:
        made.boxes["y"] = Box("labels y", f"of {r.labels} images" if isinstance(r.labels, int) else "of some images", last - 1, "middle")
        made.arrows.append(Arrow("y", "loss"))
    if memory:
        made.arrows.append(Arrow(student[-1 - bool(r.predictor) - bool(said)][0], "eta", kind="copy", words=_moves(r)))
    for key in ("f", "g"):
        if f"{key}2" in made.boxes:
            words = (_moves(r) if own else "the same weights") if key == "f" else ""
            made.arrows.append(Arrow(key, f"{key}2", kind="copy" if own else "same", words=words))
    return made


def svg(made: Picture) -> str:
    """A picture that needs nothing else: no script, no style sheet, any font without serifs."""
    width = max(720, max(box.middle[0] for box in made.boxes.values()) + WIDE / 2 + 20)
    title = textwrap.wrap(made.title, int(width / 10)) or [""]
    above = 24 * (len(title) - 1)  # lines of a long title go above the picture
    high = 405 + above
    drawn = [_arrow(made, arrow) for arrow in made.arrows] + [_box(box) for box in made.boxes.values()]
    legend = (
        f'<line x1="20" y1="385" x2="60" y2="385" stroke="{LEARNS}" stroke-width="2.5"/>'
        f"{_words(68, 389, 'the gradient flows back; a blue frame learns by it', 12, 'start', QUIET)}"
    )
    if any(arrow.kind == "copy" for arrow in made.arrows):
        legend += (
            f'<line x1="370" y1="385" x2="410" y2="385" stroke="{QUIET}" stroke-width="1.5" stroke-dasharray="6 4"/>'
            f"{_words(418, 389, 'weights or projections are copied, no gradient', 12, 'start', QUIET)}"
        )
    ends = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse" '
        f'markerUnits="userSpaceOnUse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
        for name, colour in (("ink", INK), ("quiet", QUIET), ("learns", LEARNS))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-above} {width:.0f} {high}" width="{width:.0f}" height="{high}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img"><title>{escape(made.title)}</title><defs>{ends}</defs>'
        f'<rect y="{-above}" width="100%" height="100%" fill="white"/>'
        + "".join(_words(20, 32 - above + 24 * n, line, 18, "start", INK, bold=True) for n, line in enumerate(title))
        + "".join(_words(20, ROWS[row] - 4, row, 13, "start", QUIET) for row in ("student", "teacher"))
        + "".join(drawn)
        + legend
        + "</svg>\n"
    )


def mermaid(made: Picture) -> str:
    """The same for what renders Mermaid (GitHub, notebooks)."""
    lines = ["flowchart LR"]
    for key, box in made.boxes.items():
        words = "<br>".join(escape(word, quote=False).replace('"', "#quot;") for word in [box.title, *box.lines])
        lines.append(f'  {key}["{words}"]')
    for arrow in made.arrows:
        line = {"flow": "==>" if arrow.gradient else "-->", "copy": "-.->", "same": "---"}[arrow.kind]
        lines.append(f"  {arrow.start} {line}{f'|{arrow.words}|' if arrow.words else ''} {arrow.end}")
    blue = ",".join(str(n) for n, arrow in enumerate(made.arrows) if arrow.gradient)
    lines += [f"  linkStyle {blue} stroke:{LEARNS}"] if blue else []
    lines += [f"  style {key} stroke:{LEARNS},stroke-width:2px" for key, box in made.boxes.items() if box.learns]
    return "\n".join(lines) + "\n"


# What a recipe's slots say in a few words.


def _views(r: Recipe, who: str) -> str:
    crops, v = r.global_views, r.views
    if r.split:  # each network sees its half
        crops //= 2
    words = f"{crops} crop{'s' * (crops > 1)} of {v.size}"
    if v.second:
        words += ", augmented differently"
    if who == "student" and v.locals:
        words += f", {v.locals.count} of {v.locals.size}"
    return words + (", patches masked" if who == "student" and v.masks and v.masks.probability else "")


def _projectors(r: Recipe) -> str:
    return _projector(r.projector) + (f"; of patches {_projector(r.patch_projector)}" if r.patch_projector else "")


def _projector(g: Any) -> str:
    if g is None or not hasattr(g, "hidden"):  # one of the user's own says its kind
        return f"{g.kind} {g.out}" if g else ""
    widths = "-".join(map(str, (*g.hidden, g.out)))
    return f"DINO head {widths}" if g.kind == "dino" else f"MLP {widths}" if g.hidden else f"linear {g.out}"


def _predictor(r: Recipe) -> str:
    h = r.predictor
    if h is None or h.kind != "mlp":
        return CLOSED.get(h.kind, h.kind) if h else ""
    out = r.projector.out if r.projector else "F"
    return ("MLP " if h.hidden else "linear ") + "-".join(map(str, (*h.hidden, out))) + ("" if h.trainable else ", fixed at random")


def _ops(term: Term | None) -> tuple[str, str]:
    """What becomes of the student's and of the teacher's output before they are compared."""
    loss = term.loss if term else None
    if loss is None:
        return "", ""
    if loss.kind == "cross-entropy":
        target, tau = loss.target, loss.target.temperature.course
        centred = "minus a centre, " if target.kind == "centre" and target.momentum < 1 else ""
        name = "softmax" if target.kind in ("centre", "softmax") else target.kind
        how = f"Sinkhorn, epsilon {tau}" if target.kind == "sinkhorn" else f"{centred}{name} at {tau}"
        return f"softmax at {loss.temperature:g}", how
    if loss.kind == "swapped":
        return f"{loss.prototypes} prototypes, softmax at {loss.temperature:g}", f"{loss.prototypes} prototypes, Sinkhorn"
    return ("softmax", "softmax") if loss.kind == "consistency" else ("", "")


def _compared(loss: Any) -> str:
    match loss.kind:
        case "cosine":
            return "minus cosine"
        case "mse":
            return "squared distance of directions" if loss.l2 else "squared distance"
        case "nt-xent":
            return "NT-Xent: the other view among all of the batch"
        case "info-nce":
            return f"InfoNCE: among a queue of {loss.queue}"
        case "swapped":
            return "cross-entropy, swapped"
        case "consistency":
            return "squared distance"
        case "labels":
            return "cross-entropy with labels"
        case "own":
            return str(loss.name)
    return str(loss.kind)


def _loss(term: Term) -> str:
    words = _compared(term.loss)
    if term.on == "patch":
        return f"{words} of masked patches, same view"
    return words if term.loss.kind == "labels" else words + (", across views" if term.pairs == "cross" else ", one way")


def _moves(r: Recipe) -> str:
    teacher = r.teacher
    if teacher.kind == "ema":
        return f"EMA, τ {teacher.tau.course}"
    if teacher.kind == "snapshot":
        every = "epoch" if teacher.every == "epoch" else "step" if teacher.every == 1 else f"{teacher.every} steps"
        return f"copied every {every}" + (", one late" if teacher.lag else "")
    return f"mean, m {teacher.momentum:g}" if teacher.kind == "expectation" else ""


# Shapes.


def _words(x: float, y: float, words: str, size: int, anchor: str = "middle", fill: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>{escape(words)}</text>'


def _box(box: Box) -> str:
    x, top = box.middle[0], box.middle[1] - box.high / 2
    frame = f'stroke="{LEARNS}" stroke-width="2.5"' if box.learns else f'stroke="{QUIET}" stroke-width="1.2"'
    words = "".join(_words(x, top + 34 + LINE * n, line, 12, fill="#57606a") for n, line in enumerate(box.lines))
    return (
        f'<rect x="{x - WIDE / 2:.0f}" y="{top:.0f}" width="{WIDE}" height="{box.high}" rx="7" fill="#f6f8fa" {frame}/>'
        f"{_words(x, top + 18, box.title, 13, bold=True)}{words}"
    )


def _arrow(made: Picture, arrow: Arrow) -> str:
    a, b = made.boxes[arrow.start], made.boxes[arrow.end]
    (x1, y1), (x2, y2) = a.middle, b.middle
    up = y2 < y1
    if a.row == b.row:
        points = [(x1 + WIDE / 2, y1), (x2 - WIDE / 2, y2)]
    elif x1 == x2:
        points = [(x1, y1 + a.high / 2), (x2, y2 - b.high / 2)]
    elif arrow.start == "x":  # out of the image, up or down, then along the row
        points = [(x1, y1 - a.high / 2 if up else y1 + a.high / 2), (x1, y2), (x2 - WIDE / 2, y2)]
    else:  # along the row, then up or down into the loss
        points = [(x1 + WIDE / 2, y1), (x2, y1), (x2, y2 + b.high / 2 if up else y2 - b.high / 2)]
    name, colour, thick = (
        ("learns", LEARNS, 2.5) if arrow.gradient else ("ink", INK, 1.5) if arrow.kind == "flow" else ("quiet", QUIET, 1.5)
    )
    path = f'd="M{" L".join(f"{x:.0f} {y:.0f}" for x, y in points)}" fill="none" stroke="{colour}" stroke-width="{thick}"'
    (x, y), beside = points[-1], ""
    if arrow.kind == "same":  # one network, drawn twice: a double line
        top, end = points
        beside = "".join(
            f'<line x1="{top[0] + dx:.0f}" y1="{top[1]:.0f}" x2="{end[0] + dx:.0f}" y2="{end[1]:.0f}" stroke="{QUIET}" stroke-width="1.5"/>'
            for dx in (-2.5, 2.5)
        )
        return beside + (_words(x - 10, (y1 + y2) / 2 + 4, arrow.words, 12, "end", QUIET) if arrow.words else "")
    if arrow.stop:  # two strokes across the arrow
        level = (y + points[-2][1]) / 2
        beside = "".join(
            f'<line x1="{x - 8:.0f}" y1="{level + dy + 4:.0f}" x2="{x + 8:.0f}" y2="{level + dy - 4:.0f}" stroke="{INK}" stroke-width="2"/>'
            for dy in (-3, 3)
        ) + _words(x - 14, level + 4, arrow.words, 12, "end")
    elif arrow.words:
        beside = _words(x - 10, (y1 + y2) / 2 + 4, arrow.words, 12, "end", QUIET)
    dashes = ' stroke-dasharray="6 4"' if arrow.kind == "copy" else ""
    return f'<path {path}{dashes} marker-end="url(#{name})"/>{beside}'

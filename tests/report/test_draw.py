"""Pictures of methods: what they say is what the recipe says, and the gradient of a real step agrees."""

import re
import xml.etree.ElementTree as ET
from functools import partial
from itertools import pairwise

import pytest
import torch
from PIL import ImageFont

import selfdistill as sd
from selfdistill.ablate.edits import settings_of
from selfdistill.parts.schedule import Progress
from selfdistill.report.draw import Picture, mermaid, picture, svg
from selfdistill.siamese import Siamese
from selfdistill.views.augment import views_of_pixels

SVG = "{http://www.w3.org/2000/svg}"
SIMSIAM = sd.METHODS["simsiam"]


def words(made: Picture) -> str:
    return " ".join("".join(text.itertext()) for text in ET.fromstring(svg(made)).iter(f"{SVG}text"))


def edges(made: Picture) -> set[tuple[str, str]]:
    return {(a.start, a.end) for a in made.arrows if a.kind == "flow"}


EDITED = [
    "byol teacher=shared",
    "byol predictor=none projector=none",
    "simsiam teacher=expectation predictor=none projector=none",
    "simsiam stop_gradient=false predictor=none projector=none",
    "simsiam terms.views.pairs=one-way-doubled predictor=directpred projector.hidden=[8192,8192,8192,8192]",
    "dino teacher=snapshot every=epoch predictor=mlp encoder=timm:vit_base_patch14_reg4_dinov2.lvd142m terms.views.loss.target=sinkhorn",
    "ibot patch_projector={kind: dino, out: 8192}",
    "mean-teacher encoder=timm:convnextv2_huge labels=1000",
    "mean-teacher terms.consistency.weight=0",
]


def recipe_of(line: str) -> sd.Recipe:
    name, *settings = re.split(r" (?=[\w.]+=)", line)
    return sd.METHODS[name].edit(settings)


@pytest.mark.parametrize("line", [*sd.METHODS, *EDITED])
def test_all_is_inside_the_picture_and_nothing_lies_on_anything(line):
    made = picture(recipe_of(line), line)
    root = ET.fromstring(svg(made))
    left, top, width, height = map(float, root.get("viewBox").split())
    boxes = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in root.iter(f"{SVG}rect") if r.get("x")]
    assert len(boxes) == len(made.boxes)
    for n, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 40 <= y <= y + h <= 375  # the title is above, the legend below
        assert not any(crossing((x, y, w, h), other) for other in boxes[:n])
    texts = [extent(text) for text in root.iter(f"{SVG}text")]
    for n, (x, y, w, h) in enumerate(texts):
        assert left <= x <= x + w <= width
        assert top <= y <= y + h <= top + height
        assert not any(crossing((x, y, w, h), other) for other in texts[:n])
        assert all(bx < x < x + w < bx + bw for bx, by, bw, bh in boxes if crossing((x, y, w, h), (bx, by, bw, bh))), "out of its box"
    inner = [(x + 1, y + 1, w - 2, h - 2) for x, y, w, h in boxes]  # coordinates are whole pixels
    for (x1, y1), (x2, y2) in strokes(root):
        assert not any(crossing((min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)), box) for box in inner), "an arrow through a box"
    assert {a.start for a in made.arrows} | {a.end for a in made.arrows} == set(made.boxes)
    text = mermaid(made)
    assert text.startswith("flowchart LR")
    assert sum(line.count("-->") + line.count("==>") + line.count("-.->") + line.count("---") for line in text.splitlines()) == len(
        made.arrows
    )


def strokes(root):
    """The straight pieces of arrows and of double lines, from point to point."""
    for path in root.iter(f"{SVG}path"):
        if path.get("stroke"):  # else the head of an arrow
            yield from pairwise(tuple(map(float, point.split())) for point in path.get("d")[1:].split(" L"))
    for line in root.iter(f"{SVG}line"):
        yield tuple((float(line.get(f"x{n}")), float(line.get(f"y{n}"))) for n in "12")


def crossing(a, b) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def extent(text) -> tuple[float, float, float, float]:
    """Left, top, width and height of words, as a font without serifs has them."""
    size = float(text.get("font-size"))
    wide = ImageFont.load_default(size).getlength("".join(text.itertext())) * (1.08 if text.get("font-weight") else 1.0)
    x = float(text.get("x")) - {"start": 0.0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
    return x, float(text.get("y")) - 0.75 * size, wide, size


@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("simclr", ["the same weights", "NT-Xent"], ["stop-gradient", "predictor"]),
        ("moco", ["EMA, τ 0.999", "queue of 65536", "1 crop of 224", "stop-gradient"], ["predictor"]),
        ("swav", ["3000 prototypes", "Sinkhorn", "6 of 96", "swapped"], ["predictor"]),
        ("byol", ["EMA, τ 0.996 to 1", "predictor h", "MLP 4096-256", "stop-gradient", "of directions"], ["softmax"]),
        ("simsiam", ["the same weights", "MLP 512-2048", "stop-gradient", "minus cosine"], ["EMA"]),
        ("dino", ["minus a centre", "0.04 to 0.07", "8 of 96", "DINO head"], ["predictor h", "masked"]),
        ("ibot", ["patches masked", "of masked patches"], ["predictor h"]),
        ("mean-teacher", ["labels y", "cross-entropy with labels", "EMA, τ 0.99 to 0.999"], ["predictor h"]),
    ],
)
def test_the_words_are_the_recipes(name, said, unsaid):
    found = words(picture(sd.METHODS[name]))
    for word in said:
        assert all(part in found for part in word.split(" ")), word
    for word in unsaid:
        assert word not in found


CASES = {
    "simsiam": [],
    "no stop-gradient": ["stop-gradient"],
    "no predictor": ["predictor"],
    "fixed predictor": ["predictor-training"],
}


@pytest.mark.parametrize("case", CASES)
def test_blue_boxes_are_what_a_step_moves(case):
    """The stop mark, and whether h learns, against autograd on a small SimSiam of the same structure."""
    small = ["encoder=resnet-small", "encoder.options={widths: [8]}", "projector.hidden=[8]", "projector.out=8", "views.size=8"]
    recipe = SIMSIAM.edit([*small, "predictor.hidden=[4]", *settings_of(SIMSIAM, CASES[case])])
    made = picture(recipe)
    siamese = Siamese(recipe, 16)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    step = siamese(views_of_pixels(pixels, torch.arange(16), recipe.views, 2, 0, 0), Progress(0, 1, 1))
    step.z.cls.retain_grad()
    step.loss.backward()
    moved = any(p.grad is not None and bool(p.grad.any()) for p in siamese.predictor.parameters())
    assert ("h" in made.boxes and made.boxes["h"].learns) == moved
    assert step.t.cls.requires_grad == made.boxes["f2"].learns == (not any(a.stop for a in made.arrows))
    assert made.boxes["f"].learns


def test_ablations_change_the_picture():
    assert ("g", "loss") in edges(picture(SIMSIAM.edit(["predictor=none"])))
    assert ("h", "loss") in edges(picture(SIMSIAM))
    assert ("f", "h") in edges(picture(SIMSIAM.edit(["projector=none"])))
    memory = picture(SIMSIAM.edit(["teacher=expectation", "predictor=none"]))
    assert "f2" not in memory.boxes
    assert [(a.start, a.end) for a in memory.arrows if a.kind == "copy"] == [("g", "eta")]
    assert "copied every 10 steps" in words(picture(SIMSIAM.edit(["teacher=snapshot", "every=10"])))
    assert "fixed at random" in words(picture(SIMSIAM.edit(["predictor.trainable=false"])))


def test_what_is_not_there_is_not_drawn():
    unmasked = picture(sd.METHODS["ibot"].edit(["views.masks.probability=0"]))
    assert "patches masked" not in words(unmasked)
    alone = picture(sd.METHODS["mean-teacher"].edit(["terms.consistency.weight=0"]))  # nobody asks the teacher
    assert {start for start, end in edges(alone) if end == "loss"} == {"g", "y"}
    assert "copied, no gradient" not in words(picture(SIMSIAM))
    assert "of patches DINO head" in words(picture(sd.METHODS["ibot"].edit(["patch_projector={kind: dino, out: 8192}"])))


def test_titles_are_escaped():
    assert ET.fromstring(svg(picture(SIMSIAM, '<b> & "q"'))).find(f"{SVG}title").text == '<b> & "q"'


def test_on_the_command_line(command, tmp_path):
    call = partial(command, "draw")
    assert call("byol", "--without", "momentum-teacher", "--out", "b.svg")[0] == 0
    assert "byol without momentum-teacher" in (tmp_path / "b.svg").read_text()
    code, out, _ = call("simsiam", "projector.out=64")
    assert code == 0
    assert out.startswith("flowchart LR")
    assert "2048-64" in out
    for args, said in (
        (["byol", "--out", "b.png"], ".svg or .mmd"),
        (["bjol"], "byol"),
        (["byol", "--without", "sharpness"], "sharpening"),
    ):
        code, _, err = call(*args)
        assert code == 2
        assert said in err
    assert [p.name for p in tmp_path.iterdir()] == ["b.svg"]

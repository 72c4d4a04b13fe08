"""The examples of README.md and docs/ hold: Python blocks run, command lines parse, what pages read off the code is there.

A block that is not run says so in its title, which the reader sees: ```python title="not run: why".
"""

import json
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import typer

import mkdocs_facts
from selfdistill import own
from selfdistill.ablate.claims import ScaleName
from selfdistill.ablate.edits import EDITS, without
from selfdistill.ablate.table import table
from selfdistill.cli import app
from selfdistill.export.formats import FORMATS
from selfdistill.methods import METHODS
from selfdistill.parts.loss import LOSSES
from selfdistill.protocols import is_protocol_setting, protocols_of
from selfdistill.recipe import Recipe
from selfdistill.report.pictures import PICTURES
from selfdistill.train.resolve import with_preset

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NOT_RUN = 'title="not run: '
COMMANDS = typer.main.get_command(app)
SETS = {"digits": "digits", "fashion-mnist": "grey-28", "cifar10": "color-32", "cifar100": "color-32"}


class Block(NamedTuple):
    """A fenced block: its place, its language, what follows that on the line, its text."""

    place: str
    language: str
    info: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, m.start()) + 1}", m[2], m[3].strip(), textwrap.dedent(m[4]))
        for m in FENCE.finditer(text)
    ]


def by_place(found: list[Block]) -> list:
    return [pytest.param(block, id=block.place) for block in found]


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = list({block.text: block for block in BLOCKS if block.language == "python" and NOT_RUN not in block.info}.values())  # each once
SHELL = [block for block in BLOCKS if block.language in ("", "sh", "console") and NOT_RUN not in block.info]


def words_of(text: str) -> Iterator[list[str]]:
    """The words after `selfdistill` of each command line."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    for line in (line.removeprefix("$ ") for line in lines):
        words = shlex.split(line, comments=True) if "selfdistill " in line else []
        if words and re.fullmatch(r"(.*/)?selfdistill", words[0]):
            yield [word for word in words[1:] if word not in ("&", "$@")]  # the shell's own


def check(words: list[str], folder: Path = ROOT) -> None:
    """Raises where the command, an option, the method or a setting is wrong. folder: where the files that --use names are."""
    name, *args = words
    assert name in COMMANDS.commands, f"no command {name}"
    given = COMMANDS.commands[name].make_context(name, args).params
    for file in given["use"] or []:
        own.use(folder / file)
    settings = list(given.get("settings") or [])
    methods = [given[key] for key in ("method", "a", "b") if given.get(key)]
    for method in methods or (["simsiam"] if settings else []):
        if "=" in method or "/" in method or method == "mine.yaml":  # a reader's own
            settings = [method, *settings] if "=" in method else settings
            method = "simsiam"
        assert method in METHODS, f"no method {method}"
        edited(METHODS[method], settings, given.get("without") or [])

    if name == "evaluate":
        protocols_of(given["protocol"].split(","), filter(is_protocol_setting, given["what"]))
    elif name == "export":
        assert given["format"] in FORMATS
    elif name == "picture":
        assert given["what"] in PICTURES
    elif name == "ablate" and given["edits"]:
        assert set(given["edits"].split(",")) <= EDITS.keys()
    elif name == "reproduce" and given["table"]:
        assert given["scale"] in get_args(ScaleName)
        assert [table(word) for word in given["table"].split(",") if "=" not in word]


def test_readmes_counts_are_the_claims():
    found = Counter(claim["outcome"] for claim in json.loads((ROOT / "docs/results/claims.json").read_text()))
    holds, undecided, fails = (found[outcome] for outcome in ("HOLDS", "UNDECIDED", "FAILS"))
    said = f"Of {found.total()} claims, {holds} hold on digits over three seeds, {undecided} are undecided and {fails} fail"
    assert said in " ".join((ROOT / "README.md").read_text().split())


def edited(recipe: Recipe, settings: list[str], left_out: list[str]) -> Recipe:
    data = dict(s.split("=", 1) for s in settings).get("data", "a folder")
    recipe = with_preset(recipe, SETS.get(data, "few-photos"))[0].edit(settings)
    return recipe.edit(without(recipe, left_out))


@pytest.fixture(autouse=True)
def nothing_of_ones_own():
    """What a page's files add to the slots is gone after it."""
    yield
    for kinds in (*own.OWN.values(), own.FILES, LOSSES):
        kinds.clear()


@pytest.mark.parametrize("block", by_place(PYTHON))
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", by_place([block for block in SHELL if list(words_of(block.text))]))
def test_command_lines_parse(block, tmp_path):
    for file in PYTHON:
        if title := re.match(r'title="(\w+\.py)"', file.info):
            (tmp_path / title[1]).write_text(file.text)
    for words in words_of(block.text):
        check(words, tmp_path)


@pytest.mark.parametrize("block", by_place([block for block in SHELL if re.search(r"^make ", block.text, re.MULTILINE)]))
def test_make_has_the_targets(block):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)) <= targets


WRONG = [
    ("pretrian simsiam", "pretrian"),
    ("pretrain simsaim", "simsaim"),
    ("pretrain byol --wihtout predictor", "--wihtout"),
    ("pretrain byol epoch=3", "epoch"),
    ("pretrain moco --without predictor", "predictor"),
]


@pytest.mark.parametrize(("line", "said"), WRONG)
def test_a_wrong_command_line_is_found(line, said):
    with pytest.raises(Exception, match=said):
        check(line.split())


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_what_pages_read_off_the_code_is_there(page):
    """Each directive gives Markdown, and no braces are left that none takes."""
    for line in page.read_text().splitlines():
        said = mkdocs_facts.expand(line)
        assert said.strip() or not line.strip()
        assert not said.startswith("{{"), line


def test_every_method_has_a_page():
    assert {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)


def test_a_fact_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="byll"):
        mkdocs_facts.expand("{{ filled byll }}")
    with pytest.raises(KeyError, match="slotz"):
        mkdocs_facts.expand("{{ slotz byol }}")


def test_pseudocode_is_the_modules():
    said = mkdocs_facts.pseudocode("simsiam")
    assert said.startswith("SimSiam: Chen & He")
    assert "```python\n# f: backbone + projection mlp" in said
    assert "return -(p*z).sum(dim=1).mean()\n```\n\nExpected: ResNet-50" in said


def test_measured_are_readmes_rows():
    said = mkdocs_facts.measured("simsiam").splitlines()
    assert [line for line in said if line.startswith("| simsiam")] == re.findall(
        r"^\| simsiam.*$", (ROOT / "README.md").read_text(), re.MULTILINE
    )


def test_facts_are_read_off_the_recipes():
    assert "| batch_size | 4096 |" in mkdocs_facts.recipe("byol")
    assert "| `epochs` | 100 | 60 |" in mkdocs_facts.changed("simsiam", "digits")
    assert "`masks`" in mkdocs_facts.ingredients("ibot")
    assert "`masks`" not in mkdocs_facts.ingredients("dino")

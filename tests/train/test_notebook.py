"""What a notebook shows of a run: by IPython's own means, and in a real kernel where there is one."""

import re
import sys
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest
from rich.console import Console

import selfdistill as sd
from selfdistill.train import notebook
from tests.conftest import TINY


def test_what_a_notebook_shows(tiny_run):
    shown = tiny_run._repr_html_()
    for word in ("simsiam on python:bars", str(tiny_run.path), tiny_run.summary["because"], f"{tiny_run.summary['knn_top1']:.4f}"):
        assert word in shown
    curves = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", shown)]
    rows = [row["loss"] for row in tiny_run.metrics if "loss" in row]
    assert len(curves) == 3
    assert f"loss: {rows[0]:.3g} to {rows[-1]:.3g}" in curves[0].find("text").text
    assert len(curves[0].find("polyline").get("points").split()) == len(rows)


@pytest.fixture
def shown(monkeypatch):
    """What IPython.display was given: the pictures of each output, in order."""
    outputs = []

    class HTML(str):
        pass

    def display(*what, display_id=False, **kw):
        if display_id:
            outputs.append([*what])
            return type("Handle", (), {"update": staticmethod(outputs[-1].append)})

    module = ModuleType("IPython.display")
    module.HTML, module.display = HTML, display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(notebook, "EVERY", 0.0)
    return outputs


def test_while_it_trains(shown, tiny_source, tmp_path):
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", console=Console(force_jupyter=True), **TINY)
    (pictures,) = shown  # one output, drawn anew
    assert len(pictures) == 1 + len(run.metrics) + 1
    for step, picture in enumerate(pictures[1:-1]):
        assert f"<progress max='6' value='{step}'" in picture
        points = [re.findall(r"points='(.*?)'", svg) for svg in re.findall(r"<svg.*?</svg>", picture)]
        assert step < 2 or len(points[0][0].split()) == step  # losses so far
    assert "s left" in pictures[-3]
    assert run.summary["because"] in pictures[-1]


def test_it_goes_on_with_the_curves_that_were(shown, tiny_source, tmp_path):
    settings = {**TINY, "epochs": 1}
    sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", console=Console(quiet=True), **settings)
    sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", resume=True, console=Console(force_jupyter=True))
    assert "value='3'" in shown[0][-1]
    assert "loss: " in shown[0][-1]


def test_a_curve_of_many_points_has_two_a_pixel_at_most():
    rows = [{"step": n, "loss": float(n)} for n in range(100_000)]
    points = re.search(r"points='(.*?)'", notebook.curves(rows))[1].split()
    assert notebook.WIDTH < len(points) <= 2 * notebook.WIDTH + 1
    assert points[-1] == f"{notebook.WIDTH:.1f},0.0"


def test_in_a_real_kernel(tmp_path):
    """Where nbclient and ipykernel are installed, which no extra asks for."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    settings = ", ".join(f"{key!r}: {value!r}" for key, value in {**TINY, "batch_size": 256}.items())
    lines = ["import selfdistill as sd", f"run = sd.pretrain('simsiam', data='digits', **{{{settings}}})"]
    cells = ["\n".join(lines), "run", "sd.picture('curves', run.path)"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    training, run, figure = (
        [output["data"] for output in cell.outputs if output.output_type in ("display_data", "execute_result")] for cell in book.cells
    )
    (live,) = [data["text/html"] for data in training if "<progress" in data.get("text/html", "")]  # as it was left
    assert "step 10 of 10" in live
    assert live.count("<svg") == 3
    assert "simsiam on digits" in run[0]["text/html"]
    assert len(figure[0]["image/png"]) > 1000

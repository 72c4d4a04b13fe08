"""The report: what it says is what the run folder holds, whatever state that is in, and a browser shows it as it should."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.diagnose.verdict import State
from selfdistill.errors import Failure
from selfdistill.report import page, pictures, sections
from selfdistill.report.pictures import Look
from selfdistill.train.subject import subject_on
from tests.conftest import TINY, VIT
from tests.report.browser import CHROMIUM, Browser

SHORT = {"data": "digits", "epochs": 1, "batch_size": 256, "probe_every": 1}
HOSTILE = "<img src=x onerror=alert(1)>&'\"{{ 7*7 }}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A ViT's run and a convnet's, on digits."""
    root = tmp_path_factory.mktemp("runs")
    vit = sd.pretrain("dino", out=root / HOSTILE, **{**VIT, **SHORT})
    return [vit, sd.pretrain("simsiam", out=root / "conv", **{**TINY, **SHORT})]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The report of the convnet, and that of both."""
    return [sd.write_report(runs[1].path), sd.write_report(*runs, out=tmp_path_factory.mktemp("reports") / "both.html")]


def text_of(blocks):
    return json.dumps([vars(block) for block in blocks], default=str)


def words_of(figure):
    return [ax.get_title() for ax in figure.axes]


def told(section, run):
    return list(sections.told(section(Look(run))))


def test_it_stands_in_the_run_folder_and_needs_nothing_beside_it(runs, written):
    assert written[0] == runs[1].path / "report.html"
    text = written[0].read_text()
    assert len(text) < 3e6
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "http" not in re.sub(r"http-equiv|data:[^\"]*", "", text)


def test_two_runs_are_compared(runs, written):
    text = text_of(sections.side_by_side([Look(run) for run in runs]))
    for run in runs:
        assert f"{run.summary['knn_top1']:#.4g}" in text
    assert '"predictor.kind", "none", "mlp"' in text
    assert '"epochs"' not in text.partition("In which fields")[0].rpartition('"seconds"')[2]  # they agree in it
    assert written[1].stat().st_size < 5e6


def test_baselines_probes_and_evaluation_stand_beside_the_run(runs):
    run = sd.load(runs[0].path)
    s = run.summary
    text = text_of(told(sections.worth, run))
    for key in ("knn_top1", "knn_random_init", "knn_raw_pixels", "knn_student", "knn_teacher", "ridge_teacher"):
        assert f"{s[key]:#.4g}" in text
    assert "linear and supervised" in text
    (run.path / "evaluation.json").write_text(
        json.dumps(
            {"linear": {"results": {"top1": 0.1234}, "chosen": {"rate": 0.3}}, "supervised": {"results": {"top1": 0.9876}, "chosen": {}}}
        )
    )
    text = text_of(told(sections.worth, run))
    (run.path / "evaluation.json").unlink()
    assert "0.1234" in text
    assert "rate 0.3" in text
    assert "0.9876" in text
    assert "Not measured" not in text


def test_what_differs_from_the_paper_has_its_reason(runs):
    text = text_of(told(sections.what_was_run, runs[1]))
    assert '["views.size", "224", "8", "preset digits: the images\' own size"]' in text
    assert '["epochs", "100", "1", ""]' in text  # the user's own, not the preset's 60
    assert "torch 2" in text


@pytest.mark.parametrize("state", State.__args__)
def test_the_verdict_and_since_when(tmp_path, runs, state):
    folder = shutil.copytree(runs[1].path, tmp_path / "run")
    rows = [{"step": n, "epoch": n / 2, "loss": 1.0, "verdict": "healthy" if n < 3 else state} for n in range(1, 5)]
    rows = [{**row, "because": f"{row['verdict']}: output_std 0.01. Why: x."} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = told(sections.verdict, sd.load(folder))
    assert words[0] == sections.Words("output_std 0.01. Why: x.", badge=state)
    assert words[1].text == f"Since epoch {0.5 if state == 'healthy' else 1.5:g}, step {1 if state == 'healthy' else 3}, of 2 epochs."


def test_a_run_that_was_killed_says_how_far_it_is(tmp_path, runs):
    folder = shutil.copytree(runs[1].path, tmp_path / "run")
    for file in ("summary.json", "backbone.safetensors", "checkpoints/last.ckpt"):
        (folder / file).unlink()
    (folder / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "knn_top1": 0.5}\n{"step": 1, "ep')
    text = sd.write_report(folder).read_text()
    assert "is at epoch 0 of 1" in text
    worth = text_of(told(sections.worth, sd.load(folder)))  # the network at random is not the run's
    assert "0.5000" in worth
    assert '"before"' in worth
    assert "this run" not in worth
    (folder / "metrics.jsonl").unlink()
    assert "nothing is logged yet" in text_of(told(sections.worth, sd.load(folder)))
    assert "no probe yet" in text
    assert "--resume continues it" in text


def test_data_that_has_gone_leaves_the_rest(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(40):
        Image.effect_noise((20, 20), 80).convert("RGB").save(photos / f"{n}.png")
    run = sd.pretrain(
        "simsiam", data=photos, out=tmp_path / "run", **{**TINY, "encoder": "resnet-small", "epochs": 1, "views.size": 8, "batch_size": 8}
    )
    assert "no labels" in text_of(told(sections.worth, run))
    assert "40 training images" in (text := text_of(told(sections.embeddings, run)))
    assert "Not shown" not in text
    assert "Training images at the left" in text_of(told(sections.neighbours, run))
    assert "1.00" not in words_of(pictures.neighbours(pictures.Asked([Look(run)])))  # an image is not its own neighbour
    shutil.rmtree(photos)
    with pytest.raises(sd.Misuse, match="photos"):
        sd.measure(run.path, "knn")
    elsewhere = Source("noise", Pixels(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40) % 2, ("a", "b")))
    assert subject_on(run.path, (), replace(elsewhere, test=elsewhere.train)).frozen[0].shape == (40, 16)  # they are not asked for
    text = sd.write_report(run.path).read_text()
    assert "photos" in text
    assert text.count("Not shown") == 4  # worth, embeddings, neighbours, map
    assert "Loss, std of the outputs" in text


def test_why_something_is_not_shown_stands_as_it_was_said():
    def gone():
        raise Failure("/data/../shards-{000..127}.tar: no such file.")
        yield

    assert [words.text for words in sections.told(gone())] == ["Not shown: /data/../shards-{000..127}.tar: no such file."]


def test_a_run_folder_whose_name_is_not_utf8_has_a_report(tmp_path, runs):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff$_$"))
    try:
        shutil.copytree(runs[0].path, folder)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert r"r\udcff$_$" in sd.write_report(folder).read_text()


def test_a_run_that_diverged_has_a_report(tmp_path, tiny_source):
    run = sd.pretrain("simsiam", data=tiny_source, out=tmp_path / "run", **TINY)
    for p in run.backbone.parameters():
        nn.init.constant_(p, torch.nan)
    text = sd.write_report(run).read_text()
    assert "not finite" in text
    assert "Time and cost" in text


def test_a_damaged_evaluation_is_named(tmp_path, runs):
    folder = shutil.copytree(runs[1].path, tmp_path / "run")
    (folder / "evaluation.json").write_text("[")
    assert "evaluation.json: cannot be read" in text_of(told(sections.worth, sd.load(folder)))


@pytest.mark.parametrize(
    ("file", "section", "text", "said"),
    [
        ("evaluation.json", sections.worth, "[1]", "evaluation.json: the whole: "),
        ("evaluation.json", sections.worth, '{"knn": 3}', "evaluation.json: knn: "),
        ("evaluation.json", sections.worth, '{"knn": {"results": {}}}', "evaluation.json: knn.chosen: "),
        ("evaluation.json", sections.worth, '{"knn": {"results": {"k=5": "high"}, "chosen": {}}}', "evaluation.json: knn.results.k=5"),
        ("profile.json", sections.time_and_cost, '{"steps": 3}', "profile.json: images_per_second: "),
        ("profile.json", sections.time_and_cost, '{"steps": 0}', "profile.json: steps: "),
    ],
)
def test_a_file_of_another_shape_is_named_with_its_field(tmp_path, runs, file, section, text, said):
    folder = shutil.copytree(runs[1].path, tmp_path / "run")
    (folder / file).write_text(text)
    told_of = text_of(told(section, sd.load(folder)))
    assert said in told_of
    assert "move it away" in told_of


def test_an_encoder_and_a_source_of_the_users_own(tmp_path, tiny_source):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
    settings = {key: value for key, value in TINY.items() if key != "encoder.options"}
    run = sd.pretrain("simsiam", data=tiny_source, encoder=module, out=tmp_path / "run", **settings)
    text = sd.write_report(run).read_text()
    assert "12 features" in text
    assert "Not shown" not in text


def test_few_images_have_no_map(tmp_path):
    pixels = torch.randint(0, 255, (8, 1, 8, 8), dtype=torch.uint8)
    run = sd.pretrain("simsiam", data=Source("few", Pixels(pixels), Pixels(pixels[:3])), out=tmp_path / "run", **{**TINY, "batch_size": 4})
    assert "too few for a map" in sd.write_report(run).read_text()


def test_the_command(run, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "html", lambda runs: f"page of {len(runs)}")
    shutil.copytree(runs[1].path, tmp_path / "other")
    for args, file in (([], "other/report.html"), ([runs[1].path], "report.html"), (["--out", "x.html"], "x.html")):
        code, out, _ = run("report", "other", *args)
        assert (code, out.strip()) == (0, f"report: {file}")
        assert (tmp_path / file).read_text() == f"page of {1 + (file == 'report.html')}"
    for args, said in (
        ([], "RUN"),
        (["nowhere"], "recipe.yaml"),
        ([runs[1].path, "--out", "."], "name a file"),
        ([runs[1].path, "--out", "mine.yaml"], ".html"),
    ):
        code, _, err = run("report", *args)
        assert code == 2
        assert said in err.upper() if said == "RUN" else said in err
    code, _, err = run("report", runs[1].path, "--out", "no/such/x.html")
    assert code == 2
    assert "there is no folder no/such" in err


def test_pretrain_leaves_one(run, tmp_path):
    settings = [f"{key}={value}" for key, value in {**TINY, **SHORT}.items()]
    assert run("pretrain", "simsiam", *settings, "--out", "a", "--report")[0] == 0
    assert "Since epoch 1" in (tmp_path / "a" / "report.html").read_text()


def test_a_run_does_not_fail_for_want_of_a_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "html", lambda runs: 1 / 0)
    settings = [f"{key}={value}" for key, value in {**TINY, **SHORT}.items()]
    code, out, _ = run("pretrain", "simsiam", *settings, "--out", "a", "--report")
    assert code == 0
    assert "no report (division by zero): selfdistill report a" in out
    assert not (tmp_path / "a" / "report.html").exists()


def test_names_are_escaped(written):
    text = written[1].read_text()
    assert "<img src=x" not in text
    assert "49" not in re.search(r"<h1>(.*?)</h1>", text)[1]
    assert "{{ 7*7 }}" in text


# In a browser ---------------------------------------------------------------------------------------------------------------------------

CONTRAST = """
(() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const clear = p => p.length === 4 && p[3] === 0;
  const behind = e => {
    const own = parts(getComputedStyle(e).backgroundColor);
    return !clear(own) ? own : e.parentElement ? behind(e.parentElement) : [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || e.closest("svg, script")) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${e.tagName} ${ratio.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  return bad;
})()
"""
OVERFLOW = """
[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide > *, svg") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.tagName + " " + e.className)
"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", [0, 1])
def test_a_browser_shows_it_without_complaint(browser, written, which, width):
    browser.complaints.clear()
    browser.open(written[which], width)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.complaints == []
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    assert browser.ask(OVERFLOW) == []
    images = browser.ask("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth])")
    assert len(images) >= 5
    assert all(alt and wide > 100 for alt, wide in images), images
    assert browser.ask(CONTRAST) == []
    assert browser.ask("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))")


def test_the_keyboard_goes_everywhere(browser, written):
    browser.open(written[0], 1280)
    seen = set()
    for _ in range(60):
        browser.press("Tab")
        seen.add(browser.ask("document.activeElement.className || document.activeElement.tagName"))
    assert {"A", "SUMMARY", "wide", "map"} <= seen
    browser.ask("document.querySelector('.map').focus()")
    shown = set()
    for key in ["ArrowRight"] * 3 + ["ArrowDown"] * 3 + ["ArrowLeft"] * 2 + ["ArrowUp"]:
        browser.press(key)
        assert not browser.ask("document.querySelector('.tip').hidden")
        shown.add(browser.ask("document.querySelector('.words').textContent"))
    assert len(shown) > 3
    assert all(re.fullmatch(r"\d: image \d+", words) for words in shown)
    browser.press("Escape")
    assert browser.ask("document.querySelector('.tip').hidden")


def test_the_point_under_the_pointer_shows_its_image(browser, written, runs):
    browser.open(written[0], 1280)
    browser.ask("document.querySelector('.map').scrollIntoView()")
    for n in (0, 130, 299):
        box = browser.ask(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])(document.querySelectorAll('.map .point')[{n}].getBoundingClientRect())"
        )
        browser.point(*box)
        words = browser.ask("document.querySelector('.point.here').dataset.words")
        n = browser.ask("[...document.querySelectorAll('.map .point')].indexOf(document.querySelector('.point.here'))")
        x, y = browser.ask("document.querySelector('.tile').style.backgroundPosition").replace("px", "").split()
        assert (-int(x), -int(y)) == (n % 25 * 48, n // 25 * 48)
        source = SimpleNamespace(test=runs[1].source.test)
        assert words == f"{source.test.classes[source.test.labels[n]]}: image {n}"


def test_nothing_that_a_name_brings_is_run(browser, written, tmp_path):
    """The name is escaped; were it not, the page's policy would stop it."""
    browser.complaints.clear()
    browser.open(written[1], 1280)
    assert browser.ask("document.querySelector('h1').textContent") == f"{HOSTILE}, conv"
    assert browser.complaints == []
    hole = tmp_path / "hole.html"
    hole.write_text(written[1].read_text().replace("<main>", "<main><script>document.title = 'in'</script>"))
    browser.open(hole, 1280)
    assert browser.ask("document.title") != "in"
    assert any("Content Security Policy" in said for said in browser.complaints)

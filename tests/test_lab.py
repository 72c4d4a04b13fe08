"""The ablation lab: predicates against results made by hand, tables against the recipes they edit, runs that are kept and resumed."""

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import selfdistill as sd
from selfdistill.ablate import cells, lab, results
from selfdistill.ablate.claims import MARGIN, Claim, judge, judge_predicate, terms
from selfdistill.ablate.edits import EDITS, without
from selfdistill.ablate.figures import METRICS, figures_of, verdicts
from selfdistill.ablate.table import published, read, tables
from selfdistill.data.images import Pixels, Source
from selfdistill.diagnose.metrics import ExpectationGap
from selfdistill.errors import Failure, Misuse
from selfdistill.methods import METHODS
from selfdistill.spec import diff
from selfdistill.train import trained
from selfdistill.train.cautions import cautions
from selfdistill.train.resolve import recipe_of, resolve
from tests.conftest import TINY

FAST = [f"{k}={v}" for k, v in {**TINY, "epochs": 1, "batch_size": 128}.items()]
SMALL = ["data=digits", *FAST]


def of(**rows):
    """Results of rows given as metric=[value of seed 0, of seed 1, ...]."""
    made = {}
    for row, metrics in rows.items():
        seeds = len(next(iter(metrics.values())))
        made[row] = {n: {**figures_of({}), **{m: values[n] for m, values in metrics.items()}} for n in range(seeds)}
    return made


# Predicates.

ONE = of(a={"knn": [0.9, 0.92, 0.91]}, b={"knn": [0.5, 0.51, 0.49], "verdict": ["collapsed"] * 3}, c={"knn": [0.9, 0.93, 0.9]})


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("a.knn > 0.5", "HOLDS"),
        ("a.knn < 0.5", "FAILS"),
        ("a.knn > b.knn + 0.3", "HOLDS"),
        ("a.knn > b.knn + 0.5", "FAILS"),
        ("a.knn > c.knn", "UNDECIDED"),
        ("a.knn > c.knn - 0.1", "HOLDS"),
        ("a.knn > a.knn", "UNDECIDED"),
        ("b.verdict is collapsed", "HOLDS"),
        ("b.verdict is healthy collapsed", "HOLDS"),
        ("b.verdict is-not collapsed", "FAILS"),
        ("a.verdict is healthy", "UNDECIDED"),
        ("a.linear > 0", "UNDECIDED"),
        ("nowhere.knn > 0", "UNDECIDED"),
    ],
)
def test_predicates(text, outcome):
    assert judge_predicate(text, ONE).outcome == outcome


def test_a_state_that_not_all_seeds_share_is_undecided():
    mixed = of(a={"verdict": ["healthy", "healthy", "collapsed"]})
    assert judge_predicate("a.verdict is healthy", mixed)[:2] == ("UNDECIDED", "a.verdict is healthy: 2 healthy, 1 collapsed")
    nearly = of(a={"verdict": ["healthy"] * 9 + ["collapsed"]})
    assert judge_predicate("a.verdict is healthy", nearly).outcome == "UNDECIDED"
    assert judge_predicate("a.verdict is-not healthy", nearly).outcome == "UNDECIDED"
    assert verdicts(["healthy", None, "healthy"]) == "healthy"


def test_seeds_are_paired():
    """A difference that is the same in every seed is decided, however far the seeds lie apart."""
    apart = of(a={"knn": [0.1, 0.5, 0.9]}, b={"knn": [0.09, 0.488, 0.889]})
    assert judge_predicate("a.knn > b.knn", apart).outcome == "HOLDS"
    assert judge_predicate("a.knn > 0.45", apart).outcome == "UNDECIDED"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(-0.5, 0.5))
def test_margin_is_in_standard_errors(values, bound):
    x = torch.tensor(values, dtype=torch.float64) - bound
    mean, error = float(x.mean()), float(x.std() / len(x) ** 0.5)
    if abs(abs(mean) - MARGIN * error) < 1e-9:
        return
    expected = "UNDECIDED" if abs(mean) < MARGIN * error else "HOLDS" if mean > 0 else "FAILS"
    assert judge_predicate(f"a.loss > {bound}", of(a={"loss": values})).outcome == expected


def test_one_seed_is_decided_by_its_sign():
    assert judge_predicate("a.knn > 0.5", of(a={"knn": [0.51]})).outcome == "HOLDS"


def test_rank_correlation_over_rows():
    rows = of(a={"uniformity": [-3.0], "knn": [0.9]}, b={"uniformity": [-2.0], "knn": [0.8]}, c={"uniformity": [0.0], "knn": [0.3]})
    judged = judge_predicate("spearman(uniformity,knn) < 0", rows)
    assert judged.outcome == "HOLDS"
    assert "-1 " in judged.evidence


@pytest.mark.parametrize(
    "text", ["a.knn", "a.knn = 0.5", "knn > 0.5", "a.knn > b.knn +", "a.nn > 0", "a.verdict is well", "a.knn > b.knn + x"]
)
def test_what_is_no_predicate_is_refused(text):
    with pytest.raises(ValueError, match="no predicate"):
        Claim(id="x", says="", source="", where=(text,))


def test_a_claim_fails_with_any_of_its_predicates():
    def outcome(*where):
        return judge(Claim(id="x", says="", source="", where=where), ONE).outcome

    assert outcome("a.knn > 0.5", "b.knn < 0.6") == "HOLDS"
    assert outcome("a.knn > 0.5", "a.knn > c.knn") == "UNDECIDED"
    assert outcome("a.knn > c.knn", "b.knn > 0.6") == "FAILS"


# Tables.


def blank(name, n, *shape):
    """As many images as the set has, all of them one."""
    return Source(name, Pixels(torch.zeros(1, *shape, dtype=torch.uint8).expand(n, *shape), torch.arange(n) % 10, tuple("0123456789")))


SOURCES = {
    "tiny": blank("digits", 1437, 1, 8, 8),
    "small": blank("fashion-mnist", 60_000, 1, 28, 28),
    "paper": blank("imagenet", 1_281_167, 3, 2, 2),
}
"""the shapes of what the scales train on"""


@pytest.mark.parametrize("id", tables())
def test_every_row_is_a_recipe_at_every_scale(id):
    table = tables()[id]
    assert "tiny" in table.scales
    for scale in table.scales:
        recipes = [table.recipe(name, scale, source=SOURCES[scale]) for name in table.at(scale)]
        for n, recipe in enumerate(recipes):  # a row that changes nothing would compare a run with itself
            assert all(diff(recipe, other) for other in recipes[:n])
            # A row that cannot come to what it is for is no evidence; BYOL's small batches are micro-batches on purpose.
            assert not [said for said in cautions(recipe, len(SOURCES[scale].train)) if "micro-batches" not in said]


@pytest.mark.parametrize("id", tables())
def test_published_figures_are_cited_once_and_claims_name_what_their_scale_has(id):
    table = tables()[id]
    for name, row in table.rows.items():
        assert (table.published_figure(name) is None) == (row.cites is None)
    for claim in table.claims:
        for scale in claim.at:
            if scale in table.scales and scale != "paper":
                assert {row for text in claim.where for row, _ in terms(text) if row} <= set(table.at(scale))


def test_byols_small_batches_are_averaged_at_the_papers_scale():
    """Table 16: gradients are averaged over N steps, and the target moves every N steps."""
    table = tables()["byol-t16"]
    for batch in (64, 128, 512, 4096):
        method, changes = table.asked(f"byol-{batch}", "paper")
        recipe = method.edit(changes)
        assert (recipe.micro_batch(1), recipe.batch_size, recipe.lr.base, recipe.teacher.tau.base) == (batch, 4096, 0.3, 0.99)


def test_published_figures_are_the_papers():
    """Spot checks against the papers themselves."""
    cited = {
        ("simsiam-fig2", "without"): 0.1,
        ("simsiam-t1", "fixed"): 1.5,
        ("simsiam-t2", "b4096"): 64.0,
        ("simsiam-t3", "none"): 34.6,
        ("simsiam-s46", "asymmetric"): 64.8,
        ("simsiam-s52", "step-100"): 68.9,
        ("simsiam-s52-expectation", "expectation"): 55.0,
        ("byol-t5a", "tau-1"): 18.8,
        ("byol-t5b", "t"): 0.2,
        ("byol-t16", "simclr-64"): 59.2,
        ("dino-t7", "predictor"): 71.8,
        ("dino-f6", "epoch"): 66.6,
        ("ibot", "patches-alone"): 9.5,
    }
    assert {key: tables()[key[0]].published_figure(key[1]) for key in cited} == cited
    assert all(entry["source"] and entry["rows"] for entry in published().values())


def test_claims_are_many_and_have_ids_of_their_own():
    ids = [claim.id for table in tables().values() for claim in table.claims]
    assert len(ids) >= 20
    assert len(set(ids)) == len(ids)


TABLE = "id: t\nsays: x\nsource: y\nmethod: simsiam\nscales: {tiny: {seconds: 1}}\nrows: {a: {says: a}}\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("colour: red", "colour"),
        ("claims: [{id: c, says: s, source: s, where: [b.knn > 0]}]", "row b"),
        ("rows: {a: {says: a, without: [stop-grad]}}", "stop-gradient"),
        ("rows: {a: {says: a, cites: {k: 1}}}", "no published table"),
        ("[", "no YAML"),
    ],
)
def test_a_wrong_table_is_refused(more, said):
    text = TABLE if not more.startswith("rows") else TABLE.replace("rows: {a: {says: a}}\n", "")
    with pytest.raises(Misuse, match=f"t.yaml.*{said}"):
        read(text + more, "t.yaml")


def test_a_citation_of_nothing_fails():
    table = read(TABLE.replace("says: a}", "says: a, cites: {variant: no}}") + "published: simsiam_fig2_stopgrad\nfigure: top1", "t.yaml")
    with pytest.raises(Failure, match="0 rows of simsiam_fig2_stopgrad"):
        table.published_figure("a")


# Cells.


def test_tables_share_the_same_run(tmp_path):
    jobs = [lab.job(tables()[id], "tiny", 2, [], tmp_path, id) for id in ("simsiam-fig2", "simsiam-t1")]
    fig2, t1 = (j.cells for j in jobs)
    assert fig2["with", 1].folder == t1["constant", 1].folder
    assert fig2["with", 0].folder != fig2["with", 1].folder
    runs, seconds = lab.estimate(jobs)
    assert runs == len({c.folder for j in jobs for c in j.cells.values()}) == len(fig2) + len(t1) - 2
    assert 0 < seconds < sum(sum(j.seconds.values()) for j in jobs)
    assert [c.recipe.seed for c in lab.all_cells(jobs)] == sorted(c.recipe.seed for c in lab.all_cells(jobs))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small table, trained: simsiam with and without stop-gradient."""
    folder = tmp_path_factory.mktemp("lab")
    recipe = tables()["simsiam-fig2"].recipe("with", "tiny", SMALL)
    table = lab.ablation("simsiam", METHODS["simsiam"], recipe, 1437, ["stop-gradient"], SMALL)
    made = lab.job(table, "tiny", 2, [], folder, "the command")
    said = []
    assert cells.train_all(lab.all_cells([made]), 1, said.append) == []
    assert len(said) == 4
    return made


def test_what_is_done_is_not_done_again(job):
    before = {c.folder: (c.folder / "summary.json").stat().st_mtime_ns for c in job.cells.values()}
    said = []
    assert cells.train_all(lab.all_cells([job]), 1, said.append) == []
    assert said == []
    assert lab.estimate([job]) == (0, 0.0)
    assert before == {c.folder: (c.folder / "summary.json").stat().st_mtime_ns for c in job.cells.values()}


def test_a_recipe_of_ones_own_and_a_run_are_taken_apart_as_they_are(command, job, tmp_path):
    """Not as the method of that name is."""
    (tmp_path / "mine.yaml").write_text("method: byol\nteacher: {tau: {base: 0.5}}\nprojector: {out: 32}\n")
    mine = recipe_of(tmp_path / "mine.yaml")
    run = job.cells["stop-gradient", 0]
    for base, edit in ((mine, "predictor"), (run.recipe, "cosine")):
        recipe, source, _ = resolve(base, [])
        made = lab.job(lab.ablation("mine", base, recipe, len(source.train), [edit], []), "tiny", 1, [], tmp_path, "ablate")
        assert made.cells["as-it-is", 0].recipe == recipe
        assert made.cells[edit, 0].recipe == recipe.edit(without(recipe, [edit]))
    for what, name in (("mine.yaml", "mine"), (str(run.folder), run.folder.name)):
        code, out, _ = command("ablate", what, "--edits", "predictor", "--plan")
        assert (code, f"{name}-ablation" in out) == (0, True)


def test_one_field_is_changed_in_each_row(job):
    base = job.cells["as-it-is", 0].recipe
    assert {d[0] for d in diff(base, job.cells["stop-gradient", 0].recipe)} == {"stop_gradient"}
    assert [d[0] for d in diff(base, job.cells["as-it-is", 1].recipe)] == ["seed"]


def test_terminal_markdown_csv_and_json_agree(job, tmp_path):
    found = results.write(job, tmp_path)
    stem = tmp_path / "simsiam-ablation-tiny"
    assert json.loads(stem.with_suffix(".json").read_text()) == json.loads(json.dumps(found))
    runs = list(csv.DictReader(io.StringIO(stem.with_suffix(".csv").read_text())))
    header, lines = results.grid(found)
    text = stem.with_suffix(".md").read_text()
    assert len(runs) == 4
    assert len(lines) == 2
    for (name, row), words in zip(found["rows"].items(), lines, strict=True):
        assert "| " + " | ".join(words) + " |" in text
        for metric in ("knn", "linear", "output_std", "rank"):
            values = torch.tensor([float(run[metric]) for run in runs if run["row"] == name], dtype=torch.float64)
            assert float(values.mean()) == pytest.approx(row["mean"][metric], rel=1e-12)
            assert float(values.std()) == pytest.approx(row["sd"][metric], rel=1e-9, abs=1e-12)
            form = results.SHOWN[metric]
            assert words[header.index(metric)] == f"{form.format(row['mean'][metric])} ± {form.format(row['sd'][metric])}"
            summary = json.loads((job.cells[name, 1].folder / "summary.json").read_text())
            assert figures_of(summary)[metric] == row["runs"]["1"][metric]
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert set(METRICS) <= set(runs[0])


def test_a_table_of_other_settings_does_not_replace_the_first(job, tmp_path):
    results.write(job, tmp_path)
    first = (tmp_path / "simsiam-ablation-tiny.md").read_text()
    for _ in range(2):
        results.write(job._replace(settings=("data=elsewhere",)), tmp_path)
    assert (tmp_path / "simsiam-ablation-tiny.md").read_text() == first
    (second,) = tmp_path.glob("simsiam-ablation-tiny-*.md")
    assert "data=elsewhere" in second.read_text()


def test_a_table_of_another_recipe_or_of_fewer_seeds_does_not_replace_the_first(job, tmp_path):
    results.write(job, tmp_path)
    first = (tmp_path / "simsiam-ablation-tiny.md").read_text()
    other = METHODS["simsiam"].edit(["lr.base=0.3"])
    fewer = {(name, seed): c for (name, seed), c in job.cells.items() if seed == 0}
    for made in (job._replace(table=job.table.model_copy(update={"base": other})), job._replace(cells=fewer)):
        results.write(made, tmp_path)
    assert (tmp_path / "simsiam-ablation-tiny.md").read_text() == first
    assert len(list(tmp_path.glob("simsiam-ablation-tiny-*.md"))) == 2


def test_a_spread_is_of_the_seeds_that_have_a_value(job):
    record = results.record(job)
    record["rows"]["as-it-is"] |= {"of": {"knn": 1, "linear": 2}, "mean": {"knn": 0.9, "linear": 0.8}, "sd": {"knn": 0.0, "linear": 0.1}}
    record["seeds"] = 3
    header, (words, _) = results.grid(record)
    assert (words[header.index("knn")], words[header.index("linear")]) == ("0.900 (1 of 3)", "0.800 ± 0.100 (2 of 3)")


@pytest.mark.parametrize(
    ("scale", "page", "claims", "lab_page"),
    [("tiny", "results.md", "claims.json", "lab.md"), ("small", "results/small.md", "claims-small.json", "../lab.md")],
)
def test_a_page_of_tables_counts_their_claims_and_leads_to_what_it_names(job, tmp_path, scale, page, claims, lab_page):
    outcomes = ["HOLDS", "HOLDS", "UNDECIDED", "FAILS"]
    claim = {"says": "It is so.", "source": "Sec. 1", "where": ["a.knn > 0"], "evidence": "a.knn 0.9 > 0", "because": ""}
    table = {**results.record(job), "scale": scale, "claims": [{**claim, "id": f"c{i}", "outcome": o} for i, o in enumerate(outcomes)]}
    second = {**table, "table": "a-second", "claims": []}
    where = results.write_page([table, second], tmp_path)
    assert where == (tmp_path / page, tmp_path / "results" / claims)
    found = json.loads(where[1].read_text())
    assert [(c["outcome"], c["scale"], c["table"]) for c in found] == [(o, scale, "simsiam-ablation") for o in outcomes]
    text = where[0].read_text()
    assert "Of 4 claims: 2 HOLDS, 1 UNDECIDED, 1 FAILS" in text
    assert f"]({lab_page})" in text
    assert f"their figures are in {'results/' * (scale == 'tiny')}{claims}." in text  # as seen from the page
    for id in ("simsiam-ablation", "a-second"):
        assert f'<a id="{id}"></a>\n\n## {id}: ' in text

    made = [file.read_bytes() for file in where]
    for again in ([table], [second], [second, table]):  # a table made anew stands in its place, and the others stay
        results.write_page(again, tmp_path)
        assert [file.read_bytes() for file in where] == made
    results.write_page([{**table, "made": "another day", "claims": table["claims"][:2]}], tmp_path)
    text = where[0].read_text()
    assert "Of 2 claims: 2 HOLDS, 0 UNDECIDED, 0 FAILS" in text
    assert text.count("Written on another day.") == 1
    assert text.count(f"Written on {table['made']}.") == 1
    assert len(json.loads(where[1].read_text())) == 2
    where[1].write_text("[1]")
    with pytest.raises(Misuse, match="move it away"):
        results.write_page([table], tmp_path)


def test_a_measure_asked_for_later_is_added_without_training(job):
    c = job.cells["as-it-is", 0]
    trained = (c.folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    more = cells.Cell(c.recipe, c.folder, frozenset({"linear", "gap"}))
    assert not more.done
    assert cells.train_all([more], 1, lambda line: None) == []
    assert more.done
    assert more.figures["gap_predictor"] > 0
    assert more.figures["linear"] == c.figures["linear"]
    assert (c.folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    recipe = tables()["simsiam-fig2"].recipe("with", "tiny", SMALL)
    broken = cells.cell(recipe.edit(["data=nowhere"]), tmp_path)
    said = []
    (failure,) = cells.train_all([broken], 1, said.append)
    assert "nowhere" in failure
    assert said == [failure]


def test_a_run_that_its_collapse_ended_is_a_result(tmp_path, monkeypatch):
    recipe = tables()["simsiam-fig2"].recipe("without", "tiny", [*SMALL, "probe_every=1", "on_collapse=stop"])
    c = cells.cell(recipe, tmp_path)

    def ended(*args):
        c.folder.mkdir(parents=True)
        (c.folder / "recipe.yaml").write_text(recipe.to_yaml())
        (c.folder / "summary.json").write_text("{}")
        raise Failure("collapsed: training stopped")

    monkeypatch.setattr(cells.loop, "pretrain", ended)
    assert cells._trained(c, Console(quiet=True)).path == c.folder


def test_a_gap_that_is_not_finite_is_none(tiny_run, tmp_path, monkeypatch):
    run = sd.load(shutil.copytree(tiny_run.path, tmp_path / "run"))
    monkeypatch.setattr(trained, "predictor_gap", lambda *args: ExpectationGap(math.nan, math.inf, 1.0))
    cells._measure(run, frozenset({"gap"}))
    found = json.loads((run.path / "summary.json").read_text())
    assert (found["gap_predictor"], found["gap_projection"], found["gap_other"]) == (None, None, 1.0)


def test_how_far_a_teacher_is_ahead_is_the_mean_over_the_probes(tiny_run, tmp_path):
    run = sd.load(shutil.copytree(tiny_run.path, tmp_path / "run"))
    cells._measure(run, frozenset({"ahead"}))
    assert json.loads((run.path / "summary.json").read_text())["teacher_ahead"] is None  # SimSiam is its own teacher

    def row(teacher, student, **more):
        return json.dumps({"step": 1, "epoch": 1, "knn_teacher": teacher, "knn_student": student, **more}) + "\n"

    lines = row(0.5, 0.5) + row(0.8, 0.5, verdict="healthy") + row(0.8, 0.9, verdict="healthy")  # the first is of before training
    (run.path / "metrics.jsonl").write_text(lines)
    (run.path / "summary.json").write_text("{}")
    cells._measure(sd.load(run.path), frozenset({"ahead"}))
    assert json.loads((run.path / "summary.json").read_text())["teacher_ahead"] == pytest.approx(0.1)


def test_a_reason_is_said_at_its_scale_and_where_the_claim_does_not_hold(job):
    claims = [
        Claim(id=id, says="", source="", where=(f"as-it-is.knn {compared} 2",), because={scale: "This is why."})
        for id, compared, scale in (("fails", ">", "tiny"), ("holds", "<", "tiny"), ("elsewhere", ">", "small"))
    ]
    record = results.record(job._replace(table=job.table.model_copy(update={"claims": claims})))
    assert {claim["id"]: claim["because"] for claim in record["claims"]} == {"fails": "This is why.", "holds": "", "elsewhere": ""}
    other = results.record(job._replace(table=job.table.model_copy(update={"claims": claims}), settings=("epochs=1",)))
    assert not any(claim["because"] for claim in other["claims"])


def test_a_damaged_summary_is_named(job, tmp_path):
    folder = shutil.copytree(next(iter(job.cells.values())).folder, tmp_path / "cell")
    cell = next(iter(job.cells.values()))
    (folder / "summary.json").write_text('{"knn_top1": 0.')
    with pytest.raises(Misuse, match=r"cell/summary\.json: cannot be read .* made anew"):
        _ = cells.Cell(cell.recipe, folder, cell.measures).done


# The command line.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reproduce", "simsiam-t11"], ["simsiam-t11", "simsiam-t1"]),
        (["reproduce", "simsiam-t1", "--scale", "huge"], ["huge", "tiny"]),
        (["reproduce", "simsiam-t1", "--scale", "paper"], ["data="]),
        (["reproduce", "simsiam-t1,simsiam-t9"], ["simsiam-t9", "simsiam-t1"]),
        (["reproduce", "simsiam-t1", "--all"], ["simsiam-t1", "--all"]),
        (["reproduce", "simsiam-t1", "epoch=3"], ["epoch=3", "epochs"]),
        (["reproduce", "simsiam-t1", "seed=3"], ["seed", "--seeds"]),
        (["reproduce", "epochs=3"], ["TABLE", "epochs=3"]),
        (["ablate", "simsiam", "data=digits", "seed=3"], ["seed", "--seeds"]),
        (["ablate"], ["METHOD", "simsiam"]),
        (["ablate", "simsaim"], ["simsaim", "simsiam"]),
        (["ablate", "simsiam", "--edits", "stop-grad"], ["stop-grad", "stop-gradient"]),
        (["ablate", "byol", "--edits", "stop-gradient"], ["stop_gradient=false", "teacher=ema"]),
        (["ablate", "simsiam", "--edits", "centring"], ["--without centring", "simsiam has none to take out", "terms.views.loss.target"]),
    ],
)
def test_misuse(run, tmp_path, words, said):
    code, _, err = run(*words)
    assert code == 2
    assert all(word in err for word in said)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_there_is_is_listed(run):
    code, out, _ = run("reproduce")
    assert code == 0
    assert all(id in out and table.alias in out for id, table in tables().items())
    code, out, _ = run("ablate", "--list")
    assert code == 0
    assert all(name in out for name in EDITS)


def test_a_table_by_its_other_name(run):
    aliases = [table.alias for table in tables().values() if table.alias]
    assert len({*aliases, *tables()}) == len(aliases) + len(tables())  # each names one table
    code, out, _ = run("reproduce", "simsiam-stop-gradient,simsiam-fig2", "--seeds", 3, "--plan")
    assert code == 0
    assert out == run("reproduce", "simsiam-fig2", "--seeds", 3, "--plan")[1]


def test_what_fits_a_sets_own_preset_alone_is_taken(run):
    """512 projections of the paper's 2,048 outputs would be fitted exactly, and the preset for digits has 256."""
    code, out, err = run(
        "ablate", "simsiam", "data=digits", "predictor=least-squares", "batch_size=256", "--edits", "stop-gradient", "--plan"
    )
    assert code == 0, err
    assert "2 to make" in out


def test_a_plan_runs_nothing(run, tmp_path):
    code, out, _ = run("reproduce", "simsiam-fig2", "encoder.options={widths: [8, 16]}", "--seeds", 3, "--plan")
    assert code == 0
    assert "12 to make" in out
    code, out, _ = run("reproduce", "simsiam-fig2,simsiam-t1", "encoder.options={widths: [8, 16]}", "--docs", "page", "--plan")
    assert code == 0
    assert "8 to make" in out  # four and five, one of which is the same
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("devices", ["auto", "2"])
def test_killed_and_resumed(tmp_path, devices):
    """SIGTERM: the runs under way are saved; the same command ends as if it had not come. With two devices a run is two processes."""
    settings = [*(s for s in SMALL if not s.startswith("epochs")), "epochs=6", f"devices={devices}"]
    command = [sys.executable, "-m", "selfdistill", "ablate", "simsiam", *settings, "--edits", "stop-gradient"]
    command += ["--jobs", "1", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not any(len(f.read_text().splitlines()) > 2 for f in tmp_path.glob("cells/*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "2 of 2 runs are left" in err
    (folder,) = (f.parent for f in tmp_path.glob("cells/*/metrics.jsonl"))
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert not (folder / "summary.json").exists()
    before = (folder / "metrics.jsonl").read_text()
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 0 of them done" in done.stdout
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert (tmp_path / "simsiam-ablation-tiny.csv").exists()
    assert ("MEMBER: 2/2" in folder.with_suffix(".log").read_text()) == (devices == "2")  # Fabric's word


def test_cells_of_methods_with_dots_in_their_names_share_nothing(tmp_path):
    one, other = (cells.cell(METHODS["simsiam"].edit(["method=simsiam-v1.1", f"seed={seed}"]), tmp_path) for seed in (0, 1))
    assert one.beside("log") != other.beside("log")
    held = one.taken()
    assert one.is_taken()
    assert not other.is_taken()
    held.release()


def test_images_of_another_folder_of_the_same_name_are_another_cell(tmp_path, monkeypatch):
    """One lab, two working directories."""
    recipe, folders = METHODS["simsiam"].edit(["data=photos"]), set()
    for place in ("one", "other"):
        (tmp_path / place / "photos").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        folders.add(cells.cell(recipe, tmp_path).folder)
        assert cells.cell(recipe.edit([f"data={tmp_path / place / 'photos'}"]), tmp_path) != cells.cell(recipe, tmp_path)
    assert len(folders) == 2


def test_a_cell_that_another_process_trains_is_known(tmp_path):
    c = cells.cell(METHODS["simsiam"], tmp_path)
    assert not c.is_taken()
    held = c.taken()
    assert c.is_taken()
    held.release()
    assert not c.is_taken()

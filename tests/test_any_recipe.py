"""Any setting, and any combination of slots: it trains, saves, resumes and survives YAML, or is refused by name."""

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import selfdistill as sd
from selfdistill.api import recipe_of, shown
from selfdistill.data.images import Pixels, Source
from selfdistill.methods import METHODS
from selfdistill.protocols import protocols_of
from selfdistill.recipe import Recipe
from selfdistill.settings import yaml_from, yaml_of
from selfdistill.spec import leaves
from selfdistill.train.resolve import with_preset
from tests.conftest import NET, TINY, TINY_OF
from tests.test_hostile import EFFORT

KEYS = sorted({path for recipe in METHODS.values() for path, _ in leaves(recipe)} | set(Recipe.model_fields))
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["none", "{}", "[]", "null", "nan", "inf", "-1", "1e400", "!!python/name:os.system", "&a [*a]", "{a: {b: 1}}", "[" * 2000]
    ),
    st.sampled_from(["2001-02-31", "0b_", "ema", "mlp", "*a", "=", "y", "1:99", "{1: 2}", "[1, two]", "{kind: ema}", "{kind: lstm, x: 1}"]),
    st.floats().map(str),
    st.integers().map(str),
)


@settings(max_examples=EFFORT * 3, deadline=None)
@given(method=st.sampled_from(sorted(METHODS)), key=st.one_of(st.sampled_from(KEYS), st.text(max_size=12)), value=WORDS)
@example("byol", "labels", "0")  # a union of numbers, whose members pydantic names
@example("mean-teacher", "terms.labels.weight", "x")  # a field of the name of a kind
@example("byol", "encoder.channels", "1")  # refused for what other fields say
@example("byol", "terms.views.loss", "labels")
@example("byol", "encoder.options.drop_path_rate", "{0}")  # a mapping whose key is a number
@example("byol", "encoder.name", "0b_")  # a word to us, and a damaged number to a reader of YAML 1.1
@example("byol", "encoder.options.drop_path_rate", "1e400")  # no number of JSON's
@example("dino", "views.locals.augment.ratio", "[]")  # a list with less than there are places
def test_any_setting_is_taken_or_refused_by_name(method, key, value):
    try:
        recipe = METHODS[method].edit([f"{key}={value}"])
    except sd.Misuse as e:
        refusal = str(e)
    else:
        assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
        return
    assert key.partition("=")[0].partition(".")[0] in refusal or "is not a setting" in refusal


SLOT = {
    "predictor": ["none", "mlp", "least-squares", "directpred"],
    "teacher": ["shared", "ema", "snapshot", "expectation"],
    "optimizer": ["sgd", "lars", "adamw"],
    "terms.views.loss": ["cosine", "mse", "cross-entropy", "nt-xent", "info-nce", "swapped"],
    "terms.views.pairs": ["cross", "one-way", "one-way-doubled"],
    "stop_gradient": ["true", "false"],
    "bn_joint": ["true", "false"],
    "keep": ["student", "teacher"],
    "accumulate": ["1", "2"],
    "decay_norm_and_bias": ["true", "false"],
    "clip": ["none", "{norm: 1}"],
    "projector": ["mlp", "dino", "none"],
}


@settings(max_examples=max(8, EFFORT // 12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(slots=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in SLOT.items()}))
def test_any_combination_of_slots_trains_saves_and_resumes_or_is_refused_by_name(slots, tmp_path_factory):
    out = tmp_path_factory.mktemp("any") / "run"
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = {**NET, "epochs": 1, "batch_size": 10, "precision": "fp32", "log_every": 1}
    asked = [f"{k}={v}" for k, v in slots.items()]
    head = slots.get("projector", "mlp")
    narrow = [] if head == "none" else ["projector.hidden=[8]", "projector.out=6", *(["projector.bottleneck=4"] if head == "dino" else [])]
    loss = slots.get("terms.views.loss")
    narrow += {"info-nce": ["terms.views.loss.queue=12"], "swapped": ["terms.views.loss.prototypes=4"]}.get(loss, [])
    try:
        run = sd.pretrain("simsiam", *asked, *narrow, data=Source("noise", Pixels(pixels)), out=out, **small)
    except sd.Misuse as e:
        refusal = str(e)
    else:
        refusal = ""
    if refusal:
        assert any(key.split(".")[-1] in refusal or value in refusal for key, value in slots.items())
        assert not out.exists()
        return
    assert run.summary["step"] == 2
    assert Recipe.from_yaml(out / "recipe.yaml") == run.recipe
    assert sd.pretrain("simsiam", data=Source("noise", Pixels(pixels)), out=out, resume=True).summary["step"] == 2
    assert run.embed(pixels).shape == (20, 16)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("moco", ["terms.views.loss=nt-xent"]),  # one way and with a teacher of its own: the student sees one view, the teacher another
        ("swav", ["teacher=ema", "terms.views.pairs=one-way", "terms.views.loss.prototypes=4", "terms.views.loss.queue=12"]),
    ],
)
def test_losses_made_for_all_views_take_one_way_pairs(method, settings, tmp_path):
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = {**NET, "epochs": 2, "batch_size": 10, "precision": "fp32", "log_every": 1, "projector.hidden": [8], "projector.out": 6}
    small |= {"views.locals": None}
    run = sd.pretrain(method, *settings, data=Source("noise", Pixels(pixels)), out=tmp_path / "run", **small)
    assert all(row["loss"] > 0 for row in run.metrics[1:])
    assert not (run.path / "bad_steps").exists()


@pytest.mark.parametrize(
    ("method", "setting", "said"),
    [
        ("mean-teacher", "optimizer.momentum=0", "optimizer.nesterov=false"),
        ("dino", "terms.views.loss.target.temperature=0", "out of range"),
        ("dino", "terms.views.loss.target={kind: sinkhorn, temperature: {base: 0.05, warmup: 10}}", "out of range"),
    ],
)
def test_what_would_divide_by_nothing_is_refused(method, setting, said):
    with pytest.raises(sd.Misuse, match=said):
        sd.METHODS[method].edit([setting])


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("ibot", ["teacher=expectation"], "teacher=expectation remembers vectors of length 1"),
        ("ibot", ["projector=none", "patch_projector=dino"], "of one width"),
        ("dino", ["teacher=expectation", "keep=student"], "cross-entropy reads logits, and teacher=expectation"),
        ("mean-teacher", ["teacher=expectation", "keep=student"], "consistency reads logits, and teacher=expectation"),
        ("mean-teacher", ["predictor=mlp"], "predictor=mlp: with labels=0.1 the projector is the classifier"),
        ("mean-teacher", ["labelled_share=0.003", "batch_size=128"], "labelled_share=0.003 of batch_size=128"),
    ],
)
def test_slots_that_contradict_each_other_are_refused(method, settings, said):
    with pytest.raises(sd.Misuse, match=said):
        sd.METHODS[method].edit(settings)


def test_masked_patches_take_sinkhorn_targets(tiny_source, tmp_path):
    sinkhorn = {"terms.views.loss.target": "sinkhorn", "terms.patches.loss.target": "sinkhorn"}
    run = sd.pretrain("ibot", data=tiny_source, out=tmp_path / "run", **{**TINY_OF["ibot"], **sinkhorn, "epochs": 1})
    assert run.summary["step"] == 3
    assert not (run.path / "bad_steps").exists()


def test_masked_views_take_one_way_pairs(tiny_source, tmp_path):
    one_way = {"terms.views.pairs": "one-way", "terms.patches.pairs": "one-way"}
    run = sd.pretrain("ibot", data=tiny_source, out=tmp_path / "run", **{**TINY_OF["ibot"], **one_way, "epochs": 1})
    assert run.summary["step"] == 3
    assert not (run.path / "bad_steps").exists()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("method: simsiam\nepochs: 7\n", ["epochs=7"]),
        ("method: dino\nteacher: {tau: {base: 0.9}}\n", ["teacher.tau.base=0.9"]),
        ("method: byol\nteacher: {kind: snapshot, every: 3}\npredictor: null\n", ["teacher=snapshot", "every=3", "predictor=none"]),
        ("method: dino\nterms: {views: {weight: {base: 2}}}\n", ["terms.views.weight=2"]),
        ("method: ibot\nencoder: {options: {depth: 3}}\n", ["encoder.options={depth: 3}"]),
        ("method: byol\nteacher: snapshot\nteacher.every: 3\npredictor: none\n", ["teacher=snapshot", "every=3", "predictor=none"]),
        ("method: byol\nencoder: resnet18\nlr: 0.3\nteacher: {tau: 0.5}\n", ["encoder=resnet18", "lr=0.3", "teacher.tau=0.5"]),
        ("method: byol\nviews.augment.flip: 0\nstop_gradient: true\n", ["views.augment.flip=0"]),
        ("method: byol\nstop_gradient: false\nteacher: shared\n", ["teacher=shared", "stop_gradient=false"]),  # only together
        ("method: byol\nteacher: snapshot\nevery: 3\n", ["teacher=snapshot", "every=3"]),
        (
            "method: byol\nviews.mean: [0.5]\nlr.end: null\nviews: {augment.flip: 0}\n",
            ["views.mean=[0.5]", "lr.end=none", "views.augment.flip=0"],
        ),
        ("method: byol\nterms: {views: {loss: nt-xent}}\n", ["terms.views.loss=nt-xent"]),
        ("method: dino\nterms: {views: {loss: {target: sinkhorn}}}\n", ["terms.views.loss.target=sinkhorn"]),
        ("method: byol\ncompile: off\nlabels: none\ninit_from: none\ndata: 2024\n", ["compile=off", "data=2024"]),
        ("method: byol\npreset: color-32\nepochs: 3\n", ["preset=color-32", "epochs=3"]),
    ],
)
def test_what_a_yaml_of_ones_own_leaves_out_is_as_the_method_has_it(tmp_path, text, settings):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    recipe = METHODS[yaml.safe_load(text)["method"]]
    assert recipe_of(str(path)) == (shown(recipe, settings)[0] if "preset" in text else recipe.edit(settings))


def test_a_key_that_a_yaml_has_twice_is_refused(tmp_path):
    """Else the last would win without a word."""
    (tmp_path / "mine.yaml").write_text("method: byol\nteacher:\n  tau: 0.9\nepochs: 3\nepochs: 4\n")
    with pytest.raises(sd.Misuse, match=r"mine.yaml.*epochs stands twice \(the second in line 5\): leave one out"):
        recipe_of(str(tmp_path / "mine.yaml"))


def test_a_yaml_of_no_known_method_leaves_nothing_out(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: bylo\nlr: 0.3\n")
    with pytest.raises(sd.Misuse, match=r"mine\.yaml: method=bylo: .*Did you mean byol\?"):
        recipe_of(path)
    printed = with_preset(METHODS["ibot"], "digits")[0].to_yaml()  # what `show` prints is read as it is, to the order of its fields
    path.write_text(printed)
    assert recipe_of(path).to_yaml() == printed
    whole = METHODS["byol"].to_yaml().replace("method: byol", "method: mine")
    path.write_text(whole)
    assert recipe_of(path) == METHODS["byol"].model_copy(update={"method": "mine"})


@pytest.mark.parametrize("number", ["1e-3", "1.5e3", "2E+4", ".5e-1", "0.001", "3", "010", "1_0"])
def test_a_number_in_yaml_is_what_it_is_on_the_command_line(tmp_path, number):
    """PyYAML's own rules, of YAML 1.1, take 1e-3 for a word and 010 for 8."""
    (tmp_path / "mine.yaml").write_text(f"method: byol\nlr: {number}\nencoder: {{options: {{rate: {number}}}}}\n")
    mine = recipe_of(tmp_path / "mine.yaml")
    assert mine == METHODS["byol"].edit([f"lr={number}", f"encoder.options={{rate: {number}}}"])
    assert (mine.lr.base, mine.encoder.options) == (float(number), {"rate": float(number)})


@given(st.one_of(st.text(), st.from_regex(r"[-+]?[\d.]*[eE]?[-+]?\d*", fullmatch=True), st.floats(allow_nan=False), st.integers()))
def test_what_is_written_as_yaml_is_read_as_it_was(value):
    found = yaml_of(yaml_from({"data": value}))["data"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("teacher.kind=snapshot", "teacher=snapshot"),
        ("predictor.kind=none", "predictor=none"),
        ("terms.views.loss.kind=nt-xent", "terms.views.loss=nt-xent"),
        ("teacher.kind=ema", "seed=0"),  # what it is already keeps its fields
        ("teacher.kind=snapshot every=10", "teacher=snapshot every=10"),
    ],
)
def test_a_slots_kind_is_the_slots_own_word(long, short):
    byol = METHODS["byol"].edit(["teacher.tau.base=0.5"])
    assert byol.edit(long.split()) == byol.edit(short.split())


def test_a_wrong_word_on_the_way_to_a_field_is_answered_with_the_whole_way():
    with pytest.raises(sd.Misuse, match=r"Did you mean views\.augment\.flip\?"):
        METHODS["byol"].edit(["view.augment.flip=0"])


def test_a_term_that_a_yaml_leaves_out_of_its_terms_is_taken_out(tmp_path):
    tree = yaml.safe_load(METHODS["ibot"].to_yaml())
    del tree["terms"]["patches"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    assert recipe_of(str(tmp_path / "mine.yaml")).terms.keys() == {"views"}


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_yaml_is_the_method(method, tmp_path):
    (tmp_path / "mine.yaml").write_text(METHODS[method].to_yaml())
    assert recipe_of(str(tmp_path / "mine.yaml")) == METHODS[method]


def test_python_values_are_settings(tiny_source, tmp_path):
    """None in a mapping, tuples, and NumPy's numbers, as a program that computes its settings has them."""
    settings = {
        "teacher.tau": {"base": 0.9, "end": None},
        "encoder.options": {"widths": (8, np.int64(16))},
        "views.mean": [np.float64(0.25)],
        "views.std": (np.float32(0.5),),
        "predictor": None,
    }
    kept = {k: v for k, v in TINY.items() if k not in settings and not k.startswith("predictor")}
    recipe = sd.pretrain("byol", data=tiny_source, out=tmp_path / "run", **{**kept, **settings, "epochs": 1}).recipe
    assert (recipe.teacher.tau.base, recipe.teacher.tau.end) == (0.9, None)
    assert recipe.encoder.options == {"widths": [8, 16]}
    assert (recipe.views.mean, recipe.views.std) == ((0.25,), (0.5,))
    assert recipe.predictor is None


def test_a_path_is_taken_as_it_is_written(tmp_path):
    (tmp_path / "mine.yaml").write_text('method: byol\ninit_from: "runs/try #2: 010"\n')
    for found in (recipe_of(tmp_path / "mine.yaml"), METHODS["byol"].edit(["init_from=runs/try #2: 010"])):
        assert found.init_from == "runs/try #2: 010"
    assert METHODS["byol"].edit(["init_from=a", "init_from=none"]).init_from is None
    assert protocols_of(["dense"], ["dense.data=set #2"])["dense"].data == "set #2"


def test_a_term_is_taken_out_by_none():
    assert list(METHODS["ibot"].edit(["views.masks=none", "terms.patches=none"]).terms) == ["views"]
    with pytest.raises(sd.Misuse, match=r"terms\.patches=none"):
        METHODS["ibot"].edit(["views.masks=none"])
    with pytest.raises(sd.Misuse, match=r"terms: .* at least 1"):
        METHODS["byol"].edit(["terms.views=none"])
    with pytest.raises(sd.Misuse, match=r"terms\.views=false: terms is a value"):
        METHODS["byol"].edit(["terms=2", "terms.views=false"])

"""Any setting, and any combination of slots: it trains, saves, resumes and survives YAML, or is refused by name."""

import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.methods import METHODS
from selfdistill.recipe import Recipe, leaves
from tests.conftest import NET
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

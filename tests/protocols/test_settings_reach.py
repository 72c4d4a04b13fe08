"""A protocol's settings reach what they set: spies where a number could not show it."""

import inspect

import numpy as np
import pytest
import sklearn.cluster
import torch
from PIL import Image

from selfdistill.evaluate import finetune, knn, linear, logistic
from selfdistill.parts.optim import AdamW
from selfdistill.protocols import PROTOCOLS, dense, frozen, tuned
from selfdistill.train.subject import subject_of

QUICK = {
    "linear": {"epochs": 1},
    "finetune": {"epochs": 1, "rates": (0.1,)},
    "supervised": {"epochs": 1, "rates": (0.1,)},
    "semi": {"epochs": (1,), "rates": (0.1,), "shares": (0.1, 0.2)},
    "clustering": {"starts": 1},
    "robustness": {"epochs": 1, "corruptions": ("contrast",)},
    "dense": {"epochs": 1, "bank": 20, "test": 5},
}


def tuning(name, calls):
    """Of finetune and its kin, which train the network `calls` times where there is one rate."""
    return [
        (name, "rates", (0.2, 0.4), finetune, "finetune_accuracy", "rates", [(0.2, 0.4)] * calls),
        (name, "batch_size", 8, finetune, "finetune", "batch_size", [8] * calls),
        (name, "optimizer", "adamw", finetune, "finetune", "optimizer", [AdamW()] * calls),
        (name, "seed", 3, finetune, "finetune", "seed", [3] * calls),
    ]


REACH = [
    ("knn", "ks", (2, 5), knn, "knn_accuracies", "ks", [(2, 5)] * 2),
    ("knn", "temperature", 0.5, knn, "knn_accuracies", "temperature", [0.5] * 2),
    ("linear", "rates", (0.2, 0.4), linear, "linear_probe", "rates", [(0.2, 0.4)]),
    ("linear", "epochs", 3, linear, "train_linear", "epochs", [3] * 2),
    ("linear", "batch_size", 8, linear, "train_linear", "batch_size", [8] * 2),
    ("linear", "seed", 3, linear, "train_linear", "seed", [3] * 2),
    ("linear", "seed", 3, linear, "held_out", "seed", [3]),
    ("logistic", "strengths", (0.2, 0.4), logistic, "logistic", "strengths", [(0.2, 0.4)]),
    ("logistic", "steps", 500, logistic, "logistic", "steps", [500]),
    ("logistic", "seed", 3, logistic, "held_out", "seed", [3]),
    ("retrieval", "ks", (2, 4), frozen, "retrieval", "ks", [(2, 4)]),
    ("clustering", "starts", 3, sklearn.cluster, "KMeans", "n_init", [3]),
    ("clustering", "seed", 3, sklearn.cluster, "KMeans", "random_state", [3]),
    ("robustness", "rates", (0.2, 0.4), linear, "linear_probe", "rates", [(0.2, 0.4)]),
    ("robustness", "epochs", 3, linear, "train_linear", "epochs", [3] * 2),
    ("robustness", "batch_size", 8, linear, "train_linear", "batch_size", [8] * 2),
    ("robustness", "seed", 3, linear, "train_linear", "seed", [3] * 2),
    ("robustness", "seed", 3, frozen, "corrupt", "seed", [3] * 5),
    ("robustness", "corruptions", ("jpeg", "pixelate"), frozen, "corrupt", "name", ["jpeg"] * 5 + ["pixelate"] * 5),
    *tuning("finetune", 1),
    ("finetune", "epochs", 2, finetune, "finetune", "epochs", [2]),
    *tuning("supervised", 1),
    ("supervised", "epochs", 2, finetune, "finetune", "epochs", [2]),
    *tuning("semi", 2),
    ("semi", "epochs", (1, 2), finetune, "finetune", "epochs", [1, 2]),
    ("semi", "shares", (0.1, 0.2, 0.5), tuned, "few_labels", "total", [10, 19, 48]),
    ("semi", "seed", 3, tuned, "few_labels", "seed", [3] * 2),
    ("semi", "seed", 3, tuned, "held_out", "seed", [3]),
    ("semi", "seed", 3, tuned, "linear_probe", "seed", [3] * 2),
    ("dense", "bank", 15, dense, "dense_probes", "bank", [15]),
    ("dense", "test", 3, dense, "dense_probes", "queries", [3]),
    ("dense", "k", 7, dense, "dense_probes", "k", [7]),
    ("dense", "temperature", 0.5, dense, "dense_probes", "temperature", [0.5]),
    ("dense", "epochs", 2, dense, "dense_probes", "epochs", [2]),
    ("dense", "seed", 3, dense, "dense_probes", "seed", [3]),
]
"""protocol, its setting, a value that is not the default, and the argument that has it in each call of a function"""


@pytest.fixture
def raw(tiny_source):
    return subject_of("raw-pixels", data=tiny_source)


@pytest.fixture
def net(tiny_source):
    return subject_of("random-init", ["encoder.options={widths: [8]}", "precision=fp32"], tiny_source)


@pytest.fixture
def spied(monkeypatch):
    """The arguments by name, defaults among them, of each call of a module's function from now on."""

    def spy(module, name):
        original, calls = getattr(module, name), []
        signature = inspect.signature(original)
        further = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

        def called(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            calls.append({**bound.arguments, **bound.arguments.get(further, {})})
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, called)
        return calls

    return spy


@pytest.mark.parametrize(
    ("protocol", "setting", "value", "module", "function", "argument", "expected"),
    REACH,
    ids=[f"{row[0]}.{row[1]}-{row[4]}.{row[5]}" for row in REACH],
)
def test_a_setting_reaches_what_it_sets(request, spied, protocol, setting, value, module, function, argument, expected):
    assert PROTOCOLS[protocol].model_fields[setting].default != value
    subject = request.getfixturevalue("net" if protocol in ("finetune", "supervised", "semi") else "raw")
    calls = spied(module, function)
    PROTOCOLS[protocol](**{**QUICK.get(protocol, {}), setting: value}).measure(subject)
    found = [call[argument] for call in calls]
    assert [len(of) if isinstance(of, torch.Tensor) else of for of in found] == expected


def test_every_setting_of_every_protocol_is_looked_at():
    elsewhere = {("dense", "data"), ("dense", "size")}
    assert {row[:2] for row in REACH} | elsewhere == {(name, field) for name, of in PROTOCOLS.items() for field in of.model_fields}


def test_the_last_number_of_epochs_serves_further_shares(net, spied):
    calls = spied(finetune, "finetune")
    PROTOCOLS["semi"](shares=(0.1, 0.1, 0.2), epochs=(1, 2), rates=(0.1,)).measure(net)
    assert [call["epochs"] for call in calls] == [1, 2, 2]


def test_a_tuned_network_is_trained_with_the_views_and_the_precision_of_its_run(net, spied):
    calls = spied(finetune, "finetune")
    PROTOCOLS["finetune"](epochs=1, rates=(0.1,)).measure(net)
    assert [(call["views"], call["bf16"]) for call in calls] == [(net.recipe.views, False)]


def test_the_mean_of_the_corruptions_leaves_the_clean_images_out(raw, monkeypatch):
    accuracies = iter([1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    monkeypatch.setattr(linear.Probe, "accuracy", lambda *args: next(accuracies))
    results = PROTOCOLS["robustness"](epochs=1, corruptions=("jpeg", "contrast")).measure(raw).results
    assert results["clean"] == 1.0
    assert results["jpeg/5"] == 0.5
    assert results["mean"] == pytest.approx(0.2)


def test_scenes_to_learn_from_and_held_out_are_drawn_apart_and_anew_by_each_seed(raw, spied):
    """The same draws would put the held-out images in the places of those learnt from."""
    calls = spied(dense, "scenes")
    for seed in (0, 10):
        PROTOCOLS["dense"](**QUICK["dense"], seed=seed).measure(raw)
    assert [len(call["pixels"]) for call in calls] == [96, 32, 96, 32]
    assert len({call["seed"] for call in calls}) == 4


@pytest.fixture
def shades(tmp_path):
    """A folder of 15 images, each with a shade of grey of its own, and masks of two halves."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    mask = np.zeros((12, 12), np.uint8)
    mask[:, 6:] = 1
    for i in range(15):
        Image.fromarray(np.full((12, 12), 10 * i, np.uint8)).save(tmp_path / "images" / f"{i:02}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i:02}.png")
    return tmp_path


def test_a_folders_fifth_is_held_out_by_seed(raw, spied, shades):
    calls = spied(dense, "dense_probes")
    for seed in (0, 0, 1, 2):
        PROTOCOLS["dense"](data=str(shades), epochs=1, seed=seed).measure(raw)
    parts = [[(255 * call[of].mean((1, 2, 3))).round().int().tolist() for of in ("queries", "bank")] for call in calls]
    for held, rest in parts:
        assert len(held) == 3
        assert sorted(held + rest) == [10 * i for i in range(15)]
    held = [frozenset(of) for of, _ in parts]
    assert held[0] == held[1]
    assert len(set(held)) == 3


def test_a_folders_images_are_no_more_than_asked_for_and_of_the_size_asked_for(raw, spied, shades):
    calls = spied(dense, "dense_probes")
    for size, side in ((None, raw.recipe.views.size), (12, 12)):
        PROTOCOLS["dense"](data=str(shades), size=size, bank=7, test=2, epochs=1).measure(raw)
        assert (calls[-1]["masks"].shape, calls[-1]["targets"].shape) == ((7, side, side), (2, side, side))
        assert calls[-1]["bank"].shape == (7, 16, side // 4, side // 4)

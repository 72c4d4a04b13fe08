"""What a small data set needs is said, field by field, and fits every method."""

from io import StringIO

import pytest
import torch
from rich.console import Console

import selfdistill as sd
from selfdistill.data.images import Pixels, Source
from selfdistill.errors import Misuse
from selfdistill.methods import METHODS
from selfdistill.presets import FEW, PRESETS, preset_for
from selfdistill.siamese import Siamese
from selfdistill.spec import diff
from selfdistill.train.cautions import cautions
from selfdistill.train.resolve import on_data, resolve, shown, with_preset
from tests.conftest import TINY_OF


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_every_method_and_says_what_it_changes(name, method):
    paper = METHODS[method]
    recipe, changed = with_preset(paper, name)
    Siamese(recipe, images=10)
    for path, _, _ in diff(paper, recipe):
        assert any(path == field.key or path.startswith(f"{field.key}.") for field in changed), path
    for field in changed:
        assert f"{field.key}: {field.old} -> {field.new} (" in str(field)
        assert len(field.why) > 1


@pytest.mark.parametrize("method", METHODS)
def test_no_preset_keeps_the_papers_values(method):
    assert with_preset(METHODS[method], "none") == (METHODS[method], [])


def test_show_prints_the_papers_values_until_data_or_a_preset_is_named():
    paper, mine = METHODS["dino"], ["epochs=3"]
    assert shown(paper, mine) == (paper.edit(mine), [])
    recipe, changed = shown(paper, [*mine, "preset=digits"])
    assert (recipe.encoder, recipe.epochs, recipe.precision) == (with_preset(paper, "digits")[0].encoder, 3, "auto")
    assert "encoder.name" in {field.key for field in changed}
    on_digits, _, same = resolve(paper, [*mine, "data=digits"])
    assert shown(paper, [*mine, "data=digits"]) == (on_digits, same)
    assert shown(on_digits, ["seed=1"]) == (on_digits.edit(["seed=1"]), [])  # a run has its preset's values already
    with pytest.raises(Misuse, match="batch_size"):
        shown(paper, ["data=digits", "batch_size=5000"])


@pytest.mark.parametrize(
    ("images", "channels", "side", "name"),
    [
        (1437, 1, 8, "digits"),
        (60_000, 1, 28, "grey-28"),
        (60_000, 1, 63, "grey-28"),
        (300, 1, 64, "grey-photos"),
        (FEW, 1, 512, "grey"),
        (50_000, 3, 32, "color-32"),
        (105_000, 3, 96, "none"),
        (500, 3, None, "few-photos"),
        (5000, 3, 96, "few-photos"),
        (FEW, 3, None, "none"),
    ],
)
def test_the_preset_follows_from_the_images(images, channels, side, name):
    assert preset_for(images, channels, side) == name


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_fewer_and_smaller_local_crops_are_cut_as_the_papers(method):
    made, paper = with_preset(METHODS[method], "few-photos")[0].views.locals, METHODS[method].views.locals
    assert made.augment == paper.augment
    assert (made.count, made.size) == (4, 64)


def test_a_preset_leaves_what_the_user_changed_before():
    """In a YAML or a recipe of their own."""
    mine = METHODS["simsiam"].edit(["epochs=3", "encoder.name=resnet18", "projector.hidden=[64]"])
    made, changed = with_preset(mine, "digits")
    assert (made.epochs, made.encoder.name, made.projector.hidden, made.batch_size) == (3, "resnet18", (64,), 128)
    assert not {"epochs", "encoder.name", "encoder.options", "projector.hidden"} & {field.key for field in changed}
    made.encoder.build(8)

    options = METHODS["dino"].edit(["encoder.options={patch_size: 4, depth: 1}"])
    assert with_preset(options, "digits")[0].encoder.build(8).net.patch_embed.patch_size == (4, 4)

    saving = METHODS["dino"].edit(["encoder.checkpointing=true"])  # another field of the slot: the network is still the preset's
    assert with_preset(saving, "digits")[0].encoder == with_preset(METHODS["dino"], "digits")[0].encoder.model_copy(
        update={"checkpointing": True}
    )


def test_a_preset_replaces_the_one_that_a_recipe_has_already():
    """As when a run's recipe goes to another data set, and what its user changed goes with it."""
    resolved = with_preset(METHODS["simsiam"], "digits")[0].edit(["preset=digits", "epochs=3"])
    made, _ = with_preset(resolved, "grey-28")
    assert (made.views.size, made.encoder.stem, made.epochs) == (28, "3x3/2", 3)


def test_what_a_user_sets_is_not_said_to_be_the_presets():
    changes = ["epochs=3", "encoder.name=resnet18", "views.size=16", "encoder.options.widths=[8, 16]"]
    source = Source("mine", Pixels(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
    recipe, _, changed = on_data(METHODS["simsiam"], changes, source)
    said = {field.key: field.new for field in changed}
    assert (recipe.preset, recipe.epochs, said["batch_size"], recipe.batch_size) == ("digits", 3, "128", 128)
    assert not {"epochs", "encoder.name", "views.size", "encoder.options"} & said.keys()
    _, _, changed = on_data(METHODS["dino"], ["encoder=resnet-small"], source)
    assert not {"encoder", "encoder.name", "encoder.options"} & {field.key for field in changed}
    _, _, changed = on_data(METHODS["dino"], [], source)
    keys = [field.key for field in changed]
    assert len(keys) == len(set(keys))
    assert "encoder.name" in keys
    assert next(field.new for field in changed if field.key == "epochs") == "120"
    assert {"views.locals", "views.second"} <= set(keys)  # slots that it empties


@pytest.mark.parametrize("method", METHODS)
def test_without_settings_of_the_users_all_that_a_preset_changes_is_said(method):
    source = Source("mine", Pixels(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
    assert on_data(METHODS[method], [], source)[2] == with_preset(METHODS[method], "digits")[1]


def test_a_run_too_short_for_its_warm_up_or_its_prototypes_is_told_so():
    def said(method, *changes):
        return " ".join(cautions(METHODS[method].edit(changes), 40_000))

    assert said("byol", "epochs=11") == said("dino", "epochs=31") == said("simsiam", "epochs=1") == ""
    assert "30 lasts all the epochs=30: terms.views.loss.target.temperature never comes to its base" in said("dino", "epochs=30")
    assert "terms.consistency.weight.warmup=0.5" in said("mean-teacher", "epochs=5")
    assert "lr.warmup=10 lasts all the epochs=5" in said("byol", "epochs=5")
    assert "lr.warmup=0.5" in said("byol", "epochs=5")
    assert "projector.frozen_epochs=1" in said("dino", "epochs=1", "lr.warmup=0")
    assert "terms.views.loss.frozen_epochs=1" in said("swav", "epochs=1")
    assert "the queue is never used" in said("swav", "epochs=15", "terms.views.loss.queue=3840")
    assert said("swav", "epochs=16", "terms.views.loss.queue=3840") == ""
    for every in ("every=78", "every=epoch", "every=39 teacher.lag=1"):
        assert "stays what it was before the first" in said("simsiam", "epochs=1", "teacher=snapshot", *every.split())
    assert (
        said("simsiam", "epochs=1", "teacher=snapshot", "every=77") == said("simsiam", "epochs=2", "teacher=snapshot", "every=epoch") == ""
    )


def test_masks_that_hide_no_patch_are_said_to():
    """But not where they are taken out by name."""

    def said(*changes):
        return cautions(METHODS["ibot"].edit(["views.size=64", "views.locals=none", *changes]), 40_000)

    assert "of 16 patches is none" in said("views.masks.ratio=[0,0.06]")[0]
    assert said() == said("views.masks.ratio=[0,0.07]") == said("views.masks.ratio=[0,0]", "views.masks.probability=0") == []


def test_what_a_micro_batch_compares_is_said_to_be_of_it():
    def said(method, *changes):
        return " ".join(cautions(METHODS[method].edit([*changes, "accumulate=4"]), 40_000))

    assert "negatives of terms.views are of micro-batches of 1024 images, not of the batch of 4096" in said("simclr")
    assert "codes of terms.views" in said("swav")
    assert "codes of terms.views" in said("dino", "terms.views.loss.target=sinkhorn")
    assert said("dino") == ""
    for method, share in {"byol": 1024, "moco": 64, "simsiam": 128}.items():
        assert said(method) == f"accumulate=4: BatchNorm's statistics are of micro-batches of {share} images"
    assert "BatchNorm's statistics" in said("dino", "encoder=timm:resnet18")
    assert said("dino", "encoder=timm:vit_tiny_patch16_224") == ""
    assert "the predictor is solved on micro-batches of 1024" in said("byol", "predictor=least-squares")


def test_a_recipe_that_goes_to_other_images_takes_their_preset_when_asked(tiny_source, tmp_path):
    """Else it keeps its own, and says so; what its user changed stays."""
    photos = Source("photos", Pixels(torch.zeros(300, 3, 96, 96, dtype=torch.uint8)))
    mine_is = ["lr.base=0.03", "projector=none"]
    mine = on_data(METHODS["simsiam"], mine_is, tiny_source)[0]
    kept, _, changed = on_data(mine, ["encoder.channels=3", "views.mean=[0.5]", "views.std=[0.25]"], photos)
    assert (kept.preset, kept.views.size, changed) == ("digits", 8, [])
    new, _, changed = on_data(mine, ["preset=auto"], photos)
    fresh, _, same = on_data(METHODS["simsiam"], mine_is, photos)
    assert (new, changed) == (fresh, same)
    assert shown(mine, ["preset=none"])[0].views == METHODS["simsiam"].views
    odd = METHODS["simsiam"].edit(["preset=digits", "batch_size=512", "projector.out=64", "predictor=least-squares"])
    with pytest.raises(Misuse, match="fitted exactly"):
        with_preset(odd.edit(["projector.out=256"]), "none")
    said = StringIO()
    asked = {"data": tiny_source, "out": tmp_path / "run", "console": Console(file=said, width=200)}
    sd.pretrain(mine.edit(["preset=grey-28"]), "epochs=1", "batch_size=32", "encoder.options={widths: [8]}", **asked)
    assert "preset=grey-28 is the recipe's own, and such images have preset=digits: preset=auto takes that" in said.getvalue()


def test_moco_learns_from_some_hundred_photos():
    photos = Source("photos", Pixels(torch.zeros(300, 3, 96, 96, dtype=torch.uint8)))
    recipe, _, _ = resolve(METHODS["moco"], [], photos)
    assert (recipe.preset, recipe.terms["views"].loss.queue) == ("few-photos", 256)


def test_an_unknown_preset():
    with pytest.raises(Misuse, match="grey-28"):
        with_preset(METHODS["byol"], "gray-28")


def test_settings_are_held_against_the_presets_values_not_the_papers(tiny_source):
    """iBOT's K is 8192 in the paper and 1024 on digits: a second head of 1024 fits there, and one of 77 nowhere."""
    heads = ["patch_projector=dino", "patch_projector.out=1024"]
    assert on_data(METHODS["ibot"], heads, tiny_source)[0].patch_projector.out == 1024
    assert shown(METHODS["ibot"], [*heads, "preset=digits"])[0].projector.out == 1024
    with pytest.raises(Misuse, match=r"77 is not projector\.out=1024"):
        on_data(METHODS["ibot"], ["patch_projector=dino", "patch_projector.out=77"], tiny_source)
    with pytest.raises(Misuse, match="batch_size=128 is not a multiple of devices=3"):
        on_data(METHODS["simsiam"], ["devices=3"], tiny_source)
    with pytest.raises(Misuse, match=r"lr\.bse=3: unknown key"):
        on_data(METHODS["simsiam"], ["lr.bse=3", "data=/no/such/folder"])


def test_ingredients_are_taken_out_of_what_the_preset_left(tiny_source, tmp_path):
    """DINO has no BatchNorm in its head but on digits, where it can be taken out, and SimSiam one at its output that digits' has not: what
    the preset has taken out already is said, and what the method never had is refused."""
    small = {k: v for k, v in TINY_OF["dino"].items() if k not in ("views.locals", "projector.bn")}
    assert sd.pretrain("dino", data=tiny_source, without="projector-bn", out=tmp_path / "run", **small).recipe.projector.bn == "none"
    said = StringIO()
    console = Console(file=said, width=200)
    run = sd.pretrain("dino", data=tiny_source, without=["multi-crop", "centring"], out=tmp_path / "both", console=console, **small)
    assert run.recipe.terms["views"].loss.target.momentum == 1
    assert "--without multi-crop: preset digits has taken it out already" in said.getvalue()
    with pytest.raises(Misuse, match="--without predictor: dino has none to take out"):
        sd.pretrain("dino", data=tiny_source, without="predictor", out=tmp_path / "none", batch_size=32)

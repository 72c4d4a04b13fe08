"""Figures: what is drawn is what is measured, and the command writes it."""

import math

import pytest
import torch
from matplotlib.image import imread
from PIL import Image

import selfdistill as sd
from selfdistill.errors import Misuse
from selfdistill.parts.encoder import Encoder
from selfdistill.report import attention, curves, embeddings
from selfdistill.report.style import rendered, save
from tests.conftest import TINY, VIT

G = torch.Generator().manual_seed(0)
PROBE = {"output_std": 0.9, "knn_top1": 0.5, "verdict": "healthy"}
ROWS = [{"step": n, "epoch": n / 2, "loss": -n / 10, **(PROBE if n % 2 == 0 else {})} for n in range(9)]
BROKEN = [{**row, "output_std": 0.1, "verdict": "collapsed"} if row.get("verdict") and row["step"] >= 4 else row for row in ROWS]


def texts(figure):
    return " ".join(text.get_text() for ax in figure.axes for text in (*ax.texts, ax.title, *(getattr(ax, "texts", []))))


def texts_of(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_curves_draw_each_run_and_where_a_collapse_begins():
    figure = curves.training_curves({"good": ROWS, "bad": BROKEN})
    loss, std, knn = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [9, 9]
    assert [len(line.get_xdata()) for line in knn.lines] == [5, 5]
    assert list(std.lines[-1].get_xdata()) == [2.0]  # the cross
    assert "collapsed" in texts(figure)
    assert "good" in texts(figure)


def test_a_metric_that_is_not_there_is_said():
    figure = curves.training_curves({"run": [{k: v for k, v in row.items() if k != "knn_top1"} for row in ROWS]})
    assert "not measured" in texts(figure)


def test_runs_without_labels_are_named_where_they_have_points():
    bare = [{k: v for k, v in row.items() if k != "knn_top1"} for row in ROWS]
    figure = curves.training_curves({"labelled": ROWS, "bare": bare})
    assert ["bare" in texts_of(ax) for ax in figure.axes] == [False, True, False]
    assert ["labelled" in texts_of(ax) for ax in figure.axes] == [False, False, True]


def test_a_spectrum_ends_where_rounding_begins_and_lines_differ():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    (ax,) = embeddings.spectrum_figure({f"run {n}": z for n in range(10)}).axes
    assert len(ax.lines[0].get_xdata()) == 3
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 10


def test_teacher_curves_need_distributions():
    with pytest.raises(Misuse, match="DINO"):
        curves.teacher_curves({"run": ROWS})
    targets = [{**row, "target_kl": 0.5, "target_entropy": 2.0, "target_outputs": 8} for row in ROWS]
    figure = curves.teacher_curves({"run": targets})
    assert "ln 8" in texts(figure)
    assert figure.axes[0].get_ylim()[1] > math.log(8)


def test_spectrum_names_the_effective_rank():
    z = torch.cat([torch.eye(8)[:3], -torch.eye(8)[:3]])  # 6, whose mean is 0: 5 directions at most
    figure = embeddings.spectrum_figure({"three": z})
    assert "effective rank 3 of 5" in texts(figure)
    assert figure.axes[0].lines[0].get_ydata()[:3] == pytest.approx([1, 1, 1], rel=1e-4)


def test_a_spectrum_of_one_image_is_refused():
    with pytest.raises(Misuse, match="one image"):
        embeddings.spectrum_figure({"a": torch.randn(1, 5)})


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 7)), (2, (6, 7)), (3, (6, 7, 3)), (5, (6, 7, 3))])
def test_images_of_any_channels_are_shown(channels, shape):
    assert embeddings.shown(torch.zeros(channels, 6, 7, dtype=torch.uint8)).shape == shape


def test_a_class_and_a_run_may_be_called_as_a_formula():
    labels, names = torch.arange(40) % 2, ("$x_$", "b")
    z = torch.randn(2, 40, 5)
    made = [
        embeddings.map_figure(z[0], labels, names),
        embeddings.sphere_figure(z, labels, names),
        embeddings.hypersphere_figure(z, labels, names),
        embeddings.spectrum_figure({"r$_$": z[0]}),
        curves.training_curves({"r$_$": ROWS}),
    ]
    for figure in made:
        rendered(figure, "png", dpi=50)


def test_images_without_a_label_are_grey_and_nameless():
    labels = torch.tensor([0, -1, 1, -1, 0, 1])
    groups = embeddings.by_class(labels, ("a", "b"), 6)
    assert [(name, rows.nonzero()[:, 0].tolist()) for name, rows, _, _ in groups] == [("", [1, 3]), ("a", [0, 4]), ("b", [2, 5])]
    assert sum(len(points.get_offsets()) for points in embeddings.map_figure(torch.randn(6, 5), labels).axes[0].collections) == 6
    assert [rows.all() for _, rows, _, _ in embeddings.by_class(torch.full((4,), -1), (), 4)] == [True]


def test_density_of_the_angle_integrates_to_one():
    z = torch.randn(2, 80, 2, generator=G)
    figure = embeddings.hypersphere_figure(z, torch.arange(80) % 2, ("a", "b"))
    lines = [ax.lines[0] for ax in figure.axes if ax.get_xlabel() == "angle"]
    assert len(lines) == 3
    for line in lines:
        assert torch.trapezoid(torch.tensor(line.get_ydata()), torch.tensor(line.get_xdata())) == pytest.approx(1, abs=1e-3)
    assert "2 dimensions, as they are" in texts(figure)


def test_the_circle_says_how_much_of_many_dimensions_it_keeps():
    z = torch.randn(2, 300, 8, generator=G) * torch.tensor([9.0, 9.0, *[0.01] * 6])
    assert "2 principal directions of 8,\n100% of the variance" in texts(embeddings.hypersphere_figure(z))
    assert embeddings.sphere_figure(z).axes


def test_a_sphere_of_two_dimensions_is_refused():
    with pytest.raises(Misuse, match="2 dimensions: this picture takes 3"):
        embeddings.sphere_figure(torch.randn(2, 10, 2))


def test_figures_of_a_diverged_run_are_refused():
    for draw in (embeddings.hypersphere_figure, embeddings.sphere_figure, embeddings.map_figure):
        with pytest.raises(Misuse, match="not finite"):
            draw(torch.full((2, 9, 4), math.nan))


def test_map_separates_what_is_apart():
    z = torch.cat([torch.randn(30, 8, generator=G) + 9, torch.randn(30, 8, generator=G) - 9])
    figure = embeddings.map_figure(z, torch.arange(60) // 30, ("up", "down"))
    one, two = (torch.tensor(c.get_offsets().data) for c in figure.axes[0].collections)
    assert torch.cdist(one.mean(0)[None], two.mean(0)[None]) > 2 * torch.cdist(one, one).mean()
    assert "up" in texts(figure)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    options = {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 3}
    return Encoder(name="timm:vit_tiny_patch16_224", options=options).build(16).eval()


def test_attention_is_the_class_tokens_softmax(vit):
    """Against q k^T written out, at a size and shape that the network was not built for."""
    x = torch.randn(2, 3, 24, 32, generator=G)
    found = attention.attention_of(vit, x)
    assert found.shape == (2, 3, 6, 8)
    seen = []
    block = vit.net.blocks[-1]
    hook = block.attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out))
    fused = block.attn.fused_attn
    vit(x)
    hook.remove()
    q, k, _ = seen[0].unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(found.flatten(2), expected)
    assert block.attn.fused_attn == fused  # as it was


@pytest.mark.parametrize(
    ("name", "options"),
    [("cait_xxs24_224", {"depth": 1}), ("vit_small_patch16_18x2_224", {"depth": 1}), ("xcit_nano_12_p16_224", {"depth": 1})],
)
def test_an_attention_of_another_kind_is_refused(name, options):
    with pytest.raises(Misuse, match="attention of its last block"):
        attention.attention_of(Encoder(name=f"timm:{name}", options=options).build(32), torch.zeros(1, 3, 32, 32))


def test_patch_colours_tell_two_kinds_of_tokens_apart(vit):
    assert attention.patches_of(vit, torch.randn(1, 3, 8, 16, generator=G)).shape == (1, 2, 4, 24)
    tokens = torch.randn(2, 4, 4, 24, generator=G) * 0.01
    tokens[:, :2] += 1
    rgb = attention.rgb_of(tokens)
    assert rgb.shape == (2, 4, 4, 3)
    assert 0 <= rgb.min() <= rgb.max() <= 1
    assert (rgb[:, :2, :, 0].mean() - rgb[:, 2:, :, 0].mean()).abs() > 0.9


def test_a_convnet_has_no_attention():
    with pytest.raises(Misuse, match="patch"):
        attention.patch_side(Encoder(name="resnet-small", options={"widths": [8]}).build(8))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_by_suffix(tmp_path, suffix):
    save(curves.training_curves({"run": ROWS}), tmp_path / f"x.{suffix}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"x.{suffix}").read_bytes().startswith(start)
    with pytest.raises(Misuse, match=r"\.svg"):
        save(curves.training_curves({"run": ROWS}), tmp_path / "x.gif")


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """A ViT's run and a convnet's, on digits: a picture opens its run's data by name."""
    root = tmp_path_factory.mktemp("runs")
    short = {"data": "digits", "epochs": 1, "batch_size": 256, "probe_every": 1}
    return [
        sd.pretrain("dino", out=root / "vit", **{**VIT, **short}).path,
        sd.pretrain("simsiam", out=root / "conv", **{**TINY, **short}).path,
    ]


@pytest.mark.parametrize("what", ["curves", "teacher", "spectrum", "hypersphere", "sphere", "neighbours", "attention", "patches"])
def test_every_picture_by_the_command(what, run, digits_runs, tmp_path):
    paths = digits_runs if what in ("curves", "spectrum") else digits_runs[:1]
    code, out, err = run("picture", what, *paths, "--out", "x.png")
    assert code == 0, err
    assert "x.png" in out
    pixels = imread(tmp_path / "x.png")
    assert min(pixels.shape[:2]) > 150
    assert pixels[..., :3].std() > 0.02  # not a blank sheet


def test_pictures_of_an_image_file(run, digits_runs, tmp_path):
    Image.effect_noise((60, 40), 80).save(tmp_path / "noise.png")
    for what in ("attention", "patches", "neighbours"):
        size = [] if what == "neighbours" else ["--size", "20"]
        code, _, err = run("picture", what, digits_runs[0], "noise.png", "--out", f"{what}.svg", *size)
        assert code == 0, err
        assert (tmp_path / f"{what}.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["curve", "RUN"], "curves"),
        (["curves", "nowhere"], "recipe.yaml"),
        (["curves", "RUN", "--out", "x.gif"], ".svg"),
        (["attention", "RUN"], "patch"),
        (["teacher", "RUN"], "DINO"),
        (["curves", "RUN", "--size", "64"], "size=64: attention, patches"),
        (["map", "RUN", __file__], "test_figures.py: neighbours"),
        (["hypersphere", "RUN", "RUN"], "a second run"),
    ],
)
def test_the_commands_misuse(run, digits_runs, tmp_path, args, said):
    code, _, err = run("picture", *(digits_runs[1] if a == "RUN" else a for a in args))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err


@pytest.mark.parametrize(("images", "side"), [(1, 1), (2, 1), (1, 2)])
def test_colours_of_fewer_patches_than_three(images, side):
    """One image of one patch: all alike."""
    tokens = torch.randn(images, side, side, 5, generator=torch.Generator().manual_seed(0))
    found = attention.rgb_of(tokens)
    assert found.shape == (images, side, side, 3)
    assert found.isfinite().all()

"""Backbones by name, by option, and of the user's own."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selfdistill.errors import Misuse
from selfdistill.evaluate.features import features
from selfdistill.methods import METHODS
from selfdistill.parts.backbone import Backbone, TensorDropPath, statistics_kept
from selfdistill.parts.encoder import Encoder
from selfdistill.siamese import Siamese


@pytest.mark.parametrize(
    ("name", "size", "channels", "dim", "more"),
    [
        ("resnet18", 32, 1, 512, {"stem": "3x3"}),
        ("resnet50", 33, 5, 2048, {"stem": "3x3/2"}),
        ("resnet-small", 28, 1, 256, {"stem": "3x3/2"}),
        ("resnet-small", 8, 3, 24, {"options": {"widths": [12, 24]}}),
        ("timm:resnet18", 64, 3, 512, {}),
        ("timm:vit_tiny_patch16_224", 48, 1, 192, {}),
        ("timm:vit_tiny_patch16_224", 28, 3, 192, {"options": {"patch_size": 7, "depth": 2}}),
        ("timm:convnext_atto", 64, 3, 320, {}),
        ("timm:swin_tiny_patch4_window7_224", 112, 3, 768, {}),
        ("timm:mixer_s32_224", 64, 3, 512, {}),
        ("timm:vit_small_patch16_18x2_224", 32, 3, 384, {"options": {"depth": 1}}),
    ],
)
def test_any_encoder_gives_features_and_gradients(name, size, channels, dim, more):
    encoder = Encoder(name=name, channels=channels, **more).build(size)
    assert encoder.dim == dim
    h = encoder(torch.rand(2, channels, size, size))
    assert h.shape == (2, dim)
    h.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_a_vit_takes_another_size_than_it_was_made_for():
    encoder = Encoder(name="timm:vit_tiny_patch16_224").build(64)
    assert encoder(torch.rand(1, 3, 96, 96)).shape == (1, 192)


@pytest.mark.parametrize("name", ["resnet18", "resnet-small", "timm:resnet18", "timm:resnet10t", "timm:skresnet18", "timm:resnet50_gn"])
def test_the_stem_keeps_the_resolution(name):
    shapes = []
    for stem in ("7x7", "3x3/2", "3x3"):
        encoder = Encoder(name=name, stem=stem).build(32)
        hook = encoder.net.maxpool.register_forward_hook(lambda _, x, out: shapes.append(out.shape[-1]))
        encoder(torch.rand(2, 3, 32, 32))
        hook.remove()
    assert shapes == [8, 16, 32]


@pytest.mark.parametrize("name", ["resnet18", "resnet-small", "timm:resnet18"])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_initialised_residuals(name, zero):
    encoder = Encoder(name=name, zero_init_residual=zero, stem="3x3").build(16)
    last = [m.weight for n, m in encoder.named_modules() if n.endswith(".bn2")]
    assert last
    assert all(bool((w == 0).all()) == zero for w in last)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"features_only": True}, "gives a list"),
        ("resnet-small", {"widths": []}, "widths"),
        ("resnet-small", {"widths": [-3]}, "widths"),
    ],
)
def test_an_option_that_leaves_no_features_is_refused(name, options, said):
    with pytest.raises(Misuse, match=said):
        Encoder(name=name, options=options).build(32)


def test_an_option_that_yaml_reads_as_a_key_without_a_value_is_refused():
    with pytest.raises(Misuse, match="a space after the colon"):
        METHODS["dino"].edit(["encoder.options={depth:3}"])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("xcit_nano_12_p16_224", {"depth": 1}, "embeds patches in a way of its own"),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_drop_rate": 0.5}, "patch_drop_rate"),
        ("vit_tiny_patch16_224", {"depth": 1, "patch_size": 8}, "into 16 patches"),
        ("resnet18", {}, "no patches to mask"),
    ],
)
def test_patches_that_cannot_be_masked_are_refused_when_the_network_is_built(name, options, said):
    with pytest.raises(Misuse, match=said):
        Encoder(name=f"timm:{name}", options=options).build(32).check_patches(2, 3, 32)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("mixer_s32_224", {}, 64),
        ("crossvit_9_240", {}, 240),
        ("convit_tiny", {"depth": 2}, 64),  # 16 tokens, one of which is taken for a class token
    ],
)
def test_what_has_no_map_says_so(name, options, size):
    with pytest.raises(Misuse, match="where in the image"):
        Encoder(name=f"timm:{name}", options=options).build(size).maps(torch.zeros(1, 3, size, size))


def test_a_size_that_a_network_asserts_against_without_a_word_is_refused_with_one():
    with pytest.raises(Misuse, match=r"64 x 64 images .*: its parts do not divide"):
        Encoder(name="timm:halonet26t").build(64)


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_features_beside_tokens_are_those_of_a_pass_without_masks(pool):
    encoder = Encoder(name="timm:vit_tiny_patch16_224", options={"depth": 1, "global_pool": pool}).build(32).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder.tokens(x)[0], encoder(x))


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 3, 3), (2, 5, 7)])
def test_maps_and_tokens_are_pooled(shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * torch.ones(len(x), *shape[1:])

    backbone = Backbone(Net(), 1, 8)
    assert backbone.dim == 7
    assert backbone(torch.rand(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (Encoder(name="timm:resnet81"), "timm:resnet"),
        (Encoder(name="resnet_small"), "resnet-small"),
        (Encoder(name="resnet18", options={"colour": 1}), "colour"),
        (Encoder(name="resnet-small", options={"depth": 1}), "depth"),
        (Encoder(name="timm:vit_tiny_patch16_224", options={"patch_size": 5}), "patch size (5)"),
        (Encoder(name="python:Net"), "sd.load(RUN, encoder=module)"),
    ],
)
def test_an_encoder_that_cannot_be(spec, said):
    with pytest.raises(Misuse, match=r"^encoder") as e:
        spec.build(32)
    assert said in str(e.value)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "resnet18"])
def test_checkpointing_changes_no_output_and_no_gradient(name):
    options = {"patch_size": 8, "depth": 2} if "vit" in name else {}
    plain, saving = (Encoder(name=name, options=options, checkpointing=on).build(16) for on in (False, True))
    saving.load_state_dict(plain.state_dict())
    x, grads = torch.rand(3, 3, 16, 16), []
    for encoder in (plain, saving):
        encoder(x).square().sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_saves_activations():
    kept = []
    for on in (False, True):
        encoder = Encoder(name="timm:vit_tiny_patch16_224", options={"patch_size": 8, "depth": 4}, checkpointing=on).build(16)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            encoder(torch.rand(8, 3, 16, 16))
        weights = sum(p.numel() for p in encoder.parameters())
        kept.append(sum(sizes) - weights)
    assert kept[1] < kept[0] / 2


def test_an_encoder_that_cannot_checkpoint_says_so():
    with pytest.raises(Misuse, match=r"encoder\.checkpointing=true: encoder=resnet-small cannot"):
        Encoder(name="resnet-small", checkpointing=True).build(16)


@pytest.mark.parametrize(("name", "blocks"), [("timm:vit_tiny_patch16_224", 2), ("resnet18", 1)])
def test_compiled_is_the_same_function_with_the_same_state(name, blocks):
    """By dynamo without a compiler behind it, so that the test needs none; benchmarks/step.py has the real one."""
    torch.manual_seed(0)
    options = {"patch_size": 8, "depth": 2} if "vit" in name else {}
    encoder = Encoder(name=name, options=options).build(16).eval()
    x, keys = torch.rand(2, 3, 16, 16), list(encoder.state_dict())
    expected, compiled = encoder(x), []
    encoder.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    torch.testing.assert_close(encoder(x), expected)
    assert list(encoder.state_dict()) == keys
    assert 1 <= len(compiled) <= blocks
    if blocks > 1:  # masked passes go through the blocks too
        tokens = encoder.tokens(x, torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(encoder.dim))[1]
        assert tokens.shape == (2, 4, encoder.dim)


def test_blocks_that_differ_in_their_rate_of_drop_path_are_compiled_once():
    """But the first, which has none, and the last. As timm drops them, and nothing when it does not train."""
    torch.manual_seed(0)
    encoder = Encoder(name="timm:vit_tiny_patch16_224", options={"patch_size": 8, "depth": 6, "drop_path_rate": 0.5}).build(16)
    x, keys, compiled = torch.rand(2, 3, 16, 16), list(encoder.state_dict()), []
    expected = encoder.eval()(x)
    encoder.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    torch.testing.assert_close(encoder(x), expected)
    assert list(encoder.state_dict()) == keys
    compiled.clear()
    encoder.train().features(x).sum().backward()
    assert len(compiled) == 2
    dropped = TensorDropPath(0.25).train()(torch.ones(10_000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.var((1, 2)).max() == 0  # an image's all or none
    assert abs(dropped.mean() - 1) < 5 * (1 / 3 / 10_000) ** 0.5


@pytest.mark.parametrize(
    ("options", "share"),  # of the products, attention's own aside
    [
        ({}, (0.6, 0.7)),
        ({"reg_tokens": 4, "init_values": 0.1}, (0.6, 0.8)),
        ({"qk_norm": True, "drop_path_rate": 0.5}, (0.6, 0.7)),
        ({"global_pool": "avg", "class_token": False}, (1, 1)),
        ({"global_pool": "map"}, (1, 1)),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_what_is_not_read_of_the_last_block_is_not_computed(options, share, masked):
    """Features, the patches that are read, and gradients are those of the whole network, dropped paths included."""
    torch.manual_seed(0)
    options = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2, **options}
    encoder = Encoder(name="timm:vit_tiny_patch16_224", options=options).build(32).double().train()
    x, read = torch.rand(3, 3, 32, 32).double(), torch.zeros(3, 8, 8, dtype=torch.bool)
    read[1, 2:4, 1:6], read[2, 0, 0] = True, True

    def whole() -> tuple[Tensor, ...]:
        features, patches = encoder.tokens(x)
        return (features, patches[read.flatten(1)]) if masked else (features,)

    def part() -> tuple[Tensor, ...]:
        if not masked:
            return (encoder.features(x),)
        features, patches = encoder.tokens(x, read=read)
        return features, patches[read.flatten(1)]

    found, flops = [], []
    for outputs in (whole, part):
        torch.manual_seed(1)  # of dropped paths
        encoder.zero_grad()
        with FlopCounterMode(display=False) as counter:
            y = outputs()
        sum(t.sin().sum() for t in y).backward()
        found.append((*y, *(p.grad for p in encoder.parameters() if p.grad is not None)))
        flops.append(counter.get_flop_counts()["Global"][torch.ops.aten.addmm])
    torch.testing.assert_close(found[1], found[0])
    assert share[0] <= flops[1] / flops[0] <= share[1]
    torch.testing.assert_close(encoder.eval()(x), whole()[0])  # nothing is left behind
    assert torch.equal(encoder.tokens(x)[1], encoder.maps(x).flatten(2).mT)


class Average(VisionTransformer):
    def forward_head(self, x, pre_logits=False):
        return torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)


def own(change: Callable[[VisionTransformer], object], kind: type[VisionTransformer] = VisionTransformer) -> VisionTransformer:
    torch.manual_seed(0)
    net = kind(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, num_classes=0)
    change(net)
    return net


class Mixing(nn.Module):
    """An MLP, or an attention, of another kind: its tokens look at each other."""

    def forward(self, x, **_):
        return x + x.roll(1, 1)


def wrapped(net: VisionTransformer) -> None:
    mlp = net.blocks[-1].mlp
    inner = mlp.forward
    mlp.forward = lambda x: 3 * inner(x)


@pytest.mark.parametrize(
    ("net", "spared"),
    [
        (own(lambda net: None), 2),
        (own(lambda net: None, Average), 0),
        (own(lambda net: setattr(net, "blocks", nn.Sequential(*[net.blocks[0]] * 3))), 0),
        (own(lambda net: setattr(net.blocks[2], "mlp", net.blocks[0].mlp)), 0),
        (own(lambda net: setattr(net.blocks[2], "mlp", Mixing())), 0),
        (own(lambda net: setattr(net.blocks[2], "attn", Mixing())), 0),
        (own(lambda net: setattr(net, "blocks", nn.Sequential())), 0),
        (own(wrapped), 2),  # by its kind, and yet whole: another program stands before it
    ],
)
def test_of_a_network_that_may_do_otherwise_nothing_is_spared(net, spared):
    backbone, x = Backbone(net, 3, 16).eval(), torch.rand(2, 3, 16, 16)
    assert len(backbone.token_wise) == spared
    whole = backbone(x)
    torch.testing.assert_close(backbone.features(x), whole)
    torch.testing.assert_close(backbone(x), whole)  # and nothing was taken away


def test_a_block_computed_again_is_computed_whole():
    torch.manual_seed(0)
    encoder = Encoder(name="timm:vit_tiny_patch16_224", options={"patch_size": 8, "depth": 2}, checkpointing=True).build(16).train()
    encoder.features(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "size", "grid", "options"),
    [
        ("resnet-small", 112, 4, {}),
        ("resnet18", 64, 2, {}),
        ("timm:convnext_atto", 64, 2, {}),
        ("timm:swin_tiny_patch4_window7_224", 112, 4, {}),
        ("timm:vit_tiny_patch16_224", 14, 7, {"patch_size": 2, "depth": 1}),
    ],
)
def test_maps_are_the_features_at_each_place(name, size, grid, options):
    """A convnet's and a Swin's pool to the features, up to a last norm; a ViT's are its patch tokens, row by row."""
    encoder = Encoder(name=name, options=options).build(size).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        maps = encoder.maps(x)
        assert maps.shape == (2, encoder.dim, grid, grid)
        if "vit" in name:
            assert torch.equal(maps.flatten(2).mT, encoder.tokens(x)[1])
            assert encoder.maps(torch.rand(1, 3, 2 * size, 2 * size)).shape[2:] == (2 * grid, 2 * grid)
        elif "convnext" not in name:
            torch.testing.assert_close(maps.mean((2, 3)), encoder(x), atol=1e-5, rtol=1e-4)


def test_a_module_without_maps_says_so():
    with pytest.raises(Misuse, match="no forward_features"):
        Backbone(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 3, 2).maps(torch.rand(1, 3, 2, 2))


def test_local_crops_that_patches_do_not_fill_are_refused():
    recipe = METHODS["dino"].edit(
        ["encoder=timm:vit_tiny_patch16_224", "encoder.options={patch_size: 14, depth: 1, embed_dim: 16, num_heads: 2}", "views.size=56"]
    )
    small = ["projector.hidden=[8]", "projector.bottleneck=4", "projector.out=8"]
    with pytest.raises(Misuse, match=r"views\.locals\.size=24"):
        Siamese(recipe.edit([*small, "views.locals={count: 2, size: 24}"]), 10)
    Siamese(recipe.edit([*small, "views.locals={count: 2, size: 28}"]), 10)


def test_a_batchnorm_that_a_user_froze_stays_frozen():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4))
    backbone = Backbone(net, 1, 8)
    features(backbone, [torch.rand(2, 1, 8, 8)])
    assert [part.training for part in net] == [True, False, True]


def test_a_network_that_sees_what_masks_hide_is_refused():
    """A hybrid's patches are cut from a convnet's features, each of which has seen its neighbours' pixels."""
    with pytest.raises(Misuse, match="VisionTransformer sees what is under them"):
        Encoder(name="timm:vit_tiny_r_s16_p8_224").build(64).check_patches(2, 3, 64)
    Encoder(name="timm:vit_tiny_patch16_224").build(64).check_patches(4, 3, 64)


def test_statistics_are_kept_and_counted_for_those_that_ask():
    """SyncBatchNorm refuses to run without a count."""
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(8, 4, 2, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with statistics_kept(nn.Sequential(norm)):
        assert norm.num_batches_tracked is not None
        norm(torch.randn(8, 4, 2, 2) + 5)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    norm(torch.randn(8, 4, 2, 2) + 5)
    assert norm.num_batches_tracked == 2
    assert not torch.equal(norm.running_mean, before["running_mean"])

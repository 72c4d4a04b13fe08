"""Backbones: any timm model, ResNets for small images, a small ResNet for CPUs, any module from Python."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import timm
import torch
from pydantic import Field, field_validator
from timm.layers.mlp import Mlp, SwiGLU
from timm.models import is_model_in_modules
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer  # type: ignore[attr-defined]  # Attention has moved
from torch import Tensor, nn

from selfdistill.errors import Failure, Misuse, did_you_mean
from selfdistill.spec import Spec

Stem = Literal["7x7", "3x3", "3x3/2"]


class Encoder(Spec):
    """Images [B, channels, H, W] to features [B, F]."""

    name: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet-small, or timm:NAME for any model of timm; a bare name sets this"""
    channels: int = Field(3, ge=1)
    """channels of the input images"""
    stem: Stem = "7x7"
    """ResNets, timm's too: as ImageNet has it, 7x7 stride 2 with max-pooling; 3x3 as for CIFAR; 3x3 with stride 2 for CPUs"""
    zero_init_residual: bool = True
    """ResNets, timm's too: the last BatchNorm of each block starts at 0 (Goyal et al. 2017; SimSiam App. A)"""
    checkpointing: bool = False
    """timm's models: activations are computed again in the backward pass, a third more work for a fraction of the memory"""
    options: dict[str, Any] = {}
    """further keywords of the timm model, e.g. patch_size or drop_path_rate; widths for resnet-small. Naming another encoder empties them,
    DINO's and iBOT's drop_path_rate of 0.1 as well"""

    @field_validator("options")
    @classmethod
    def _keywords(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key in options:
            if not key.isidentifier():  # YAML reads {depth:3} as a key "depth:3" without a value, which timm would leave out
                raise ValueError(f"{key} is not a keyword: write {{depth: 3}}, with a space after the colon")
        return options

    def build(self, size: int) -> "Backbone":
        """The module, randomly initialised. Raises `Misuse` for a name or an option that is unknown, or a size that does not fit."""
        net = _network(self, size)
        if self.checkpointing:
            _checkpoint(net, self.name)
        try:
            return Backbone(net, self.channels, size)
        except (AssertionError, RuntimeError) as e:
            raise Misuse(f"encoder={self.name} does not take {size} x {size} images (views.size={size}): {e}") from e


class Backbone(nn.Module):
    """A network with a known feature width: pools feature maps [B, F, h, w] and token sequences [B, n, F] to [B, F]."""

    def __init__(self, net: nn.Module, channels: int, size: int):
        super().__init__()
        self.net: nn.Module = net
        self.dim = self.width(channels, size)
        self.token_wise = _token_wise(net)

    def forward(self, x: Tensor) -> Tensor:
        return _pooled(self.net(x))  # [B, F]

    def width(self, channels: int, size: int) -> int:
        """F for images [B, channels, size, size]. Raises whatever the network raises where it does not take them."""
        was = self.net.training
        with torch.no_grad():
            param = next(self.net.parameters(), torch.empty(0))
            dim = self.eval()(torch.zeros(1, channels, size, size, device=param.device, dtype=param.dtype)).shape[1]
        self.train(was)
        return dim

    def compile(self, **options: Any) -> None:
        """`torch.compile` in place, as nn.Module has it, but block by block where the network has `blocks` (a ViT's are all alike, so
        it is compiled once a crop size), so that masked passes are compiled too; but for a last block of which passes read different
        tokens. The state dict keeps its keys."""
        blocks: list[nn.Module] = list(getattr(self.net, "blocks", [self.net]))
        for part in blocks[: len(blocks) - bool(self.token_wise)]:
            part.compile(**options)

    def check_patches(self, side: int, channels: int, size: int) -> None:
        """Raises `Misuse` unless the network is a ViT that cuts `size` x `size` images into `side` x `side` patches."""
        if not hasattr(self.net, "patch_embed") or not hasattr(self.net, "num_prefix_tokens"):
            raise Misuse(f"views.masks: {type(self.net).__name__} has no patches to mask; use encoder=timm:vit_... or views.masks=none")
        with torch.no_grad():
            found = self.tokens(torch.zeros(1, channels, size, size))[1].shape[1]
        if found != side * side:
            raise Misuse(
                f"views.masks.patch: the encoder cuts a view of {size} pixels into {found} patches, the masks into {side} x {side}"
            )

    def features(self, x: Tensor) -> Tensor:
        """[B, F], as `forward` has them, without the part of a ViT's last block that they do not read."""
        with self._reading(None):
            return self(x)

    def tokens(
        self, x: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(features [B, F], patch tokens [B, n, F]) of a timm ViT; patches under `mask` [B, h, w] are replaced by `mask_token` [F]
        between the patch embedding and the position embedding (BEiT, iBOT). Where only the patches under `read` [B, h, w] will be
        read, the others are left unfinished."""

        def hide(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            assert mask is not None
            assert mask_token is not None
            hidden = mask if embedded.ndim == 4 else mask.flatten(1)
            return torch.where(hidden[..., None], mask_token.to(embedded.dtype), embedded)

        net: Any = self.net
        hook = net.patch_embed.register_forward_hook(hide) if mask is not None else None
        try:
            with self._reading(read) if read is not None else nullcontext():
                h = net.forward_features(x)  # [B, prefix + n, F]
        finally:
            if hook:
                hook.remove()
        return _pooled(net.forward_head(h, pre_logits=True)), h[:, net.num_prefix_tokens :]

    @contextmanager
    def _reading(self, patches: Tensor | None) -> Iterator[None]:
        """After its attention a block treats each token by itself: in the last one only those that are read, the class and register
        tokens and the `patches` [B, h, w]. Spares three quarters of that block: 6 % of a ViT of depth 12, 25 % at depth 3. A hook there
        sees 0 for the others."""

        prefix = getattr(self.net, "num_prefix_tokens", 0)
        read = None if patches is None else patches.flatten(1).nonzero().T  # [2, M]: an image and a patch of it

        def alone(part: nn.Module) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                at = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2])
                rows = at[:, :prefix].flatten()
                if read is not None:
                    rows = torch.cat([rows, at[read[0], prefix + read[1]]])
                done = type(part).forward(part, x.flatten(0, 1).index_select(0, rows))  # [R, F]
                return done.new_zeros(at.numel(), done.shape[1]).index_copy(0, rows, done).unflatten(0, at.shape)  # [B, prefix + n, F]

            return forward

        parts: list[Any] = [self.net.get_submodule(name) for name in self.token_wise]
        parts = [] if any("forward" in vars(part) for part in parts) else parts  # another's, that is to be called
        for part in parts:
            part.forward = alone(part)
        try:
            yield
        finally:
            for part in parts:
                del part.forward

    def maps(self, x: Tensor) -> Tensor:
        """[B, F, h, w] of square images: a ViT's patch tokens at their places, a convnet's last feature map.
        Raises `Misuse` where the network has none, or takes no images of this size."""
        net: Any = self.net
        if not hasattr(net, "forward_features"):
            raise Misuse(f"{type(net).__name__} has no forward_features, of which a map could be made: use a model of timm or a ResNet")
        try:
            h = net.forward_features(x)
        except (AssertionError, RuntimeError) as e:
            raise Misuse(f"{type(net).__name__} does not take images of {x.shape[-2]} x {x.shape[-1]} pixels: {e}") from e
        if h.ndim == 3:
            h = h[:, net.num_prefix_tokens :].mT  # [B, F, n]
            return h.unflatten(2, (math.isqrt(h.shape[2]), -1))
        return h.permute(0, 3, 1, 2) if str(getattr(net, "output_fmt", "NCHW")) == "NHWC" else h


def _pooled(h: Tensor) -> Tensor:
    """Feature maps [B, F, h, w] or tokens [B, n, F] to [B, F]. Raises `Misuse` for anything else."""
    if not isinstance(h, Tensor) or not 2 <= h.ndim <= 4:
        found = list(h.shape) if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise Misuse(f"encoder: it should give features [B, F], maps [B, F, h, w] or tokens [B, n, F], and gives {found}")
    return h.mean((2, 3)) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h


class SmallResNet(nn.Module):
    """One basic block per width, each after the first at half the resolution. At the default widths 1.2 M parameters, some 20
    times cheaper than ResNet-18."""

    def __init__(self, channels: int, widths: Sequence[int] = (32, 64, 128, 256), zero_init_residual: bool = True):
        super().__init__()
        i = widths[0]
        self.conv1 = nn.Conv2d(channels, i, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(i)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity()
        self.blocks = nn.Sequential()
        for n, o in enumerate(widths):
            shortcut = nn.Sequential(nn.Conv2d(i, o, 1, 2, bias=False), nn.BatchNorm2d(o)) if n else None
            self.blocks.append(BasicBlock(i, o, 2 if n else 1, shortcut))
            i = o
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                module.zero_init_last()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(self.maxpool(self.act1(self.bn1(self.conv1(x)))))  # [B, F, h, w], F the last width

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean((2, 3))  # [B, F]


def _token_wise(net: nn.Module) -> tuple[str, ...]:
    """The names of the parts of a ViT's last block that treat each token by itself, where the class token alone is read of what comes
    after: its attention's projection and its MLP. None of a network that may do otherwise than timm's: one's own forward pass, or
    blocks that share parts; nor where features are averaged, or where a block is computed again when it is no longer known what was
    read of it (checkpointing)."""
    if type(net) is not VisionTransformer or net.global_pool != "token" or net.grad_checkpointing or not len(net.blocks):
        return ()
    block: Any = net.blocks[-1]
    if (
        (type(block), type(block.attn)) != (Block, Attention)
        or type(block.attn.proj) is not nn.Linear
        or type(block.mlp) not in (Mlp, SwiGLU)
    ):
        return ()
    names = {part: [name for name, of in net.named_modules(remove_duplicate=False) if of is part] for part in (block.attn.proj, block.mlp)}
    return tuple(name for found in names.values() for name in found) if all(len(found) == 1 for found in names.values()) else ()


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


def _network(spec: Encoder, size: int) -> nn.Module:
    name = spec.name.removeprefix("timm:")
    if spec.name in RESNETS or (spec.name != name and is_model_in_modules(name, {"resnet"})):
        return _restem(_timm(name, spec, size, {"zero_init_last": spec.zero_init_residual, **spec.options}), spec)
    if spec.name != name:
        return _timm(name, spec, size, spec.options)
    if spec.name == "resnet-small":
        try:
            return _restem(SmallResNet(spec.channels, zero_init_residual=spec.zero_init_residual, **spec.options), spec)
        except (TypeError, IndexError, ValueError, RuntimeError) as e:
            raise Misuse(f"encoder.options={spec.options} does not fit resnet-small, which takes widths, a list of numbers: {e}") from e
    if spec.name.startswith("python:"):
        raise Misuse(f"encoder={spec.name}: this run was made with a module of your own: pass it from Python, encoder=module")
    hint = did_you_mean(spec.name, [*RESNETS, "resnet-small", *(f"timm:{m}" for m in timm.list_models())])
    raise Misuse(f"encoder={spec.name}: no such encoder. Allowed: {', '.join(RESNETS)}, resnet-small, timm:NAME.{hint}")


def _restem(net: Any, spec: Encoder) -> nn.Module:
    """The stem in place: a small image must not lose 4 x in resolution before the first block."""
    if spec.stem != "7x7":
        net.conv1 = nn.Conv2d(spec.channels, net.bn1.num_features, 3, 2 if spec.stem == "3x3/2" else 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        net.made_as = None  # timm makes no such network
    return net


def _unfused(net: Any) -> Any:
    """On a CPU attention by three products: PyTorch's fused kernel is 2.5 to 9 times slower in bf16 (197 and 17 tokens)."""
    for module in net.modules():
        if hasattr(module, "fused_attn") and not torch.cuda.is_available():  # timm's attentions share no class
            module.fused_attn = False
    return net


def _checkpoint(net: Any, name: str) -> None:
    try:
        net.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as e:  # AssertionError: timm's own word for a model that cannot
        raise Misuse(f"encoder.checkpointing=true: encoder={name} cannot; timm's ViTs and most of its convnets can") from e


def pretrained(name: str, spec: Encoder, size: int) -> dict[str, Tensor]:
    """The weights of timm's pretrained model of that name, which timm fits to `spec`'s channels and options and to the size of the
    images. Raises `Misuse`, or `Failure` where they cannot be downloaded."""
    options = spec.options if spec.name.removeprefix("timm:") == name.partition(".")[0] else {}
    return _timm(name, spec, size, {**options, "pretrained": True}).state_dict()


def _timm(name: str, spec: Encoder, size: int, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), before="timm:")
        raise Misuse(f"encoder=timm:{name}: timm {timm.__version__} has no model of that name; timm.list_models() lists all.{hint}")
    # A ViT is made for any size, a Swin for this one, a convnet needs neither keyword: the first that the model accepts.
    problem: Exception = ValueError()
    accepted: list[dict[str, Any]] = [{"img_size": size, "dynamic_img_size": True}, {"img_size": size}, {}]
    for sized in accepted:
        keywords = {"in_chans": spec.channels, **sized, **options}
        try:
            net = _unfused(timm.create_model(name, num_classes=0, **keywords))
            net.made_as = (name, keywords)  # how another program makes it
            return net
        except (TypeError, ValueError, AssertionError) as e:
            problem = e
        except Exception as e:  # the hub's and the network's errors share no class
            if options.get("pretrained"):
                why = " ".join(str(e).split())[:200]
                raise Failure(f"timm:{name}: its weights cannot be had ({why}): download them elsewhere, and init_from=FILE") from e
            problem = e
    raise Misuse(
        f"encoder=timm:{name} cannot be built for {size} x {size} images (views.size={size}) with encoder.options={options}: {problem}"
    )

"""A network as a backbone: of a known width, pooled, with the patch tokens and maps that it has."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp, SwiGLU
from timm.layers.patch_dropout import PatchDropout, PatchDropoutWithIndices
from timm.models.vision_transformer import Attention, Block, VisionTransformer  # type: ignore[attr-defined]  # Attention has moved
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfdistill.errors import Misuse
from selfdistill.parts.strided import with_sound_gradients


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """In eval mode, and then each part in the mode that it had: a BatchNorm that a user froze stays frozen."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """For a backward pass that computes activations again (encoder.checkpointing): BatchNorm's running statistics have moved in the
    forward pass, and would move once more."""
    moving = [(part, part.momentum, part.num_batches_tracked) for part in network.modules() if isinstance(part, _BatchNorm)]
    for part, _, batches in moving:
        part.momentum = 0.0
        part.num_batches_tracked = None if batches is None else batches.clone()  # SyncBatchNorm asks for one
    try:
        yield
    finally:
        for part, momentum, batches in moving:
            part.momentum, part.num_batches_tracked = momentum, batches


def has_batchnorm(network: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in network.modules())


def device_of(network: nn.Module) -> torch.device:
    """Where its parameters are; the CPU if it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


class TensorDropPath(DropPath):
    """timm's, with its rate in a tensor: of floats, a ViT's blocks have one each, and each makes another graph to compile."""

    kept: Tensor

    def __init__(self, rate: float):
        super().__init__(rate)
        self.register_buffer("kept", torch.tensor(1 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows = torch.rand((len(x), *(1,) * (x.ndim - 1)), device=x.device) < self.kept
        return x * rows / self.kept.to(x.dtype)


class Backbone(nn.Module):
    """A network with a known feature width: pools feature maps [B, F, h, w] and token sequences [B, n, F] to [B, F]."""

    def __init__(self, net: nn.Module, channels: int, size: int):
        super().__init__()
        self.net: nn.Module = with_sound_gradients(net)
        self.dim = self.width(channels, size)
        self.token_wise = _token_wise(net)

    def forward(self, x: Tensor) -> Tensor:
        return _pooled(self.net(x))  # [B, F]

    def width(self, channels: int, size: int) -> int:
        """F for images [B, channels, size, size]. Raises whatever the network raises where it does not take them."""
        param = next(self.net.parameters(), torch.empty(0))
        with torch.no_grad(), in_eval(self):
            return self(torch.zeros(1, channels, size, size, device=param.device, dtype=param.dtype)).shape[1]

    def compile(self, **options: Any) -> None:
        """`torch.compile` in place, as nn.Module has it, but block by block where the network has `blocks` (a ViT's are all alike, so
        it is compiled once a crop size), so that masked passes are compiled too; but for a last block of which passes read different
        tokens. The state dict keeps its keys."""
        for part in list(self.net.modules()):
            for name, child in part.named_children():
                if isinstance(child, DropPath):  # a teacher's too, of rate 0: its buffers are those of its student
                    setattr(part, name, TensorDropPath(child.drop_prob).train(child.training))
        blocks: list[nn.Module] = list(getattr(self.net, "blocks", [self.net]))
        for part in blocks[: len(blocks) - bool(self.token_wise)]:
            part.compile(**options)

    def check_patches(self, side: int, channels: int, size: int) -> None:
        """Raises `Misuse` unless the network is a ViT that cuts `size` x `size` images into `side` x `side` patches."""
        if not hasattr(self.net, "patch_embed") or not hasattr(self.net, "num_prefix_tokens"):
            raise Misuse(f"views.masks: {type(self.net).__name__} has no patches to mask; use encoder=timm:vit_... or views.masks=none")
        if any(getattr(module, "prob", 0) for module in self.net.modules() if isinstance(module, PatchDropout | PatchDropoutWithIndices)):
            raise Misuse("views.masks: encoder.options.patch_drop_rate drops patches that the masks ask for: leave it out")
        x = torch.zeros(1, channels, size, size)
        with torch.no_grad():
            found = self.tokens(x)[1].shape[1]
            if found != side * side:
                raise Misuse(
                    f"views.masks.patch: the encoder cuts a view of {size} pixels into {found} patches, the masks into {side} x {side}"
                )
            self.tokens(x, torch.zeros(1, side, side, dtype=torch.bool), torch.zeros(self.dim))
            hidden = torch.arange(side).remainder(2).eq(0).expand(1, side, side)  # every other column
            other = x + F.interpolate(hidden[None].float(), (size, size))  # the same but for what is under the mask
            with in_eval(self):
                tokens = [self.tokens(image, hidden, torch.zeros(self.dim))[1] for image in (x, other)]
            if not torch.equal(*tokens):
                raise Misuse(
                    f"views.masks: this {type(self.net).__name__} sees what is under them, as its patches are cut from the features of a "
                    "convnet: use a plain encoder=timm:vit_..., or views.masks=none"
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
            if not isinstance(embedded, Tensor):
                raise Misuse(f"views.masks: {type(net).__name__} embeds patches in a way of its own: use encoder=timm:vit_...")
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
            raise Misuse(f"{type(net).__name__} does not take images of {x.shape[-2]} x {x.shape[-1]} pixels: {why(e)}") from e
        if isinstance(h, Tensor) and h.ndim == 4:
            return h.permute(0, 3, 1, 2) if str(getattr(net, "output_fmt", "NCHW")) == "NHWC" else h
        if isinstance(h, Tensor) and h.ndim == 3 and hasattr(net, "num_prefix_tokens"):
            h = h[:, net.num_prefix_tokens :].mT  # [B, F, n]
            side = math.isqrt(h.shape[2])
            if side * side == h.shape[2]:
                return h.unflatten(2, (side, side))
        raise Misuse(f"{type(net).__name__} does not say where in the image its features lie, so there is no map of them")


def why(e: Exception) -> str:
    """What a network said that did not take images; some assert without a word."""
    return str(e) or "its parts do not divide images of that size"


def _pooled(h: Tensor) -> Tensor:
    """Feature maps [B, F, h, w] or tokens [B, n, F] to [B, F]. Raises `Misuse` for anything else."""
    if not isinstance(h, Tensor) or not 2 <= h.ndim <= 4:
        found = list(h.shape) if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise Misuse(f"encoder: it should give features [B, F], maps [B, F, h, w] or tokens [B, n, F], and gives {found}")
    return h.mean((2, 3)) if h.ndim == 4 else h.mean(1) if h.ndim == 3 else h


def _token_wise(net: nn.Module) -> tuple[str, ...]:
    """The names of the modules of a ViT's last block that act on each token by itself (attention's projection, MLP), through which only
    tokens that are read need pass. Empty where that might change the result: a forward pass other than timm's, averaged features,
    modules that blocks share, or checkpointing, which runs the block again when it is no longer known what was read."""
    if type(net) is not VisionTransformer or net.global_pool != "token" or net.grad_checkpointing or not len(net.blocks):
        return ()
    block: Any = net.blocks[-1]
    if (
        (type(block), type(getattr(block, "attn", None))) != (Block, Attention)
        or type(block.attn.proj) is not nn.Linear
        or type(block.mlp) not in (Mlp, SwiGLU)
    ):
        return ()
    names = {part: [name for name, of in net.named_modules(remove_duplicate=False) if of is part] for part in (block.attn.proj, block.mlp)}
    return tuple(name for found in names.values() for name in found) if all(len(found) == 1 for found in names.values()) else ()

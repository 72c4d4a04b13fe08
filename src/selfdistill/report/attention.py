"""What a ViT looks at, and what its patches are to it (DINO Fig. 1; DINOv2 Fig. 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from selfdistill.errors import Misuse
from selfdistill.parts.backbone import Backbone
from selfdistill.report.embeddings import shown
from selfdistill.report.style import blank, panels, titled

NO_MAP = "the attention of its last block is not of each token to each, as a ViT's is; patches shows its tokens"


def patch_side(backbone: Backbone) -> int:
    """Pixels of a patch. Raises `Misuse` for a network without patches."""
    embed: Any = getattr(backbone.net, "patch_embed", None)
    if embed is None or not hasattr(backbone.net, "num_prefix_tokens"):
        raise Misuse(f"{type(backbone.net).__name__} has no patch tokens: attention and patches are of a ViT (encoder=timm:vit_...)")
    side = embed.patch_size
    return int(side if isinstance(side, int) else side[0])


@torch.no_grad()
def attention_of(backbone: Backbone, x: Tensor) -> Tensor:
    """[B, heads, h, w]: how the class token of the last block attends to the patches of x [B, C, H, W], H and W multiples of a patch;
    what it gives to itself and to registers is left out, so a map sums to less than 1. Raises `Misuse` where there is no class token."""
    side = patch_side(backbone)
    net: Any = backbone.net
    if not net.num_prefix_tokens:
        raise Misuse(f"{type(net).__name__} has no class token whose attention could be shown; patches shows its tokens")
    attend: Any = getattr(net.blocks[-1], "attn", None)
    if not (hasattr(attend, "fused_attn") and hasattr(attend, "attn_drop")):
        raise Misuse(f"{type(net).__name__}: {NO_MAP}")
    found: list[Tensor] = []
    fused, attend.fused_attn = attend.fused_attn, False  # only the unfused product leaves its weights, as attn_drop's input
    hook = attend.attn_drop.register_forward_hook(lambda module, args, out: found.append(args[0]))
    try:
        backbone.eval()(x)
    finally:
        attend.fused_attn = fused
        hook.remove()
    h, w = x.shape[2] // side, x.shape[3] // side
    if not found or found[0].shape[-2:] != 2 * (net.num_prefix_tokens + h * w,):
        raise Misuse(f"{type(net).__name__}: {NO_MAP}")
    return found[0][:, :, 0, net.num_prefix_tokens :].float().unflatten(-1, (h, w))


@torch.no_grad()
def patches_of(backbone: Backbone, x: Tensor) -> Tensor:
    """[B, h, w, F]: the patch tokens of x [B, C, H, W]."""
    side = patch_side(backbone)
    return backbone.eval().tokens(x)[1].float().unflatten(1, (x.shape[2] // side, x.shape[3] // side))


def rgb_of(tokens: Tensor) -> Tensor:
    """[B, h, w, 3] in [0, 1]: the first three principal directions of patch tokens [B, h, w, F], over all images together, each
    stretched between its 2nd and 98th percentile."""
    flat = tokens.flatten(0, 2).double()
    flat = flat - flat.mean(0)
    three = flat @ torch.linalg.svd(flat, full_matrices=False)[2][:3].T  # [B h w, 3], fewer of fewer than three patches
    three = F.pad(three, (0, 3 - three.shape[1]))
    low, high = three.quantile(0.02, dim=0), three.quantile(0.98, dim=0)
    return ((three - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).unflatten(0, tokens.shape[:3]).float()


def attention_figure(images: list[Tensor], maps: list[Tensor]) -> Figure:
    """A row for each image [C, H, W] uint8 with its maps [heads, h, w]: the image, the mean of the heads, each head. A panel's scale
    is its own, from 0 to its largest; the title gives that, in units of what a uniform attention would give each patch."""
    heads = max(len(m) for m in maps)
    figure, axes = panels(len(images), heads + 2, (1.5, _height(images, 1.5)))
    for row, image, of in zip(axes, images, maps, strict=True):
        row[0].imshow(shown(image), cmap="gray", vmin=0, vmax=255)
        named = [("mean of heads", of.mean(0)), *((f"head {n}", head) for n, head in enumerate(of, 1))]
        for ax, (name, head) in zip(row[1:], named, strict=False):
            extent = (0, image.shape[2], image.shape[1], 0)
            ax.imshow(head, cmap="viridis", vmin=0, extent=extent, interpolation="nearest")
            titled(ax, f"{name}, x{float(head.max()) * head.numel():.1f}")
        for ax in row:
            blank(ax)
        titled(row[0], "image")
    return figure


def patches_figure(images: list[Tensor], colours: list[Tensor]) -> Figure:
    """Images [C, H, W] uint8 above their patch tokens as RGB [h, w, 3]: like colours are like tokens, in all images."""
    figure, axes = panels(2, len(images), (1.6, _height(images, 1.6)))
    for column, (image, rgb) in enumerate(zip(images, colours, strict=True)):
        axes[0, column].imshow(shown(image), cmap="gray", vmin=0, vmax=255)
        axes[1, column].imshow(rgb, extent=(0, image.shape[2], image.shape[1], 0), interpolation="nearest")
        for ax in axes[:, column]:
            blank(ax)
    titled(axes[0, 0], "image")
    titled(axes[1, 0], "patch tokens, PCA as RGB")
    return figure


def _height(images: list[Tensor], width: float) -> float:
    """Inches of a panel `width` inches wide that the tallest of the images [C, H, W] needs, with its title."""
    return 0.2 + width * max(image.shape[1] / image.shape[2] for image in images)

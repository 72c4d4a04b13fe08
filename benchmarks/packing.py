"""Crops of two sizes through a ViT's blocks, forward and backward: a pass for each size, and all tokens packed into one sequence.

    python benchmarks/packing.py [--batch 8] [--precision fp32|bf16] [--rounds 7]

2 x 224 + 6 x 96 through ViT-Ti/16, as in benchmarks/step.py. Packed, norms, projections and MLPs see one long sequence, and attention is
within each size (block-diagonal, without a mask). Exits with 1 where the two differ by more than rounding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from selfdistill.train.allocator import keep_freed_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attention(attn: nn.Module, qkv: Tensor, images: int) -> Tensor:
    """qkv [images * T, 3 D] to [images * T, D]. On a CPU three products, as in parts/encoder.py."""
    q, k, v = qkv.view(images, -1, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)  # [images, heads, T, D / heads] each
    out = (q * attn.scale @ k.mT).softmax(-1) @ v if DEVICE.type == "cpu" else scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(len(qkv), -1)


def through(vit: nn.Module, x: Tensor, attend: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    for block in vit.blocks:
        x = x + block.attn.proj(attend(block.attn, block.attn.qkv(block.norm1(x))))
        x = x + block.mlp(block.norm2(x))
    return x


def apart(vit: nn.Module, crops: list[Tensor]) -> list[Tensor]:
    return [through(vit, x.flatten(0, 1), partial(attention, images=len(x))).view_as(x) for x in crops]


def packed(vit: nn.Module, crops: list[Tensor]) -> list[Tensor]:
    tokens = [x.shape[0] * x.shape[1] for x in crops]

    def attend(attn: nn.Module, qkv: Tensor) -> Tensor:
        return torch.cat([attention(attn, part, len(x)) for part, x in zip(qkv.split(tokens), crops, strict=True)])

    out = through(vit, torch.cat([x.flatten(0, 1) for x in crops]), attend)
    return [part.view_as(x) for part, x in zip(out.split(tokens), crops, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).to(DEVICE)
    crops = [torch.randn(views * args.batch, t, vit.embed_dim, device=DEVICE) for views, t in ((2, 197), (6, 37))]
    seconds: dict[str, list[float]] = {}
    found: dict[str, Tensor] = {}
    for _ in range(args.rounds + 1):
        for way in (apart, packed):
            start = time.perf_counter()
            vit.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=args.precision == "bf16"):
                classes = torch.cat([x[:, 0] for x in way(vit, crops)]).float()
            classes.square().mean().backward()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.setdefault(way.__name__, []).append(time.perf_counter() - start)
            found[way.__name__] = classes.detach()
    one, two = (statistics.median(seconds[name][1:]) for name in ("packed", "apart"))  # the first round warms up
    print(f"batch {args.batch} {args.precision} {DEVICE.type}: apart {1e3 * two:.0f} ms, packed {1e3 * one:.0f} ms, ratio {one / two:.2f}")
    if not torch.allclose(found["packed"], found["apart"], atol=1e-4 if args.precision == "fp32" else 0.1):
        sys.exit("packed and apart differ")


if __name__ == "__main__":
    main()

"""What a result and its time depend on beside the recipe: versions and the machine."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from selfdistill.data.loader import cores


def versions() -> dict[str, str]:
    """What a result may depend on."""
    return {
        "python": platform.python_version(),
        **{p: version(p) for p in ("selfdistill", "torch", "torchvision", "timm", "numpy", "pillow")},
    }


def machine() -> str:
    """What a time depends on, in words."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(cuda) or f"{cores()} CPU cores, {torch.backends.cpu.get_cpu_capability()}"


def has_bf16() -> bool:
    """Hardware with bf16 arithmetic: Ampere and later, CPUs with AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private, but in every release since 2.9; the public torch.cpu.get_capabilities is younger.
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())

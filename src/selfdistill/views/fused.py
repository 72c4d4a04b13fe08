"""The views of a CPU: per image all of augment.py's operations in a row, compiled (numba), while the view stays in the cache.

The definition is the PyTorch of crop.py, color.py and augment.py, which draws all that is random and says what it means; here are only
the loops over pixels, as single-precision vectors. The same to rounding, 1e-5 of a normalised float (tests/views/test_fused.py).
Threads are Python's, started for each call: nothing is left that a fork could break, as OpenMP's threads are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
f32 = np.float32
RED, GREEN, BLUE = f32(0.2989), f32(0.587), f32(0.114)  # color.LUMA
ZERO, HALF, ONE, TWO, THREE, FOUR, FIVE, SIX, SIXTH = (f32(n) for n in (0, 0.5, 1, 2, 3, 4, 5, 6, 1 / 6))
NOTHING, LEVELS, THRESHOLD = f32(1e-12), f32(255), f32(128 / 255)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Drawn(NamedTuple):
    """What has been drawn for one view of B images."""

    box: Tensor
    """int64 [B, 4]: top, left, height, width of the crop"""
    flip: Tensor
    """bool [B]"""
    order: Tensor
    """int64 [B, n]: which operation of the jitter comes first, second, ..."""
    factor: Tensor
    """float32 [B, n]: of each operation; what leaves an image as it is, 1 or no turn, where there is no jitter"""
    grey: Tensor
    """bool [B]"""
    sigma: Tensor
    """float32 [B]: of the blur in pixels, 0 for none"""
    solarize: Tensor
    """bool [B]"""
    erased: Tensor
    """int64 [B, 4]: a rectangle as `box` is, height 0 for none"""


def fused(images: Tensor, v: int, drawn: Drawn, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor) -> None:
    """Images [B, V, C, H, W], uint8, to `out` [B, C, S, S], float and normalised: of each image the one at `v` in the second dimension.

    By torch.get_num_threads() threads, whose number changes nothing.
    """
    channels = images.shape[2]
    scale, shift = (np.broadcast_to(np.asarray(n, f32), channels) for n in (1 / np.asarray(std), -np.asarray(mean) / np.asarray(std)))
    arrays = (images.contiguous().numpy(), v, Drawn(*(part.contiguous().numpy() for part in drawn)), scale.copy(), shift.copy(), out.numpy())
    count = min(len(images), torch.get_num_threads())
    cuts = [len(images) * n // count for n in range(count + 1)] if count else [0, 0]
    threads = [Thread(target=_views, args=(*arrays, *part)) for part in zip(cuts[1:-1], cuts[2:], strict=True)]
    for thread in threads:
        thread.start()
    _views(*arrays, cuts[0], cuts[1])
    for thread in threads:
        thread.join()


def _compiled(**options: Any) -> Callable[[F], F]:
    """numba.njit, its code kept on disk where that can be written."""

    def compile(f: F) -> F:
        try:
            return numba.njit(nogil=True, cache=True, **options)(f)
        except RuntimeError:  # neither this folder nor the user's cache can be written
            return numba.njit(nogil=True, **options)(f)

    return compile


# What is rounded as in PyTorch, operation by operation; and what may be rounded otherwise, sums in any order and fused multiply-adds.
exactly = _compiled(error_model="numpy")
nearly = _compiled(error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc"})


@nearly
def _views(images, v, drawn, scale, shift, out, begin, end):  # type: ignore[no-untyped-def]
    channels, size = out.shape[1:3]
    spare = np.empty((size, size), f32)
    for b in range(begin, end):
        crop_and_resize(images[b, v], drawn.box[b], drawn.flip[b], out[b])
        x = out[b].reshape((channels, size * size))
        jitter(x, drawn.order[b], drawn.factor[b])
        if drawn.grey[b] and channels == 3:
            saturation(x, ZERO)
        if drawn.sigma[b] > 0:
            blur(out[b], drawn.sigma[b], spare)
        normalize(x, scale, shift, drawn.solarize[b])
        top, left, height, width = drawn.erased[b]
        out[b, :, top : top + height, left : left + width] = ZERO


@nearly
def crop_and_resize(image, box, flip, x):  # type: ignore[no-untyped-def]
    """The box of an image [C, H, W] into x [C, S, S]: a row at a time, first down the columns of the image, then along what that gives."""
    size = x.shape[1]
    top, left, height, width = box
    first_row, row_weight = taps(top, height, size)
    first, weight = taps(left, width, size)
    if flip:
        first, weight = first[::-1].copy(), weight[:, ::-1].copy()
    line = np.empty(width, f32)
    for c in range(len(x)):
        for i in range(size):
            line[:] = ZERO
            for t in range(len(row_weight)):
                w, source = row_weight[t, i], image[c, top + first_row[i] + t, left : left + width]
                for j in range(width):
                    line[j] += w * f32(source[j])
            row = x[c, i]
            row[:] = ZERO
            for t in range(len(weight)):
                w_t, line_t = weight[t], line[t:]
                for j in range(size):
                    row[j] += w_t[j] * line_t[first[j]]
            for j in range(size):
                row[j] /= LEVELS


@exactly
def taps(start, length, n):  # type: ignore[no-untyped-def]
    """(first [n], weight [k, n]): crop.resize_weights, of each row the k pixels, from `first` of the box on, that may weigh anything."""
    scale = f32(length) / f32(n)
    support = max(scale, ONE)
    k = min(length, int(math.ceil(2 * support)))
    first, weight = np.empty(n, np.uint32), np.empty((k, n), f32)
    for i in range(n):
        centre = f32(start) - HALF + (f32(i) + HALF) * scale
        begin = min(max(int(math.floor(float(centre) - float(support))) + 1, start), start + length - k)
        first[i] = begin - start
        total = ZERO
        for t in range(k):
            weight[t, i] = max(ONE - abs(f32(begin + t) - centre) / support, ZERO)
            total += weight[t, i]
        for t in range(k):
            weight[t, i] /= total
    return first, weight


@nearly
def jitter(x, order, factor):  # type: ignore[no-untyped-def]
    for op in order:
        f = factor[op]
        if op == HUE:
            if f != 0:
                hue(x, f)
        elif f != 1:
            if op == SATURATION:
                saturation(x, f)
            else:
                blend(x, f, (ONE - f) * mean_grey(x) if op == CONTRAST else ZERO)


@nearly
def mean_grey(x):  # type: ignore[no-untyped-def]
    mean = 0.0
    for c in range(len(x)):
        total, plane = 0.0, x[c]
        for i in range(plane.size):
            total += plane[i]
        mean += total * ((RED, GREEN, BLUE)[c] if len(x) == 3 else 1 / len(x))
    return f32(mean / x.shape[1])


@nearly
def clamp(x):  # type: ignore[no-untyped-def]
    return min(max(x, ZERO), ONE)


@nearly
def blend(x, f, other):  # type: ignore[no-untyped-def]
    """Brightness and contrast."""
    for c in range(len(x)):
        plane = x[c]
        for i in range(plane.size):
            plane[i] = clamp(f * plane[i] + other)


@nearly
def saturation(x, f):  # type: ignore[no-untyped-def]
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        grey = (ONE - f) * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
        r[i], g[i], b[i] = clamp(f * r[i] + grey), clamp(f * g[i] + grey), clamp(f * b[i] + grey)


@nearly
def hue(x, shift):  # type: ignore[no-untyped-def]
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        value = max(max(r[i], g[i]), b[i])
        chroma = value - min(min(r[i], g[i]), b[i])
        inverse = ONE / max(chroma, NOTHING)
        if value == r[i]:
            sector = (g[i] - b[i]) * inverse
        elif value == g[i]:
            sector = (b[i] - r[i]) * inverse + TWO
        else:
            sector = (r[i] - g[i]) * inverse + FOUR
        sector = sector * SIXTH + shift
        r[i], g[i], b[i] = channel(FIVE, sector, value, chroma), channel(THREE, sector, value, chroma), channel(ONE, sector, value, chroma)


@nearly
def channel(n, sector, value, chroma):  # type: ignore[no-untyped-def]
    """HSV to RGB as in color.hue."""
    k = n * SIXTH + sector
    k = (k - np.floor(k)) * SIX
    return value - chroma * clamp(min(k, FOUR - k))


@nearly
def blur(x, sigma, spare):  # type: ignore[no-untyped-def]
    """x [C, S, S], down into `spare` [S, S] and along back."""
    size = x.shape[1]
    reach = min(max(1, size // 20), int(math.ceil(4.5 * sigma)))
    weight = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weight = (weight / (2 * weight.sum() - weight[0])).astype(f32)
    padded = np.empty(size + 2 * reach, f32)
    for c in range(len(x)):
        for i in range(size):
            row, middle = spare[i], x[c, i]
            for j in range(size):
                row[j] = weight[0] * middle[j]
            for k in range(1, reach + 1):
                above, below, w = x[c, abs(i - k)], x[c, size - 1 - abs(size - 1 - i - k)], weight[k]
                for j in range(size):
                    row[j] += w * (above[j] + below[j])
        for i in range(size):
            padded[reach : reach + size] = spare[i]
            for k in range(1, reach + 1):  # borders reflected
                padded[reach - k], padded[reach + size - 1 + k] = spare[i, k], spare[i, size - 1 - k]
            row, middle = x[c, i], padded[reach:]
            for j in range(size):
                row[j] = weight[0] * middle[j]
            for k in range(1, reach + 1):
                left, right, w = padded[reach - k :], padded[reach + k :], weight[k]
                for j in range(size):
                    row[j] += w * (left[j] + right[j])


@nearly
def normalize(x, scale, shift, solarized):  # type: ignore[no-untyped-def]
    for c in range(len(x)):
        plane, a, b = x[c], scale[c], shift[c]
        if solarized:
            for i in range(plane.size):
                plane[i] = a * (ONE - plane[i] if plane[i] >= THRESHOLD else plane[i]) + b
        else:
            for i in range(plane.size):
                plane[i] = a * plane[i] + b

"""The views of a CPU: per image all of augment.py's operations in a row, compiled (numba), while the view stays in the cache.

The definition is the PyTorch of crop.py, color.py and augment.py, which draws all that is random and says what it means; here are only
the loops over pixels, as single-precision vectors. The same to rounding, 1e-5 of a normalised float (tests/views/test_fused.py).
Threads are Python's, started for each call: nothing is left that a fork could break, as OpenMP's threads are.
"""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False
from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

f32 = np.float32
RED, GREEN, BLUE = f32(0.2989), f32(0.587), f32(0.114)  # color.LUMA
ZERO, HALF, ONE, TWO, THREE, FOUR, FIVE, SIX, SIXTH = (f32(n) for n in (0, 0.5, 1, 2, 3, 4, 5, 6, 1 / 6))
NOTHING, LEVELS, THRESHOLD = f32(1e-12), f32(255), f32(128 / 255)
_, CONTRAST, SATURATION, HUE = range(4)


class Drawn(NamedTuple):
    """What has been drawn for one view of B images.

    box: int64 [B, 4], top, left, height and width of the crop. flip: bool [B]. order: int64 [B, n], which operation of the jitter comes
    first, second, ... factor: float32 [B, n], of each operation; 1, or no turn, where there is no jitter. grey: bool [B].
    sigma: float32 [B], of the blur in pixels, 0 for none. solarize: bool [B]. erased: int64 [B, 4], as box, height 0 for none.
    """

    box: Tensor
    flip: Tensor
    order: Tensor
    factor: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor
    erased: Tensor


def fused(images: Tensor, v: int, drawn: Drawn, mean: tuple[float, ...], std: tuple[float, ...], out: Tensor) -> None:
    """Images [B, V, C, H, W], uint8, to `out` [B, C, S, S], float and normalised: of each image the one at `v` in the second dimension.

    By torch.get_num_threads() threads, whose number changes nothing.
    """
    spread = np.broadcast_to(np.array([mean, std]), (2, images.shape[2]))
    scale, shift = (1 / spread[1]).astype(f32), (-spread[0] / spread[1]).astype(f32)
    parts = Drawn._make(part.contiguous().numpy() for part in drawn)
    arrays: Any = (images.contiguous().numpy(), v, parts, scale, shift, out.numpy())
    count = max(1, min(len(images), torch.get_num_threads()))
    cuts: Any = [len(images) * n // count for n in range(count + 1)]
    with ThreadPoolExecutor(max(1, count - 1)) as pool:  # a thread starts at its first task
        others = pool.map(lambda part: _views(*arrays, *part), pairwise(cuts[1:]))
        _views(*arrays, *cuts[:2])
        list(others)  # raises what they raised


def cut_crops(pixels: np.ndarray, boxes: np.ndarray, crops: Tensor) -> None:
    """The boxes [V, 4] of an RGB image [H, W, 3] into `crops` [V, 3, S, S], all uint8: torchvision's resized crop, antialiased bilinear,
    but for what it rounds between columns and rows."""
    _cut(np.ascontiguousarray(pixels).reshape(len(pixels), -1), boxes, crops.numpy())


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """numba.njit, its code kept on disk where that can be written."""

    def compile(f: Any) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(f)
        except RuntimeError:  # neither this folder nor the user's cache can be written
            return numba.njit(nogil=True, **options)(f)

    return compile


# What is rounded as in PyTorch, operation by operation; and what may be rounded otherwise, sums in any order and fused multiply-adds.
exactly = _compiled(error_model="numpy")
nearly = _compiled(error_model="numpy", fastmath={"nnan", "ninf", "nsz", "contract", "reassoc"})


@nearly
def _views(images, v, drawn, scale, shift, out, begin, end):
    channels, size = out.shape[1:3]
    spare = np.empty((size, size), f32)
    for b in range(begin, end):
        if drawn.box[b, 2] == drawn.box[b, 3] == size:
            crop(images[b, v], drawn.box[b], drawn.flip[b], out[b])
        else:
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
def _cut(image, boxes, crops):
    """crop_and_resize for channels that lie together: image [H, 3 W], crops [V, 3, S, S], in grey levels."""
    size = crops.shape[2]
    rgb = np.empty((3, size), f32)
    for v in range(len(crops)):
        top, left, height, width = boxes[v]
        above, down = taps(top, height, size)
        before, along = taps(left, width, size)
        before, along, line = np.uint32(3) * before, along.T.copy(), np.empty(3 * width, f32)
        for i in range(size):
            columns(image, top, 3 * left, above[i], down[:, i], line)
            row_of_rgb(line, before, along, rgb[0], rgb[1], rgb[2])
            for c in range(3):
                out, row = crops[v, c, i], rgb[c]
                for j in range(size):
                    out[j] = np.uint8(row[j] + HALF)


@nearly
def row_of_rgb(line, first, weight, red, green, blue):
    for j in range(red.size):
        r, g, b, w, pixel = ZERO, ZERO, ZERO, weight[j], line[first[j] :]
        for t in range(w.size):
            r, g, b = r + w[t] * pixel[3 * t], g + w[t] * pixel[3 * t + 1], b + w[t] * pixel[3 * t + 2]
        red[j], green[j], blue[j] = r, g, b


@nearly
def crop_and_resize(image, box, flip, x):
    """The box of an image [C, H, W] into x [C, S, S] in [0, 1], by crop.resize_weights: a row of x at a time, first down the columns of
    the image, then along what that gives."""
    size = x.shape[1]
    top, left, height, width = box
    above, down = taps(top, height, size)
    before, along = taps(left, width, size)
    if flip:
        before, along = before[::-1].copy(), along[:, ::-1].copy()
    line, down = np.empty(width, f32), down / LEVELS
    for c in range(len(x)):
        for i in range(size):
            columns(image[c], top, left, above[i], down[:, i], line)
            row = x[c, i]
            row[:] = ZERO
            for t in range(len(along)):
                w, shifted = along[t], line[t:]
                for j in range(size):
                    row[j] += w[j] * shifted[before[j]]


@_compiled(inline="always")
def columns(image, top, left, first, weight, line):
    """One row of a resized image: of each column the sum over the pixels that weigh."""
    line[:] = ZERO
    for t in range(len(weight)):
        w, row = weight[t], image[top + first + t, left : left + line.size]
        for j in range(line.size):
            line[j] += w * f32(row[j])


@nearly
def crop(image, box, flip, x):
    """crop_and_resize of a box that has the size of x already."""
    top, left, size, _ = box
    last = np.uint32(size - 1)
    for c in range(len(image)):
        for i in range(size):
            row, source = x[c, i], image[c, top + i, left : left + size]
            if flip:
                for j in range(np.uint32(size)):
                    row[j] = f32(source[last - j]) / LEVELS
            else:
                for j in range(size):
                    row[j] = f32(source[j]) / LEVELS


@exactly
def taps(start, length, n):
    """(first [n], weight [k, n]): crop.resize_weights, of each row the k pixels, from `first` of the box on, that may weigh anything."""
    scale = f32(length) / f32(n)
    support = max(scale, ONE)
    k = min(length, math.ceil(2 * support))
    first, weight = np.empty(n, np.uint32), np.empty((k, n), f32)  # unsigned: no index counts from the end
    for i in range(n):
        centre = f32(start - 0.5 + f32((i + 0.5) * scale))  # in double precision in between: LLVM fuses a single multiply-add
        begin = min(max(math.floor(float(centre) - support) + 1, start), start + length - k)
        first[i] = begin - start
        for t in range(k):
            weight[t, i] = max(ONE - abs(f32(begin + t) - centre) / support, ZERO)
    return first, weight / weight.sum(0)


@nearly
def jitter(x, order, factor):
    for op in order:
        f = factor[op]
        if op == HUE and f != 0:
            hue(x, f)
        elif op == SATURATION and f != 1:
            saturation(x, f)
        elif op < SATURATION and f != 1:
            blend(x, f, (ONE - f) * mean_grey(x) if op == CONTRAST else ZERO)


@nearly
def mean_grey(x):
    mean = 0.0  # in double precision
    for c in range(len(x)):
        plane, weight = x[c], (RED, GREEN, BLUE)[c] if len(x) == 3 else ONE / f32(len(x))
        for i in range(plane.size):
            mean += weight * plane[i]
    return f32(mean / x.shape[1])


@nearly
def clamp(x):
    return min(max(x, ZERO), ONE)


@nearly
def blend(x, f, other):
    """Brightness and contrast."""
    for c in range(len(x)):
        plane = x[c]
        for i in range(plane.size):
            plane[i] = clamp(f * plane[i] + other)


@nearly
def saturation(x, f):
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        grey = (ONE - f) * (RED * r[i] + GREEN * g[i] + BLUE * b[i])
        r[i], g[i], b[i] = clamp(f * r[i] + grey), clamp(f * g[i] + grey), clamp(f * b[i] + grey)


@nearly
def hue(x, shift):
    r, g, b = x[0], x[1], x[2]
    for i in range(r.size):
        value = max(max(r[i], g[i]), b[i])
        chroma = value - min(min(r[i], g[i]), b[i])
        inverse = ONE / max(chroma, NOTHING)
        after_green = (b[i] - r[i]) * inverse + TWO if value == g[i] else (r[i] - g[i]) * inverse + FOUR
        sector = shift + SIXTH * ((g[i] - b[i]) * inverse if value == r[i] else after_green)
        r[i], g[i], b[i] = channel(FIVE, sector, value, chroma), channel(THREE, sector, value, chroma), channel(ONE, sector, value, chroma)


@nearly
def channel(n, sector, value, chroma):
    """HSV to RGB as in color.hue."""
    k = n * SIXTH + sector
    k = (k - np.floor(k)) * SIX
    return value - chroma * clamp(min(k, FOUR - k))


@nearly
def blur(x, sigma, spare):
    """x [C, S, S], down into `spare` [S, S] and along back."""
    size = x.shape[1]
    reach = min(max(1, size // 20), math.ceil(4.5 * sigma))
    weight = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weight[0] *= 0.5  # what is in the middle is on both sides
    weight = (weight / (2 * weight.sum())).astype(f32)
    padded = np.empty(size + 2 * reach, f32)
    for c in range(len(x)):
        for i in range(size):
            row = spare[i]
            row[:] = ZERO
            for k in range(reach + 1):  # borders reflected
                above, below, w = x[c, abs(i - k)], x[c, size - 1 - abs(size - 1 - i - k)], weight[k]
                for j in range(size):
                    row[j] += w * (above[j] + below[j])
        for i in range(size):
            padded[reach : reach + size] = spare[i]
            for k in range(1, reach + 1):
                padded[reach - k], padded[reach + size - 1 + k] = spare[i, k], spare[i, size - 1 - k]
            row = x[c, i]
            row[:] = ZERO
            for k in range(reach + 1):
                left, right, w = padded[reach - k :], padded[reach + k :], weight[k]
                for j in range(size):
                    row[j] += w * (left[j] + right[j])


@nearly
def normalize(x, scale, shift, solarized):
    threshold = THRESHOLD if solarized else TWO  # none is as bright
    for c in range(len(x)):
        plane, a, b = x[c], scale[c], shift[c]
        for i in range(plane.size):
            plane[i] = a * (ONE - plane[i] if plane[i] >= threshold else plane[i]) + b

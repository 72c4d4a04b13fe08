"""What a CPU's views are made with: loops over pixels, compiled (numba) to vectors of single precision.

All in one file, for numba keeps compiled code on disk until the file of the function that was called changes, and looks at no other.
"""

# mypy: disallow-untyped-defs=False, check-untyped-defs=False
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

f32, u8, u32, u64 = np.float32, np.uint8, np.uint32, np.uint64
RED, GREEN, BLUE = f32(0.2989), f32(0.587), f32(0.114)  # color.LUMA
ZERO, HALF, ONE, TWO, THREE, FOUR, FIVE, SIX, SIXTH = (f32(n) for n in (0, 0.5, 1, 2, 3, 4, 5, 6, 1 / 6))
NOTHING, LEVELS, THRESHOLD = f32(1e-12), f32(255), f32(128 / 255)
_, CONTRAST, SATURATION, HUE = range(4)


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
def views(images, v, drawn, scale, shift, out, begin, end):
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
def cut(image, boxes, crops):
    """The boxes [V, 4] of an image [H, 3 W], its channels together, into crops [V, 3, S, S], in grey levels and rounded in between.

    Down the columns, turned, down the columns of that, turned back: along rows each pixel would have neighbours of its own, which no
    vector reads at once. A row of what is turned holds S pixels of each channel, [w, 3 S] with S up to a multiple of 8.
    """
    size = crops.shape[2]
    words = (size + 7) // 8
    wide, last = np.empty((size, 24 * words), u8), np.empty((24 * words, words), u64)
    line = np.empty(max(image.shape[1], 24 * words), f32)
    for v in range(len(crops)):
        top, left, height, width = boxes[v]
        tall, turned = np.empty((size, 3 * width), u8), np.empty((3 * width, words), u64)
        squeeze(image, top, 3 * left, height, tall, line)
        turn(tall, turned)
        squeeze(turned.view(u8).reshape((width, 24 * words)), 0, 0, width, wide, line)
        turn(wide, last)
        pixels = last.view(u8)
        for c in range(3):
            for i in range(size):
                for j in range(size):
                    crops[v, c, i, j] = pixels[8 * words * c + i, j]


@nearly
def squeeze(image, top, left, height, out, line):
    """`height` rows of an image to those of `out` [n, m]; line: room for m."""
    n, m = out.shape
    first, weight = taps(top, height, n)
    for i in range(n):
        columns(image, top + first[i], left, weight, i, line[:m])
        for j in range(u32(m)):
            out[i, j] = u8(line[j] + HALF)


@nearly
def turn(x, out):
    """Bytes [n, m] to their transpose, `out` [m, n / 8], eight in a word; the last row is repeated up to a multiple of 8."""
    n, m = x.shape
    eight = np.empty((m, 8), u8)
    words = eight.view(u64)
    for k in range(out.shape[1]):
        a, b, c, d = x[8 * k], x[min(8 * k + 1, n - 1)], x[min(8 * k + 2, n - 1)], x[min(8 * k + 3, n - 1)]
        e, f, g, h = x[min(8 * k + 4, n - 1)], x[min(8 * k + 5, n - 1)], x[min(8 * k + 6, n - 1)], x[min(8 * k + 7, n - 1)]
        for j in range(u32(m)):
            eight[j, 0], eight[j, 1], eight[j, 2], eight[j, 3] = a[j], b[j], c[j], d[j]
            eight[j, 4], eight[j, 5], eight[j, 6], eight[j, 7] = e[j], f[j], g[j], h[j]
        for j in range(u32(m)):
            out[j, k] = words[j, 0]


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
            columns(image[c], top + above[i], left, down, i, line)
            row = x[c, i]
            row[:] = ZERO
            for t in range(len(along)):
                w, shifted = along[t], line[t:]
                for j in range(size):
                    row[j] += w[j] * shifted[before[j]]


@_compiled(inline="always")
def columns(image, top, left, weight, i, line):
    """Row i of a resized image: of each column the sum over the pixels that weigh, from `top` on, four at a time."""
    last = len(weight) - 1
    for t in range(0, last + 1, 4):
        w, w1 = weight[t, i], weight[t + 1, i] if t + 1 <= last else ZERO
        w2, w3 = weight[t + 2, i] if t + 2 <= last else ZERO, weight[t + 3, i] if t + 3 <= last else ZERO
        y, y1, y2, y3 = u32(top + t), u32(top + min(t + 1, last)), u32(top + min(t + 2, last)), u32(top + min(t + 3, last))
        for j in range(u32(line.size)):
            x, before = u32(left) + j, line[j] if t else ZERO
            line[j] = before + w * f32(image[y, x]) + w1 * f32(image[y1, x]) + w2 * f32(image[y2, x]) + w3 * f32(image[y3, x])


@nearly
def crop(image, box, flip, x):
    """crop_and_resize of a box that has the size of x already."""
    top, left, size, _ = box
    last = u32(size - 1)
    for c in range(len(image)):
        for i in range(size):
            row, source = x[c, i], image[c, top + i, left : left + size]
            if flip:
                for j in range(u32(size)):
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
    first, weight = np.empty(n, u32), np.empty((k, n), f32)  # unsigned: no index counts from the end
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

"""The embedding of a block of superpixels: encoder, colour, the mean of the surroundings, and wider fields."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import batched, pairwise, product
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixel2gene.core.arguments import require_number
from pixel2gene.core.device import one_thread
from pixel2gene.core.encoders import Encoder
from pixel2gene.core.encoders.colour import CHANNELS as COLOUR_CHANNELS
from pixel2gene.core.encoders.colour import colour

# Sides, in superpixels, of the surroundings whose mean joins a superpixel's own features (72 and 200 µm).
CONTEXT_WINDOWS = (9, 25)
# Pixels that are encoded at a time: 32 windows of 224 px.
BATCH_PIXELS = 32 * 224**2
# Channels whose surroundings are summed up at a time, which the cache of a core holds.
TOGETHER = 4
# Encoders use every core by themselves; meanwhile other threads do the rest.
_ENCODING = threading.Lock()


def local_channels(encoder: Encoder) -> int:
    """Channels of a superpixel itself, without surroundings."""
    return encoder.channels + COLOUR_CHANNELS


def embedding_channels(encoder: Encoder, scales: tuple[int, ...]) -> int:
    """Channels of the embedding: of a superpixel itself, its surroundings, and wider fields."""
    return local_channels(encoder) * (len(CONTEXT_WINDOWS) + len(scales))


def own_channels(channels: int, scales: int) -> int:
    """Of the channels of an embedding at so many scales, those of a superpixel itself, which come first."""
    return channels // (len(CONTEXT_WINDOWS) + scales)


def choose_scales(scales: Sequence[int]) -> tuple[int, ...]:
    """Check the scales asked for; a ValueError says what is expected of them."""
    chosen = tuple(scales) if isinstance(scales, Sequence) and not isinstance(scales, str) else (None,)
    whole = all(isinstance(scale, Integral) and not isinstance(scale, bool) for scale in chosen)
    if not whole or chosen[:1] != (1,) or any(a >= b for a, b in pairwise(chosen)):
        raise ValueError(f"scales={scales!r}: whole numbers expected that grow from 1, such as (1, 2, 4).")
    return tuple(int(scale) for scale in chosen)


def choose_overlap(encoder: Encoder, overlap: float | None) -> float:
    """Take the overlap of windows asked for, or the encoder's own; a ValueError says if it can't be had."""
    if overlap is None:
        return encoder.overlap
    require_number("overlap", overlap)
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: a share of a window expected, from 0 to below 1.")
    if encoder.window is None and overlap > 0:
        raise ValueError(
            f"overlap={overlap}: {encoder.name!r} sees every superpixel with {encoder.halo} px around it, so that it "
            "has no windows to blend; leave overlap out."
        )
    return overlap


def window_step(encoder: Encoder, overlap: float) -> int:
    """Superpixels from one window to the next; 1 for encoders without windows."""
    return max(1, round((encoder.window or 0) // encoder.stride * (1 - overlap)))


def surroundings(encoder: Encoder, start: int, stop: int, overlap: float) -> tuple[int, int]:
    """Superpixels [first, last) that are read to describe [start, stop), along one axis.

    Windows start at multiples of their step on the whole slide, so that a superpixel is seen by the same windows
    whatever tile it is computed in.
    """
    if encoder.window is None:
        border = encoder.halo // encoder.stride
        return start - border, stop + border
    side, step = encoder.window // encoder.stride, window_step(encoder, overlap)
    return ((start - side) // step + 1) * step, (stop - 1) // step * step + side


def linear_cells(start: int, stop: int, scale: int) -> tuple[int, NDArray[np.float32]]:
    """Which cells of `scale` superpixels the superpixels [start, stop) lie between, along one axis.

    Cells start at multiples of their size on the whole slide, so that a superpixel lies between the same cells whatever
    tile it is computed in.

    Returns
    -------
    first
        Cell that the columns begin with.
    weights
        (superpixels, cells) by which values at the centres of cells are interpolated linearly at those of superpixels.
    """
    position = (np.arange(start, stop) + 0.5) / scale - 0.5
    first, last = int(np.floor(position[0])), int(np.ceil(position[-1]))
    distance = np.abs(position[:, None] - np.arange(first, last + 1))
    return first, (1 - distance).clip(0).astype(np.float32)


def embed_tile(
    encoder: Encoder, rgb: NDArray[Any], inside: NDArray[np.bool_], corner: tuple[int, int], overlap: float
) -> NDArray[np.float16]:
    """Features of the superpixels of a tile.

    Parameters
    ----------
    encoder
        Gives most of the channels; colour gives the rest.
    rgb
        (3, height, width) of 0 to 255, uint8 or float32: the tile and its `surroundings`.
    inside
        (rows, columns) of the tile, where there is tissue.
    corner
        Row and column of the first superpixel of the tile within `rgb`.
    overlap
        Share of a window that the next one covers too.

    Returns
    -------
    (channels, rows, columns), zero outside the tissue.
    """
    tile, stride = torch.from_numpy(rgb), encoder.stride
    (top, left), (rows, columns) = corner, inside.shape
    with _ENCODING:
        if encoder.window is None:
            features = encoder.encode_dense(tile[None]).cpu()[0]
        else:
            height, width = (size // stride for size in tile.shape[1:])
            wanted = np.pad(inside, ((top, height - top - rows), (left, width - left - columns)))
            features = blend_windows(encoder, tile, wanted, window_step(encoder, overlap))
    features = features[:, top : top + rows, left : left + columns]
    core = tile[:, top * stride : (top + rows) * stride, left * stride : (left + columns) * stride]
    found = torch.empty(local_channels(encoder), rows, columns, dtype=torch.float16)
    with one_thread():
        found[: encoder.channels] = features
        found[encoder.channels :] = colour(core[None], stride)[0]
        found.masked_fill_(torch.from_numpy(~inside), 0)
    values: NDArray[np.float16] = found.numpy()
    return values


def blend_windows(encoder: Encoder, rgb: Tensor, wanted: NDArray[np.bool_], step: int) -> Tensor:
    """Average the windows over each superpixel, its place in a window weighted down towards the border.

    Parameters
    ----------
    encoder
        Sees windows.
    rgb
        (3, height, width) of 0 to 255, covered by windows at every `step` superpixels.
    wanted
        (rows, columns); windows without any of these superpixels are left out.
    step
        Superpixels from one window to the next.

    Returns
    -------
    (channels, rows, columns), divided by the weights that each superpixel received.
    """
    assert encoder.window is not None
    window, stride = encoder.window, encoder.stride
    side = window // stride
    bump = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side) ** 2
    weight = bump[:, None] * bump
    total, received = torch.zeros(encoder.channels, *wanted.shape), torch.zeros(wanted.shape)
    lattice = product(*(range(0, size - side + 1, step) for size in wanted.shape))
    corners = [(y, x) for y, x in lattice if wanted[y : y + side, x : x + side].any()]
    for part in batched(corners, max(1, BATCH_PIXELS // window**2)):
        pixels = [rgb[:, y * stride : y * stride + window, x * stride : x * stride + window] for y, x in part]
        for (y, x), features in zip(part, encoder.encode_dense(torch.stack(pixels)).cpu(), strict=True):
            total[:, y : y + side, x : x + side] += weight * features
            received[y : y + side, x : x + side] += weight
    return total / received.clamp_min(torch.finfo(torch.float32).tiny)


def seam(features: NDArray[np.float16], elsewhere: NDArray[np.float16], borders: NDArray[np.int64]) -> float:
    """How much borders of tiles or windows show: jumps across them, relative to those at the same places inside.

    Parameters
    ----------
    features
        (channels, rows, columns).
    elsewhere
        The same tissue, whose borders lie elsewhere.
    borders
        Rows, and columns, before which there is a border in `features`.

    Returns
    -------
    Ratio of the mean absolute differences across borders, in standard deviations of each channel; 1 where no border
    shows.
    """
    spread = elsewhere.std(axis=(1, 2), keepdims=True, dtype=np.float64).clip(1e-6)

    def jumps(values: NDArray[np.float16]) -> float:
        scaled = values / spread
        return sum(float(np.abs(np.diff(scaled, axis=axis)).take(borders - 1, axis).sum()) for axis in (1, 2))

    return jumps(features) / jumps(elsewhere)


def add_context(
    local: NDArray[np.float16], mask: NDArray[np.bool_], border: int, own: int | None = None
) -> NDArray[np.float16]:
    """Join the mean over the surrounding tissue, one per window, to the features of each superpixel.

    Parameters
    ----------
    local
        (channels, rows, columns), zero outside the mask.
    mask
        (rows, columns), where there is tissue.
    border
        Rows and columns at each side that are there as surroundings only; at least half of the largest window.
    own
        Channels, the first ones, whose surroundings count; all by default. The others follow as they are.

    Returns
    -------
    (channels + windows * own, rows - 2 * border, columns - 2 * border), zero outside the mask.
    """
    channels, *size = local.shape
    own = channels if own is None else own
    core = tuple(slice(border, side - border) for side in size)
    found = np.zeros((channels + len(CONTEXT_WINDOWS) * own, *mask[core].shape), np.float16)
    if not mask[core].any():
        return found
    found[:own] = local[:own, *core]
    found[(1 + len(CONTEXT_WINDOWS)) * own :] = local[own:, *core]
    with one_thread():
        tissue = torch.from_numpy(mask).float()
        shares = [tissue[core] / _sums(tissue, window, border).clamp_min(1) for window in CONTEXT_WINDOWS]
        for start in range(0, own, TOGETHER):
            some = torch.from_numpy(local[start : min(start + TOGETHER, own)]).float()
            for i, (window, share) in enumerate(zip(CONTEXT_WINDOWS, shares, strict=True), start=1):
                place = slice(i * own + start, i * own + start + len(some))
                found[place] = (_sums(some, window, border) * share).half().numpy()
    return found


def _sums(values: Tensor, window: int, border: int) -> Tensor:
    """Sums over the window around each place, but for those of the border: (..., rows, columns)."""
    for axis in (-2, -1):
        more = border - window // 2
        values = _sums_along(values.narrow(axis, more, values.shape[axis] - 2 * more), window, axis)
    return values


def _sums_along(values: Tensor, window: int, axis: int) -> Tensor:
    """Sums over so many neighbours, put together from sums over 1, 2, 4 ... of them."""
    size = values.shape[axis] - window + 1
    total, start, width = torch.zeros(()), 0, 1
    while True:
        if window & width:
            total = total + values.narrow(axis, start, size)
            start += width
        if start == window:
            return total
        more = values.shape[axis] - width
        values = values.narrow(axis, 0, more) + values.narrow(axis, width, more)
        width *= 2

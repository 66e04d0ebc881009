"""Lazy rasters on the superpixel grid, computed from windows of the image."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from pixel2gene.core.embedding import (
    CONTEXT_WINDOWS,
    add_context,
    embed_tile,
    embedding_channels,
    linear_cells,
    local_channels,
    surroundings,
    window_step,
)
from pixel2gene.core.encoders import Encoder
from pixel2gene.core.stain import Colours, Stain, StainMethod, fit_stain, to_standard
from pixel2gene.core.tissue import superpixel_statistics
from pixel2gene.spatial.grid import SUPERPIXEL_UM
from pixel2gene.spatial.image import Slide

# Sides in superpixels: of a chunk, and of what is encoded at once, with a border around it that is cut off.
TILE, ENCODED = 64, 256
# While a tile is encoded, another thread reads the next one.
_AHEAD = threading.BoundedSemaphore(2)
STATISTICS_SIDE = 8
STAIN_MPP, STAIN_SAMPLES = 0.5, 400


def lazy_statistics(slide: Slide, shape: tuple[int, int], mpp: float) -> da.Array:
    """(4, rows, columns) of `superpixel_statistics`, read at 1 µm/px."""
    scale = SUPERPIXEL_UM / STATISTICS_SIDE / mpp

    def tile(rows: slice, columns: slice, _: NDArray[np.bool_]) -> NDArray[np.float32]:
        window = [STATISTICS_SIDE * edge for edge in (rows.start, rows.stop, columns.start, columns.stop)]
        return superpixel_statistics(slide.read(scale, *window), STATISTICS_SIDE)

    return _map_tiles(tile, np.ones(shape, bool), 4, np.float32, TILE)


@dataclass(frozen=True)
class LocalTile:
    """Describes tiles of superpixels by what is in them, each once.

    Attributes
    ----------
    slide
        H&E.
    mpp
        Its pixel size in µm.
    load
        Gives the encoder; called in each process that works on tiles, so that its weights are not sent about.
    overlap
        Of the windows of the encoder.
    stain
        Of the slide, to be replaced by the standard one; None to leave it.
    scales
        By which the pixels that the encoder sees are larger than those that it wants, 1 first.
    finished
        Folder in which finished tiles are kept, so that one that died is gone on with; None to keep none.
    """

    slide: Slide
    mpp: float
    load: Callable[[], Encoder]
    overlap: float = 0.0
    stain: Stain | Colours | None = None
    scales: tuple[int, ...] = (1,)
    finished: Path | None = None

    def __call__(self, rows: slice, columns: slice, inside: NDArray[np.bool_]) -> NDArray[np.float16]:
        """(scales * channels, rows, columns), zero outside the tissue; tiles without tissue are never read."""
        encoder = self.load()
        values = np.zeros((local_channels(encoder) * len(self.scales), *inside.shape), np.float16)
        if not inside.any():
            return values
        kept = None if self.finished is None else self.kept(rows.start, columns.start)
        (top, bottom), (left, right) = (_ends(inside.any(axis=axis)) for axis in (1, 0))
        rows = slice(rows.start + top, rows.start + bottom)
        columns = slice(columns.start + left, columns.start + right)
        part = slice(top, bottom), slice(left, right)
        n = local_channels(encoder)
        for i, scale in enumerate(self.scales):
            values[i * n : (i + 1) * n, *part] = self._seen_at(scale, encoder, rows, columns, inside[part])
        if kept is not None:
            _keep(values, kept)
        return values

    def kept(self, row: int, column: int) -> Path:
        """Where the tile that begins there is kept once it is finished."""
        assert self.finished is not None
        return self.finished / f"{row}-{column}.tile"

    def _seen_at(
        self, scale: int, encoder: Encoder, rows: slice, columns: slice, inside: NDArray[np.bool_]
    ) -> NDArray[np.float16]:
        """(channels, rows, columns), interpolated between cells of `scale` superpixels."""
        (top, down), (left, across) = (linear_cells(axis.start, axis.stop, scale) for axis in (rows, columns))
        cells = inside if scale == 1 else (down > 0).T @ inside @ (across > 0)
        y0, y1 = surroundings(encoder, top, top + cells.shape[0], self.overlap)
        x0, x1 = surroundings(encoder, left, left + cells.shape[1], self.overlap)
        with _AHEAD:
            pixels = scale * encoder.mpp / self.mpp
            rgb = self.slide.read(pixels, *(encoder.stride * edge for edge in (y0, y1, x0, x1)))
            if self.stain is not None:
                rgb = to_standard(rgb, self.stain)
            values = embed_tile(encoder, rgb, cells, (top - y0, left - x0), self.overlap)
        if scale == 1:
            return values
        return (down @ values.astype(np.float32) @ across.T * inside).astype(np.float16)


def _keep(values: NDArray[np.float16], path: Path) -> None:
    # Not by numpy, which does not say that a disk is full.
    aside = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        aside.write_bytes(memoryview(values))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def lazy_tiles(tile: LocalTile, mask: NDArray[np.bool_]) -> da.Array:
    """(rows, columns of tiles) whether there is tissue in each: once computed, all tiles are finished and kept."""

    def block(inside: NDArray[np.bool_], block_info: Any = None) -> NDArray[np.bool_]:
        rows, columns = _place(block_info)
        if not tile.kept(rows.start, columns.start).exists():
            tile(rows, columns, inside)
        return inside.any(keepdims=True)

    lazy = da.from_array(mask, chunks=_side(tile))
    each = tuple((1,) * number for number in lazy.numblocks)
    tiles: da.Array = lazy.map_blocks(block, chunks=each, dtype=bool, meta=np.empty((0, 0), bool))
    return tiles


def lazy_embedding(tile: LocalTile, mask: NDArray[np.bool_]) -> da.Array:
    """(channels, rows, columns) float16 embedding, zero outside the mask; of `lazy_tiles`, if they are kept."""
    encoder, side, border = tile.load(), _side(tile), max(CONTEXT_WINDOWS) // 2
    own, channels, shape = local_channels(encoder), embedding_channels(encoder, tile.scales), mask.shape

    def with_context(local: NDArray[np.float16]) -> NDArray[np.float16]:
        return add_context(local, (local != 0).any(axis=0), border, own)

    if tile.finished is not None:
        # Not by dask, which would hold most of the tiles of a slide until their neighbours are there.
        def block(rows: slice, columns: slice, _: NDArray[np.bool_]) -> NDArray[np.float16]:
            return with_context(_read_kept(tile, side, shape, _around(rows, border), _around(columns, border)))

        return _map_tiles(block, mask, channels, np.float16, side)
    wide = _with_border(_map_tiles(tile, mask, own * len(tile.scales), np.float16, side), border)
    sizes = [tuple(size - 2 * border for size in axis) for axis in wide.chunks[1:]]
    embedding = da.map_blocks(
        with_context, wide, chunks=((channels,), *sizes), dtype=np.float16, meta=np.empty((0, 0, 0), np.float16)
    )
    cropped: da.Array = embedding[:, : mask.shape[0], : mask.shape[1]]
    return cropped


def _read_kept(tile: LocalTile, side: int, shape: tuple[int, ...], rows: slice, columns: slice) -> NDArray[np.float16]:
    """(channels, rows, columns) of finished tiles, zero where there is none, as beyond the grid of that shape."""
    channels, axes = local_channels(tile.load()) * len(tile.scales), (rows, columns)
    found = np.zeros((channels, *(axis.stop - axis.start for axis in axes)), np.float16)
    corners = product(
        *(
            range(max(axis.start, 0) // side * side, min(axis.stop, n), side)
            for axis, n in zip(axes, shape, strict=True)
        )
    )
    for corner in corners:
        if not tile.kept(*corner).exists():
            continue
        size = [min(side, n - start) for start, n in zip(corner, shape, strict=True)]
        values = np.memmap(tile.kept(*corner), np.float16, "r", shape=(channels, *size))
        shared = [
            (max(axis.start, start), min(axis.stop, start + length))
            for axis, start, length in zip(axes, corner, size, strict=True)
        ]
        here = (slice(low - axis.start, high - axis.start) for (low, high), axis in zip(shared, axes, strict=True))
        there = (slice(low - start, high - start) for (low, high), start in zip(shared, corner, strict=True))
        found[:, *here] = values[:, *there]
    return found


def _around(axis: slice, border: int) -> slice:
    return slice(axis.start - border, axis.stop + border)


def _side(tile: LocalTile) -> int:
    """Of a tile, in superpixels: whole steps, since windows that reach into several tiles are encoded for each."""
    step = window_step(tile.load(), tile.overlap)
    return math.ceil(ENCODED / step) * step


def _with_border(raster: da.Array, border: int) -> da.Array:
    """Blocks with as many rows and columns around them, zero outside the raster."""
    # dask refuses an overlap that is larger than the array.
    missing = [(0, 0), *((0, max(0, border - size)) for size in raster.shape[1:])]
    wide: da.Array = da.overlap.overlap(da.pad(raster, missing), depth={0: 0, 1: border, 2: border}, boundary=0)
    return wide


def _ends(present: NDArray[np.bool_]) -> tuple[int, int]:
    """First position that is true, and the one after the last."""
    found = np.flatnonzero(present)
    return int(found[0]), int(found[-1]) + 1


def slide_stain(slide: Slide, mask: NDArray[np.bool_], mpp: float, method: StainMethod) -> Stain | Colours:
    """Stain of a slide, from superpixels spread evenly over its tissue, at 0.5 µm/px, and over all of it."""
    side = round(SUPERPIXEL_UM / STAIN_MPP)

    def read(places: NDArray[np.int64]) -> NDArray[np.float32]:
        chosen = places[np.linspace(0, len(places) - 1, min(len(places), STAIN_SAMPLES)).astype(int)]
        return np.stack(
            [
                slide.read(STAIN_MPP / mpp, *(side * edge for edge in (y, y + 1, x, x + 1)))
                for y, x in zip(*np.unravel_index(chosen, mask.shape), strict=True)
            ],
            axis=1,
            dtype=np.float32,
        ).reshape(3, len(chosen), -1)

    tissue, everywhere = read(np.flatnonzero(mask)), read(np.arange(mask.size))
    return fit_stain(tissue.reshape(3, -1), everywhere.mean(axis=2), method)


def fingerprint(slide: Slide) -> str:
    """Identify an image by a lattice of its pixels."""
    level = slide.levels[-1]
    y, x = (np.linspace(0, level.sizes[axis] - 1, 64).astype(int) for axis in ("y", "x"))
    pixels = level.isel(c=slice(3), y=y, x=x).data.compute()
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + str(slide.shape).encode()).hexdigest()


def _map_tiles(
    tile: Callable[[slice, slice, NDArray[np.bool_]], NDArray[Any]],
    mask: NDArray[np.bool_],
    channels: int,
    dtype: type[np.floating[Any]],
    side: int,
) -> da.Array:
    def block(inside: NDArray[np.bool_], block_info: Any = None) -> NDArray[Any]:
        return tile(*_place(block_info), inside)

    lazy = da.from_array(mask, chunks=side)
    tiles: da.Array = lazy.map_blocks(
        block, new_axis=0, chunks=((channels,), *lazy.chunks), dtype=dtype, meta=np.empty((0, 0, 0), dtype)
    )
    return tiles


def _place(block_info: Any) -> tuple[slice, slice]:
    """Rows and columns of a block."""
    rows, columns = (slice(*edges) for edges in block_info[0]["array-location"])
    return rows, columns

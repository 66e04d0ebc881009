"""Lazy rasters on the superpixel grid, computed from windows of the image."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
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
        kept = None if self.finished is None else self.finished / f"{rows.start}-{columns.start}.tile"
        if kept is not None and kept.exists():
            return np.fromfile(kept, np.float16).reshape(values.shape)
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


def lazy_embedding(tile: LocalTile, mask: NDArray[np.bool_]) -> da.Array:
    """(channels, rows, columns) float16 embedding, zero outside the mask."""
    encoder = tile.load()
    # Windows that reach into several tiles are encoded for each: few do if tiles are whole steps.
    step = window_step(encoder, tile.overlap)
    side = math.ceil(ENCODED / step) * step
    own = local_channels(encoder)
    local = _map_tiles(tile, mask, own * len(tile.scales), np.float16, side)
    tissue = da.from_array(mask[None], chunks=(1, *local.chunks[1:]))
    border = max(CONTEXT_WINDOWS) // 2
    wide, around = (_with_border(raster, border) for raster in (local, tissue))
    sizes = [tuple(size - 2 * border for size in axis) for axis in wide.chunks[1:]]
    embedding = da.map_blocks(
        lambda block, inside: add_context(block, inside[0], border, own),
        wide,
        around,
        chunks=((embedding_channels(encoder, tile.scales),), *sizes),
        dtype=np.float16,
        meta=np.empty((0, 0, 0), np.float16),
    )
    cropped: da.Array = embedding[:, : mask.shape[0], : mask.shape[1]]
    return cropped


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
        (rows, columns) = (slice(*edges) for edges in block_info[0]["array-location"])
        return tile(rows, columns, inside)

    lazy = da.from_array(mask, chunks=(side, side))
    tiles: da.Array = lazy.map_blocks(
        block, new_axis=0, chunks=((channels,), *lazy.chunks), dtype=dtype, meta=np.empty((0, 0, 0), dtype)
    )
    return tiles

"""The embedding of a slide as models read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.spatial.elements import get_record
from pixel2gene.spatial.geometry import affine
from pixel2gene.spatial.grid import Grid, superpixel_grid

SMALLEST_SD = 1e-3
# Superpixels that an embedding may be off by, by rounding.
OFF_GRID = 0.01


@dataclass(frozen=True)
class Embedded:
    """The embedding of a slide.

    Attributes
    ----------
    record
        Of `pixel2gene.tl.embed`.
    grid
        Superpixel grid of the image.
    values
        (channels, rows, columns), zero outside the tissue.
    """

    record: dict[str, Any]
    grid: Grid
    values: da.Array

    @property
    def image_key(self) -> str:
        """Image that was embedded."""
        key: str = self.record["image_key"]
        return key

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Flat indices of the tissue superpixels of each chunk, and their (superpixels, channels) embedding.

        Every channel has mean 0 and standard deviation 1 over the tissue of the slide, which takes out much of what
        stain and scanner do.
        """
        for index, _, block in self.blocks_with_raw():
            yield index, block

    def blocks_with_raw(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float16]]]:
        """As `blocks`, with the embedding as it was written between index and standardised embedding."""
        mean, sd = _mean_and_sd(block for _, block in self._raw_blocks())
        for index, block in self._raw_blocks():
            yield index, block, ((block - mean) / sd).astype(np.float16)

    def _raw_blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        ids = np.arange(self.grid.size).reshape(self.grid.shape)
        row = 0
        for i, height in enumerate(self.values.chunks[1]):
            column = 0
            for j, width in enumerate(self.values.chunks[2]):
                block = np.asarray(self.values.blocks[:, i, j].compute(scheduler="threads"))
                tissue = (block != 0).any(axis=0)
                yield ids[row : row + height, column : column + width][tissue], block[:, tissue].T
                column += width
            row += height

    def tissue(self) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """All `blocks` together, in the order of the flat indices, read once."""
        index, features, _ = self.tissue_and_scale()
        return index, features

    def tissue_and_scale(self) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float32]]:
        """As `tissue`, with the (2, channels) mean and standard deviation that were taken out."""
        parts = list(self._raw_blocks())
        mean, sd = _mean_and_sd(block for _, block in parts)
        index = np.concatenate([part for part, _ in parts])
        order = np.argsort(index)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        joined = np.empty((len(index), self.values.shape[0]), np.float16)
        start = 0
        for _, block in parts:
            joined[position[start : start + len(block)]] = (block - mean) / sd
            start += len(block)
        return index[order], joined, np.stack([mean, sd])


def _mean_and_sd(blocks: Iterable[NDArray[np.float16]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each channel over all rows of (rows, channels) blocks."""
    sums = [
        (len(block), block.sum(axis=0, dtype=np.float64), np.square(block, dtype=np.float64).sum(axis=0))
        for block in blocks
    ]
    count, total, squares = (sum(column) for column in zip(*sums, strict=True))
    mean = np.asarray(total / count)
    variance = np.maximum(squares / count - mean**2, 0)
    # A channel that hardly varies must not be blown up.
    return mean.astype(np.float32), np.sqrt(variance).clip(SMALLEST_SD).astype(np.float32)


def open_embedding(sdata: SpatialData, image_key: str, embedding_key: str | None = None) -> Embedded:
    """Find the embedding of an image, ``f"{image_key}_embedding"`` by default.

    Raises
    ------
    KeyError
        If it was not written by `pixel2gene.tl.embed`.
    ValueError
        If it does not lie on the superpixels of the image, as after a crop between them.
    """
    key = embedding_key or f"{image_key}_embedding"
    record = get_record(sdata, key, "embed")
    image_key = record["image_key"]
    grid = superpixel_grid(sdata, image_key, record["mpp"])
    to_grid = grid.from_pixels @ affine(sdata, key, image_key)
    if sdata.images[key].shape[1:] != grid.shape or np.abs(to_grid - np.eye(3)).max() > OFF_GRID:
        raise ValueError(
            f"{key!r} does not lie on the superpixels of image {image_key!r}, as after a crop through them: run "
            "pixel2gene.tl.tissue and pixel2gene.tl.embed again with overwrite=True."
        )
    return Embedded(record, grid, sdata.images[key].data)

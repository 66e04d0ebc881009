"""The embedding of a slide as models read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from spatialdata import SpatialData

from pixel2gene.core.moments import moments
from pixel2gene.spatial.elements import get_record
from pixel2gene.spatial.geometry import affine
from pixel2gene.spatial.grid import Grid, superpixel_grid

SMALLEST_SD = 1e-3
# Superpixels that an embedding may be off by, by rounding.
OFF_GRID = 0.01


@dataclass(frozen=True)
class Statistics:
    """Of the tissue of a slide.

    Attributes
    ----------
    superpixels
        (superpixels,) flat indices, in order.
    mean, sd
        (channels,) of the embedding over them.
    """

    superpixels: NDArray[np.int64]
    mean: NDArray[np.float32]
    sd: NDArray[np.float32]

    def standardise(self, features: NDArray[np.float16]) -> NDArray[np.float16]:
        """(superpixels, channels) as models read them."""
        return ((features - self.mean) / self.sd).astype(np.float16)


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

    @cached_property
    def statistics(self) -> Statistics:
        """Which superpixels are tissue, and mean and standard deviation of each channel over them, read block by block.

        What models read has mean 0 and standard deviation 1 over the tissue of the slide, which takes out much of what
        stain and scanner do.
        """
        index = []

        def blocks() -> Iterator[NDArray[np.float16]]:
            for part, block in self._raw_blocks():
                index.append(part)
                yield block

        mean, sd = moments(blocks())
        # A channel that hardly varies must not be blown up.
        sd = sd.clip(SMALLEST_SD)
        return Statistics(np.sort(np.concatenate(index)), mean.astype(np.float32), sd.astype(np.float32))

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float16]]]:
        """Flat indices of the tissue superpixels of each chunk, and their (superpixels, channels) raw embedding.

        Last, the same standardised.
        """
        for index, block in self._raw_blocks():
            yield index, block, self.statistics.standardise(block)

    def tissue(self, within: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """All standardised `blocks` together, in the order of the flat indices.

        Only those within the (rows, columns) mask, if one is given.
        """
        wanted = np.ones(self.grid.shape, bool) if within is None else within
        index = self.statistics.superpixels
        index = index[wanted.ravel()[index]]
        features = np.empty((len(index), self.values.shape[0]), np.float16)
        for part, block in self._raw_blocks(wanted):
            kept = wanted.ravel()[part]
            features[np.searchsorted(index, part[kept])] = self.statistics.standardise(block[kept])
        return index, features

    def _raw_blocks(
        self, wanted: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """As it was written, chunks without any superpixel that is wanted left out."""
        ids = np.arange(self.grid.size).reshape(self.grid.shape)
        row = 0
        for i, height in enumerate(self.values.chunks[1]):
            column = 0
            for j, width in enumerate(self.values.chunks[2]):
                place = slice(row, row + height), slice(column, column + width)
                column += width
                if wanted is not None and not wanted[place].any():
                    continue
                block = np.asarray(self.values.blocks[:, i, j].compute(scheduler="threads"))
                tissue = (block != 0).any(axis=0)
                yield ids[place][tissue], block[:, tissue].T
            row += height


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

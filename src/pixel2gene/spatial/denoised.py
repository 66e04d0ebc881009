"""The raster of denoised counts, computed for some genes at a time as it is written."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
import torch
from dask import delayed
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pixel2gene.core.ceiling import count_bounded_of_farthest
from pixel2gene.core.denoising import SMALLEST, Denoised
from pixel2gene.core.device import one_thread
from pixel2gene.core.ensemble import Ensemble
from pixel2gene.core.regression import Measurement, predict_latents
from pixel2gene.spatial.elements import RASTER_CHUNKS
from pixel2gene.spatial.grid import Grid
from pixel2gene.spatial.measured import Measured, gaps_between

# Rates of members at once.
RATES = 2**22


@dataclass(frozen=True)
class DenoisedMap:
    """What the superpixels under the units have, and those between them.

    Attributes
    ----------
    head
        Makes outputs of the latents.
    latents
        (members, superpixels, width) of those under the units, then of those between them.
    superpixels
        (superpixels,) their flat indices.
    overlap
        (units, superpixels under them).
    depth
        Of the slide.
    result
        Of the units.
    grid
        To lay them on.
    """

    head: Ensemble
    latents: NDArray[np.float32]
    superpixels: NDArray[np.int64]
    overlap: csr_array
    depth: np.float32
    result: Denoised
    grid: Grid

    def raster(self) -> da.Array:
        """(genes, rows, columns) float16 expected counts per superpixel, lazy, NaN elsewhere."""
        number, most = self.result.mean.shape[1], RASTER_CHUNKS[0]
        # One for all blocks, which a worker is sent once.
        shared, plane = delayed(self, traverse=False), delayed(DenoisedMap._plane)
        planes = [
            da.from_delayed(
                plane(shared, slice(first, min(first + most, number))),
                (min(most, number - first), *self.grid.shape),
                dtype=np.float16,
            )
            for first in range(0, number, most)
        ]
        raster: da.Array = da.concatenate(planes)
        return raster

    def bounded(self) -> NDArray[np.int64]:
        """(genes,) at how many of the superpixels with the largest outputs a rate was bounded."""
        return count_bounded_of_farthest(self.head, self.latents)

    def _plane(self, genes: slice) -> NDArray[np.float16]:
        with one_thread():
            rate = self._rates(np.arange(genes.start, genes.stop))
        under = self.overlap.shape[1]
        correction = self.result.mean[:, genes] / np.maximum(self.overlap @ rate[:under], SMALLEST)
        share = np.asarray(self.overlap.sum(axis=0)).ravel()[:, None]
        values = rate[:under] * (self.overlap.T @ correction) / share
        if len(self.superpixels) > under:
            centres = self.grid.centres[self.superpixels[under:]]
            between = self.result.elsewhere.at(centres, rate[under:] * self.depth, genes)
            values = np.concatenate([values, between])
        plane = np.full((values.shape[1], self.grid.size), np.nan, np.float16)
        plane[:, self.superpixels] = values.T
        return plane.reshape(-1, *self.grid.shape)

    def _rates(self, genes: NDArray[np.intp]) -> NDArray[np.float32]:
        """(superpixels, genes) mean over the members."""
        members, superpixels, _ = self.latents.shape
        rates = self.head.by_gene(torch.from_numpy(genes))
        found = np.empty((superpixels, len(genes)), np.float32)
        size = max(RATES // (members * len(genes)), 1)
        with torch.inference_mode():
            for start in range(0, superpixels, size):
                some = torch.from_numpy(self.latents[:, start : start + size]).transpose(1, 2)
                found[start : start + size] = rates(some).mean(dim=0).T.numpy()
        return found


def denoised_map(
    network: Ensemble,
    undisturbed: Measurement,
    measured: Measured,
    result: Denoised,
    grid: Grid,
    device: torch.device,
) -> DenoisedMap:
    """Bring together what the raster of denoised counts is computed from.

    Parameters
    ----------
    network
        That they were denoised with.
    undisturbed
        The units, had the platform done nothing to their counts.
    measured
        The same as they are.
    result
        What they were found to have.
    grid
        Of the slide.
    device
        Where the network is.
    """
    under = np.flatnonzero(np.asarray(undisturbed.overlap.sum(axis=0)).ravel() > 0)
    used = np.concatenate([under, gaps_between(measured, grid)])
    return DenoisedMap(
        network.head().cpu(),
        predict_latents(network, undisturbed.features, device, used),
        measured.superpixels[used],
        csr_array(undisturbed.overlap[:, under]),
        undisturbed.depth.mean(),
        result,
        grid,
    )

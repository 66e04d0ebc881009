"""Sums over the units around each unit, weighted by a Gaussian of their distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.sparse import csr_array

# Side, in superpixels, of the blocks whose units are left out together.
BLOCK = 2
REACH = 3.0
# Wider Gaussians are summed over cells of 2, 4 ... superpixels, so that they are this wide in cells.
CELLS_PER_WIDTH = 3.0
COARSEST = 2**6
# Cells of all columns together that are summed over at once, at most.
GRID_VALUES = 2**24
# Weights of few units on a large grid, at most, where they take fewer products than the grid.
SPREAD_VALUES = 2**23


class Neighbours:
    """Units on the superpixel grid, each in the cell that its centre lies in.

    Attributes
    ----------
    block
        (units,) the block of 2 × 2 superpixels that each unit lies in.
    """

    def __init__(self, centres: NDArray[np.floating]) -> None:
        """Of units at `centres`, (units, 2) x and y in grid coordinates."""
        cells = np.floor(centres).astype(np.int64)
        self._origin = cells.min(axis=0, initial=0) // COARSEST * COARSEST
        self._cells = cells - self._origin
        blocks = self._cells // BLOCK
        self.block: NDArray[np.intp] = np.unique(blocks, axis=0, return_inverse=True)[1].ravel()
        self._place = (self._cells % BLOCK) @ (1, BLOCK)

    def sums(self, values: NDArray[np.floating], width: float, *, own_block: bool = True) -> NDArray[np.float32]:
        """Sum `values` around each unit with weights ``exp(-distance**2 / (2 * width**2))``, distances in superpixels.

        Parameters
        ----------
        values
            (units, columns).
        width
            Standard deviation in superpixels.
        own_block
            Whether the other units of a unit's block are among its neighbours.

        Returns
        -------
        (units, columns) sums over all units but itself, or but those of its block.
        """
        width, cell = _in_cells(width)
        around = self._sums(values, width, cell, self._cells)
        left_out = values if own_block else self._within_block(values, width, cell)
        # Of what is left of rounding, nothing is below zero.
        result: NDArray[np.float32] = np.maximum(around - left_out, 0)
        return result

    def sums_at(self, centres: NDArray[np.floating], values: NDArray[np.floating], width: float) -> NDArray[np.float32]:
        """(places, columns) as `sums`, around other places; `centres` is (places, 2)."""
        width, cell = _in_cells(width)
        sums = self._sums(values, width, cell, np.floor(centres).astype(np.int64) - self._origin)
        result: NDArray[np.float32] = np.maximum(sums, 0)
        return result

    def _sums(
        self, values: NDArray[np.floating], width: float, cell: int, places: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Sums over all units, 0 beyond the cells that hold them."""
        y, x = self._cells.T // cell
        shape = int(y.max(initial=0)) + 1, int(x.max(initial=0)) + 1
        steps = np.arange(-np.ceil(REACH * width), np.ceil(REACH * width) + 1)
        weight = np.exp(-((steps / width) ** 2) / 2)
        row, column = places.T // cell
        within = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
        row, column = (np.where(within, index, 0) for index in (row, column))
        if len(x) * len(steps) ** 2 <= min(2 * shape[0] * shape[1] * len(steps), SPREAD_VALUES):
            # Summed up in the order of their places, whatever their own.
            order = np.lexsort((x, y))
            spread = _spread(y[order], x[order], shape, weight)[row * shape[1] + column]
            few: NDArray[np.float32] = spread @ values[order].astype(np.float32)
            few *= within[:, None]
            return few
        laid = _spread(y, x, shape, np.ones(1))
        sums = np.empty((len(places), values.shape[1]), np.float32)
        size = max(GRID_VALUES // laid.shape[0], 1)
        for some in (slice(start, start + size) for start in range(0, values.shape[1], size)):
            grids = np.ascontiguousarray((laid @ values[:, some].astype(np.float32)).T).reshape(-1, *shape)
            for axis in (1, 2):
                grids = correlate1d(grids, weight, axis, mode="constant")
            sums[:, some] = (grids[:, row, column] * within).T
        return sums

    def _within_block(self, values: NDArray[np.floating], width: float, cell: int) -> NDArray[np.float32]:
        """Sum over the units of the same block, the unit itself among them."""
        places, blocks = BLOCK * BLOCK, int(self.block.max(initial=-1)) + 1
        units = np.arange(len(values))
        there = csr_array(
            (np.ones(len(units), np.float32), (self.block * places + self._place, units)), (blocks * places, len(units))
        )
        sums = (there @ values.astype(np.float32)).reshape(blocks, places, -1)
        place = np.stack(np.divmod(np.arange(places), BLOCK)) // cell
        weight = np.exp(-((place[:, :, None] - place[:, None]) ** 2).sum(axis=0) / (2 * width**2))
        within: NDArray[np.float32] = np.einsum("pq,bqg->bpg", weight.astype(np.float32), sums)[self.block, self._place]
        return within


def _spread(
    y: NDArray[np.int64], x: NDArray[np.int64], shape: tuple[int, int], weight: NDArray[np.float64]
) -> csr_array:
    """(cells, units) the weights of each unit in the cells around its own."""
    step = np.arange(len(weight)) - len(weight) // 2
    row, column = (y[:, None] + step)[:, :, None], (x[:, None] + step)[:, None, :]
    within = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    unit = np.broadcast_to(np.arange(len(x))[:, None, None], within.shape)[within]
    weights = np.broadcast_to(np.multiply.outer(weight, weight).astype(np.float32), within.shape)[within]
    return csr_array((weights, ((row * shape[1] + column)[within], unit)), (shape[0] * shape[1], len(x)))


def _in_cells(width: float) -> tuple[float, int]:
    """Width in cells, and the side of a cell in superpixels."""
    cell = 2 ** max(0, round(np.log2(width / CELLS_PER_WIDTH)))
    return width / cell, cell


def pairs(values: NDArray[np.floating], block: NDArray[np.integer]) -> NDArray[np.float64]:
    """(columns,) sum of the products of all pairs of different units of the same block."""
    shared = np.bincount(block)[block] > 1
    values, number = values[shared].astype(np.float64), np.unique(block[shared], return_inverse=True)[1].ravel()
    shape = (int(number.max(initial=-1)) + 1, len(number))
    sums = csr_array((np.ones(len(number)), (number, np.arange(len(number)))), shape) @ values
    result: NDArray[np.float64] = (np.square(sums).sum(axis=0) - np.square(values).sum(axis=0)) / 2
    return result

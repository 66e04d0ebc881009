"""Spatial block folds: units that lie together are held out together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_SIDES = (64, 48, 32, 24, 16, 12, 8)
BLOCKS_PER_FOLD = 2


def block_folds(
    centres: NDArray[np.floating],
    shape: tuple[int, int],
    folds: int,
    seed: int,
    sides: Sequence[int] = BLOCK_SIDES,
) -> tuple[NDArray[np.int8], int]:
    """Deal square blocks of superpixels out to folds of about the same number of units.

    The blocks are as large as they can be with two of them in each fold, because a held-out unit whose neighbours
    were trained on says little about tissue that was not measured.

    Parameters
    ----------
    centres
        (units, 2) x and y in grid coordinates.
    shape
        Rows and columns of the superpixel grid.
    folds
        Number of folds, at least 2.
    seed
        Of the order in which blocks are dealt.
    sides
        Of a block in superpixels, to choose from; the largest first.

    Returns
    -------
    fold
        (block rows, block columns) fold of each block, -1 where there is no unit.
    side
        Side of a block in superpixels.

    Raises
    ------
    ValueError
        If the units fill fewer blocks than there are folds.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds given; at least 2 are needed to hold anything out.")
    for side in sides:
        rows, columns = -(-shape[0] // side), -(-shape[1] // side)
        units = np.bincount(_block(centres, side, columns), minlength=rows * columns)
        occupied = np.flatnonzero(units)
        if len(occupied) >= folds * BLOCKS_PER_FOLD:
            break
    if len(occupied) < folds:
        raise ValueError(
            f"The measured units fill {len(occupied)} blocks of {side} x {side} superpixels, fewer than the {folds} "
            "folds; measure more tissue or ask for fewer folds."
        )
    fold = np.full(rows * columns, -1, np.int8)
    load = np.zeros(folds, np.int64)
    order = np.random.default_rng(seed).permutation(occupied)
    for block in order[np.argsort(-units[order], kind="stable")]:
        lightest = int(load.argmin())
        fold[block] = lightest
        load[lightest] += units[block]
    return fold.reshape(rows, columns), side


def fold_of(centres: NDArray[np.floating], fold: NDArray[np.int8], side: int) -> NDArray[np.int8]:
    """(units,) fold of the block that each unit's centre lies in, -1 where no unit was dealt."""
    found: NDArray[np.int8] = fold.ravel()[_block(centres, side, fold.shape[1])]
    return found


def _block(centres: NDArray[np.floating], side: int, columns: int) -> NDArray[np.int64]:
    x, y = np.floor(centres.T / side).astype(np.int64)
    block: NDArray[np.int64] = y * columns + x
    return block

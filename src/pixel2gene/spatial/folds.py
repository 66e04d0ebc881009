"""Spatial folds: units that lie together are held out together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

# Sides of the blocks of superpixels that regions are made of: the first of which each fold has some, else the last.
GRAINS = (4, 2, 1)
BLOCKS_PER_FOLD = 2
# Side, in superpixels, of the blocks that are held out amid what was trained on.
APART = 2


def region_folds(
    centres: NDArray[np.floating], shape: tuple[int, int], folds: int, capture: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.int8], int]:
    """Cut the measured tissue into one compact region per fold, with about the same number of units in each.

    The tissue is cut in two across its longer side, and so are its parts. Regions are as compact and as large as they
    can be, because a held-out unit whose neighbours were trained on says little about tissue that was not measured.

    Parameters
    ----------
    centres
        (units, 2) x and y in grid coordinates.
    shape
        Rows and columns of the superpixel grid.
    folds
        Number of folds, at least 2.
    capture
        (units,) which capture each unit is of, if there are several under one H&E. Each is cut into all folds, so that
        no member lacks what only one of them measured; those that share tissue are cut as one.

    Returns
    -------
    fold
        (block rows, block columns) fold of each block of superpixels, -1 where there is no unit.
    side
        Side of a block in superpixels.

    Raises
    ------
    ValueError
        If the units fill fewer blocks than there are folds.
    """
    apart = [centres] if capture is None else _apart(centres, shape, capture)
    enough = folds * BLOCKS_PER_FOLD
    side = next((side for side in GRAINS if min(_number(some, shape, side) for some in apart) >= enough), GRAINS[-1])
    rows, columns = blocks(shape, side)
    units = np.bincount(_block(centres, side, columns), minlength=rows * columns)
    fold = np.full(rows * columns, -1, np.int8)
    parts = [(_occupied(some, shape, folds, side)[1], 0, folds) for some in apart]
    while parts:
        some, first, number = parts.pop()
        if number == 1:
            fold[some] = first
            continue
        place = np.stack(np.divmod(some, columns))
        longer = int(np.ptp(place[1]) > np.ptp(place[0]))
        some = some[np.lexsort((place[1 - longer], place[longer]))]
        half = number // 2
        load = np.cumsum(units[some])
        cut = int(np.searchsorted(load, load[-1] * half / number)) + 1
        # Each side keeps a block for each of its folds.
        cut = min(max(cut, half), len(some) - (number - half))
        parts += [(some[:cut], first, half), (some[cut:], first + half, number - half)]
    return fold.reshape(rows, columns), side


def block_folds(
    centres: NDArray[np.floating], shape: tuple[int, int], folds: int, side: int, seed: int
) -> tuple[NDArray[np.int8], int]:
    """Deal square blocks of superpixels out to folds of about the same number of units.

    Parameters
    ----------
    centres, shape, folds
        As in `region_folds`.
    side
        Of a block in superpixels.
    seed
        Of the order in which blocks are dealt.

    Returns
    -------
    As `region_folds`.

    Raises
    ------
    ValueError
        If the units fill fewer blocks than there are folds.
    """
    units, occupied = _occupied(centres, shape, folds, side)
    rows, columns = blocks(shape, side)
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


def apart_of(centres: NDArray[np.floating], fold: NDArray[np.int8], folds: int) -> NDArray[np.int8]:
    """(units,) a second fold to hold each unit out of, the same for all in a block of 2 × 2 superpixels.

    Blocks are dealt by a hash of their place. So each unit has a member that knows its surroundings but not itself;
    units of no fold, and those of fewer than 3 folds, have none (-1).
    """
    if folds < 3:
        return np.full(len(fold), -1, np.int8)
    mixed = np.zeros(len(fold), np.uint64)
    for coordinate in np.floor(centres.T / APART).astype(np.int64).view(np.uint64):
        mixed += coordinate + np.uint64(0x9E3779B97F4A7C15)
        # The finaliser of MurmurHash3 (Appleby, public domain).
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ (mixed >> np.uint64(33))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(33)
    step = 1 + (mixed % np.uint64(folds - 1)).astype(np.int64)
    return np.where(fold < 0, -1, (fold + step) % folds).astype(np.int8)


def _apart(
    centres: NDArray[np.floating], shape: tuple[int, int], capture: NDArray[np.intp]
) -> list[NDArray[np.floating]]:
    """Centres of each set of captures that share no block, of the largest size, with the others."""
    block = _block(centres, GRAINS[0], blocks(shape, GRAINS[0])[1])
    covered = csr_array((np.ones(len(block), bool), (capture, block)))
    _, label = connected_components(covered @ covered.T, directed=False)
    return [centres[label[capture] == one] for one in np.unique(label[capture])]


def _occupied(
    centres: NDArray[np.floating], shape: tuple[int, int], folds: int, side: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Units in each block, and the blocks that have any."""
    if folds < 2:
        raise ValueError(f"{folds} folds given; at least 2 are needed to hold anything out.")
    rows, columns = blocks(shape, side)
    units = np.bincount(_block(centres, side, columns), minlength=rows * columns)
    occupied = np.flatnonzero(units)
    if len(occupied) < folds:
        raise ValueError(
            f"The measured units fill {len(occupied)} blocks of {side} x {side} superpixels, fewer than the {folds} "
            "folds; measure more tissue or ask for fewer folds."
        )
    return units, occupied


def _number(centres: NDArray[np.floating], shape: tuple[int, int], side: int) -> int:
    return len(np.unique(_block(centres, side, blocks(shape, side)[1])))


def blocks(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns of blocks, the last of which may be cut."""
    return -(-shape[0] // side), -(-shape[1] // side)


def _block(centres: NDArray[np.floating], side: int, columns: int) -> NDArray[np.int64]:
    x, y = np.floor(centres.T / side).astype(np.int64)
    block: NDArray[np.int64] = y * columns + x
    return block

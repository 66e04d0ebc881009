import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel2gene.spatial.folds import BLOCK_SIDES, BLOCKS_PER_FOLD, block_folds, fold_of


def everywhere(rows, columns):
    y, x = np.indices((rows, columns)).reshape(2, -1) + 0.5
    return np.stack([x, y], axis=1)


def block_names(centres, side):
    """By the definition."""
    return [(int(y // side), int(x // side)) for x, y in centres]


shapes = st.sampled_from([(100, 100), (8, 3000), (3000, 8), (65, 129), (40, 1000), (200, 70)])


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(2, 6), st.integers(0, 1000), st.integers(200, 3000))
def test_units_are_dealt_in_whole_blocks(shape, folds, seed, units):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (units, 2)) * [shape[1], shape[0]]
    fold, side = block_folds(centres, shape, folds, seed)
    found = fold_of(centres, fold, side)
    assert side in BLOCK_SIDES
    assert fold.shape == (-(-shape[0] // side), -(-shape[1] // side)) and fold.dtype == np.int8
    assert set(found) == set(range(folds))
    by_block = {}
    for name, of in zip(block_names(centres, side), found, strict=True):
        assert by_block.setdefault(name, of) == of == fold[name]
    assert (fold >= 0).sum() == len(by_block)
    # Dealt largest first to the lightest, no two folds are further apart than one block.
    largest = np.unique(block_names(centres, side), axis=0, return_counts=True)[1].max()
    assert np.ptp(np.bincount(found)) <= largest
    again, _ = block_folds(centres, shape, folds, seed)
    np.testing.assert_array_equal(again, fold)


@pytest.mark.parametrize("shape", [(8, 3000), (3000, 8), (300, 200)])
def test_far_blocks_do_not_share_an_id(shape):
    """row * rows + column, as published, gives blocks of a slide that is not square the same id."""
    centres = everywhere(*shape)
    fold, side = block_folds(centres, shape, 5, 0)
    found = fold_of(centres, fold, side).reshape(shape)
    for row in range(fold.shape[0]):
        for column in range(fold.shape[1]):
            block = found[row * side : (row + 1) * side, column * side : (column + 1) * side]
            assert (block == fold[row, column]).all()
    units = np.array([(found == k).sum() for k in range(5)])
    assert np.ptp(units) <= side * side


def test_a_seed_deals_otherwise():
    centres = everywhere(200, 200)
    first, second = (block_folds(centres, (200, 200), 4, seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shape", [(1000, 1000), (256, 256), (64, 96)])
def test_blocks_are_as_large_as_they_can_be(shape):
    folds = 4
    _, side = block_folds(everywhere(*shape), shape, folds, 0)
    enough = [s for s in BLOCK_SIDES if -(-shape[0] // s) * -(-shape[1] // s) >= folds * BLOCKS_PER_FOLD]
    assert side == enough[0]


def test_where_no_unit_was_is_no_fold():
    centres = everywhere(200, 100)
    fold, side = block_folds(centres, (200, 300), 3, 0)
    assert (fold_of(np.array([[299.0, 150.0]]), fold, side) == -1).all()


def test_fewer_blocks_than_folds_are_refused():
    with pytest.raises(ValueError, match="fill 2 blocks of 8 x 8 superpixels, fewer than the 5 folds"):
        block_folds(everywhere(8, 16), (8, 16), 5, 0)
    fold, side = block_folds(everywhere(8, 16), (8, 16), 2, 0)
    assert side == 8 and sorted(fold.ravel()) == [0, 1]


@pytest.mark.parametrize("folds", [1, 0])
def test_one_fold_holds_nothing_out(folds):
    with pytest.raises(ValueError, match="at least 2"):
        block_folds(everywhere(80, 80), (80, 80), folds, 0)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from pixel2gene.spatial.folds import APART, GRAINS, apart_of, block_folds, fold_of, region_folds


def everywhere(rows, columns):
    y, x = np.indices((rows, columns)).reshape(2, -1) + 0.5
    return np.stack([x, y], axis=1)


def deal_blocks(centres, shape, folds):
    return block_folds(centres, shape, folds, 8, 0)


def block_names(centres, side):
    """By the definition."""
    return [(int(y // side), int(x // side)) for x, y in centres]


shapes = st.sampled_from([(100, 100), (8, 3000), (3000, 8), (65, 129), (40, 1000), (200, 70)])
either = pytest.mark.parametrize("deal", [region_folds, deal_blocks])


@either
@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(2, 12), st.integers(0, 1000), st.integers(200, 3000))
def test_units_are_dealt_in_whole_blocks(deal, shape, folds, seed, units):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (units, 2)) * [shape[1], shape[0]]
    fold, side = deal(centres, shape, folds)
    found = fold_of(centres, fold, side)
    assert fold.shape == (-(-shape[0] // side), -(-shape[1] // side)) and fold.dtype == np.int8
    assert set(found) == set(range(folds))
    by_block = {}
    for name, of in zip(block_names(centres, side), found, strict=True):
        assert by_block.setdefault(name, of) == of == fold[name]
    assert (fold >= 0).sum() == len(by_block)
    again, _ = deal(centres, shape, folds)
    np.testing.assert_array_equal(again, fold)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(2, 12), st.integers(0, 1000), st.integers(200, 3000))
def test_regions_have_about_the_same_number_of_units(shape, folds, seed, units):
    centres = np.random.default_rng(seed).uniform(0, 1, (units, 2)) * [shape[1], shape[0]]
    fold, side = region_folds(centres, shape, folds)
    found = fold_of(centres, fold, side)
    largest = np.unique(block_names(centres, side), axis=0, return_counts=True)[1].max()
    # Each cut is right to within a block, and a unit passes log2(folds) of them, rounded up.
    assert np.ptp(np.bincount(found)) <= 2 * largest * np.ceil(np.log2(folds))


@pytest.mark.parametrize("shape", [(8, 3000), (3000, 8), (300, 200), (64, 64)])
@pytest.mark.parametrize("folds", [2, 5, 10])
def test_regions_of_a_full_slide_are_connected_and_compact(shape, folds):
    fold, _ = region_folds(everywhere(*shape), shape, folds)
    for k in range(folds):
        assert label(fold == k)[1] == 1
        row, column = np.nonzero(fold == k)
        long = max(fold.shape) / min(fold.shape)
        sides = sorted([np.ptp(row) + 1, np.ptp(column) + 1])
        assert sides[1] / sides[0] <= max(4, 4 * long / folds)


def test_held_out_units_are_further_from_trained_ones_than_in_dealt_blocks():
    centres = everywhere(120, 120)
    inner = [
        np.abs(np.diff(fold_of(centres, *folds).reshape(120, 120), axis=1)).astype(bool).mean()
        for folds in (region_folds(centres, (120, 120), 10), block_folds(centres, (120, 120), 10, 8, 0))
    ]
    assert inner[0] < 0.5 * inner[1]


@pytest.mark.parametrize("shape", [(8, 3000), (3000, 8), (300, 200)])
def test_far_blocks_do_not_share_an_id(shape):
    """row * rows + column, as published, gives blocks of a slide that is not square the same id."""
    centres = everywhere(*shape)
    fold, side = block_folds(centres, shape, 5, 8, 0)
    found = fold_of(centres, fold, side).reshape(shape)
    for row in range(fold.shape[0]):
        for column in range(fold.shape[1]):
            block = found[row * side : (row + 1) * side, column * side : (column + 1) * side]
            assert (block == fold[row, column]).all()
    # Dealt largest first to the lightest, no two folds are further apart than one block.
    units = np.array([(found == k).sum() for k in range(5)])
    assert np.ptp(units) <= side * side


def test_a_seed_deals_blocks_otherwise():
    centres = everywhere(200, 200)
    first, second = (block_folds(centres, (200, 200), 4, 8, seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


@either
def test_where_no_unit_was_is_no_fold(deal):
    centres = everywhere(200, 100)
    fold, side = deal(centres, (200, 300), 3)
    assert (fold_of(np.array([[299.0, 150.0]]), fold, side) == -1).all()


@pytest.mark.parametrize("width", [40, 10, 5, 3])
def test_regions_of_small_windows_are_of_smaller_blocks(width):
    fold, side = region_folds(everywhere(width, width), (width, width), 5)
    enough = [grain for grain in GRAINS if (-(-width // grain)) ** 2 >= 10]
    assert side == (enough[0] if enough else GRAINS[-1])
    assert set(fold.ravel()) == set(range(5))


def test_fewer_blocks_than_folds_are_refused():
    with pytest.raises(ValueError, match="fill 2 blocks of 1 x 1 superpixels, fewer than the 5 folds"):
        region_folds(everywhere(1, 2), (1, 2), 5)
    with pytest.raises(ValueError, match="fill 2 blocks of 3 x 3 superpixels, fewer than the 5 folds"):
        block_folds(everywhere(3, 6), (3, 6), 5, 3, 0)
    fold, _ = region_folds(everywhere(1, 2), (1, 2), 2)
    assert sorted(fold.ravel()) == [0, 1]


@either
@pytest.mark.parametrize("folds", [1, 0])
def test_one_fold_holds_nothing_out(deal, folds):
    with pytest.raises(ValueError, match="at least 2"):
        deal(everywhere(80, 80), (80, 80), folds)


def dealt(rows, columns, folds):
    """Centres of all superpixels and their folds in regions."""
    centres = everywhere(rows, columns)
    return centres, fold_of(centres, *region_folds(centres, (rows, columns), folds))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 1000),
    st.integers(3, 127),
    st.sampled_from([0.0, -300.0, 1e6, -(2.0**40), 2.0**40, 2.0**50]),
    st.integers(1, 60),
)
def test_apart_is_one_other_fold_per_block(seed, folds, low, side):
    rng = np.random.default_rng(seed)
    centres = low + rng.uniform(0, side, (300, 2))
    # Blocks of one fold, which is what regions and blocks are made of.
    of = {name: rng.integers(-1, folds) for name in block_names(centres, APART)}
    fold = np.array([of[name] for name in block_names(centres, APART)], np.int8)
    with np.errstate(all="raise"):
        apart = apart_of(centres, fold, folds)
    assert apart.dtype == np.int8 and apart.shape == (300,)
    assert (apart[fold < 0] == -1).all()
    assert ((apart >= 0) & (apart < folds) & (apart != fold))[fold >= 0].all()
    by_block = {}
    for name, found in zip(block_names(centres, APART), apart, strict=True):
        assert by_block.setdefault(name, found) == found
    order = rng.permutation(300)[:200]
    np.testing.assert_array_equal(apart_of(centres[order], fold[order], folds), apart[order])


@pytest.mark.parametrize("folds", [3, 4, 10])
@pytest.mark.parametrize("shift", [0, -1000, 2**40])
def test_all_other_folds_are_used_about_equally(folds, shift):
    centres, fold = dealt(240, 200, folds)
    apart = apart_of(centres + shift, fold, folds).reshape(240, 200)[::APART, ::APART]
    fold = fold.reshape(240, 200)[::APART, ::APART]
    for k in range(folds):
        number = np.bincount(apart[fold == k], minlength=folds)
        assert number[k] == 0
        expected = (fold == k).sum() / (folds - 1)
        # To 5 standard deviations of dealing by chance.
        assert (np.abs(np.delete(number, k) - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("folds", [4, 5, 9, 10])
def test_blocks_near_one_another_are_held_apart_as_by_chance(folds):
    centres = everywhere(240, 200)
    apart = apart_of(centres, np.zeros(len(centres), np.int8), folds).reshape(240, 200)[::APART, ::APART]
    chance = 1 / (folds - 1)
    for step in [(0, 1), (1, 0), (1, 1), (1, -1), (0, 4), (4, 0), (8, 0)]:
        same = apart == np.roll(apart, step, axis=(0, 1))
        assert abs(same.mean() - chance) < 5 * np.sqrt(chance * (1 - chance) / same.size)


@pytest.mark.parametrize("folds", [1, 2])
def test_fewer_than_three_folds_hold_nothing_apart(folds):
    centres = everywhere(9, 7)
    apart = apart_of(centres, (np.arange(63) % folds).astype(np.int8), folds)
    assert apart.dtype == np.int8
    np.testing.assert_array_equal(apart, np.full(63, -1))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.integers(0, 1000), st.integers(2, 4))
def test_captures_that_lie_apart_have_all_folds_each(folds, seed, captures):
    rng = np.random.default_rng(seed)
    capture = np.repeat(np.arange(captures), rng.integers(200, 600, captures))
    left = GRAINS[0] * 20 * capture
    centres = rng.uniform(0, [GRAINS[0] * 15, 100], (len(capture), 2)) + np.stack([left, 0 * left], axis=1)
    order = rng.permutation(len(capture))
    centres, capture = centres[order], capture[order]
    shape = (100, GRAINS[0] * 20 * captures)
    fold, side = region_folds(centres, shape, folds, capture)
    found = fold_of(centres, fold, side)
    for one in range(captures):
        alone, its_side = region_folds(centres[capture == one], shape, folds)
        assert its_side >= side
        assert set(found[capture == one]) == set(range(folds))
        if its_side == side:
            np.testing.assert_array_equal(fold_of(centres[capture == one], alone, side), found[capture == one])


def test_captures_that_share_tissue_are_cut_as_one():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 100, (900, 2))
    together, side = region_folds(centres, (100, 100), 5, rng.integers(0, 3, 900))
    one, its_side = region_folds(centres, (100, 100), 5)
    assert side == its_side
    np.testing.assert_array_equal(together, one)

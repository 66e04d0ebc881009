"""Sums over neighbours, against a double loop."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixel2gene.core import neighbours as module
from pixel2gene.core.denoising import WIDTHS
from pixel2gene.core.neighbours import BLOCK, COARSEST, REACH, Neighbours, pairs

seeds = st.integers(0, 2**32 - 1)
own_blocks = pytest.mark.parametrize("own_block", [True, False])


def some_units(seed, units, side, low=-30.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(low, low + side, (units, 2)), rng.poisson(3, (units, 3)).astype(np.float32)


def brute_force(centres, values, width, own_block):
    """Sums over all units, and over those within reach of `REACH` standard deviations along both axes."""
    place = np.floor(centres)
    sums = np.zeros((2, *values.shape))
    for i in range(len(place)):
        step = place - place[i]
        same = np.arange(len(place)) == i if own_block else (place // 2 == place[i] // 2).all(axis=1)
        weight = np.where(same, 0, np.exp(-(step**2).sum(axis=1) / (2 * width**2)))
        sums[:, i] = weight @ values, (weight * (np.abs(step) <= REACH * width).all(axis=1)) @ values
    return sums


@own_blocks
@pytest.mark.parametrize("width", [1.5, 3.0])
@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(1, 40), st.sampled_from([1, 4, 12, 60]))
def test_narrow_sums_are_exact_within_reach(own_block, width, seed, units, side):
    centres, values = some_units(seed, units, side)
    found = Neighbours(centres).sums(values, width, own_block=own_block)
    everything, near = brute_force(centres, values, width, own_block)
    assert found.dtype == np.float32
    assert (near * (1 - 1e-5) - 1e-4 <= found).all() and (found <= everything * (1 + 1e-5) + 1e-4).all()


@own_blocks
@pytest.mark.parametrize("width", [6.0, 12.0, 24.0])
def test_wide_sums_over_coarse_cells_are_close(own_block, width):
    centres, values = some_units(0, 400, 100)
    found = Neighbours(centres).sums(values, width, own_block=own_block)
    everything, _ = brute_force(centres, values, width, own_block)
    np.testing.assert_allclose(found.sum(axis=0), everything.sum(axis=0), rtol=0.02)
    assert (np.abs(found - everything).mean(axis=0) < 0.04 * everything.mean(axis=0)).all()


@pytest.mark.parametrize("width", WIDTHS)
@settings(deadline=None, max_examples=10)
@given(seeds)
def test_what_is_left_out_does_not_matter(width, seed):
    centres, values = some_units(seed, 80, 9)
    around = Neighbours(centres)
    one, its_block = np.arange(80) == seed % 80, around.block == around.block[seed % 80]
    for left_out, own_block, watched in ((one, True, one), (its_block, False, its_block)):
        changed = np.where(left_out[:, None], values + 50, values)
        before, after = (around.sums(each, width, own_block=own_block) for each in (values, changed))
        np.testing.assert_allclose(before[watched], after[watched], rtol=1e-4, atol=1e-2)
        # The others see it.
        assert (after[~watched] > before[~watched] + 1).any()


def test_blocks_are_squares_of_superpixels():
    centres, _ = some_units(1, 300, 11, low=-5)
    block = Neighbours(centres).block
    names = [tuple(name) for name in np.floor(centres / BLOCK)]
    for i, j in itertools.combinations(range(300), 2):
        assert (block[i] == block[j]) == (names[i] == names[j])


@own_blocks
@pytest.mark.parametrize("width", WIDTHS)
def test_units_of_one_cell_weigh_1_to_each_other(own_block, width):
    values = np.array([[1.0], [2.0], [4.0]], np.float32)
    found = Neighbours(np.array([[3.1, 3.2], [3.9, 3.9], [3.0, 3.5]])).sums(values, width, own_block=own_block)
    np.testing.assert_allclose(found[:, 0], [6, 5, 3] if own_block else 0, atol=1e-5)


@own_blocks
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", [(COARSEST, 3 * COARSEST), (-COARSEST, 0), (-5 * COARSEST, 2 * COARSEST)])
def test_the_place_on_the_grid_does_not_matter(own_block, width, shift):
    centres, values = some_units(2, 200, 70, low=-20)
    before, after = Neighbours(centres), Neighbours(centres + shift)
    np.testing.assert_array_equal(before.block, after.block)
    sums = [around.sums(values, width, own_block=own_block) for around in (before, after)]
    np.testing.assert_allclose(*sums, rtol=1e-5, atol=1e-5)


@own_blocks
@pytest.mark.parametrize("width", WIDTHS)
def test_the_order_of_units_does_not_matter(own_block, width):
    centres, values = some_units(3, 200, 15)
    order = np.random.default_rng(0).permutation(200)
    found = Neighbours(centres).sums(values, width, own_block=own_block)
    other = Neighbours(centres[order]).sums(values[order], width, own_block=own_block)
    np.testing.assert_allclose(other, found[order], rtol=1e-4, atol=1e-4)


@own_blocks
@pytest.mark.parametrize("width", [1.5, 12.0])
@pytest.mark.parametrize("size", [1, 100, 5000])
def test_columns_in_parts_are_the_same(monkeypatch, own_block, width, size):
    centres, values = some_units(4, 200, 40)
    around = Neighbours(centres)
    whole = around.sums(values, width, own_block=own_block)
    monkeypatch.setattr(module, "GRID_VALUES", size)
    np.testing.assert_array_equal(around.sums(values, width, own_block=own_block), whole)


@own_blocks
@pytest.mark.parametrize("width", WIDTHS)
def test_few_units_are_summed_as_on_a_grid(monkeypatch, own_block, width):
    centres, values = some_units(5, 60, 150)
    around, places = Neighbours(centres), some_units(6, 300, 170, low=-40)[0]
    found = around.sums(values, width, own_block=own_block), around.sums_at(places, values, width)
    monkeypatch.setattr(module, "SPREAD_VALUES", 0)
    on_grid = around.sums(values, width, own_block=own_block), around.sums_at(places, values, width)
    for some, others in zip(found, on_grid, strict=True):
        assert others.max() > 1
        np.testing.assert_allclose(some, others, rtol=1e-5, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(0, 30), st.integers(1, 40))
def test_pairs_are_those_of_itertools(seed, units, blocks):
    rng = np.random.default_rng(seed)
    values, block = rng.normal(size=(units, 2)), rng.integers(0, blocks, units)
    expected = np.zeros(2)
    for i, j in itertools.combinations(range(units), 2):
        expected += values[i] * values[j] * (block[i] == block[j])
    np.testing.assert_allclose(pairs(values, block), expected, atol=1e-9)


def test_units_alone_in_their_block_make_no_pairs():
    values = np.array([[2.0, 1], [3, -1], [1e6, 1e6], [5, 4]])
    np.testing.assert_allclose(pairs(values, np.array([4, 9, 0, 4])), [10, 4])
    np.testing.assert_array_equal(pairs(values, np.arange(4)), [0, 0])

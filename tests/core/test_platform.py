"""What a platform does to counts is found where it was planted, and nowhere else."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array, eye_array, kron, random_array

from pixel2gene.core.platform import NO_EFFECTS, blur, capture_field, diffusion_width, stripes
from pixel2gene.datasets._paint import smooth_field

SIDE = 160
# As far as bins of a turned array are off the superpixels on average.
OFF = 0.2113


def places(side: int = SIDE) -> NDArray[np.int64]:
    """(2, units) row and column."""
    return np.indices((side, side)).reshape(2, -1)


def tissue_rates(rng: np.random.Generator, side: int = SIDE) -> NDArray[np.float64]:
    """Counts to expect of tissue: structure of some bins, and cells."""
    return 10 * np.exp(0.5 * smooth_field((side, side), 8, rng) + 0.3 * smooth_field((side, side), 2, rng))


def overdispersed(mean: NDArray[np.float64], rng: np.random.Generator, shape: float = 2.0) -> NDArray[np.int64]:
    return rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape))


def layers(rng: np.random.Generator, wobble: float, side: int = SIDE) -> NDArray[np.float64]:
    """Tissue in layers along the rows, with borders that wobble by so many bins."""
    along = gaussian_filter(rng.standard_normal(side), 12, mode="wrap")
    depth = np.arange(side)[:, None] + wobble * along / along.std()
    levels = np.exp(rng.normal(0, 0.7, 9))
    return 20 * levels[np.searchsorted(np.sort(rng.uniform(0, side, 8)), depth)]


class TestStripes:
    @pytest.mark.parametrize("sd", [0.1, 0.3])
    @pytest.mark.parametrize("seed", range(3))
    def test_planted_ones_are_found(self, sd: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rates = tissue_rates(rng)
        by_row, by_column = np.exp(sd * rng.standard_normal((2, SIDE)))
        counts = overdispersed(4 * rates * by_row[:, None] * by_column, rng, 20)
        found = stripes(counts.ravel(), *places(), rates.ravel())
        for lines, planted in ((found.rows, by_row), (found.columns, by_column)):
            assert lines.kept
            assert lines.sd == pytest.approx(np.log(planted).std(), rel=0.1)
            assert np.corrcoef(np.log(lines.factor), np.log(planted))[0, 1] > 0.95
        assert found.factor.mean() == pytest.approx(1)
        assert np.corrcoef(np.log(found.factor), np.log(np.outer(by_row, by_column).ravel()))[0, 1] > 0.95

    def test_surroundings_will_do_where_nothing_is_expected(self) -> None:
        share = []
        for seed in range(4):
            rng = np.random.default_rng(seed)
            by_row = np.exp(0.3 * rng.standard_normal(SIDE))
            found = stripes(overdispersed(tissue_rates(rng) * by_row[:, None], rng, 20).ravel(), *places())
            assert found.rows.kept and not found.columns.kept
            share.append(found.rows.sd / np.log(by_row).std())
            # Slow changes from row to row could be tissue.
            quick = [np.diff(np.log(values)) for values in (found.rows.factor, by_row)]
            assert np.corrcoef(*quick)[0, 1] > 0.95
        assert np.mean(share) == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("shape", [0.5, 1e6], ids=["overdispersed", "poisson"])
    def test_none_are_invented(self, shape: float) -> None:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            rates = tissue_rates(rng)
            counts = overdispersed(rates, rng, shape).ravel()
            for expected in (None, rates.ravel()):
                found = stripes(counts, *places(), expected)
                assert not found.rows.kept and not found.columns.kept
                assert (found.factor == 1).all()

    @pytest.mark.parametrize("wobble", [0.0, 1.0, 3.0])
    def test_tissue_along_the_rows_is_no_stripe(self, wobble: float) -> None:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            found = stripes(overdispersed(layers(rng, wobble), rng).ravel(), *places())
            assert not found.rows.kept and not found.columns.kept

    def test_the_border_of_the_tissue_is_no_stripe(self) -> None:
        """A rectangle along the rows, of which only the tissue is given."""
        for seed in range(4):
            rng = np.random.default_rng(seed)
            inside = np.zeros((SIDE, SIDE), bool)
            inside[30:120, 20:140] = True
            counts = overdispersed(tissue_rates(rng), rng)
            found = stripes(counts[inside], *np.nonzero(inside))
            assert not found.rows.kept and not found.columns.kept
            assert len(found.rows.factor) == 90 and len(found.columns.factor) == 120

    def test_a_model_may_expect_in_any_unit(self) -> None:
        rng = np.random.default_rng(1)
        rates = tissue_rates(rng).ravel()
        counts = overdispersed(rates * np.exp(0.2 * rng.standard_normal(SIDE))[places()[0]], rng)
        first, other = (stripes(counts, *places(), rates * unit) for unit in (1.0, 1e-3))
        np.testing.assert_allclose(first.factor, other.factor, rtol=1e-6)

    def test_arrays_of_different_length(self) -> None:
        with pytest.raises(ValueError, match="one length above 0.*'row': 2"):
            stripes(np.ones(3), np.arange(2), np.arange(3))


def slide(rng: np.random.Generator, side: int = 96) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Rates of superpixels, and the tissue that has them."""
    tissue = gaussian_filter(rng.standard_normal((side, side)), 10, mode="wrap") > 0
    return np.where(tissue, 40 * np.exp(0.3 * smooth_field((side, side), 8, rng)), 0), tissue


def drifted(
    rates: NDArray[np.float64], width: float, ambient: float, rng: np.random.Generator, shape: float = 4.0
) -> NDArray[np.int64]:
    """Counts of bins that are off the grid by `OFF`, of molecules that drifted one by one."""
    counts = overdispersed(rates, rng, shape)
    start = np.repeat(np.argwhere(counts >= 0), counts.ravel(), axis=0)
    landed = start + rng.random(start.shape) + rng.normal(0, width, start.shape)
    bins = np.floor(landed - OFF).astype(int)
    inside = ((bins >= 0) & (bins < len(rates) - 1)).all(axis=1)
    found = np.zeros((len(rates) - 1, len(rates) - 1), int)
    np.add.at(found, tuple(bins[inside].T), 1)
    return found + rng.poisson(ambient, found.shape)


def off_grid(side: int = 96) -> csr_array:
    """Overlap of the bins of `drifted`."""
    step = (1 - OFF) * eye_array(side, format="csr")[:-1] + OFF * eye_array(side, k=1, format="csr")[:-1]
    return csr_array(kron(step, step, format="csr"))


class TestDiffusion:
    @pytest.mark.parametrize("width", [0.75, 1.5])
    def test_a_planted_one_is_found(self, width: float) -> None:
        found = []
        for seed in range(2):
            rng = np.random.default_rng(seed)
            rates, tissue = slide(rng)
            one = diffusion_width(drifted(rates, width, 0.5, rng).ravel(), off_grid(), tissue)
            assert one.kept
            found.append(one.width)
        assert np.mean(found) == pytest.approx(width, rel=0.1)

    @pytest.mark.parametrize("ambient", [0.0, 2.0])
    def test_none_is_invented(self, ambient: float) -> None:
        for seed in range(2):
            rng = np.random.default_rng(seed)
            rates, tissue = slide(rng)
            found = diffusion_width(drifted(rates, 0, ambient, rng).ravel(), off_grid(), tissue)
            assert not found.kept
            assert found.width < 0.3
            assert found.ambient == pytest.approx(ambient, abs=0.2)

    def test_a_mask_that_is_off_is_no_diffusion(self) -> None:
        """The mask errs by some superpixels along the border, and misses a piece of tissue."""
        for seed in range(2):
            rng = np.random.default_rng(seed)
            rates, tissue = slide(rng)
            field = gaussian_filter(tissue.astype(float), 2) + 0.15 * smooth_field(tissue.shape, 5, rng)
            mask = field > 0.5
            mask[:20, :20] = False
            found = diffusion_width(drifted(rates, 0, 0.5, rng).ravel(), off_grid(), mask)
            assert not found.kept

    def test_a_slide_without_glass_cannot_tell(self) -> None:
        rng = np.random.default_rng(0)
        found = diffusion_width(rng.poisson(20, 95**2), off_grid(), np.ones((96, 96), bool))
        assert np.isnan(found.width) and not found.kept

    def test_units_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"overlap is \(9025, 9216\).*3 totals"):
            diffusion_width(np.ones(3), off_grid(), np.ones((96, 96), bool))


class TestBlur:
    @given(rows=st.integers(1, 9), columns=st.integers(1, 9), width=st.floats(0, 3), seed=st.integers(0, 2**32 - 1))
    @settings(deadline=None, max_examples=40)
    def test_areas_and_molecules_are_preserved(self, rows: int, columns: int, width: float, seed: int) -> None:
        overlap = csr_array(random_array((7, rows * columns), density=0.4, rng=np.random.default_rng(seed)))
        blurred = blur(overlap, (rows, columns), width)
        np.testing.assert_allclose(blurred.sum(axis=1), overlap.sum(axis=1), rtol=1e-9, atol=1e-12)
        whole = blur(csr_array(eye_array(rows * columns)), (rows, columns), width)
        np.testing.assert_allclose(whole.sum(axis=0), 1, rtol=1e-9)
        assert blurred.min() >= 0

    @pytest.mark.parametrize("width", [0.4, 1.0, 2.5])
    def test_variance_is_that_of_the_drift(self, width: float) -> None:
        shape, middle = (41, 51), 20 * 51 + 25
        row = blur(csr_array(eye_array(41 * 51, format="csr")[[middle]]), shape, width).toarray().reshape(shape)
        y, x = np.indices(shape)
        # Three standard deviations hold less than all of the variance.
        assert np.average((y - 20) ** 2, weights=row) == pytest.approx(width**2, rel=0.05)
        assert np.average((x - 25) ** 2, weights=row) == pytest.approx(width**2, rel=0.05)
        assert np.average((x - 25) * (y - 20), weights=row) == pytest.approx(0, abs=1e-9)

    def test_two_drifts_are_one(self) -> None:
        start = csr_array(eye_array(30 * 30, format="csr"))
        twice = blur(blur(start, (30, 30), 0.9), (30, 30), 1.2).toarray()
        np.testing.assert_allclose(twice, blur(start, (30, 30), 1.5).toarray(), atol=1e-3)

    def test_molecules_land_where_the_operator_says(self) -> None:
        rates = np.zeros((96, 96))
        rates[40:60, 30:70] = 400
        counts = drifted(rates, 1.2, 0, np.random.default_rng(0), shape=1e6)
        expected = (blur(off_grid(), (96, 96), 1.2) @ rates.ravel()).reshape(95, 95)
        for axis in (0, 1):
            np.testing.assert_allclose(counts.sum(axis), expected.sum(axis), atol=0.04 * counts.sum(axis).max())
        assert counts.sum() == pytest.approx(expected.sum(), rel=0.02)

    def test_no_width_changes_nothing(self) -> None:
        overlap = off_grid(6)
        assert (blur(overlap, (6, 6), 0.0) != overlap).nnz == 0

    def test_wrong_width_and_grid(self) -> None:
        with pytest.raises(ValueError, match="width of the drift is -1"):
            blur(off_grid(6), (6, 6), -1)
        with pytest.raises(ValueError, match=r"36 superpixels, but the grid is \(5, 6\)"):
            blur(off_grid(6), (5, 6), 1)


def groups_of_genes(
    sd: float, seed: int, side: int = 200, groups: int = 8
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts, what a model expects, centres, and the field of capture; each group has slow biology of its own."""
    rng = np.random.default_rng(seed)
    shape = (side, side)
    expected = 5 * np.exp(0.5 * smooth_field(shape, 8, rng))[..., None] * np.ones(groups)
    field = sd * smooth_field(shape, 50, rng)
    own = 0.1 * np.stack([smooth_field(shape, 40, rng) for _ in range(groups)], axis=-1)
    wrong = 0.05 * smooth_field(shape, 15, rng)
    library = rng.gamma(4, 1 / 4, (*shape, 1))
    counts = overdispersed(expected * np.exp((field + wrong)[..., None] + own) * library, rng, 4)
    row, column = places(side)
    return (
        counts.reshape(-1, groups),
        expected.reshape(-1, groups),
        np.stack([column, row], axis=1) + 0.5,
        field.ravel(),
    )


class TestCapture:
    @pytest.mark.parametrize("sd", [0.12, 0.3])
    def test_a_planted_field_is_found(self, sd: float) -> None:
        share = []
        for seed in range(3):
            counts, expected, centres, field = groups_of_genes(sd, seed)
            found = capture_field(counts, expected, centres)
            assert found.kept
            assert np.corrcoef(np.log(found.factor), field)[0, 1] > 0.85
            assert found.factor.mean() == pytest.approx(1)
            share.append(found.sd / field.std())
        assert np.mean(share) == pytest.approx(1, abs=0.1)

    def test_none_is_invented(self) -> None:
        for seed in range(4):
            counts, expected, centres, _ = groups_of_genes(0, seed)
            found = capture_field(counts, expected, centres)
            assert not found.kept
            assert found.sd < 0.06

    def test_a_place_too_small_cannot_tell(self) -> None:
        counts, expected, centres, _ = groups_of_genes(0.3, 0, side=24)
        found = capture_field(counts, expected, centres)
        assert not found.kept and np.isnan(found.sd) and (found.factor == 1).all()

    def test_counts_too_few_cannot_tell(self) -> None:
        counts, expected, centres, _ = groups_of_genes(0.3, 0)
        few = np.random.default_rng(0).binomial(counts.astype(int), 1e-3)
        found = capture_field(few, expected, centres)
        assert not found.kept and (found.factor == 1).all()

    def test_genes_must_be_dealt_to_groups(self) -> None:
        with pytest.raises(ValueError, match=r"totals are \(5,\).*two or more groups"):
            capture_field(np.ones(5), np.ones(5), np.ones((5, 2)))
        with pytest.raises(ValueError, match="A group of genes has no counts"):
            capture_field(np.eye(2)[:1].repeat(5, axis=0), np.ones((5, 2)), np.ones((5, 2)))

    @pytest.mark.parametrize("shape", [(5, 1), (5, 3)])
    def test_groups_are_two_or_more_and_those_that_are_expected(self, shape: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"two or more groups"):
            capture_field(np.ones(shape), np.ones((5, 2 if shape[1] > 1 else 1)), np.ones((5, 2)))


def test_no_effects_are_zeros() -> None:
    assert astuple(NO_EFFECTS) == (0.0,) * 4

"""Planted offsets are found, aligned slides raise no alarm, and nothing is moved."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from spatialdata import SpatialData, deepcopy
from spatialdata.transformations import Sequence, Translation, get_transformation, set_transformation

import pixel2gene as p2g

ELEMENTS = {"visium_hd": "square_008um", "visium": "spots", "xenium": "cells"}


def simulate(platform: str = "visium_hd", side: int = 1024, **options: object) -> SpatialData:
    """Slide with a margin that is not measured, as slides have."""
    measured = np.zeros((side // 16, side // 16), bool)
    measured[6:-6, 6:-6] = True
    return p2g.datasets.simulate(platform, size=(side, side), n_genes=40, measured=measured, **options)


def check(sdata: SpatialData, table_key: str = "counts", **options: float) -> p2g.core.alignment.Alignment:
    return p2g.tl.check_alignment(sdata, "he", table_key, progress=False, **options)


def move(sdata: SpatialData, key: str, dx: float, dy: float) -> None:
    """By µm, in every coordinate system."""
    microns = {"global": 1 / 0.2125 if "transcripts" in sdata else 2.0, "micrometers": 1.0}
    for name, old in get_transformation(sdata[key], get_all=True).items():
        shift = Translation([dx * microns[name], dy * microns[name]], axes=("x", "y"))
        set_transformation(sdata[key], Sequence([old, shift]), name)


@pytest.mark.parametrize(
    ("platform", "key", "shift", "options"),
    [
        ("visium_hd", "counts", (31.0, -39.0), {"seed": 0}),
        ("visium_hd", "counts", (-14.0, 6.0), {"seed": 1, "rotation": 20.0}),
        ("visium_hd", "counts", (5.0, 12.0), {"seed": 2, "diffusion_um": 5.0, "stripes": 0.1, "capture": 0.3}),
        ("visium", "counts", (45.0, 20.0), {"seed": 4, "side": 1792}),
        ("xenium", "counts", (-4.0, 5.0), {"seed": 5, "side": 768}),
        ("xenium", "transcripts", (0.0, 48.0), {"seed": 6, "side": 768}),
    ],
)
def test_no_false_alarm_and_planted_shifts_are_found(
    platform: str, key: str, shift: tuple[float, float], options: dict[str, object]
) -> None:
    sdata = simulate(platform, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligned = check(sdata, key)
    assert aligned.known and not aligned.off
    move(sdata, ELEMENTS[platform] if key == "counts" else key, *shift)
    with pytest.warns(UserWarning, match="seems to lie .* more than half a bin"):
        found = check(sdata, key)
    # There are few spots.
    assert found.shift == pytest.approx(shift, abs=14 if platform == "visium" else 2)
    assert found.off


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return simulate(side=768)


def test_nothing_is_moved_or_written(slide: SpatialData) -> None:
    sdata = deepcopy(slide)
    before = {key: repr(get_transformation(sdata[key], get_all=True)) for key in ("he", "square_008um")}
    elements = sorted(sdata.elements_paths_in_memory())
    check(sdata)
    assert {key: repr(get_transformation(sdata[key], get_all=True)) for key in before} == before
    assert sorted(sdata.elements_paths_in_memory()) == elements
    assert "pixel2gene" not in sdata.attrs


def test_counts_that_the_image_does_not_tell_are_said_to_be_unknown(slide: SpatialData) -> None:
    sdata = deepcopy(slide)
    order = np.random.default_rng(0).permutation(sdata["counts"].n_obs)
    sdata["counts"].X = sdata["counts"].X[order]
    with pytest.warns(UserWarning, match="cannot be told"):
        found = check(sdata)
    assert not found.known and not found.off


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([1, 0, 0, -1, 0, 768], "with y flipped"),
        ([-1, 0, 0, 1, 768, 0], "with x flipped"),
        ([0, 1, 1, 0, 0, 0], "with x and y swapped"),
        ([-1, 0, 0, -1, 768, 768], "turned by 180°"),
    ],
)
def test_mirrored_counts_are_recognised(slide: SpatialData, matrix: list[float], said: str) -> None:
    sdata = deepcopy(slide)
    sdata["square_008um"]["geometry"] = sdata["square_008um"].affine_transform(matrix)
    with pytest.warns(UserWarning, match=f"seem to be mirrored: {said} .* Correct the transformation, or the image"):
        assert not check(sdata).known


def test_bad_input(slide: SpatialData) -> None:
    sdata = deepcopy(slide)
    with pytest.raises(KeyError, match=r"No 'nope' among the tables; there are \['counts'\]"):
        check(sdata, "nope")
    with pytest.raises(KeyError, match="No 'nope' among the images"):
        p2g.tl.check_alignment(sdata, "nope", "counts")
    with pytest.raises(KeyError, match="No layer 'nope'"):
        p2g.tl.check_alignment(sdata, "he", "counts", layer="nope")
    with pytest.raises(ValueError, match="20 µm or more"):
        check(sdata, max_shift=5)
    with pytest.raises(ValueError, match="1 µm/px or finer"):
        p2g.tl.check_alignment(sdata, "truth", "counts")
    few = sdata["counts"][:20].copy()
    sdata["counts"].X = csr_matrix(sdata["counts"].shape, dtype=np.float32)
    with pytest.raises(ValueError, match="with 0 counts"):
        check(sdata)
    del sdata["counts"]
    sdata["counts"] = few
    with pytest.raises(ValueError, match="20 units of 'counts' lie on image 'he'"):
        check(sdata)

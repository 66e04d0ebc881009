"""Real legacy sections read as their authors describe them."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

from pixel2gene.datasets import _her2st, her2st
from pixel2gene.io import legacy_st
from pixel2gene.spatial.geometry import raster_levels
from pixel2gene.spatial.pixel_size import pixel_size

DATA = Path(os.environ.get("PIXEL2GENE_DATA", "../shared/data"))

needs_her2st = pytest.mark.skipif(
    not (DATA / "her2st").is_dir(), reason="no her2st in ../shared/data or the folder that PIXEL2GENE_DATA names"
)
needs_mob = pytest.mark.skipif(
    not (DATA / "mob_st2k").is_dir(), reason="no mob_st2k in ../shared/data or the folder that PIXEL2GENE_DATA names"
)


@pytest.fixture(scope="module")
def c2() -> sd.SpatialData:
    return her2st("C2", folder=DATA)


@needs_her2st
def test_section(c2: sd.SpatialData) -> None:
    table = c2["counts"]
    assert table.shape == (187, 15706)
    assert table.obs["cluster"].nunique() == 7
    assert [level.shape for level in raster_levels(c2["he"])][0] == (3, 9911, 9274)
    assert pixel_size(c2, "he") == pytest.approx(0.688, rel=0.005)
    assert c2["spots"]["radius"].iloc[0] == pytest.approx(72.6, rel=0.005)


@needs_her2st
def test_spots_lie_on_tissue(c2: sd.SpatialData) -> None:
    coarse = raster_levels(c2["he"])[3].to_numpy()
    row, column = (c2["counts"].obsm["spatial"][:, ::-1] / 8).astype(int).T
    assert np.median(coarse[:, row, column]) < np.median(coarse) - 30


@needs_her2st
@pytest.mark.parametrize("name", sorted(_her2st._SHA256))
def test_checksums(name: str) -> None:
    assert hashlib.sha256((DATA / "her2st" / name).read_bytes()).hexdigest() == _her2st._SHA256[name]


@needs_mob
def test_2k_array_is_too_coarse() -> None:
    mob = DATA / "mob_st2k"
    sdata = legacy_st(
        mob / "counts" / "MOB1.tsv.gz", mob / "spots" / "alignment_table_MOB1.tsv", mob / "images" / "MOB1.jpg"
    )
    assert sdata["counts"].shape == (379, 1000)
    with pytest.raises(ValueError, match=r"4\.38 µm/px; pixel2gene needs 1 µm/px or finer"):
        pixel_size(sdata, "he")

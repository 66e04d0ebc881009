"""An embedding that was interrupted goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from spatialdata import SpatialData, deepcopy, read_zarr

import pixel2gene as p2g
from pixel2gene.spatial import raster
from pixel2gene.spatial.store import OWN


@pytest.fixture
def stored(embedded_once: SpatialData, tmp_path: Path) -> SpatialData:
    sdata = deepcopy(embedded_once)
    del sdata["he_embedding"]
    sdata.attrs["pixel2gene"] = {"he_tissue": sdata.attrs["pixel2gene"]["he_tissue"]}
    sdata.write(tmp_path / "slide.zarr")
    return read_zarr(tmp_path / "slide.zarr")


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Of tiles of 24 superpixels, die at one; gives the number of those that were begun."""
    embed_tile = raster.embed_tile
    monkeypatch.setattr(raster, "ENCODED", 24)

    def after(tiles: int | None) -> list[int]:
        begun = [0]

        def counted(*args: Any) -> Any:
            begun[0] += 1
            if begun[0] == tiles:
                raise KeyboardInterrupt
            return embed_tile(*args)

        monkeypatch.setattr(raster, "embed_tile", counted)
        return begun

    return after


def embed(sdata: SpatialData, **options: Any) -> None:
    with dask.config.set(scheduler="synchronous"):
        p2g.tl.embed(sdata, "he", progress=False, **options)


def left(sdata: SpatialData) -> list[Path]:
    return list((Path(str(sdata.path)) / OWN).glob("*"))


def test_finished_tiles_are_not_done_again(
    stored: SpatialData, embedded_once: SpatialData, dies_at: Callable[[int | None], list[int]]
) -> None:
    begun = dies_at(4)
    with pytest.raises(KeyboardInterrupt):
        embed(stored)
    assert begun == [4] and "he_embedding" not in read_zarr(stored.path)
    (tiles,) = left(stored)
    assert len(list(tiles.glob("*.tile"))) == 3

    begun = dies_at(None)
    again = read_zarr(stored.path)
    embed(again)
    resumed = begun[0]
    assert left(again) == []
    found = read_zarr(stored.path)["he_embedding"].values
    embed(again, overwrite=True)
    assert begun[0] - resumed == resumed + 3
    np.testing.assert_array_equal(found, again["he_embedding"].values)
    # Borders of tiles lie elsewhere.
    whole = embedded_once["he_embedding"].values.astype(float)
    assert np.abs(found - whole).mean() < 0.01 * whole.std()


def test_another_job_starts_anew(stored: SpatialData, dies_at: Callable[[int | None], list[int]]) -> None:
    dies_at(3)
    with pytest.raises(KeyboardInterrupt):
        embed(stored)
    labels = stored["he_tissue"]
    labels.values[:10] = 0
    stored["half"] = labels
    begun = dies_at(None)
    embed(stored, tissue_key="half")
    some = begun[0]
    # What the first attempt left is gone, too.
    assert left(stored) == []
    embed(stored, tissue_key="half", overwrite=True)
    assert begun[0] == 2 * some

"""Square bins of Stereo-seq, which readers give as points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

_NAME = re.compile(r"bin(\d+)_genes(-.+)?")


@dataclass(frozen=True)
class DnbBins:
    """Bins of ``side`` × ``side`` DNBs, the spots of the chip.

    Attributes
    ----------
    side
        In DNBs, which are the unit of the coordinates.
    corners
        (bins, 2) x and y of the upper left corner, by the index of the points.
    """

    side: int
    corners: pd.DataFrame

    def squares(self) -> gpd.GeoDataFrame:
        """Outlines, by the index of the points."""
        x, y = self.corners.to_numpy(float).T
        boxes = shapely.box(x, y, x + self.side, y + self.side)
        return gpd.GeoDataFrame(geometry=boxes, index=self.corners.index)

    def places(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """(ids, 2) row and column on the lattice."""
        x, y = self.corners.loc[ids].to_numpy(np.int64).T // self.side
        return np.stack([y, x], axis=1)


def dnb_bins(key: str, points: dd.DataFrame) -> DnbBins | None:
    """Take points for bins if they are called so and lie on the lattice of such bins; None of others.

    A GEF gives a bin the coordinates of its upper left corner (the maintainers of Stereopy in STOmics/Stereopy#366).

    Parameters
    ----------
    key
        Name of the element: `spatialdata_io.stereoseq` calls bins of 50 × 50 DNBs ``bin50_genes``.
    points
        The element.
    """
    named = _NAME.fullmatch(key)
    if named is None:
        return None
    side = int(named[1])
    corners = points[["x", "y"]].compute()
    place = corners.to_numpy(float)
    on_lattice = (np.remainder(place - place[:1], side) == 0).all()
    return DnbBins(side, corners) if on_lattice else None

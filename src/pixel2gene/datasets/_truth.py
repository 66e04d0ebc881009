from __future__ import annotations

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from pixel2gene.spatial.elements import get_table
from pixel2gene.spatial.geometry import get_element
from pixel2gene.spatial.grid import SUPERPIXEL_UM, superpixel_grid
from pixel2gene.spatial.pixel_size import pixel_size
from pixel2gene.spatial.units import table_overlap


def true_counts(sdata: SpatialData, table_key: str = "counts", *, image_key: str = "he") -> pd.DataFrame:
    """Expected counts of the units of a simulated table: what denoising should find.

    Parameters
    ----------
    sdata
        From `pixel2gene.datasets.simulate`.
    table_key
        Table of bins, spots or cells, or one with the same columns such as ``"denoised"`` or ``"predicted"``.
    image_key
        H&E that the truth is aligned to.

    Returns
    -------
    Units x genes, in the order of the table: the true rate per superpixel summed over the area of each unit.

    Raises
    ------
    KeyError
        If there is no such table, image or no simulated truth.

    Examples
    --------
    >>> truth = p2g.datasets.true_counts(sdata, "counts")
    >>> truth.shape == sdata["counts"].shape
    True
    """
    truth = get_element(sdata, "truth", "images")
    table = get_table(sdata, table_key)
    grid = superpixel_grid(sdata, image_key, pixel_size(sdata, image_key))
    if truth.shape[1:] != grid.shape:
        raise ValueError(
            f"The truth has {truth.shape[1:]} superpixels, image {image_key!r} {grid.shape} of {SUPERPIXEL_UM:g} µm: "
            "they are not of one simulation."
        )
    genes = table.var_names
    rates = truth.sel(c=genes.to_numpy()).values.reshape(len(genes), -1)
    overlap = table_overlap(sdata, table_key, image_key, grid)
    return pd.DataFrame(np.asarray(overlap @ rates.T), index=table.obs_names, columns=genes)

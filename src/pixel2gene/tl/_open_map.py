from __future__ import annotations

from spatialdata import SpatialData

from pixel2gene.spatial.latent import open_latent_map


def open_map(sdata: SpatialData, key: str = "predicted") -> None:
    """Put the raster of a lazy prediction back, as after reading a store, which has only what it is computed from.

    Parameters
    ----------
    sdata
        Holds the result of `pixel2gene.tl.predict` with ``lazy=True``.
    key
        Of that result.

    Returns
    -------
    None. Adds ``images[f"{key}_map"]``, (genes, y, x) float16 in expected counts per superpixel, NaN outside the
    tissue; in memory only, and computed where it is looked at: ``sdata[f"{key}_map"].sel(c="ERBB2")`` computes one
    block of genes. ``sdata.write_element(f"{key}_map")`` writes all of it to a backed store.

    Raises
    ------
    KeyError
        If there is no such result.

    Examples
    --------
    >>> p2g.tl.predict(sdata, model, lazy=True, progress=False)
    >>> del sdata["predicted_map"]  # as after writing and reading
    >>> p2g.tl.open_map(sdata)
    >>> gene = sdata["predicted_map"].sel(c=model.genes[0]).compute()
    """
    sdata[f"{key}_map"] = open_latent_map(sdata, key)
